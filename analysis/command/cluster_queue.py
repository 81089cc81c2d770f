"""Jobs that a pipeline has submitted to SLURM.

They outlive the machine that submitted them, and the next Snakemake knows nothing of them: it would submit them again,
and a run that another process is training is refused.
"""

import shutil
import subprocess
import time
from pathlib import Path

from analysis.scales.lock import PipelineError

# Below the root: where the executor has SLURM write what a job says, so that a job can be told by it.
_LOGS = Path(".snakemake", "slurm_logs")
_STATES = "PENDING,CONFIGURING,RUNNING,SUSPENDED,COMPLETING"
_SECONDS, _ATTEMPTS = 10, 5


def submitted_jobs(root: Path) -> dict[str, str]:
    """The user's jobs of this project that SLURM has not ended: number -> rule and wildcards; none where no SLURM is.

    Raises
    ------
    PipelineError
        If SLURM does not answer within a minute.
    """
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--noheader", f"--states={_STATES}", "--Format=JobID:30,STDOUT:4000"]
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_SECONDS)
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode == 0:
            break
    else:
        raise PipelineError(
            f"SLURM does not say which jobs of an earlier call are still at work: {answer.stderr.strip()}. Look whether"
            " `squeue --me` answers, and try again."
        )
    logs = (root / _LOGS).resolve()
    outputs = (line.split(maxsplit=1) for line in answer.stdout.splitlines())
    jobs = {number: Path(*output) for number, *output in outputs}
    return {
        number: " ".join(output.relative_to(logs).parent.parts).removeprefix("rule_")
        for number, output in jobs.items()
        if output.is_relative_to(logs)
    }


def wait_for_jobs(root: Path) -> None:
    """Wait for jobs that an earlier call has submitted, and say so."""
    announced: set[str] = set()
    while jobs := submitted_jobs(root):
        if not jobs.keys() <= announced:
            announced |= jobs.keys()
            names = ", ".join(f"{number} ({name})" for number, name in jobs.items())
            print(
                f"SLURM still has jobs of an earlier call that was killed: {names}. Waiting for them, so that nothing"
                f" is made twice; `scancel {' '.join(jobs)}` ends them, and what they have stored is kept.",
                flush=True,
            )
        time.sleep(_SECONDS)
