"""Runs the Snakemake pipeline of a scale, also after a run of it that was killed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

from analysis.command import snakemake_process
from analysis.command.cluster_queue import wait_for_jobs
from analysis.command.jobs import job_server
from analysis.command.progress import Progress
from analysis.scales.lock import PipelineError, pipeline_lock
from analysis.scales.plan import Plan
from analysis.scales.scale import Scale, load_scale
from analysis.scales.states import judge

# Of the jobs, below the root; see the Snakefile.
LOGS = Path(".snakemake", "jobs")


def run_pipeline(
    scale: str, *, root: Path, cores: int | None, profile: str | None = None, extra: Sequence[str] = ()
) -> None:
    """Make everything of a scale that is missing or out of date.

    Parameters
    ----------
    scale : str
    root : Path
        Root of the project.
    cores : int, optional
        Jobs that run side by side; at mini each takes one. None leaves it to the profile.
    profile : str, optional
        One of ``workflow/profiles``, or another that Snakemake finds.
    extra : sequence of str
        Further arguments of Snakemake, such as ``-n``. With them Snakemake's own messages are shown.

    Raises
    ------
    PipelineError
        If a job failed (Snakemake has said which), or another pipeline is at work here.
    """
    snakemake = ["--snakefile", str(root / "workflow" / "Snakefile"), "--directory", str(root)]
    snakemake += ["--config", f"scale={scale}"]
    settings = ["--cores", str(cores)] if cores else []
    if profile:
        ours = root / "workflow" / "profiles" / profile
        settings += ["--profile", str(ours if ours.is_dir() else profile)]
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": search_path}  # the rules call `tla`
    with pipeline_lock(root) as lock:
        if profile not in (None, "local") and not {"-n", "--dry-run", "--dryrun"} & set(extra):
            wait_for_jobs(root)
        # Snakemake inherits our lock, which ends with the last process that holds it. Snakemake's own lock does not:
        # one that exists now was left by a Snakemake that was killed, and so were unfinished notebooks. A training
        # that outlived it goes on: it holds the lock of its own run folder.
        if any((root / ".snakemake" / "locks").glob("*")):
            unlock = [sys.executable, "-m", "snakemake", *snakemake, "--unlock", "--quiet", "all"]
            subprocess.run(unlock, check=True, env=environment)
        settings_of_scale = load_scale(scale, root)
        for unfinished in (settings_of_scale.figures_dir / "notebooks").glob("*.running.ipynb"):
            unfinished.unlink(missing_ok=True)
        arguments = [*snakemake, *settings, *snakemake_arguments(stale_paths(settings_of_scale), extra)]
        with job_server() if profile in (None, "local") else nullcontext({}) as server_variables:
            status = _run(settings_of_scale, arguments, environment | server_variables, lock.fileno(), bool(extra))
    if status:
        raise PipelineError(
            f"the pipeline failed (Snakemake's status {status}); the messages above say where. What was made is kept:"
            " the same command goes on from there."
        )


def _run(scale: Scale, arguments: Sequence[str], environment: dict[str, str], lock: int, plain: bool) -> int:
    """Run Snakemake, show how far it is unless its own messages are asked for, and return its status."""
    logs = scale.root / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    progress = None if plain else Progress(Plan(scale), logs)
    with ExitStack() as stack:
        messages = logs / f"snakemake-{scale.name}.log"
        output = None if plain else stack.enter_context(messages.open("wb"))
        started = snakemake_process.started(arguments, environment=environment, inherited=[lock], output=output)
        process, events = stack.enter_context(started)
        for event in events:
            if progress:
                progress.show(event)
    if progress:
        if process.returncode and not progress.failed:  # no job failed: it is what Snakemake itself has said
            sys.stderr.write(messages.read_text(encoding="utf-8", errors="replace"))
        progress.close(process.returncode)
    return process.returncode


def snakemake_arguments(stale: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Arguments for Snakemake: ours, with the paths that are stale, and then the user's.

    The last of ours is an option without values, which would otherwise swallow a target of the user's. Snakemake obeys
    only the last ``--forcerun``, so the stale paths are added to that of the user if there is one. What Snakemake calls
    incomplete was begun under a Snakemake that was killed: a file that a job has finished since then is whole, and its
    metadata say what it is.
    """
    extra = list(extra)
    ours = ["--quiet", "host", "reason", "--rerun-triggers", "input"]
    places = [place for place, word in enumerate(extra) if word in ("-R", "--forcerun")]
    for place in reversed(places):
        extra[place + 1 : place + 1] = stale
    if stale and not places:
        ours += ["--forcerun", *stale]
    return [*ours, "--ignore-incomplete", *extra]


def stale_paths(scale: Scale) -> list[str]:
    """Paths, as Snakemake knows them, of what a scale has and must make again."""
    plan, known = Plan(scale), {}
    states = [(each, judge(plan, each, known).name) for each in plan.artefacts.values()]
    stale = [each.path for each, state in states if state == "stale"]
    # One job makes the maps of pairs and those of classes. It declares only the latter, which stand for both here.
    pair_maps = [each.path for each, state in states if each.kind == "pair maps" and state != "made"]
    paths = (path.replace("/pair-maps-", "/class-maps-") for path in [*stale, *pair_maps])
    return list(dict.fromkeys(paths))
