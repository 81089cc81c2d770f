"""Results and Displays as long data frames: named columns, one observation a row, the numbers that they hold."""

import numpy as np
import pytest
import torch
from test_display import make_grid, make_panel, make_projection
from test_redraw import pair_panel, strip

from analysis import Column, Projection, Table
from analysis.detection import detect
from analysis.display import (
    ClassPairDisplay,
    EffectsDisplay,
    LandscapeDisplay,
    LandscapesDisplay,
    LinesDisplay,
    RetrievalDisplay,
    RocDisplay,
    SweepDisplay,
)
from analysis.landscape import Landscape
from analysis.maps import map_class, map_pair
from analysis.ratios import ratio, ratio_r_prime
from analysis.representations import RepresentationSet
from analysis.retrieval import retrieve
from tla_core.evaluation import Evaluation

NAMES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def reps():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    features = rng.normal(size=(30, 4)) + 5 * np.eye(4)[labels]
    adv_predictions = np.where(np.arange(30) < 12, (labels + 1) % 3, labels)
    return RepresentationSet.from_arrays(
        features, labels, adv_features=features + rng.normal(size=(30, 4)), predictions=labels,
        adv_predictions=adv_predictions, class_names=NAMES,
    )  # fmt: skip


def test_results_become_frames_with_named_columns(reps):
    r = ratio_r_prime(reps)
    frame = r.to_dataframe(NAMES)
    assert list(frame) == ["class", "ratio", "inner", "cross"] and frame["class"].tolist() == list(NAMES)
    np.testing.assert_array_equal(frame["ratio"], r.per_class)
    assert r.to_dataframe()["class"].tolist() == [0, 1, 2]

    retrieved = retrieve(reps, k=2, rows=[0, 7])
    frame = retrieved.to_dataframe(NAMES)
    assert len(frame) == 2 * 2 * 2 and set(frame["query"]) == {"clean", "adversarial"}
    seventh = frame[(frame["query"] == "adversarial") & (frame["row"] == 7)]
    assert seventh["rank"].tolist() == [1, 2] and set(seventh["class"]) == {"dog"}
    assert seventh["neighbour_row"].tolist() == retrieved.adversarial.indices[1].tolist()

    detected = detect(reps.features, reps.labels, reps.adv_features, reps.adv_predictions != reps.labels)
    frame = detected.to_dataframe()
    assert list(frame) == ["input", "score", "misclassified"] and frame["misclassified"].sum() == 12

    frame = reps.to_dataframe()
    assert list(frame) == ["index", "class", "predicted", "correct", "adv_predicted", "adv_correct"]
    assert frame["adv_correct"].sum() == 18 and frame["adv_predicted"][0] == "dog"

    table = Table(
        [Column("method", "method"), Column("r", "r′", error="r se")], [{"method": "UM", "r": 1.5, "r se": 0.1}]
    )
    assert table.to_dataframe().to_dict("records") == [{"method": "UM", "r": 1.5, "r se": 0.1}]

    evaluation = Evaluation({"clean": torch.tensor([True] * 3 + [False]), "PGD": torch.tensor([True, False])})
    assert evaluation.to_dataframe().to_dict("records")[1] == {
        "attack": "PGD", "accuracy": 0.5, "standard_error": pytest.approx(0.125**0.5), "images": 2,
    }  # fmt: skip


def test_maps_and_landscapes_become_points(reps):
    of_class = map_class(reps, 1, method="pca").to_dataframe(NAMES)
    assert list(of_class) == ["kind", "row", "class", "predicted", "x", "y"] and len(of_class) == 20
    assert of_class["predicted"].isna().sum() == 10 and set(of_class["class"]) == {"dog"}
    pair = map_pair(reps, "cat", "dog", method="pca").to_dataframe(NAMES)
    assert list(pair) == ["kind", "row", "class", "x", "y"]
    assert pair[pair["kind"] == "adversarial"]["row"].tolist() == [0, 3, 6, 9]
    assert Projection(np.ones((2, 2)), {}).to_dataframe().to_dict("list") == {"row": [0, 1], "x": [1, 1], "y": [1, 1]}
    frame = Landscape(np.arange(9.0).reshape(3, 3), np.array([-1.0, 0, 1]), None, 4.0, "input", {}).to_dataframe()
    assert frame.iloc[2].to_dict() == {"first": -1, "second": 1, "loss": 2}


def test_displays_become_what_they_show():
    grid = make_grid()
    frame = grid.to_dataframe()
    assert list(frame) == ["model", "class", "kind", "predicted", "x", "y"] and len(frame) == 6 * (30 + 20)
    assert set(frame["model"]) == {"UM, robust 0.0%", "AT, robust 80.0%", "TLA, robust 90.0%"}
    assert len(make_panel().to_dataframe()) == 50 and make_projection().to_dataframe()["class"].nunique() == 3
    pairs = ClassPairDisplay([pair_panel(), pair_panel()], ["UM\nrobust 1 %", "AT"]).to_dataframe()
    assert set(pairs["model"]) == {"UM", "AT"} and list(pairs) == ["model", "kind", "class", "x", "y"]

    panel = LandscapeDisplay(np.arange(9.0).reshape(3, 3), np.array([-1.0, 0, 1]), 4.0)
    frame = LandscapesDisplay({"AT": [panel], "TLA": [panel]}, ["cat"]).to_dataframe()
    assert list(frame) == ["model", "column", "first", "second", "loss"] and len(frame) == 18
    frame = RetrievalDisplay({"AT": (strip(), strip())}, NAMES).to_dataframe()
    assert frame["correct"].tolist() == [True, False] * 2 and frame["neighbour_row"].tolist() == [5, 6] * 2

    detected = detect([[0], [1], [8], [9]], [0, 0, 1, 1], [[0.5], [4], [8.5]], [False, True, False])
    frame = RocDisplay.from_detections({"UM": detected}).to_dataframe()
    assert list(frame) == ["model", "false_positive_rate", "true_positive_rate"] and set(frame["model"]) == {"UM"}
    frame = SweepDisplay("λ1", [{"value": "2", "clean": 0.9, "clean se": 0.1, "r": None}]).to_dataframe()
    assert frame.to_dict("records") == [{"value": "2", "measure": "clean", "mean": 0.9, "error": 0.1}]
    frame = LinesDisplay({"UM": [0.5, None]}, ["a", "b"], places=[1, 4], errors={"UM": [0.1, None]}).to_dataframe()
    assert list(frame) == ["model", "tick", "place", "value", "error"] and frame["place"].tolist() == [1, 4]
    assert frame["value"].tolist()[0] == 0.5 and frame[["value", "error"]].isna().sum().tolist() == [1, 1]
    frame = EffectsDisplay(["a"], [1.0], [0.5], [1.5], [[0.9, 1.1]], quantity="q").to_dataframe()
    assert frame["difference"].tolist() == [0.9, 1.1]


def test_a_ratio_names_a_few_of_the_classes_that_it_leaves_out():
    many = ratio([[1.0, 2.0]], [0], [[1.0, 0.0], [0.5, 1.0]], [0, 0], n_classes=1000)
    assert len(repr(many)) < 200 and "left out: 1, 2, 3, 4, 5, 6, 7, 8 and 991 more" in repr(many)
