"""The kernel of a notebook as a fork of the job server, which has imported what notebooks import.

`python -m analysis.command.served_kernel -f CONNECTION_FILE` stands in for `python -m ipykernel_launcher`: it asks the
server for a kernel, passes signals on and ends with it. Without a server it becomes the kernel itself.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence

from analysis.command.jobs import KERNEL, run_served


def launch(arguments: Sequence[str]) -> int:
    """Be a kernel until it is told to shut down; matplotlib draws with what the environment says."""
    from ipykernel.kernelapp import IPKernelApp

    if "matplotlib" in sys.modules:  # imported by the server, whose environment is another one
        sys.modules["matplotlib"].use(os.environ.get("MPLBACKEND", "module://matplotlib_inline.backend_inline"))
    # ipykernel, imported by the server, has read whose child it is: without a parent it would talk to a terminal.
    parent = os.environ.get("JPY_PARENT_PID", "0")
    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={parent}"])
    return 0


def kernel_manager_class() -> type:
    """A kernel manager whose kernels are started as this module says, by this Python.

    The kernel specs of the machine are not read: one of them may be that of an environment that is gone.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = [sys.executable, "-m", "analysis.command.served_kernel", "-f", "{connection_file}"]

    class ServedKernelManager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    return ServedKernelManager


def _end_with_parent(parent: int) -> None:
    """A kernel is in a session of its own, and would outlive the notebook that is executed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # upon which the server ends the kernel


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    status = run_served([KERNEL, *sys.argv[1:]])
    sys.exit(launch(sys.argv[1:]) if status is None else status)
