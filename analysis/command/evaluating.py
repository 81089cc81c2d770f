"""`tla evaluate`: measures and stores the accuracies of runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from tla_core.attack_config import AttackConfig

if TYPE_CHECKING:
    from analysis.scales.accuracy import RunAccuracy


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions:
    """What of the accuracy table is measured: the arguments of `analysis.scales.accuracy.run_attacks`."""

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
    """`tla evaluate`, with the attack of the run that the command line names as default of ``--attack``."""
    default = AttackConfig()
    own_attack = any(word.startswith("--attack.") for word in args)
    if named:
        from analysis.scales.run_results import run_config
        from tla_core.protocol import analysis_attack

        default = analysis_attack(run_config(named))

    def evaluate(
        runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help="Run folders.")]],
        table: Annotated[AccuracyOptions, arg(name="")] = AccuracyOptions(),
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
        from analysis.scales.accuracy import accuracy_table, evaluate_run, run_attacks
        from tla_core.attacks import TransferAttack
        from tla_core.masking import MaskingWarning

        if named is None:
            raise ValueError("RUN must come before the flags: `tla evaluate RUN --attack.steps 100`.")
        measured = {}
        for run in runs:
            if own_attack:
                times = f" x{attack.restarts}" if attack.restarts > 1 else ""
                name, count = f"{attack.name.upper()}-{attack.steps}{times}", table.long_images or table.images
                attacks, limits = {name: attack}, {name: count} if count else {}
            else:
                attacks, limits = run_attacks(run, device=device, **vars(table))
            options = {"split": split, "limits": limits, "batch_size": batch_size, "device": device}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MaskingWarning)  # printed below
                measured[str(run)] = evaluate_run(run, attacks, progress=progress, **options)
            _print_accuracies(run, measured[str(run)], attacks)
            whole_table = not own_attack and not table.only
            if whole_table and not any(isinstance(each, TransferAttack) for each in attacks.values()):
                print("  no black-box column: train an independent copy and pass it with --black-box RUN")
            print(f"  stored in {measured[str(run)].path}")
        methods = [run_config(run).method.upper() for run in measured]
        labels = methods if len(set(methods)) == len(methods) else list(measured)
        accuracies = accuracy_table(dict(zip(labels, measured.values(), strict=True)))
        if len(measured) > 1:
            print()
            print(accuracies.to_markdown(), end="")
        if save is not None:
            from analysis.display.figures import save_table

            numbers = {
                run: {"data": _data_of(result), "attacks": result.attacks, "checks": result.checks}
                for run, result in measured.items()
            }
            files = save_table(accuracies, save, numbers=numbers)
            print(f"saved as {', '.join(path.name for path in files.values())} in {save.parent}")

    return evaluate


def _print_accuracies(run: Path, result: RunAccuracy, attacks: dict[str, Any]) -> None:
    from analysis.scales.accuracy import STRONGEST
    from analysis.scales.run_results import run_config
    from tla_core.dataset_download import other_copy

    print(run)
    if other_copy(run_config(run).dataset):
        print(f"  on {_data_of(result)}, another copy of the images than that of the settings")
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
