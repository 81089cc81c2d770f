"""The `tla` command. Everything heavy is imported by the subcommand that needs it, so that `tla --help` is quick."""

import sys

try:
    import contextlib
    import os
    import signal
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from typing import Literal, get_args, get_origin

    import tyro

    from analysis.command.analysing import extract, landscape, project
    from analysis.command.evaluating import evaluate_command
    from analysis.command.explore import explore
    from analysis.command.jobs import run_served
    from analysis.command.keeping import clean, publish, repair, restore, runs, site, status
    from analysis.command.making import ablation, demo, figures, manifest, notebooks, redraw, reproduction
    from analysis.command.report import report
    from analysis.command.training import data, presets, train_command
    from analysis.errors import is_ours
    from tla_core.attack_config import format_number, parse_number
    from tla_core.validation import did_you_mean
except KeyboardInterrupt:  # a quarter of a second in which Ctrl+C would end in a traceback
    print("tla: interrupted before it began.", file=sys.stderr)
    sys.exit(130)

DESCRIPTION = """Train UM, AT, ALP and TLA classifiers and look into their clean and adversarial representations.

Numbers may be fractions: --attack.eps 8/255. `tla COMMAND --help` explains a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None and (status := run_served(args)) is not None:
        return status
    try:
        with _ended_by_signals():
            known = commands(args)
            if args and not args[0].startswith("-") and args[0] not in known:
                near = did_you_mean(args[0], known)
                names = ", ".join(known)
                print(f"tla: error: there is no command {args[0]!r}.{near} There are: {names}.", file=sys.stderr)
                sys.exit(2)
            tyro.extras.subcommand_cli_from_dict(
                known, prog="tla", description=DESCRIPTION, args=args or ["--help"], registry=_values()
            )
    except BrokenPipeError:  # who read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("tla: interrupted. The same command goes on from the last saved state.", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if not isinstance(error, OSError) and not is_ours(error):
            raise
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        print(f"tla: error: {text}{_other_images(error, args[0])}", file=sys.stderr)
        return 1
    return 0


def _other_images(error: Exception, command: str) -> str:
    """What else may be done where a dataset is missing, and the command takes other images too."""
    from tla_core.dataset_files import DatasetNotFoundError

    if command not in ("evaluate", "extract", "explore", "report") or not isinstance(error, DatasetNotFoundError):
        return ""
    return " Or name other images of the same classes: --data NAME, an image FOLDER, or an .npz FILE."


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end a command as an error does, in good order; a second one at once."""
    before = {}

    def end(signum: int, _) -> None:
        signal.signal(signum, signal.SIG_DFL)
        sys.exit(128 + signum)

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) == signal.SIG_DFL:
                before[signum] = signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def commands(args: Sequence[str]) -> dict[str, Callable[..., None]]:
    """The subcommands; the run or preset that the command line names gives some their defaults."""
    return {
        "train": train_command(_named(args, "train")),
        "evaluate": evaluate_command(_named(args, "evaluate"), args),
        "extract": extract,
        "project": project,
        "landscape": landscape,
        "explore": explore,
        "report": report,
        "notebooks": notebooks,
        "figures": figures,
        "manifest": manifest,
        "redraw": redraw,
        "reproduction": reproduction,
        "ablation": ablation,
        "demo": demo,
        "publish": publish,
        "restore": restore,
        "repair": repair,
        "site": site,
        "status": status,
        "runs": runs,
        "clean": clean,
        "presets": presets,
        "data": data,
    }


def _named(args: Sequence[str], command: str) -> str | None:
    """What stands right behind the command, if that is not a flag."""
    return args[1] if len(args) > 1 and args[0] == command and not args[1].startswith("-") else None


def _values() -> tyro.constructors.ConstructorRegistry:
    """Read every float by our own parser, which knows fractions, and name the nearest of choices that are words."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def number(info: tyro.constructors.PrimitiveTypeInfo):
        if info.type is not float:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="NUMBER",
            instance_from_str=lambda words: parse_number(words[0]),
            is_instance=lambda value: isinstance(value, (int, float)),
            str_from_instance=lambda value: [format_number(value)],
        )

    @registry.primitive_rule
    def choice(info: tyro.constructors.PrimitiveTypeInfo):
        choices = get_args(info.type)
        if get_origin(info.type) is not Literal or not all(isinstance(each, str) for each in choices):
            return None

        def chosen(words: list[str]) -> str:
            if words[0] not in choices:
                near = did_you_mean(words[0], choices)
                raise ValueError(f"expected one of {', '.join(choices)}. Got {words[0]!r}.{near}")
            return words[0]

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(choices)}}}",
            instance_from_str=chosen,
            is_instance=lambda value: value in choices,
            str_from_instance=lambda value: [value],
        )

    return registry
