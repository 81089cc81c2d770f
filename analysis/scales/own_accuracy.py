"""Accuracies of models and representations that are no runs, in the columns of the table of those that are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from analysis.representations import RepresentationSet
from analysis.scales.accuracy import RunAccuracy
from analysis.scales.accuracy_store import with_strongest
from tla_core.attack_config import AttackConfig
from tla_core.attacks import Attack
from tla_core.evaluation import evaluate
from tla_core.given import given_images
from tla_core.layers import model_device
from tla_core.modes import attack_mode
from tla_core.protocol import STRONGEST_IMAGES, strongest_of
from tla_core.validation import scale_images
from tla_core.wrapping import as_classifier


def accuracy_of_model(
    model: nn.Module, images: Any, labels: Any, attacks: Mapping[str, Attack] | AttackConfig | None = None, *,
    limits: Mapping[str, int] | None = None,
) -> RunAccuracy:  # fmt: skip
    """The accuracies of any model, of which nothing is stored, with the strongest attack beside those asked for.

    Parameters
    ----------
    model : nn.Module
    images, labels
        As of `tla_core.evaluate`.
    attacks : mapping of str to attack, AttackConfig or callable, optional
        Of one AttackConfig it is that one and the two of `strongest_attacks`, at its eps.
    limits : mapping of str to int, optional
        As of `evaluate_run`.
    """
    data = given_images(images, labels)
    if isinstance(attacks, AttackConfig):
        strong = strongest_of(attacks, _count_outputs(model, data))
        attacks, limits = {_name_of(attacks.to_dict()): attacks, **strong}, dict.fromkeys(strong, STRONGEST_IMAGES)
    elif attacks is not None and not isinstance(attacks, Mapping):
        attacks = {getattr(attacks, "__name__", "attacked"): attacks}
    correct, described, checks, n = {}, {}, {}, len(data.labels)
    counts = {name: min((limits or {}).get(name, n), n) for name in attacks or {}}
    for count in sorted({n, *counts.values()}, reverse=True):
        rows = torch.arange(count) * n // count
        attacks_of_count = {name: attacks[name] for name in counts if counts[name] == count}
        known = {"clean": correct["clean"][rows]} if correct else None
        evaluation = evaluate(model, data.images[rows], data.labels[rows], attacks_of_count, known=known)
        correct = {**evaluation.correct, **correct}
        described, checks = described | evaluation.attacks, checks | evaluation.checks
    order = ["clean", *counts]
    return RunAccuracy(with_strongest({name: correct[name] for name in order}, described), described, checks)


def _count_outputs(model: nn.Module, data: Any) -> int:
    classifier = as_classifier(model, data.images, data.labels)
    with attack_mode(classifier), torch.no_grad():
        return classifier(scale_images(data.images[:1].to(model_device(classifier)))).shape[1]


def accuracy_of_representations(reps: RepresentationSet) -> RunAccuracy:
    """Clean accuracy, and that under the attack that the representations are of."""
    if reps.predictions is None:
        raise ValueError(f"{reps!r} has no predictions, so that it has no accuracy. Pass predictions= or logits=.")
    correct = {"clean": torch.from_numpy(reps.predictions == reps.labels)}
    if reps.adv_predictions is not None:
        right = correct["clean"] & torch.from_numpy(reps.adv_predictions == reps.labels)
        correct[_name_of(reps.meta.get("attack") or {})] = right
    return RunAccuracy(correct)


def _name_of(attack: Mapping[str, Any]) -> str:
    """As the columns of the accuracy table are called: ``PGD40``."""
    return f"{attack['name'].upper()}{attack.get('steps', '')}" if "name" in attack else "attacked"
