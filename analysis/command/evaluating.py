"""`tla evaluate`: measures and stores the accuracies of runs and other models."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from analysis.command.arguments import (
    MODEL_AS_IT_IS,
    OWN_DATA,
    DataOptions,
    Device,
    ModelOptions,
    OfData,
    OfModel,
    Out,
    Progress,
    value_of,
)
from analysis.command.model_names import MODEL_FORMS
from tla_core.attack_config import AttackConfig, parse_number

if TYPE_CHECKING:
    from analysis.scales.accuracy import RunAccuracy
    from tla_core.attacks import Attack


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


def evaluate_command(model_spec: str | None, args: Sequence[str]) -> Callable[..., None]:
    """`tla evaluate`, with the attack of the run or images that the command line names as default of ``--attack``."""
    default = _default_attack(model_spec, args) if model_spec else AttackConfig()
    has_attack_flags = any(word.startswith(("--attack.", "--eps")) for word in args)

    def evaluate(
        models: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL", help=f"Each is {MODEL_FORMS}.")]],
        table: Annotated[AccuracyOptions, arg(name="")] = AccuracyOptions(),
        model: OfModel = MODEL_AS_IT_IS,
        data: OfData = OWN_DATA,
        eps: Annotated[
            float | None,
            arg(help="Measure the attack that `tla extract` makes at this eps, instead of the table."),
        ] = None,
        attack: Annotated[
            AttackConfig, arg(help="Measure this attack instead of the table; its steps grow with its eps by default.")
        ] = default,
        save: Annotated[Path | None, arg(help="Write the table to SAVE.csv, .md, .tex, .html and .json.")] = None,
        out: Out = None,
        split: Annotated[
            Literal["test", "train", "holdout"], arg(help="holdout: the training images that the run held out.")
        ] = "test",
        batch_size: Annotated[int, arg(help="Images at once; changes no outcome.")] = 256,
        device: Device = "auto",
        progress: Progress = True,
    ) -> None:
        """Measure and store the paper's accuracy table of one model or several, with standard errors.

        What is stored already is not measured again, so that an interrupted call goes on at the attack where it was.
        APGD (Croce and Hein 2020), untargeted and towards nine classes, and Square are run on 1,000 images beside it:
        the column "strongest" is the worst case of each of them over all attacks. With --eps or any flag --attack.X,
        that attack is measured in place of the table, and AutoAttack beside it where --autoattack says so. For
        mnist-mini, long attacks take 500 images and at most 3 restarts unless flags say otherwise; elsewhere all
        images, and the paper's 20. For images of your own, attacks have the eps that the run was trained with, and for
        another MODEL 8/255.
        """
        from analysis.command.measuring import folder_for
        from analysis.command.opening import options_of
        from analysis.scales.accuracy import accuracy_table

        if model_spec is None:
            raise ValueError("RUN must come before the flags: `tla evaluate RUN --attack.steps 100`.")
        if eps is not None and attack.eps != default.eps:
            raise ValueError(f"--eps and --attack.eps differ: {eps:g} and {attack.eps:g}. Expected one of them.")
        replacement = _attack_of_flags(attack, table, models, data.data) if has_attack_flags else None
        results, labels = {}, {}
        folders = {spec: folder_for(out, spec, models) for spec in models}
        options = options_of(models, model)
        tasks = [_task(spec, options[spec], data, table, replacement, split, folders[spec], device) for spec in models]
        for task in tasks:  # all models are opened before anything takes time
            labels[task.spec], results[task.spec] = task.name, _measure(task, batch_size, progress)
        distinct = len(set(labels.values())) == len(labels)
        accuracies = accuracy_table({labels[spec] if distinct else spec: result for spec, result in results.items()})
        if len(results) > 1:
            print()
            print(accuracies.to_markdown(), end="")
        if save is not None:
            from analysis.display.figures import save_table

            numbers = {
                spec: {"data": _data_of(result), "attacks": result.attacks, "checks": result.checks}
                for spec, result in results.items()
            }
            files = save_table(accuracies, save, numbers=numbers)
            print(f"saved as {', '.join(path.name for path in files.values())} in {save.parent}")

    return evaluate


def _default_attack(model_spec: str, args: Sequence[str]) -> AttackConfig:
    """That of the run or images, with steps in proportion to the eps that is asked for.

    Steps that were meant for a small ball would not leave the middle of a large one.
    """
    from analysis.command.measuring import config_for
    from tla_core.protocol import analysis_attack

    config, norm = config_for(model_spec, value_of(args, "--data")), value_of(args, "--attack.norm")
    level = value_of(args, "--eps") or value_of(args, "--attack.eps")
    eps = None if level is None else parse_number(level)
    if norm is None or eps is None:
        return analysis_attack(config, eps)
    return replace(analysis_attack(config), norm=norm).scaled(eps)


@dataclass(frozen=True)
class _Task:
    """One model with its attacks: how it is called, how it is measured, and what is printed of it."""

    spec: str
    name: str
    attacks: dict[str, Attack]
    measure: Callable[..., RunAccuracy]
    lines: Callable[[RunAccuracy], tuple[list[str], list[str]]]


def _task(
    spec: str, model: ModelOptions, data: DataOptions, table: AccuracyOptions,
    replacement: tuple[dict[str, Attack], dict[str, int]] | None, split: str, out: Path | None, device: str,
) -> _Task:  # fmt: skip
    """Open a model, and see what is measured: the attacks of the table, or `replacement` with their images."""
    from analysis.command.measuring import is_own, open_subject, refuse_others
    from analysis.scales.accuracy import Subject, evaluate_run, evaluate_subject
    from analysis.scales.accuracy_attacks import run_attacks, table_attacks
    from analysis.scales.run_results import run_config
    from tla_core.attacks import TransferAttack

    options_of_table = {"device": device, **vars(table)}
    if is_own(spec, model, data, out):
        attacks, limits = replacement or run_attacks(spec, **options_of_table)
        measure = functools.partial(evaluate_run, spec, attacks, split=split, limits=limits, device=device)
        transferred = any(isinstance(each, TransferAttack) for each in attacks.values())
        no_copy = replacement is None and not table.only and not transferred
        return _Task(spec, run_config(spec).method.upper(), attacks, measure, lambda it: _lines(spec, it, no_copy))
    subject = open_subject(spec, model, data, split=split, out=out, device=device)
    attacks, limits = replacement or table_attacks(subject.config, len(subject.data.class_names), **options_of_table)
    path, expected = subject.folder / f"accuracy-{split}.safetensors", {**subject.identity, "of": len(subject.data)}
    refuse_others(path, expected)
    stored_subject = Subject(path, expected, subject.data, lambda: subject.opened.model)

    def measure(**options: Any) -> RunAccuracy:
        subject.check_function(keep=True)
        return evaluate_subject(stored_subject, attacks, limits=limits, **options)

    return _Task(spec, subject.opened.name, attacks, measure, lambda _: ([f"  {subject}"], []))


def _attack_of_flags(
    attack: AttackConfig, table: AccuracyOptions, specs: Sequence[str], data: str | None
) -> tuple[dict[str, Attack], dict[str, int]]:
    """The attack of the flags in place of the table, and AutoAttack where it is asked for; the images of each.

    Raises
    ------
    ValueError
        For other options of the table, and for models whose attacks have different defaults.
    """
    from analysis.command.measuring import config_for
    from tla_core.autoattack import AutoAttack
    from tla_core.protocol import analysis_attack

    if replace(table, images=None, long_images=None, autoattack=0) != AccuracyOptions():
        known = "--images, --long-images and --autoattack"
        raise ValueError(
            f"with --eps or --attack.X one attack is measured in place of the table; it goes with {known} alone."
        )
    defaults = {spec: analysis_attack(config_for(spec, data)) for spec in specs}
    if len({(each.eps, each.norm) for each in defaults.values()}) > 1:
        lines = "; ".join(f"{spec}: {each}" for spec, each in defaults.items())
        raise ValueError(
            f"with --eps or --attack.X models must be attacked alike. Got {lines}. Run `tla evaluate` for each."
        )
    times = f" x{attack.restarts}" if attack.restarts > 1 else ""
    name, count = f"{attack.name.upper()}-{attack.steps}{times}", table.long_images or table.images
    attacks, limits = {name: attack}, {name: count} if count else {}
    if table.autoattack:
        attacks["AutoAttack"] = AutoAttack(eps=attack.eps, norm=attack.norm)
        limits["AutoAttack"] = table.autoattack
    return attacks, limits


def _measure(task: _Task, batch_size: int, progress: bool) -> RunAccuracy:
    """Measure one model, and print what came out."""
    from analysis.scales.accuracy import STRONGEST
    from tla_core.masking import MaskingWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskingWarning)  # printed below
        result = task.measure(batch_size=batch_size, progress=progress)
    head_lines, foot_lines = task.lines(result)
    print(task.spec, *head_lines, sep="\n")
    for name in ("clean", *task.attacks, *({STRONGEST} & set(result.correct))):
        value, error, count = result.accuracy[name], result.standard_error[name], len(result.correct[name])
        detail = f"   {task.attacks[name]}" if name in task.attacks else ""
        print(f"  {name:<12} {value * 100:6.2f} % +- {error * 100:.2f}   {count:>6} images{detail}")
    for line in result.failed_checks:
        print(f"  MASKING CHECK FAILED: {line}")
    for line in result.gaps:
        print(f"  GAP: {line}")
    print(*foot_lines, f"  stored in {result.path}", sep="\n")
    return result


def _lines(run: str, result: RunAccuracy, lacks_black_box: bool) -> tuple[list[str], list[str]]:
    """What is printed above and below the accuracies of a run."""
    from analysis.scales.run_results import run_config
    from tla_core.dataset_download import other_copy

    head_lines, foot_lines = [], []
    if other_copy(run_config(run).dataset):
        head_lines.append(f"  on {_data_of(result)}, another copy of the images than that of the settings")
    if lacks_black_box:
        foot_lines.append("  no black-box column: train an independent copy and pass it with --black-box RUN")
    return head_lines, foot_lines


def _data_of(result: RunAccuracy) -> str:
    """The images that it was measured on, as its file says."""
    from tla_core.checkpoint import read_metadata

    return read_metadata(result.path)["data"]
