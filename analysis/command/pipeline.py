"""Runs the Snakemake pipeline of a scale, also after a run of it that was killed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from analysis.command.jobs import job_server
from analysis.scales.lock import PipelineError, pipeline_lock
from analysis.scales.plan import Plan
from analysis.scales.scale import Scale, load_scale
from analysis.scales.states import judge


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
        Further arguments of Snakemake, such as ``-n``.

    Raises
    ------
    PipelineError
        If a job failed (Snakemake has said which), or another pipeline is at work here.
    """
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "workflow" / "Snakefile")]
    snakemake += ["--directory", str(root), "--config", f"scale={scale}"]
    settings = ["--cores", str(cores)] if cores else []
    if profile:
        ours = root / "workflow" / "profiles" / profile
        settings += ["--profile", str(ours if ours.is_dir() else profile)]
    beside_this_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": beside_this_python}  # the rules call `tla`
    with pipeline_lock(root) as lock:
        # Snakemake inherits our lock, which goes with the last process that holds it. Its own does not: one that is
        # here now was left by a Snakemake that was killed. A training that outlived it is not touched: it holds the
        # lock of its own run folder.
        if any((root / ".snakemake" / "locks").glob("*")):
            subprocess.run([*snakemake, "--unlock", "--quiet", "all"], check=True, env=environment)
        arguments = snakemake_arguments(stale_paths(load_scale(scale, root)), extra)
        with job_server() if profile in (None, "local") else nullcontext({}) as of_server:
            status = subprocess.run(
                [*snakemake, *settings, *arguments], env=environment | of_server, pass_fds=[lock.fileno()]
            ).returncode
    if status:
        raise PipelineError(
            f"the pipeline failed (Snakemake's status {status}); the messages above say where. What was made is kept:"
            " the same command goes on from there."
        )


def snakemake_arguments(stale: Sequence[str], extra: Sequence[str]) -> list[str]:
    """What Snakemake is told of what is stale, with the user's arguments behind it.

    The last option before these takes no values: else it would swallow a target of the user's. Of two ``--forcerun``
    Snakemake takes the last: what is stale is added to the user's.
    """
    extra = list(extra)
    ours = ["--quiet", "host", "reason", "--rerun-triggers", "input"]
    places = [place for place, word in enumerate(extra) if word in ("-R", "--forcerun")]
    for place in reversed(places):
        extra[place + 1 : place + 1] = stale
    if stale and not places:
        ours += ["--forcerun", *stale]
    return [*ours, "--rerun-incomplete", *extra]


def stale_paths(scale: Scale) -> list[str]:
    """What of a scale is there and must be made again, as paths that Snakemake knows."""
    plan, known = Plan(scale), {}
    states = [(each, judge(plan, each, known).name) for each in plan.artefacts.values()]
    stale = [each.path for each, state in states if state == "stale"]
    # One job makes the maps of pairs and of classes, and declares the latter: it is told of either.
    of_pairs = [each.path for each, state in states if each.kind == "pair maps" and state != "made"]
    paths = (path.replace("/pair-maps-", "/class-maps-") for path in [*stale, *of_pairs])
    return list(dict.fromkeys(paths))
