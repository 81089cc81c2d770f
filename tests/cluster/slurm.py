"""A SLURM of one node, this machine, of its distribution's packages, all of its files in one temporary folder."""

import contextlib
import importlib.util
import os
import platform
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol")
PLUGIN = "snakemake_executor_plugin_slurm"
# Of the node: enough for two jobs at once that ask for 8000 MB, and for no more than 16000.
CPUS, MEMORY = 2, 16000

# Nothing here needs systemd or cgroups: processes are followed by their groups, and nothing is bound to a core.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN{gpus}
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no SLURM can be started here; empty where one can."""
    if platform.system() != "Linux":
        return f"SLURM is tried on Linux only, and this is {platform.system()}"
    if os.geteuid() != 0:
        return "a SLURM of one's own needs root, and this user is not"
    missing = [name for name in (*DAEMONS, *COMMANDS) if shutil.which(name, path=PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: apt-get install munge slurmctld slurmd slurm-client)"
    if importlib.util.find_spec(PLUGIN) is None:
        return f"not installed: {PLUGIN}"
    return ""


class Cluster:
    """A SLURM that runs.

    Attributes
    ----------
    environment : dict
        Of processes that use it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join([str(folder / "bin"), PATH]),
        }

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands, and return what it prints."""
        ran = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}{self.logs()}"
        return ran.stdout

    def jobs(self, states: str = "PENDING,RUNNING,COMPLETING") -> dict[str, str]:
        """The jobs in these states: what the executor says of each -> its number."""
        lines = self.run("squeue", "--noheader", f"--states={states}", "--format=%i %k").splitlines()
        return {comment: number for number, comment in (line.split(maxsplit=1) for line in lines)}

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job."""
        return dict(word.split("=", 1) for word in self.run("scontrol", "show", "job", number).split() if "=" in word)

    def logs(self) -> str:
        """The last lines of each daemon's log."""
        logs = sorted(self.folder.glob("*.log"))
        return "".join(f"\n{log.name}:\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)


@contextlib.contextmanager
def cluster(*, gpus: int) -> Iterator[Cluster]:
    """Start a SLURM; at the end of the block its jobs are cancelled, and its daemons are gone.

    Parameters
    ----------
    gpus : int
        That its node says to have. None has to be there.
    """
    # Not below pytest's folder: the path of munge's socket has at most 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        slurm = Cluster(Path(name))
        _configure(slurm, gpus)
        files = {kind: slurm.folder / f"munge.{kind}" for kind in ("key", "socket", "pid", "seed")}
        _start(
            stack, slurm, "munged", "--foreground", "--force", f"--key-file={files['key']}",
            f"--socket={files['socket']}", f"--pid-file={files['pid']}", f"--seed-file={files['seed']}",
            f"--log-file={slurm.folder / 'munge.log'}",
        )  # fmt: skip
        _wait(files["socket"].exists, slurm)
        _start(stack, slurm, "slurmctld", "-D", "-f", slurm.environment["SLURM_CONF"])
        _start(stack, slurm, "slurmd", "-D", "-f", slurm.environment["SLURM_CONF"])
        _wait(lambda: "idle" in _output(slurm, "sinfo", "--noheader", "--format=%T"), slurm)
        try:
            yield slurm
        finally:
            slurm.run("scancel", "--user=root")
            _wait(lambda: not slurm.jobs(), slurm)


def _configure(slurm: Cluster, gpus: int) -> None:
    folder = slurm.folder
    for below in ("state", "spool", "bin"):
        (folder / below).mkdir()
    controller_port, node_port = _free_ports(2)
    text = CONFIGURATION.format(
        folder=folder, host=socket.gethostname(), controller_port=controller_port, node_port=node_port, cpus=CPUS,
        memory=MEMORY, gpus=f" Gres=gpu:{gpus}" if gpus else "",
    )  # fmt: skip
    (folder / "slurm.conf").write_text(text)
    devices = [folder / f"gpu{number}" for number in range(gpus)]
    for device in devices:
        device.touch()
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in devices))
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    # A cluster has its configuration in /etc, and inside of a job the executor takes SLURM_CONF away from srun.
    program = shutil.which("srun", path=PATH)
    (folder / "bin" / "srun").write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {program} "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(stack: contextlib.ExitStack, slurm: Cluster, name: str, *arguments: str) -> None:
    log = stack.enter_context((slurm.folder / f"{name}.log").open("w"))
    program = shutil.which(name, path=PATH)
    process = subprocess.Popen([program, *arguments], env=slurm.environment, stdout=log, stderr=log)
    stack.callback(_end, process)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _output(slurm: Cluster, *command: str) -> str:
    return subprocess.run(command, env=slurm.environment, capture_output=True, text=True, timeout=60).stdout


def _wait(condition: Callable[[], bool], slurm: Cluster, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.1)
