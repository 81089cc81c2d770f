"""Publishes runs, each as a folder in the layout of the Hugging Face hub: weights, settings, a model card."""

import os
from pathlib import Path
from typing import Any

import yaml

from analysis.scales.accuracy import STRONGEST, RunAccuracy, stored_accuracy
from analysis.scales.run_results import run_config
from analysis.scales.scale import Scale, project_root
from analysis.scales.targets import results_dir
from analysis.tables import Column, Table
from tla_core.attack_config import AttackConfig
from tla_core.autoattack import AutoAttack
from tla_core.checkpoint import check_writable, file_sha256, load_tensors, read_metadata, write_atomic
from tla_core.config import TrainConfig
from tla_core.datasets import DatasetError, load_dataset
from tla_core.protocol import accuracy_columns
from tla_core.run_folder import RunFolder

CARD = "README.md"
OUTCOMES = "accuracy-test.safetensors"
# Our name of a dataset -> the hub's.
_HUB_DATASETS = {
    "mnist": "ylecun/mnist", "mnist-mini": "ylecun/mnist", "cifar10": "uoft-cs/cifar10",
    "cifar10-jpeg": "uoft-cs/cifar10", "tiny-imagenet": "zh-plus/tiny-imagenet",
}  # fmt: skip
_METHODS = {
    "um": "undefended training, cross-entropy on clean images",
    "at": "adversarial training (Madry et al. 2018)",
    "alp": "adversarial logit pairing (Kannan et al. 2018)",
    "tla": "triplet-loss adversarial training (Mao et al. 2019)",
    "tla-rn": "triplet-loss adversarial training with random negatives (Mao et al. 2019)",
    "tla-sa": "triplet-loss adversarial training with the anchor switched (Mao et al. 2019)",
}


def publish_run(run_dir: Path | str, out_dir: Path | str) -> Path:
    """Write the selected weights of a run, its settings, its accuracies, and a model card.

    The folder holds ``model.safetensors`` and ``config.json`` as `tla_core.load_model` reads them from a run,
    ``accuracy-test.safetensors`` with the outcome of every attack for each test image, and ``README.md``, the card. The
    same run gives the same bytes.

    Parameters
    ----------
    run_dir : Path or str
        A finished run whose accuracies were measured (`tla evaluate`).
    out_dir : Path or str
        See `hub_name`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileNotFoundError
        If there is no finished run, or its accuracies were not measured.
    CheckpointError
        If these were measured of other weights, or a file cannot be trusted.
    """
    run, folder = RunFolder(run_dir), Path(out_dir)
    weights, outcomes_path = run.finished_model(), results_dir(run_dir) / OUTCOMES
    if not outcomes_path.is_file():
        raise FileNotFoundError(f"{outcomes_path} is missing: measure the run first, `tla evaluate {run.path}`.")
    accuracy = stored_accuracy(outcomes_path, weights, tuple(accuracy_columns(run_config(run_dir))))
    card = model_card(run_dir, accuracy, name=folder.name)  # also verifies the weights
    check_writable(folder / CARD)
    for source, name in ((weights, weights.name), (run.config_path, run.config_path.name), (outcomes_path, OUTCOMES)):
        write_atomic(folder / name, source.read_bytes())
    write_atomic(folder / CARD, card.encode())
    return folder


def hub_name(run_dir: Path | str) -> str:
    """What the folder of a published run is called.

    Examples
    --------
    >>> hub_name("runs/small/cifar10/tla/seed0")
    'cifar10-tla'
    >>> hub_name("mine")
    'mine'
    """
    parts = Path(run_dir).parts
    if not parts or parts[-1] == ".." or (len(parts) < 3 and parts[-1].startswith("seed")):  # from inside the runs
        parts = Path(os.path.abspath(run_dir)).parts
    return "-".join(parts[-3:-1]) if parts[-1].startswith("seed") and len(parts) > 2 else parts[-1]


def published_runs(dataset: str = "cifar10", *, root: Path | str | None = None) -> dict[str, Path]:
    """The project's published runs of a dataset, if its images are there.

    Parameters
    ----------
    dataset : {"mnist", "cifar10", "tiny-imagenet"}
    root : Path or str, optional
        Root of the project; by default that of the working directory.

    Returns
    -------
    dict of str to Path
        Method -> folder, as `tla_core.load_model` takes it; empty where there are no such runs or images. Their images
        are those of `tla_core.load_dataset(run_config(folder).dataset, "test")`.
    """
    folders = Path(project_root() if root is None else root) / "checkpoints"
    published = {method: folders / f"{dataset}-{method}" for method in _METHODS}
    published = {method: folder for method, folder in published.items() if (folder / CARD).is_file()}
    try:
        for name in {run_config(folder).dataset for folder in published.values()}:
            load_dataset(name, "test")
    except DatasetError:
        return {}
    return published


def restore_runs(scale: Scale) -> list[Path]:
    """Copy published runs to where a scale's trainings of its first seed lie, so that none of these is trained again.

    Their accuracies are copied to the results, so that `tla evaluate` measures only the missing ones.

    Parameters
    ----------
    scale : Scale

    Returns
    -------
    list of Path
        The folders that were written. A run that is there already stays, and a published run whose settings are not
        the scale's is not copied.
    """
    folders = []
    for dataset in scale.datasets:
        for method in scale.methods:
            published = scale.root / "checkpoints" / f"{dataset}-{method}"
            run = RunFolder(scale.run_dir(dataset, method, scale.seeds_of(dataset)[0]))
            settings = scale.config(dataset, method, scale.seeds_of(dataset)[0])
            if not (published / CARD).is_file() or run_config(published).identity != settings.identity:
                continue
            with run.locked():
                if run.record() is not None or run.model_path.exists():
                    continue
                load_tensors(published / run.model_path.name)  # a damaged file must not become a run
                outcomes_paths = published / OUTCOMES, results_dir(run.path) / OUTCOMES
                if outcomes_paths[0].is_file() and not outcomes_paths[1].exists():
                    stored_accuracy(outcomes_paths[0], published / run.model_path.name)
                    write_atomic(outcomes_paths[1], outcomes_paths[0].read_bytes())
                for name in (run.config_path.name, run.model_path.name):
                    write_atomic(run.path / name, (published / name).read_bytes())
            folders.append(run.path)
    return folders


def model_card(run_dir: Path | str, accuracy: RunAccuracy, *, name: str) -> str:
    """The model card of a run, as Markdown with the hub's metadata in front."""
    record, config = RunFolder(run_dir).record(), run_config(run_dir)
    data, selected = record["data"], RunFolder(run_dir).weights()
    measured_on = read_metadata(accuracy.path)["data"]
    parameters = sum(
        tensor.numel() for key, tensor in selected[0].items() if "running_" not in key and "num_batches" not in key
    )
    front = yaml.safe_dump(_front(config, measured_on, accuracy, name), sort_keys=False, allow_unicode=True)
    held_out = ", ".join(
        f"{kind} {value:.1%}" for kind, value in selected[1]["selected"].items() if kind != "epoch"
    )  # fmt: skip
    network = f"`{config.network}`, width {config.width:g}"
    network += f", blocks {'-'.join(map(str, config.blocks))}" if config.blocks else ""
    checks = _checks(accuracy)
    method = f"a training step of the user's, `{Path(config.step).name}`" if config.step else _METHODS[config.method]
    machine = record["environment"]
    facts = {
        "network": f"{network}; {parameters:,} parameters; images in [0, 1], normalised inside: {config.normalization}",
        "data": f"{data['source']}, {data['images']:,} training images of which {config.holdout:,} were held out",
        "training": f"{config.length}, batches of {config.batch_size}, {config.optimizer}, learning rate"
        f" {config.learning_rate:g} ({config.schedule}), augmentation {config.augmentation}, seed {config.seed}",
        "attack in training": "none" if config.method == "um" else str(config.attack),
        "selected": f"epoch {selected[1]['selected'].get('epoch')}, by the held-out images ({held_out})",
        "machine": f"{machine['device']}, torch {machine['versions'].get('torch', 'unknown')}",
        "sha256 of `model.safetensors`": f"`{file_sha256(RunFolder(run_dir).finished_model())}`",
    }
    return "\n".join(
        [
            f"---\n{front}---",
            f"# {name}",
            "",
            f"A small image classifier on {data['source']}: {method}. Trained and measured with"
            ' tla-toolkit, which reproduces the supplement of "Metric Learning for Adversarial Robustness" (NeurIPS'
            " 2019), to look at its representations.",
            "",
            "```python",
            "import tla_core as tla",
            f'model = tla.load_model("checkpoints/{name}")  # images (n, {data["channels"]}, {data["image_size"]},'
            f" {data['image_size']}) in [0, 1] -> logits of {data['classes']} classes",
            "```",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            "## Accuracy on test images" + (f" of {measured_on}" if measured_on != data["source"] else ""),
            "",
            _accuracy_table(accuracy).to_markdown().strip(),
            "",
            f"± standard error over images. `tla evaluate checkpoints/{name}` measures them again. {checks}",
            "",
            "## Limits",
            "",
            "Made for research into representations, with a small network and a short training: no basis for decisions"
            " about anything. Robust accuracies hold for the attacks that are named, at their eps, and for no others.",
            "",
        ]
    )


def _checks(accuracy: RunAccuracy) -> str:
    parts = []
    if accuracy.failed_checks:
        parts += [
            "These checks for masked gradients failed, so that the accuracies they name are an illusion in part; where"
            " there is a row of AutoAttack, believe that:",
            "\n".join(f"* {line}" for line in accuracy.failed_checks),
        ]
    if accuracy.gaps:
        parts += [
            "These attacks leave clearly less than others:",
            "\n".join(f"* {line}" for line in accuracy.gaps),
        ]
    return "\n\n".join(parts) or "No check for masked gradients failed, and no attack leaves clearly less than others."


def _front(config: TrainConfig, measured_on: str, accuracy: RunAccuracy, name: str) -> dict[str, Any]:
    hub = _HUB_DATASETS.get(config.dataset)
    metrics = [
        {"type": "accuracy", "value": round(value, 4), "name": "clean" if attack == "clean" else f"under {attack}"}
        for attack, value in accuracy.accuracy.items()
    ]
    # A folder of images is named, and not where it lies on this machine.
    dataset = {"name": measured_on, "type": hub or Path(config.dataset).name, "split": "test"}
    result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}
    return {
        "license": "mit",
        "library_name": "tla-toolkit",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "metric-learning", config.method],
        **({"datasets": [hub]} if hub else {}),
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": [result]}],
    }


def _accuracy_table(accuracy: RunAccuracy) -> Table:
    errors = accuracy.standard_error
    rows = [
        {
            "attack": name, "accuracy": value, "error": errors[name], "images": len(accuracy.correct[name]),
            "settings": "worst case of each image over all of these" if name == STRONGEST
            else _settings(accuracy.attacks.get(name, {})),
        }
        for name, value in accuracy.accuracy.items()
    ]  # fmt: skip
    columns = [
        Column("attack", "", align="left"),
        Column("accuracy", "accuracy, %", digits=2, percent=True, error="error"),
        Column("images", "images"),
        Column("settings", "settings", align="left"),
    ]
    return Table(columns, rows)


def _settings(attack: dict[str, Any]) -> str:
    if attack.get("name") == "transfer":
        return f"transferred from an independent copy: {_settings(attack['attack'])}"
    if "version" in attack:
        return str(AutoAttack(**{key: value for key, value in attack.items() if key != "name"}))
    return str(AttackConfig(**attack)) if "steps" in attack else ""
