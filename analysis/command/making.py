"""The commands that make figures and tables, and what is written of them."""

import functools
import os
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from analysis.command.arguments import ScaleName


def notebooks(
    names: Positional[Annotated[tuple[str, ...], arg(metavar="NAME", help="By default all of the scale.")]] = (),
    scale: ScaleName = "mini",
) -> None:
    """Execute notebooks top to bottom; the executed copies go to figures/SCALE/notebooks."""
    from analysis.command.notebook_runner import NotebookError, run_notebook
    from analysis.scales.plan import Plan
    from analysis.scales.scale import load_scale
    from analysis.scales.states import fingerprints

    settings, failures = load_scale(scale), []
    plan = Plan(settings)
    for name in names or settings.notebooks:
        source = settings.root / "notebooks" / f"{name}.ipynb"
        target = settings.figures_dir / "notebooks" / f"{name}.ipynb"
        try:
            fingerprint = functools.partial(fingerprints, plan, plan.notebook(name))
            print(run_notebook(source, target, parameters={"SCALE": scale}, root=settings.root, read=fingerprint))
        except NotebookError as error:  # the others go on
            failures.append(str(error))
            print(f"tla: {error}", file=sys.stderr)
    if failures:
        raise NotebookError(f"{len(failures)} notebook(s) failed.")


def figures(
    scale: ScaleName = "mini",
    cores: Annotated[int | None, arg(help="Jobs side by side; by default as many as there are processors.")] = None,
    profile: Annotated[str | None, arg(help="local, slurm, or a Snakemake profile of your own.")] = None,
    snakemake_args: Annotated[str, arg(help='Further arguments of Snakemake, such as "-n".')] = "",
) -> None:
    """Make everything of a scale that is missing or out of date; `make figures` calls this."""
    import shlex

    from analysis.command.pipeline import run_pipeline
    from analysis.scales.scale import project_root

    cores = cores or (None if profile else os.cpu_count() or 1)
    run_pipeline(scale, root=project_root(), cores=cores, profile=profile, extra=shlex.split(snakemake_args))


def manifest(scale: ScaleName = "mini") -> None:
    """Write which files show which figure or table of a scale, and a page that shows them; fail if one is missing."""
    from analysis.paper.figure_index import write_index
    from analysis.scales.manifest import SHOWN_BY, check_manifest, write_manifest
    from analysis.scales.scale import load_scale

    settings = load_scale(scale)
    print(write_index(settings.figures_dir))
    print(write_manifest(settings.figures_dir))
    expected = [artefacts for notebook, artefacts in SHOWN_BY.items() if notebook in settings.notebooks]
    check_manifest(settings.figures_dir, list(chain.from_iterable(expected)))


def redraw(
    names: Positional[Annotated[tuple[str, ...], arg(metavar="NAME", help="Such as fig1; by default all.")]] = (),
    scale: ScaleName = "mini",
    check: Annotated[bool, arg(help="Change nothing; fail where a file would get other bytes.")] = False,
) -> None:
    """Draw a scale's figures and tables again from the files beside them alone: no model, no dataset, no results."""
    from analysis.display.drawings import DrawingError
    from analysis.paper.redraw import changed_when_redrawn, draw_again
    from analysis.scales.scale import load_scale

    folder = load_scale(scale).figures_dir
    results = (changed_when_redrawn if check else draw_again)(folder, names)
    for each in results:
        print(f"{each.stem}  {'other bytes: ' + ', '.join(each.changed) if each.changed else 'the same bytes'}")
    if check and (changes := [each.stem for each in results if each.changed]):
        raise DrawingError(f"{', '.join(changes)} of {folder} would get other bytes.")


def reproduction(
    scale: ScaleName = "small",
    out: Annotated[Path | None, arg(help="The document; by default docs/reproduction.md.")] = None,
) -> None:
    """Put every number of a scale beside the paper's, with a verdict on each; reads the sidecars alone."""
    import yaml

    from analysis.paper.reproduction import report
    from analysis.scales.scale import load_scale
    from tla_core.checkpoint import write_atomic

    settings = load_scale(scale)
    reasons = settings.root / "workflow" / "reproduction.yaml"
    reasons_known = yaml.safe_load(reasons.read_text(encoding="utf-8")) if reasons.is_file() else []
    path = out or settings.root / "docs" / "reproduction.md"
    write_atomic(path, report(settings.figures_dir, settings, reasons_known or []).encode())
    print(path)


def ablation(
    names: Positional[Annotated[tuple[str, ...], arg(metavar="NAME", help="Experiments; by default all.")]] = (),
    plan: Annotated[str, arg(help="The file of workflow/ that lists them; results are named after it.")] = "ablation",
    report: Annotated[bool, arg(help="Train nothing: write the page from what was measured.")] = False,
    device: Annotated[str, arg(help="auto, cpu, cuda or cuda:N.")] = "auto",
    progress: Annotated[bool, arg(help="Show progress bars.")] = True,
) -> None:
    """Train what workflow/ablation.yaml lists, measure it on held-out images, and write docs/results/ablation.md.

    An interrupted call goes on where it was; what was measured stands in docs/results/ablation.jsonl.
    """
    from analysis.paper.ablation import Ablation
    from analysis.paper.ablation_report import write_report
    from analysis.scales.scale import project_root

    root = project_root()
    path = root / "workflow" / f"{plan}.yaml"
    if not plan.startswith("ablation") or not path.is_file():
        known_names = ", ".join(sorted(each.stem for each in path.parent.glob("ablation*.yaml")))
        raise ValueError(f"no plan {plan!r} in {path.parent}. There are: {known_names}.")
    results = root / "docs" / "results"
    experiments = Ablation(path, results / f"{plan}.jsonl", root / "runs" / plan)
    if unknown := sorted(set(names) - {experiment.name for experiment in experiments.experiments}):
        known_names = ", ".join(experiment.name for experiment in experiments.experiments)
        raise ValueError(f"no experiment {', '.join(unknown)}. There are: {known_names}.")
    for record in () if report else experiments.run(names, device=device, progress=progress):
        print(f"{record['cell']}, seed {record['seed']}: {record['clean']:.1%} clean, {record['robust']:.1%} robust")
    for path in write_report(experiments, results / f"{plan}.md"):
        print(path)


def demo(
    out: Annotated[Path | None, arg(help="Folder; by default demo, below the project.")] = None,
    images: Annotated[int, arg(help="Test images of MNIST, 300 to 5,000.")] = 500,
    open_page: Annotated[bool, arg(name="open", help="Open the explorer in the browser.")] = False,
    progress: Annotated[bool, arg(help="Show progress bars.")] = True,
) -> None:
    """Attack the published MNIST models and show their representations, in about a minute: nothing is trained."""
    import webbrowser

    from analysis.command.demo import demo as make_demo
    from analysis.scales.scale import project_root

    paths = make_demo(out or project_root() / "demo", images=images, progress=progress)
    print(paths[-1].with_suffix(".md").read_text(encoding="utf-8"))
    contents = ("the explorer: open it in a browser", "maps of three classes", "ratios")
    for path, content in zip(paths, contents, strict=True):
        print(f"{path}  {content}")
    if open_page:
        webbrowser.open(paths[0].resolve().as_uri())
