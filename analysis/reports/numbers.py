"""What report.json holds: every number of the page, and what it was measured on. `schema.json` says which."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.display.figures import plain
from analysis.reports.accuracies import Accuracies
from analysis.reports.contents import Contents, Findings
from analysis.reports.measure import LARGEST_MOVES
from analysis.reports.trust import as_numbers
from analysis.similarity import linear_cka
from tla_core.evaluation import Evaluation
from tla_core.layers import model_device
from tla_core.runtime import environment_record

FORMAT = "tla-report/1"


def schema() -> dict[str, Any]:
    """The JSON schema of report.json."""
    return json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))


def numbers_of(contents: Contents) -> dict[str, Any]:
    """All numbers of a report as JSON values; what was left out is null, or not there."""
    data = contents.data
    numbers = {
        "format": FORMAT,
        "data": {
            "name": data.name, "source": data.source, "images": len(data), "given": data.n_given,
            "shape": list(data.images.shape[1:]), "classes": list(data.class_names), "checksum": data.checksum,
            "rows": data.rows.tolist(),
        },
        "attack": contents.attack.to_dict(),
        "layer": contents.layer,
        "models": {each.name: _of_model(each, contents) for each in contents.models},
        "cka_between_models": _between_models(contents.models),
        "worst_retrievals": [int(data.rows[row]) for row in contents.worst],
        "left_out": contents.left_out,
        "explorer": None if contents.explorer is None else contents.explorer.name,
        "made": {
            "command": contents.command or "analysis.report", "seconds": round(contents.seconds, 1),
            "environment": environment_record(model_device(contents.models[0].subject.model)),
        },
    }  # fmt: skip
    return plain(numbers)


def _of_model(each: Findings, contents: Contents) -> dict[str, Any]:
    measured = _accuracies(each.accuracies)
    return {
        "weights_sha256": each.subject.weights,
        "parameters": sum(parameter.numel() for parameter in each.subject.model.parameters()),
        "summary": {
            "clean": measured["clean"]["accuracy"], "clean_error": measured["clean"]["standard_error"],
            "strongest": measured["strongest"]["accuracy"], "strongest_error": measured["strongest"]["standard_error"],
            "r_prime": each.ratios["r_prime"] if each.ratios else None,
            "r_prime_error": each.ratios["r_prime_error"] if each.ratios else None,
        },
        "trust": as_numbers(each.trust),
        "accuracies": measured,
        "checks": {attack: {name: vars(check) for name, check in several.items()}
                   for attack, several in each.accuracies.checks.items()},
        "curve": [{"eps": eps, **_share(outcome)} for eps, outcome in each.accuracies.curve.items()],
        "depth": each.depth,
        "ratios": each.ratios,
        "destinations": each.destinations,
        "retrieval": _retrieval(each),
        "detection": _detection(each),
        "largest_moves": _largest_moves(each, contents),
        "mapped_classes": list(each.maps),
        "mapped_pair": list(each.pair.classes) if each.pair else None,
        "landscapes": [
            {"index": int(contents.data.rows[row]), "rise": landscape.rise, "centre": landscape.centre_loss,
             "directions": landscape.params["directions"]}
            for row, landscape in zip(contents.landscape_rows or [0], each.landscapes, strict=False)
        ],
    }  # fmt: skip


def _accuracies(measured: Accuracies) -> dict[str, Any]:
    evaluation = measured.evaluation
    columns = {name: {**_share(outcome), "settings": evaluation.attacks.get(name)}
               for name, outcome in evaluation.correct.items()}  # fmt: skip
    columns["strongest"] = {**_share(measured.strongest), "settings": None}
    if measured.autoattack is not None:
        columns["AutoAttack"] = {**_share(measured.autoattack), "settings": {"name": "autoattack"}}
    return columns


def _share(outcome: torch.Tensor) -> dict[str, Any]:
    one = Evaluation({"it": outcome})
    return {"accuracy": one.accuracy["it"], "standard_error": one.standard_error["it"], "images": len(outcome)}


def _retrieval(each: Findings) -> dict[str, Any] | None:
    if each.retrieval is None:
        return None
    clean, adversarial = each.retrieval.clean, each.retrieval.adversarial
    return {
        "k": clean.indices.shape[1], "clean_precision": clean.mean_precision, "clean_first": clean.first_accuracy,
        "adversarial_precision": adversarial.mean_precision, "adversarial_first": adversarial.first_accuracy,
    }  # fmt: skip


def _detection(each: Findings) -> dict[str, Any] | None:
    if each.detection is None:
        return None
    bad = each.detection.misclassified
    return {
        "auc": each.detection.auc, "auc_error": each.detection.auc_error, "scored": len(bad),
        "misclassified": int(bad.sum()),
    }  # fmt: skip


def _largest_moves(each: Findings, contents: Contents) -> list[dict[str, Any]]:
    if each.moves is None:
        return []
    names = contents.data.class_names
    return [
        {
            "row": int(row), "index": int(each.reps.indices[row]), "move": float(each.moves[row]),
            "true": names[each.reps.labels[row]], "clean": names[each.reps.predictions[row]],
            "adversarial": names[each.reps.adv_predictions[row]],
        }
        for row in np.argsort(-each.moves, kind="stable")[:LARGEST_MOVES]
    ]  # fmt: skip


def _between_models(models: list[Findings]) -> dict[str, Any] | None:
    models = [each for each in models if each.reps is not None]
    if len(models) < 2:
        return None

    def matrix(part: str) -> list[list[float | None]]:
        return [[_cka(getattr(one.reps, part), getattr(other.reps, part)) for other in models] for one in models]

    return {
        "models": [each.name for each in models],
        "clean": matrix("features"),
        "adversarial": matrix("adv_features"),
    }


def _cka(one: np.ndarray, other: np.ndarray) -> float | None:
    try:
        return linear_cka(one, other)
    except ValueError:  # a collapsed representation is like nothing
        return None
