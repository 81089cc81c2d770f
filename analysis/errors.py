"""Which errors were written for the user."""

import dis


def is_ours(error: Exception) -> bool:
    """Whether it was raised by a ``raise`` of ours: its message says what to do, and it needs no traceback."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    module = last.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    raised = last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raised and module in ("tla_core", "analysis", "__main__")
