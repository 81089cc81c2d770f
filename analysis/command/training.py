"""`tla train`, `presets` and `data`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from analysis.command.arguments import Device, Progress
from tla_core.attack_config import format_number
from tla_core.config import TrainConfig
from tla_core.validation import did_you_mean


def train_command(preset_name: str | None) -> Callable[..., None]:
    """`tla train`, with the fields of the preset that the command line names as defaults."""
    default = _preset(preset_name) if preset_name else TrainConfig()

    def train(
        preset: Positional[Annotated[str, arg(metavar="PRESET", help="See `tla presets`.")]],
        config: Annotated[TrainConfig, arg(name="")] = default,
        out: Annotated[Path | None, arg(help="Run folder. By default runs/PRESET/seedN below the project.")] = None,
        replace: Annotated[bool, arg(help="Move a run with other settings aside instead of refusing.")] = False,
        init_from: Annotated[Path | None, arg(help="Run folder whose weights the training starts from.")] = None,
        device: Device = "auto",
        progress: Progress = True,
        tensorboard: Annotated[bool, arg(help="Log for TensorBoard too, into OUT/tensorboard.")] = False,
    ) -> None:
        """Train a model, or go on with a training that was interrupted.

        With a PRESET, every one of its settings can be changed by a flag: `tla train PRESET --help` shows their values.
        """
        from analysis.scales.scale import project_root
        from tla_core.training import train as train_model

        if preset != preset_name:
            raise ValueError("PRESET must come before the flags: `tla train PRESET --epochs 2`.")
        folder = out or project_root() / "runs" / preset / f"seed{config.seed}"
        options = {"init_from": init_from, "device": device, "replace": replace, "progress": progress}
        print(train_model(config, folder, tensorboard=tensorboard, **options))

    return train


def _preset(name: str) -> TrainConfig:
    """The preset; ValueError with what there is, and the nearest first, where there is none of that name."""
    from tla_core.presets import list_presets

    known = list_presets()
    if name not in known:
        near = did_you_mean(name, known, likeness=0.9)
        raise ValueError(f"unknown preset {name!r}.{near} There are: {', '.join(known)}.")
    return TrainConfig.preset(name)


def presets(
    name: Positional[Annotated[str | None, arg(metavar="PRESET", help="Show this one in full.")]] = None,
) -> None:
    """List the presets and the published sweeps, or show one preset with the source of each value."""
    from analysis.paper.published import SWEPT_ACCURACIES
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

    # One preset in full.
    if name is not None:
        config, sources = _preset(name), preset_sources(name)
        used_fields = fields_in_use(config)
        for field in used_fields:
            print(f"{field:<18} {text(config, field):<44} {sources.get(field, 'default')}")
        unused_fields = [field.name for field in dataclasses.fields(config) if field.name not in used_fields]
        print(f"not used: {', '.join(unused_fields)}")
        return

    # A line for each preset, below a heading for each network.
    columns = "{:<32} {:>12} {:>5}  {:<19} {:<26} {}"
    print(columns.format("preset", "length", "batch", "optimizer", "training attack", "weights").rstrip())
    group = None
    for each in list_presets():
        config = TrainConfig.preset(each)
        used_fields = fields_in_use(config)
        if (family := each.rpartition("/")[0]) != group:
            group = family
            blocks = f" {text(config, 'blocks')}" if "blocks" in used_fields else ""
            width = "" if config.width == 1 else f" x {format_number(config.width)}"
            input_text = f"normalization {config.normalization}, augmentation {config.augmentation}"
            print(f"\n# {config.dataset}: {config.network}{width}{blocks}, {input_text}")
        weights = ""
        if config.method == "alp":
            weights = f"{config.lambda_alp:g}"
        elif config.method.startswith("tla"):
            values = (config.lambda_triplet, config.lambda_norm, config.margin, config.pool_size)
            weights = " / ".join(f"{value:g}" for value in values) + (", from AT" if config.fine_tune else "")
        attack = str(config.attack).removesuffix(f" ({config.attack.norm})") if "attack" in used_fields else "none"
        optimizer = f"{config.optimizer} {config.learning_rate:g} {config.schedule}"
        print(columns.format(each, config.length, config.batch_size, optimizer, attack, weights).rstrip())
    print("\nweights: lambda_alp of ALP; lambda_triplet / lambda_norm / margin / pool_size of TLA")
    # A line for each sweep.
    print("\nsweeps of .../tla; in brackets the published accuracy on MNIST under PGD-100, %")
    for each, sweep in SWEEPS.items():
        published = [f" ({accuracy:.2f})" for accuracy in SWEPT_ACCURACIES.get(each, ())] or [""] * len(sweep.values)
        values = [f"{value}{note}" for value, note in zip(sweep.values, published, strict=True)]
        base_words = "".join(f", {field} {value:g}" for field, value in sweep.base.items())
        print(
            f"{each:<10} {sweep.field}: {', '.join(values)}{base_words and f'; with{base_words[1:]}'}   {sweep.source}"
        )


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
    for dataset_name in DATASET_NAMES:
        if copy_name := other_copy(dataset_name):
            print(f"  {dataset_name:<14} not there: {copy_name} is taken in its place")
            continue
        try:
            print(f"  {dataset_name:<14} {load_dataset(dataset_name, 'test').source}")
        except DatasetError as error:
            print(f"  {dataset_name:<14} not there: {str(error).partition('. ')[0]}")
