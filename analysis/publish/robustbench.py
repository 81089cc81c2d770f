"""Writes runs as RobustBench's model zoo has them: a state dict, an entry that names the class, and its numbers."""

import io
import re
from pathlib import Path
from typing import Any

import torch

from analysis.publish.model_cards import OUTCOMES, hub_name
from analysis.scales.accuracy import RunAccuracy, stored_accuracy
from analysis.scales.accuracy_attacks import AUTOATTACK
from analysis.scales.run_results import run_config
from analysis.scales.targets import results_dir
from tla_core.attack_config import AttackConfig, format_number
from tla_core.checkpoint import check_writable, write_atomic, write_json
from tla_core.config import TrainConfig
from tla_core.masking.of_outcomes import ball_of
from tla_core.models import NETWORKS
from tla_core.protocol import analysis_attack
from tla_core.run_folder import RunFolder

# Ours -> theirs; of the datasets that the zoo has, these are ours.
DATASETS = {"cifar10": "cifar10", "cifar10-jpeg": "cifar10"}
THREAT_MODELS = {"linf": "Linf", "l2": "L2"}
PAPER = {
    "link": "https://arxiv.org/abs/1909.00900", "name": "Metric Learning for Adversarial Robustness",
    "authors": "Chengzhi Mao, Ziyuan Zhong, Junfeng Yang, Carl Vondrick, Baishakhi Ray", "venue": "NeurIPS 2019",
}  # fmt: skip


def publish_for_robustbench(run_dir: Path | str, out_dir: Path | str) -> Path:
    """Write a run into the folders that RobustBench reads its models from.

    ``models/cifar10/Linf/NAME.pt`` holds the state dict, tensors alone, which `torch.load` reads with ``weights_only``;
    ``model_zoo/NAME.py`` the entry for the table of models, which names the class and how it is made without arguments;
    ``model_info/cifar10/Linf/NAME.json`` what the leaderboard shows: the threat model's `eps`, the clean accuracy, and
    that under AutoAttack, where it was measured.

    Parameters
    ----------
    run_dir : Path or str
        A finished run, or a checkpoint folder, whose accuracies were measured (`tla evaluate`).
    out_dir : Path or str

    Returns
    -------
    Path
        The file of the state dict.

    Raises
    ------
    FileNotFoundError
        If there is no finished run, or its accuracies were not measured.
    ValueError
        For a dataset that RobustBench has not, a network of the user's, or a training step of theirs.
    CheckpointError
        If a file cannot be trusted.
    """
    run, out, config = RunFolder(run_dir), Path(out_dir), run_config(run_dir)
    if config.dataset not in DATASETS:
        known = ", ".join(DATASETS)
        raise ValueError(f"RobustBench has no models of {config.dataset}: expected a run on {known}. Got {run.path}.")
    weights, record = run.weights()
    if record["start"]["network"] != "preset":
        raise ValueError(f"{run.path} trained a network of the user's, whose class its files do not hold.")
    if config.step:
        raise ValueError(f"{run.path} was trained by a step of the user's; the entry would name the paper's method.")
    places = (results_dir(run_dir) / OUTCOMES, run.path / OUTCOMES)
    measured = next((path for path in places if path.is_file()), None)
    if measured is None:
        raise FileNotFoundError(f"{places[0]} is missing: measure the run first, `tla evaluate {run.path}`.")
    accuracy = stored_accuracy(measured, run.model_path)
    name = re.sub(r"\W", "_", hub_name(run_dir))
    attack = analysis_attack(config)
    subfolder = Path(DATASETS[config.dataset]) / THREAT_MODELS[attack.norm]
    target = out / "models" / subfolder / f"{name}.pt"
    check_writable(target)
    content = io.BytesIO()
    torch.save({key: weights[key].contiguous() for key in sorted(weights)}, content)  # read in any order
    write_atomic(target, content.getvalue())
    write_atomic(out / "model_zoo" / f"{name}.py", _entry(name, config, record["data"], subfolder).encode())
    write_json(out / "model_info" / subfolder / f"{name}.json", _info(config, attack, accuracy))
    return target


def _entry(name: str, config: TrainConfig, data: dict[str, Any], subfolder: Path) -> str:
    """Python that makes the network, and its line of the zoo's table."""
    settings = {
        "width": config.width, "blocks": config.blocks, "normalization": config.normalization,
        "in_channels": data["channels"], "image_size": data["image_size"], "n_classes": data["classes"],
    }  # fmt: skip
    cls = NETWORKS[config.network].__name__
    arguments = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    return (
        f'"""{name} in RobustBench\'s zoo, {subfolder}: images in [0, 1] -> logits, normalised inside."""\n\n'
        f"from tla_core.models import {cls}\n\n\n"
        f"def {name}() -> {cls}:\n"
        f"    return {cls}(\n        {arguments}\n    )\n\n\n"
        "# gdrive_id: where the state dict is, once it was uploaded.\n"
        f'ENTRY = ("{name}", {{"model": {name}, "gdrive_id": None}})\n'
    )


def _info(config: TrainConfig, attack: AttackConfig, accuracy: RunAccuracy) -> dict[str, Any]:
    """What RobustBench's leaderboard shows: numbers as text, in percent."""
    percent = {name: f"{100 * value:.2f}" for name, value in accuracy.accuracy.items()}
    info = {
        **PAPER, "additional_data": False, "number_forward_passes": 1, "dataset": DATASETS[config.dataset],
        "architecture": NETWORKS[config.network].__name__, "eps": format_number(attack.eps),
        "clean_acc": percent["clean"],
    }  # fmt: skip
    notes = [f"A reproduction trained by {config.method.upper()} with tla-toolkit; not the authors' own model."]
    if config.dataset != DATASETS[config.dataset]:
        notes.append(f"Trained and measured on {config.dataset}, a copy of the images whose pixels differ slightly.")
    if AUTOATTACK in percent and ball_of(accuracy.attacks[AUTOATTACK]) == (attack.norm, attack.eps):
        info |= {"reported": percent[AUTOATTACK], "autoattack_acc": percent[AUTOATTACK]}
        images, total = len(accuracy.correct[AUTOATTACK]), len(accuracy.correct["clean"])
        notes += [f"AutoAttack on {images:,} of {total:,} test images."] if images < total else []
    return {**info, "footnote": " ".join(notes)}
