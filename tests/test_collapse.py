"""The alarm of triplets that draw all representations together."""

import json
import math
import warnings

import pytest
import torch
from oracles import distance

import tla_core as tla
from tla_core.collapse import Triplets, collapse_message, describe_triplets
from tla_core.config import TrainConfig


def triplets_of(n, d, margin, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Triplets(*(torch.randn(n, d, generator=generator) for _ in range(4)), margin)


@pytest.mark.parametrize("margin", [0.02, 0.5])
def test_triplets_are_described_as_one_would_count_them(margin):
    batches = [triplets_of(30, 4, margin), triplets_of(30, 4, 3 * margin, seed=1)]
    expected = {"hinge": [], "nearer": [], "active": [], "cone": []}
    for anchors, positives, negatives, clean, own_margin in batches:
        gaps = [
            distance(a, n, "angular") - distance(a, p, "angular")
            for a, p, n in zip(anchors, positives, negatives, strict=True)
        ]
        expected["hinge"] += [max(0.0, own_margin - gap) / own_margin for gap in gaps]
        expected["nearer"] += [gap < 0 for gap in gaps]
        expected["active"] += [gap < own_margin for gap in gaps]
        expected["cone"] += [distance(clean[i], clean[i - 1], "angular") for i in range(30)]
    means = {name: sum(values) / len(values) for name, values in expected.items()}
    assert describe_triplets(batches) == pytest.approx(means, abs=1e-4)


def test_a_margin_of_zero_has_no_unit():
    described = describe_triplets([triplets_of(5, 3, 0.0)])
    assert described["hinge"] == 0 and math.isfinite(json.loads(json.dumps(described))["cone"])


def records(*values):
    """Two logged steps of each epoch of 50 steps: (hinge, cone)."""
    return [
        {"step": 25 * (i + 1), "triplets": {"hinge": hinge, "nearer": 0.5, "active": 0.5, "cone": cone}}
        for i, (hinge, cone) in enumerate(values)
    ]


FINE = (0.5, 0.4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([FINE] * 20, ""),
        ([(2.0, 0.4)] * 2, ""),  # a tenth of the training
        ([FINE, FINE, (2.0, 0.4), (0.9, 0.4)], "the triplet term is at 1.45 margins"),
        ([(2.0, 0.4)] * 3 + [FINE] * 2, ""),  # it was so before
        ([FINE] * 3 + [(0.5, 0.099)] * 2, "random clean pairs are 0.099 apart, after 0.400 at first"),
        ([FINE] * 3 + [(0.5, 0.101)] * 2, ""),
        ([FINE] * 3 + [(1.0, 0.05)] * 2, "margins, where equal representations have 1; random clean pairs"),
    ],
)
def test_a_collapse_is_told_after_a_fifth_of_the_training(values, message):
    metrics = [*records(*values), {"step": 25 * len(values), "holdout": {"clean": 0.5}}]
    said = collapse_message(metrics, TrainConfig(method="tla"), 50, 500)
    assert message in said and bool(said) == bool(message)


def test_triplets_without_weight_and_methods_without_triplets_collapse_nothing():
    collapsed = records(*[(2.0, 0.01)] * 10)
    assert collapse_message(collapsed, TrainConfig(lambda_triplet=2.0), 50, 500)
    assert collapse_message(collapsed, TrainConfig(lambda_triplet=0.0), 50, 500) == ""
    assert collapse_message([{"step": 400, "terms": {}}], TrainConfig(method="at"), 50, 500) == ""


def test_a_training_warns_once_and_notes_it(tmp_path):
    """A network that hardly learns has negatives that are nearer than its positives."""
    attack = tla.AttackConfig(eps=0.1, step_size=0.1, steps=1)
    config = TrainConfig.preset(
        "mini/mnist/tla", width=1 / 32, epochs=4, batch_size=20, holdout=20, learning_rate=1e-6, attack=attack,
        selection_attack=attack,
    )  # fmt: skip
    data = tla.load_dataset("mnist-mini", "train").subset(range(80))
    with pytest.warns(UserWarning, match="may collapse: the triplet term is at") as caught:
        result = tla.train(config, tmp_path / "run", dataset=data, device="cpu", progress=False)
    notes = [record for record in result.metrics if "collapse" in record]
    assert len(notes) == len(caught) == 1 and str(tmp_path / "run") in str(caught[0].message)
    logged = [record["triplets"] for record in result.metrics if "terms" in record]
    assert all(set(each) == {"hinge", "nearer", "active", "cone"} for each in logged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tla.train(config, tmp_path / "run", dataset=data, device="cpu", progress=False)
