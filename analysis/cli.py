"""The `tla` command. Everything heavy is imported by the subcommand that needs it, so that `tla --help` is quick."""

import sys

try:
    import dataclasses
    import os
    import warnings
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Annotated, Literal

    import tyro
    from tyro.conf import Positional, arg

    from analysis.explore.command import explore
    from analysis.job_server import run_served
    from tla_core.attack_config import AttackConfig, format_number, parse_number
    from tla_core.config import TrainConfig
except KeyboardInterrupt:  # a quarter of a second in which Ctrl+C would end in a traceback
    print("tla: interrupted before it began.", file=sys.stderr)
    sys.exit(130)

DESCRIPTION = """Train UM, AT, ALP and TLA classifiers and look into their clean and adversarial representations.

Numbers may be fractions: --attack.eps 8/255. `tla COMMAND --help` explains a command."""

RunDir = Annotated[Path, arg(metavar="RUN", help="Run folder, such as runs/mini/mnist/tla/seed0.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None and (status := run_served(args)) is not None:
        return status
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands(args), prog="tla", description=DESCRIPTION, args=args or ["--help"], registry=_numbers()
        )
    except KeyboardInterrupt:
        print("tla: interrupted. The same command goes on from the last saved state.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if not isinstance(error, OSError) and not _is_ours(error):
            raise
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        print(f"tla: error: {text}", file=sys.stderr)
        return 1
    return 0


def commands(args: Sequence[str]) -> dict[str, Callable[..., None]]:
    """The subcommands; the run or preset that the command line names gives some their defaults."""
    return {
        "train": _train_command(args),
        "evaluate": _evaluate_command(args),
        "extract": extract,
        "project": project,
        "landscape": landscape,
        "explore": explore,
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


def _train_command(args: Sequence[str]) -> Callable[..., None]:
    """`tla train`, with the fields of the preset that the command line names as defaults."""
    named = _named(args, "train")
    default = TrainConfig.preset(named) if named else TrainConfig()

    def train(
        preset: Positional[Annotated[str, arg(metavar="PRESET", help="See `tla presets`.")]],
        config: Annotated[TrainConfig, arg(name="")] = default,
        out: Annotated[Path | None, arg(help="Run folder. By default runs/PRESET/seedN below the project.")] = None,
        replace: Annotated[bool, arg(help="Move a run with other settings aside instead of refusing.")] = False,
        init_from: Annotated[Path | None, arg(help="Run folder whose weights the training starts from.")] = None,
        device: Annotated[str, arg(help="auto, cpu, cuda or cuda:N.")] = "auto",
        progress: Annotated[bool, arg(help="Show a progress bar.")] = True,
        tensorboard: Annotated[bool, arg(help="Log for TensorBoard too, into OUT/tensorboard.")] = False,
    ) -> None:
        """Train a model, or go on with a training that was interrupted.

        With a PRESET, every one of its settings can be changed by a flag: `tla train PRESET --help` shows their values.
        """
        from analysis.scales import project_root
        from tla_core.training import train as train_model

        if preset != named:
            raise ValueError("PRESET must come before the flags: `tla train PRESET --epochs 2`.")
        folder = out or project_root() / "runs" / preset / f"seed{config.seed}"
        options = {"init_from": init_from, "device": device, "replace": replace, "progress": progress}
        result = train_model(config, folder, tensorboard=tensorboard, **options)
        if os.environ.get("RANK", "0") == "0":  # with torchrun, one process speaks for all
            print(result)

    return train


def _evaluate_command(args: Sequence[str]) -> Callable[..., None]:
    """`tla evaluate`, with the attack of the run that the command line names as default of ``--attack``."""
    named, default = _named(args, "evaluate"), AttackConfig()
    own_attack = any(word.startswith("--attack.") for word in args)
    if named:
        from analysis.run_results import run_config
        from tla_core.protocol import analysis_attack

        default = analysis_attack(run_config(named))

    def evaluate(
        runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help="Run folders.")]],
        only: Annotated[tuple[str, ...], arg(help="Measure these columns alone, such as PGD20; clean is always.")] = (),
        images: Annotated[int | None, arg(help="Images for every attack, evenly spread over the split.")] = None,
        long_images: Annotated[int | None, arg(help="Images for attacks above 40 steps, or with restarts.")] = None,
        strongest_images: Annotated[int | None, arg(help="Images for APGD; by default 1,000.")] = None,
        strongest_steps: Annotated[int | None, arg(help="Its steps; by default 100.")] = None,
        strongest_targets: Annotated[int | None, arg(help="Classes that it is targeted at; by default 9.")] = None,
        square: Annotated[int, arg(help="Queries of Square, which needs no gradients; 0 for none.")] = 1000,
        restarts: Annotated[int | None, arg(help="The most restarts of an attack.")] = None,
        black_box: Annotated[Path | None, arg(help="Run whose adversarial examples are transferred.")] = None,
        autoattack: Annotated[int, arg(help="Images for AutoAttack, which takes minutes to hours.")] = 0,
        attack: Annotated[AttackConfig, arg(help="Measure this attack instead of the table.")] = default,
        save: Annotated[Path | None, arg(help="Write the table to SAVE.csv, .md, .tex, .html and .json.")] = None,
        split: Annotated[
            Literal["test", "train", "holdout"], arg(help="holdout: the training images that the run held out.")
        ] = "test",
        batch_size: Annotated[int, arg(help="Images at once; changes no outcome.")] = 256,
        device: Annotated[str, arg(help="auto, cpu, cuda or cuda:N.")] = "auto",
        progress: Annotated[bool, arg(help="Show a progress bar.")] = True,
    ) -> None:
        """Measure and store the paper's accuracy table of one run or several, with standard errors.

        What is stored already is not measured again, so that an interrupted call goes on at the attack where it was.
        APGD (Croce and Hein 2020), untargeted and towards nine classes, and Square are run on 1,000 images beside it:
        the column "strongest" is the worst case of each of them over all attacks. With any flag --attack.X, that attack
        alone is measured. For mnist-mini, long attacks take 500 images and at most 3 restarts unless flags say
        otherwise; elsewhere all images, and the paper's 20.
        """
        from analysis.accuracy import STRONGEST, accuracy_table, evaluate_run, run_attacks
        from tla_core.attacks import TransferAttack
        from tla_core.checkpoint import read_metadata
        from tla_core.dataset_download import other_copy
        from tla_core.masking import MaskingWarning

        if named is None:
            raise ValueError("RUN must come before the flags: `tla evaluate RUN --attack.steps 100`.")
        found, measured_on = {}, {}
        for run in runs:
            if own_attack:
                times = f" x{attack.restarts}" if attack.restarts > 1 else ""
                name = f"{attack.name.upper()}-{attack.steps}{times}"
                count = long_images or images
                attacks, limits = {name: attack}, {name: count} if count else {}
            else:
                attacks, limits = run_attacks(
                    run, black_box=black_box, images=images, long_images=long_images,
                    strongest_images=strongest_images, strongest_steps=strongest_steps,
                    strongest_targets=strongest_targets, square=square, restarts=restarts, autoattack=autoattack,
                    only=only, device=device,
                )  # fmt: skip
            options = {"split": split, "limits": limits, "batch_size": batch_size, "device": device}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MaskingWarning)  # printed below
                found[str(run)] = result = evaluate_run(run, attacks, progress=progress, **options)
            print(run)
            measured_on[str(run)] = read_metadata(result.path)["data"]
            if other_copy(run_config(run).dataset):
                print(f"  on {measured_on[str(run)]}, another copy of the images than that of the settings")
            for name in ("clean", *attacks, *({STRONGEST} & set(result.correct))):
                value, error, count = result.accuracy[name], result.standard_error[name], len(result.correct[name])
                detail = f"   {attacks[name]}" if name in attacks else ""
                print(f"  {name:<12} {value * 100:6.2f} % +- {error * 100:.2f}   {count:>6} images{detail}")
            for line in result.failed_checks:
                print(f"  MASKING CHECK FAILED: {line}")
            for line in result.gaps:
                print(f"  GAP: {line}")
            if not own_attack and not only and not any(isinstance(a, TransferAttack) for a in attacks.values()):
                print("  no black-box column: train an independent copy and pass it with --black-box RUN")
            print(f"  stored in {result.path}")
        methods = [run_config(run).method.upper() for run in found]
        labels = methods if len(set(methods)) == len(methods) else list(found)
        table = accuracy_table(dict(zip(labels, found.values(), strict=True)))
        if len(found) > 1:
            print()
            print(table.to_markdown(), end="")
        if save is not None:
            from analysis.figures import save_table

            more = {
                run: {"data": measured_on[run], "attacks": result.attacks, "checks": result.checks}
                for run, result in found.items()
            }
            files = save_table(table, save, numbers=more)
            print(f"saved as {', '.join(path.name for path in files.values())} in {save.parent}")

    return evaluate


def _named(args: Sequence[str], command: str) -> str | None:
    """What stands right behind the command, if that is not a flag."""
    return args[1] if len(args) > 1 and args[0] == command and not args[1].startswith("-") else None


def extract(
    run: Positional[RunDir],
    eps: Annotated[tuple[float, ...], arg(help="Perturbation levels; by default all that the dataset has.")] = (),
    split: Annotated[Literal["test", "train"], arg(help="Of the training images only clean ones are taken.")] = "test",
    images: Annotated[int | None, arg(help="Test images, evenly spread over the set; by default all.")] = None,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Store the representations of a run: of the test images, clean and adversarial, or of the training images."""
    from analysis.run_results import extract_run, run_config
    from tla_core.protocol import ANALYSIS_LEVELS

    if split == "train":
        print(extract_run(run, split=split, device=device, progress=progress))
        return
    for level in eps or ANALYSIS_LEVELS.get(run_config(run).dataset, (None,)):
        print(extract_run(run, level, images=images, device=device, progress=progress))


def project(
    run: Positional[RunDir],
    eps: Annotated[float | None, arg(help="Perturbation level; by default that of the dataset's attack.")] = None,
    scale: Annotated[str, arg(help="Whose number of points, pairs and iterations to use.")] = "mini",
    jobs: Annotated[int, arg(help="Maps that are made side by side, each by one process.")] = 1,
    progress: bool = True,
) -> None:
    """Store t-SNE maps of a run: of each class, clean and adversarial test images together, and of the class pairs."""
    from analysis.run_results import extract_run, project_pairs_run, project_run, run_config
    from analysis.scales import load_scale

    settings = load_scale(scale)
    extract_run(run, eps, progress=progress)
    print(project_run(run, eps, settings.map_settings(), n_jobs=jobs, progress=progress))
    if pairs := settings.pair_settings(settings.dataset_of_run(run_config(run).dataset)):
        print(project_pairs_run(run, eps, pairs))


def landscape(
    run: Positional[RunDir],
    scale: Annotated[str, arg(help="Whose number of images, radius and resolution to use.")] = "mini",
    rise_only: Annotated[bool, arg(help="Only those whose rise is averaged, none that are drawn.")] = False,
    device: str = "auto",
) -> None:
    """Store the loss of a run around a few test images, along two random directions that all runs share."""
    from analysis.run_results import landscape_run
    from analysis.scales import load_scale

    settings = load_scale(scale).landscape | ({"images": 0} if rise_only else {})
    print(landscape_run(run, settings, device=device))


def notebooks(
    names: Positional[Annotated[tuple[str, ...], arg(metavar="NAME", help="By default all of the scale.")]] = (),
    scale: Annotated[str, arg(help="mini, or another scale of workflow/scales.")] = "mini",
) -> None:
    """Execute notebooks top to bottom; the executed copies go to figures/SCALE/notebooks."""
    from analysis.notebook_runner import NotebookError, run_notebook
    from analysis.scales import load_scale

    settings = load_scale(scale)
    failures = []
    for name in names or settings.notebooks:
        source = settings.root / "notebooks" / f"{name}.ipynb"
        target = settings.figures_dir / "notebooks" / f"{name}.ipynb"
        try:
            print(run_notebook(source, target, parameters={"SCALE": scale}, root=settings.root))
        except NotebookError as error:  # the others go on
            failures.append(str(error))
            print(f"tla: {error}", file=sys.stderr)
    if failures:
        raise NotebookError(f"{len(failures)} notebook(s) failed.")


def figures(
    scale: Annotated[str, arg(help="mini, or another scale of workflow/scales.")] = "mini",
    cores: Annotated[int | None, arg(help="Jobs side by side; by default as many as there are processors.")] = None,
    profile: Annotated[str | None, arg(help="local, slurm, kubernetes, or a Snakemake profile of your own.")] = None,
    snakemake_args: Annotated[str, arg(help='Further arguments of Snakemake, such as "-n".')] = "",
) -> None:
    """Make everything of a scale that is missing or out of date; `make figures` calls this."""
    import shlex

    from analysis.pipeline import run_pipeline
    from analysis.scales import project_root

    cores = cores or (None if profile else os.cpu_count() or 1)
    run_pipeline(scale, root=project_root(), cores=cores, profile=profile, extra=shlex.split(snakemake_args))


def manifest(scale: Annotated[str, arg(help="mini, or another scale of workflow/scales.")] = "mini") -> None:
    """Write which files show which figure or table of a scale, and a page that shows them; fail if one is missing."""
    from analysis.figure_index import write_index
    from analysis.manifest import EXPECTED, artefacts_of, check_manifest, write_manifest
    from analysis.scales import load_scale

    settings = load_scale(scale)
    shown = {artefact for notebook in settings.notebooks for artefact in artefacts_of(notebook)}
    print(write_index(settings.figures_dir))
    print(write_manifest(settings.figures_dir))
    check_manifest(settings.figures_dir, [artefact for artefact in EXPECTED if artefact in shown])


def redraw(
    names: Positional[Annotated[tuple[str, ...], arg(metavar="NAME", help="Such as fig1; by default all.")]] = (),
    scale: Annotated[str, arg(help="mini, or another scale of workflow/scales.")] = "mini",
    check: Annotated[bool, arg(help="Change nothing; fail where a file would get other bytes.")] = False,
) -> None:
    """Draw a scale's figures and tables again from the files beside them alone: no model, no dataset, no results."""
    from analysis.drawings import DrawingError
    from analysis.redraw import changed_when_redrawn, draw_again
    from analysis.scales import load_scale

    folder = load_scale(scale).figures_dir
    drawn = (changed_when_redrawn if check else draw_again)(folder, names)
    for each in drawn:
        print(f"{each.stem}  {'other bytes: ' + ', '.join(each.changed) if each.changed else 'the same bytes'}")
    if check and (changed := [each.stem for each in drawn if each.changed]):
        raise DrawingError(f"{', '.join(changed)} of {folder} would get other bytes.")


def reproduction(
    scale: Annotated[str, arg(help="mini, or another scale of workflow/scales.")] = "small",
    out: Annotated[Path | None, arg(help="The document; by default docs/reproduction.md.")] = None,
) -> None:
    """Put every number of a scale beside the paper's, with a verdict on each; reads the sidecars alone."""
    import yaml

    from analysis.reproduction import report
    from analysis.scales import load_scale
    from tla_core.checkpoint import write_atomic

    settings = load_scale(scale)
    reasons = settings.root / "workflow" / "reproduction.yaml"
    known = yaml.safe_load(reasons.read_text(encoding="utf-8")) if reasons.is_file() else []
    path = out or settings.root / "docs" / "reproduction.md"
    write_atomic(path, report(settings.figures_dir, settings, known or []).encode())
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
    from analysis.ablation import Ablation
    from analysis.ablation_report import write_report
    from analysis.scales import project_root

    root = project_root()
    path = root / "workflow" / f"{plan}.yaml"
    if not plan.startswith("ablation") or not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("ablation*.yaml")))
        raise ValueError(f"no plan {plan!r} in {path.parent}. There are: {known}.")
    results = root / "docs" / "results"
    experiments = Ablation(path, results / f"{plan}.jsonl", root / "runs" / plan)
    if unknown := sorted(set(names) - {experiment.name for experiment in experiments.experiments}):
        known = ", ".join(experiment.name for experiment in experiments.experiments)
        raise ValueError(f"no experiment {', '.join(unknown)}. There are: {known}.")
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

    from analysis.demo import demo as make_demo
    from analysis.scales import project_root

    paths = make_demo(out or project_root() / "demo", images=images, progress=progress)
    print(paths[-1].with_suffix(".md").read_text(encoding="utf-8"))
    contents = ("the explorer: open it in a browser", "maps of three classes", "ratios")
    for path, what in zip(paths, contents, strict=True):
        print(f"{path}  {what}")
    if open_page:
        webbrowser.open(paths[0].resolve().as_uri())


def publish(
    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help="Finished runs whose accuracies are there.")]],
    out: Annotated[Path | None, arg(help="Where their folders go; by default checkpoints, below the project.")] = None,
) -> None:
    """Put runs into folders as the Hugging Face hub has them: weights, settings, a model card with the accuracies."""
    from analysis.model_cards import hub_name, publish_run
    from analysis.scales import project_root

    for run in runs:
        print(publish_run(run, (out or project_root() / "checkpoints") / hub_name(run)))


def restore(scale: Annotated[str, arg(help="mini, or another scale of workflow/scales.")] = "small") -> None:
    """Put the published runs where a scale's own would lie: its figures are made from them, without training."""
    from analysis.model_cards import restore_runs
    from analysis.scales import load_scale

    for path in restore_runs(load_scale(scale)):
        print(path)


def repair(runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help="Run folders.")]]) -> None:
    """Verify every file of runs, and restore what is damaged from what is intact beside it; nothing is trained."""
    from tla_core.run_repair import repair_run

    for run in runs:
        for line in repair_run(run) or [f"{run}: nothing to repair."]:
            print(line)


def site(
    scale: Annotated[str, arg(help="mini, or another scale of workflow/scales.")] = "mini",
    out: Annotated[Path | None, arg(help="Folder of the site; by default site, below the project.")] = None,
) -> None:
    """Build the site: executed notebooks, guide and reference, for a browser without a network."""
    from analysis.scales import project_root
    from analysis.site import build_site

    root = project_root()
    print(build_site(root, scale, out or root / "site") / "index.html")


def status(
    scale: Annotated[str, arg(help="mini, or another scale of workflow/scales.")] = "mini",
    only: Annotated[tuple[Literal["made", "stale", "unfinished", "missing"], ...], arg(help="Show these alone.")] = (),
    commands: Annotated[bool, arg(help="Show the command that makes what is not made.")] = False,
) -> None:
    """Show what a scale consists of: what is made, stale, unfinished or missing, and what the rest would cost."""
    from analysis.inventory import scale_status, table_text

    found = scale_status(scale)
    print(table_text(found.to_table(only), leave_out=() if commands else ("command",)))


def runs(
    scale: Annotated[str | None, arg(help="Only those of this scale.")] = None,
) -> None:
    """List all run folders: how far each is, how good, and whether its scale still wants it."""
    from analysis.inventory import table_text
    from analysis.run_inventory import list_runs
    from analysis.scales import project_root

    print(table_text(list_runs(project_root(), scale)))


def clean(
    categories: Positional[
        Annotated[
            tuple[Literal["moved-aside", "stale-results", "leftovers", "outdated"], ...],
            arg(metavar="CATEGORY", help="By default the first three; outdated runs go only where they are named."),
        ]
    ] = (),
    scale: Annotated[str | None, arg(help="Only what belongs to this scale.")] = None,
    yes: Annotated[bool, arg(help="Remove it. Without this it is only listed.")] = False,
) -> None:
    """List what nothing needs any more: moved-aside runs, stale results, leftovers. With --yes, remove it."""
    from analysis.housekeeping import DEFAULT_CATEGORIES
    from analysis.housekeeping import clean as clean_up
    from analysis.scales import project_root

    print(clean_up(project_root(), categories=categories or DEFAULT_CATEGORIES, scale=scale, remove=yes))


def presets(
    name: Positional[Annotated[str | None, arg(metavar="PRESET", help="Show this one in full.")]] = None,
) -> None:
    """List the presets and the published sweeps, or show one preset with the source of each value."""
    from tla_core.config import fields_in_use
    from tla_core.presets import list_presets, preset_sources
    from tla_core.protocol import SWEEPS

    def text(config: TrainConfig, field: str) -> str:
        value = getattr(config, field)
        if field == "milestones":
            total, unit = (config.iterations, "step") if config.iterations else (config.epochs, "epoch")
            return ", ".join(f"{format_number(share)} ({unit} {share * total:,.6g})" for share in value)
        if isinstance(value, tuple):
            return "-".join(map(str, value)) or "as published"
        return format_number(value) if isinstance(value, float) else str(value)

    if name is not None:
        config, sources = TrainConfig.preset(name), preset_sources(name)
        used = fields_in_use(config)
        for field in used:
            print(f"{field:<18} {text(config, field):<44} {sources.get(field, 'default')}")
        others = [field.name for field in dataclasses.fields(config) if field.name not in used]
        print(f"not used: {', '.join(others)}")
        return

    columns = "{:<32} {:>12} {:>5}  {:<19} {:<26} {}"
    print(columns.format("preset", "length", "batch", "optimizer", "training attack", "weights").rstrip())
    group = None
    for each in list_presets():
        config = TrainConfig.preset(each)
        used = fields_in_use(config)
        if (family := each.rpartition("/")[0]) != group:
            group = family
            blocks = f" {text(config, 'blocks')}" if "blocks" in used else ""
            width = "" if config.width == 1 else f" x {format_number(config.width)}"
            input_text = f"normalization {config.normalization}, augmentation {config.augmentation}"
            print(f"\n# {config.dataset}: {config.network}{width}{blocks}, {input_text}")
        weights = ""
        if config.method == "alp":
            weights = f"{config.lambda_alp:g}"
        elif config.method.startswith("tla"):
            values = (config.lambda_triplet, config.lambda_norm, config.margin, config.pool_size)
            weights = " / ".join(f"{value:g}" for value in values) + (", from AT" if config.fine_tune else "")
        attack = str(config.attack).removesuffix(f" ({config.attack.norm})") if "attack" in used else "none"
        optimizer = f"{config.optimizer} {config.learning_rate:g} {config.schedule}"
        print(columns.format(each, config.length, config.batch_size, optimizer, attack, weights).rstrip())
    print("\nweights: lambda_alp of ALP; lambda_triplet / lambda_norm / margin / pool_size of TLA")
    print("\nsweeps of .../tla; in brackets the published accuracy on MNIST under PGD-100, %")
    for each, sweep in SWEEPS.items():
        published = [f" ({accuracy:.2f})" for accuracy in sweep.published] or [""] * len(sweep.values)
        values = [f"{value}{note}" for value, note in zip(sweep.values, published, strict=True)]
        fixed = "".join(f", {field} {value:g}" for field, value in sweep.base.items())
        print(f"{each:<10} {sweep.field}: {', '.join(values)}{fixed and f'; with{fixed[1:]}'}   {sweep.source}")


def data(
    action: Positional[Annotated[Literal["list", "get"], arg(metavar="{list,get}")]] = "list",
    name: Positional[Annotated[str | None, arg(metavar="NAME", help="mnist, cifar10 or tiny-imagenet.")]] = None,
) -> None:
    """Show which datasets are there, or download one: `tla data get NAME`. Nothing else downloads anything."""
    from tla_core.dataset_download import other_copy
    from tla_core.datasets import DATASET_NAMES, DatasetError, dataset_root, download_dataset, load_dataset

    if action == "get":
        if name is None:
            raise ValueError("tla data get needs a name: mnist, cifar10 or tiny-imagenet.")
        print(download_dataset(name, dataset_root()))
        return
    print(f"Datasets in {dataset_root()} (set TLA_DATA to look elsewhere):")
    for known in DATASET_NAMES:
        if other := other_copy(known):
            print(f"  {known:<14} not there: {other} is taken in its place")
            continue
        try:
            print(f"  {known:<14} {load_dataset(known, 'test').source}")
        except DatasetError as error:
            print(f"  {known:<14} not there: {str(error).splitlines()[0][:90]}")


def _numbers() -> tyro.constructors.ConstructorRegistry:
    """Read every float on the command line by our own parser, which knows fractions."""
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

    return registry


def _is_ours(error: Exception) -> bool:
    """Whether the message was written for the user; a bug elsewhere keeps its traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return module.split(".")[0] in ("tla_core", "analysis", "__main__", "contextlib")


if __name__ == "__main__":
    sys.exit(main())
