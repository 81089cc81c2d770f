"""What is told of triplets that do nothing, or draw all representations together."""

import json
import math
import warnings

import pytest
import torch
from oracles import distance

import tla_core as tla
from tla_core.collapse import Triplets, describe_triplets, triplet_warning
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
HIGH = (2.0, 0.4)
NARROW = (0.5, 0.099)
APART = "collapse: random clean pairs are 0.099 apart, after 0.400 at first"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([FINE] * 20, ""),
        ([HIGH] * 15, ""),  # three quarters of the training
        ([HIGH] * 16, "the triplet term stays at 2.0 margins, with 50% of negatives nearer"),
        ([FINE] * 18 + [HIGH, (1.0, 0.4)], "stays at 1.5 margins"),  # of the last epoch
        ([HIGH] * 18 + [FINE] * 2, ""),
        ([FINE] + [NARROW] * 2, ""),  # before a fifth
        ([FINE] * 2 + [NARROW] * 2, APART),
        ([FINE] * 18 + [(2.0, 0.099)] * 2, APART),
        ([FINE] * 18 + [(0.5, 0.101)] * 2, ""),
    ],
)
def test_what_is_wrong_is_told_from_its_share_of_the_training_on(values, message):
    metrics = [*records(*values), {"step": 25 * len(values), "holdout": {"clean": 0.5}}]
    told = triplet_warning(metrics, TrainConfig(method="tla"), 50, 500)
    assert message in told and bool(told) == bool(message)


def test_of_triplets_without_weight_and_methods_without_triplets_nothing_is_told():
    bad = records(*[(2.0, 0.4)] * 10, *[(2.0, 0.01)] * 10)
    assert triplet_warning(bad, TrainConfig(lambda_triplet=2.0), 50, 500)
    assert triplet_warning(bad, TrainConfig(lambda_triplet=0.0), 50, 500) == ""
    assert triplet_warning([{"step": 500, "terms": {}}], TrainConfig(method="at"), 50, 500) == ""


def test_a_training_warns_once_and_notes_it(tmp_path):
    """A network that hardly learns has negatives that are nearer than its positives."""
    attack = tla.AttackConfig(eps=0.1, step_size=0.1, steps=1)
    config = TrainConfig.preset(
        "mini/mnist/tla", width=1 / 32, epochs=4, batch_size=20, holdout=20, learning_rate=1e-6, attack=attack,
        selection_attack=attack,
    )  # fmt: skip
    data = tla.load_dataset("mnist-mini", "train").subset(range(80))
    with pytest.warns(UserWarning, match="the triplet term stays at") as caught:
        result = tla.train(config, tmp_path / "run", dataset=data, device="cpu", progress=False)
    notes = [record for record in result.metrics if "warning" in record]
    assert len(notes) == len(caught) == 1 and str(tmp_path / "run") in str(caught[0].message)
    logged = [record["triplets"] for record in result.metrics if "terms" in record]
    assert all(set(each) == {"hinge", "nearer", "active", "cone"} for each in logged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tla.train(config, tmp_path / "run", dataset=data, device="cpu", progress=False)
