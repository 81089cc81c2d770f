"""The commands that show, publish, restore and remove runs, and build the site."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from analysis.command.arguments import ScaleName


def status(
    scale: ScaleName = "mini",
    only: Annotated[tuple[Literal["made", "stale", "unfinished", "missing"], ...], arg(help="Show these alone.")] = (),
    commands: Annotated[bool, arg(help="Show the command that makes what is not made.")] = False,
) -> None:
    """Show what a scale consists of: what is made, stale, unfinished or missing, and why.

    The exit status is 1 where a file is damaged.
    """
    from analysis.scales.states import UNREADABLE
    from analysis.scales.status import scale_status, table_text
    from tla_core.checkpoint import CheckpointError

    state = scale_status(scale)
    print(table_text(state.to_table(only), leave_out=() if commands else ("command",)))
    damaged = [each.artefact.path for each in state.records if each.state.reason.startswith(UNREADABLE)]
    if damaged:
        raise CheckpointError(f"{len(damaged)} file(s) cannot be read; the table says why: {', '.join(damaged)}.")


def runs(
    scale: Annotated[str | None, arg(help="Only those of this scale.")] = None,
) -> None:
    """List all run folders: how far each is, how good, and whether its scale still wants it."""
    from analysis.scales.runs import list_runs
    from analysis.scales.scale import project_root
    from analysis.scales.status import table_text

    print(table_text(list_runs(project_root(), scale)))


def clean(
    categories: Positional[
        Annotated[
            tuple[Literal["moved-aside", "leftovers"], ...],
            arg(metavar="CATEGORY", help="By default both."),
        ]
    ] = (),
    scale: Annotated[str | None, arg(help="Only what belongs to this scale.")] = None,
    yes: Annotated[bool, arg(help="Remove it. Without this it is only listed.")] = False,
) -> None:
    """List what nothing needs any more: runs that were moved aside, and leftovers. With --yes, remove it."""
    from analysis.scales.cleaning import CATEGORIES
    from analysis.scales.cleaning import clean as clean_up
    from analysis.scales.scale import project_root

    print(clean_up(project_root(), categories=categories or CATEGORIES, scale=scale, remove=yes))


def publish(
    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help="Finished runs whose accuracies are there.")]],
    out: Annotated[
        Path | None,
        arg(help="Where they go; by default checkpoints below the project, or robustbench with --robustbench."),
    ] = None,
    robustbench: Annotated[
        bool, arg(help="Write what RobustBench's model zoo takes instead: a state dict, its class, its numbers.")
    ] = False,
) -> None:
    """Put runs into folders as the Hugging Face hub has them: weights, settings, a model card with the accuracies."""
    from analysis.publish.model_cards import hub_name, publish_run
    from analysis.publish.robustbench import publish_for_robustbench
    from analysis.scales.scale import project_root

    for run in runs:
        if robustbench:
            folder = out or project_root() / "robustbench"
            print(publish_for_robustbench(run, folder))
            print(f"  its entry is in {folder / 'model_zoo'}, its numbers, with a footnote, in {folder / 'model_info'}")
        else:
            print(publish_run(run, (out or project_root() / "checkpoints") / hub_name(run)))


def restore(scale: ScaleName = "small") -> None:
    """Put the published runs where a scale's own would lie: its figures are made from them, without training."""
    from analysis.publish.model_cards import restore_runs
    from analysis.scales.scale import load_scale

    for path in restore_runs(load_scale(scale)):
        print(path)


def repair(runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help="Run folders.")]]) -> None:
    """Verify every file of runs, and restore what is damaged from what is intact beside it; nothing is trained."""
    from tla_core.run_repair import repair_run

    for run in runs:
        for line in repair_run(run) or [f"{run}: nothing to repair."]:
            print(line)


def site(
    scale: ScaleName = "mini",
    out: Annotated[Path | None, arg(help="Folder of the site; by default site, below the project.")] = None,
) -> None:
    """Build the site: executed notebooks, guide and reference, for a browser without a network."""
    from analysis.publish.site import build_site
    from analysis.scales.scale import project_root

    root = project_root()
    print(build_site(root, scale, out or root / "site") / "index.html")
