"""`tla evaluate`: measures and stores the accuracies of runs and other models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from analysis.command.arguments import (
    MODEL_AS_IT_IS,
    MODEL_HELP,
    OWN_DATA,
    DataOptions,
    ModelOptions,
    OfData,
    OfModel,
    Out,
    value_of,
)
from tla_core.attack_config import AttackConfig

if TYPE_CHECKING:
    from analysis.scales.accuracy import RunAccuracy


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions:
    """What of the accuracy table is measured: the arguments of `analysis.scales.accuracy_attacks.table_attacks`."""

    only: Annotated[tuple[str, ...], arg(help="Measure these columns alone, such as PGD20; clean is always.")] = ()
    images: Annotated[int | None, arg(help="Images for every attack, evenly spread over the split.")] = None
    long_images: Annotated[int | None, arg(help="Images for attacks above 40 steps, or with restarts.")] = None
    strongest_images: Annotated[int | None, arg(help="Images for APGD; by default 1,000.")] = None
    strongest_steps: Annotated[int | None, arg(help="Its steps; by default 100.")] = None
    strongest_targets: Annotated[int | None, arg(help="Classes that it is targeted at; by default 9.")] = None
    square: Annotated[int, arg(help="Queries of Square, which needs no gradients; 0 for none.")] = 1000
    restarts: Annotated[int | None, arg(help="The most restarts of an attack.")] = None
    black_box: Annotated[Path | None, arg(help="Run whose adversarial examples are transferred.")] = None
    autoattack: Annotated[int, arg(help="Images for AutoAttack, which takes minutes to hours.")] = 0


def evaluate_command(named: str | None, args: Sequence[str]) -> Callable[..., None]:
    """`tla evaluate`, with the attack of the run or images that the command line names as default of ``--attack``."""
    default = AttackConfig()
    own_attack = any(word.startswith("--attack.") for word in args)
    if named:
        from analysis.command.measuring import config_for
        from tla_core.protocol import analysis_attack

        default = analysis_attack(config_for(named, value_of(args, "--data")))

    def evaluate(
        models: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL", help=MODEL_HELP)]],
        table: Annotated[AccuracyOptions, arg(name="")] = AccuracyOptions(),
        model: OfModel = MODEL_AS_IT_IS,
        data: OfData = OWN_DATA,
        attack: Annotated[AttackConfig, arg(help="Measure this attack instead of the table.")] = default,
        save: Annotated[Path | None, arg(help="Write the table to SAVE.csv, .md, .tex, .html and .json.")] = None,
        out: Out = None,
        split: Annotated[
            Literal["test", "train", "holdout"], arg(help="holdout: the training images that the run held out.")
        ] = "test",
        batch_size: Annotated[int, arg(help="Images at once; changes no outcome.")] = 256,
        device: Annotated[str, arg(help="auto, cpu, cuda or cuda:N.")] = "auto",
        progress: Annotated[bool, arg(help="Show a progress bar.")] = True,
    ) -> None:
        """Measure and store the paper's accuracy table of one model or several, with standard errors.

        What is stored already is not measured again, so that an interrupted call goes on at the attack where it was.
        APGD (Croce and Hein 2020), untargeted and towards nine classes, and Square are run on 1,000 images beside it:
        the column "strongest" is the worst case of each of them over all attacks. With any flag --attack.X, that attack
        alone is measured. For mnist-mini, long attacks take 500 images and at most 3 restarts unless flags say
        otherwise; elsewhere all images, and the paper's 20. For images of your own, attacks have the eps that the run
        was trained with, and for another MODEL 8/255.
        """
        from analysis.scales.accuracy import accuracy_table

        if named is None:
            raise ValueError("RUN must come before the flags: `tla evaluate RUN --attack.steps 100`.")
        chosen = None
        if own_attack:
            times = f" x{attack.restarts}" if attack.restarts > 1 else ""
            name, count = f"{attack.name.upper()}-{attack.steps}{times}", table.long_images or table.images
            chosen = {name: attack}, {name: count} if count else {}
        measured, labels = {}, {}
        for spec in models:
            request = _Request(spec, model, data, table, chosen, split, out, device)
            labels[spec], measured[spec] = _measure(request, batch_size=batch_size, progress=progress)
        distinct = len(set(labels.values())) == len(labels)
        accuracies = accuracy_table({labels[spec] if distinct else spec: measured[spec] for spec in measured})
        if len(measured) > 1:
            print()
            print(accuracies.to_markdown(), end="")
        if save is not None:
            from analysis.display.figures import save_table

            numbers = {
                spec: {"data": _data_of(result), "attacks": result.attacks, "checks": result.checks}
                for spec, result in measured.items()
            }
            files = save_table(accuracies, save, numbers=numbers)
            print(f"saved as {', '.join(path.name for path in files.values())} in {save.parent}")

    return evaluate


@dataclass(frozen=True)
class _Request:
    """What of the command line concerns one model; `chosen` are attacks in place of the table, with their images."""

    spec: str
    model: ModelOptions
    data: DataOptions
    table: AccuracyOptions
    chosen: tuple[dict[str, Any], dict[str, int]] | None
    split: str
    out: Path | None
    device: str


def _measure(request: _Request, **options: Any) -> tuple[str, RunAccuracy]:
    """Measure one model, and print what came out; its name in tables, and its accuracies."""
    from analysis.command.measuring import is_own, open_subject, refuse_others
    from analysis.scales.accuracy import Subject, evaluate_run, evaluate_subject
    from analysis.scales.accuracy_attacks import run_attacks, table_attacks
    from analysis.scales.run_results import run_config
    from tla_core.attacks import TransferAttack
    from tla_core.masking import MaskingWarning

    spec, split, device, chosen = request.spec, request.split, request.device, request.chosen
    of_table = {"device": device, **vars(request.table)}
    own = is_own(spec, request.model, request.data, request.out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskingWarning)  # printed below
        if own:
            name = run_config(spec).method.upper()
            attacks, limits = chosen or run_attacks(spec, **of_table)
            result = evaluate_run(spec, attacks, split=split, limits=limits, device=device, **options)
            lines = _other_copy(spec, result)
        else:
            subject = open_subject(spec, request.model, request.data, split=split, out=request.out, device=device)
            name, data = subject.opened.name, subject.data
            attacks, limits = chosen or table_attacks(subject.config, len(data.class_names), **of_table)
            path, expected = subject.folder / f"accuracy-{split}.safetensors", {**subject.identity, "of": len(data)}
            refuse_others(path, expected)
            measured = Subject(path, expected, data, lambda: subject.opened.model)
            result = evaluate_subject(measured, attacks, limits=limits, **options)
            lines = [f"  {subject}"]
    _print_accuracies(spec, lines, result, attacks)
    whole_table = chosen is None and not request.table.only
    if own and whole_table and not any(isinstance(each, TransferAttack) for each in attacks.values()):
        print("  no black-box column: train an independent copy and pass it with --black-box RUN")
    print(f"  stored in {result.path}")
    return name, result


def _other_copy(run: str, result: RunAccuracy) -> list[str]:
    from analysis.scales.run_results import run_config
    from tla_core.dataset_download import other_copy

    if not other_copy(run_config(run).dataset):
        return []
    return [f"  on {_data_of(result)}, another copy of the images than that of the settings"]


def _print_accuracies(title: str, lines: list[str], result: RunAccuracy, attacks: dict[str, Any]) -> None:
    from analysis.scales.accuracy import STRONGEST

    print(title, *lines, sep="\n")
    for name in ("clean", *attacks, *({STRONGEST} & set(result.correct))):
        value, error, count = result.accuracy[name], result.standard_error[name], len(result.correct[name])
        detail = f"   {attacks[name]}" if name in attacks else ""
        print(f"  {name:<12} {value * 100:6.2f} % +- {error * 100:.2f}   {count:>6} images{detail}")
    for line in result.failed_checks:
        print(f"  MASKING CHECK FAILED: {line}")
    for line in result.gaps:
        print(f"  GAP: {line}")


def _data_of(result: RunAccuracy) -> str:
    """The images that it was measured on, as its file says."""
    from tla_core.checkpoint import read_metadata

    return read_metadata(result.path)["data"]
