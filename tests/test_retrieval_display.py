"""The displays of retrieval (Fig. 7) and of detection (ROC curves)."""

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from analysis.detection import DetectionResult, detect
from analysis.display.curves import RocCurve, RocDisplay
from analysis.display.retrieval import RetrievalDisplay, RetrievalStrip
from analysis.representations import RepresentationSet
from analysis.retrieval import retrieve

NAMES = ("cat", "dog", "golden retriever")


def make_display(channels=1, k=3, row=4, models=("AT", "TLA"), dtype=np.uint8):
    """Labels repeat cat, dog, golden retriever; images are noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    images = rng.integers(0, 256, (12, channels, 8, 8), dtype=np.uint8)
    adversarial = {name: rng.random((12, channels, 8, 8), dtype=np.float32) for name in models}
    found = {}
    for name in models:
        features = rng.random((2, 12, 5))
        reps = RepresentationSet.from_arrays(features[0], labels, adv_features=features[1], class_names=NAMES)
        found[name] = retrieve(reps, k=k)
    if dtype == np.float32:
        images = images / np.float32(255)
    display = RetrievalDisplay.from_retrievals(found, images, adversarial, row=row, class_names=NAMES)
    return display, found, images, adversarial


def drawn_image(ax):
    (image,) = ax.get_images()
    return np.asarray(image.get_array())


def is_marked(ax):
    """Both marks of a wrong neighbour; one alone would be a mistake."""
    frame = to_hex(ax.spines["left"].get_edgecolor()) == "#cc3311"
    cross = [line.get_marker() for line in ax.lines] == ["X"]
    assert frame == cross
    return frame


# Retrieval ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_shows_the_query_and_its_neighbours_twice(channels, dtype):
    display, found, images, adversarial = make_display(channels, dtype=dtype)
    assert display.plot() is display
    assert display.axes_.shape == (2, 8)
    scale = 255 if dtype == np.uint8 else 1
    for (name, result), axes in zip(found.items(), display.axes_, strict=True):
        clean = [4, *result.clean.indices[4]]
        for ax, row in zip(axes[:4], clean, strict=True):
            np.testing.assert_allclose(drawn_image(ax).transpose(2, 0, 1)[:channels], images[row] / scale, atol=1e-6)
        np.testing.assert_array_equal(drawn_image(axes[4]).transpose(2, 0, 1)[:channels], adversarial[name][4])
        for ax, row in zip(axes[5:], result.adversarial.indices[4], strict=True):
            np.testing.assert_allclose(drawn_image(ax).transpose(2, 0, 1)[:channels], images[row] / scale, atol=1e-6)
        assert axes[0].get_ylabel() == name
    assert drawn_image(display.axes_[0, 0]).shape == (8, 8, 3)


def test_neighbours_of_another_class_are_marked_and_no_others():
    display, found, _, _ = make_display()
    display.plot()
    marked = np.array([[is_marked(ax) for ax in axes] for axes in display.axes_])
    assert not marked[:, [0, 4]].any()
    for result, row in zip(found.values(), marked, strict=True):
        np.testing.assert_array_equal(row[1:4], ~result.clean.correct[4])
        np.testing.assert_array_equal(row[5:], ~result.adversarial.correct[4])
    assert marked.any() and not marked[:, [1, 2, 3, 5, 6, 7]].all()


def test_the_true_class_stands_below_each_image():
    display, found, _, _ = make_display(row=5)
    display.plot()
    for result, axes in zip(found.values(), display.axes_, strict=True):
        below = [ax.get_xlabel().replace("\n", " ") for ax in axes]
        expected = [NAMES[2], *(NAMES[k] for k in result.clean.neighbour_labels[5])]
        assert below == [*expected, NAMES[2], *(NAMES[k] for k in result.adversarial.neighbour_labels[5])]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_names_do_not_run_into_each_other(k):
    display, _, _, _ = make_display(channels=3, k=k, row=2)
    figure = display.plot().figure_
    figure.canvas.draw()
    for axes in display.axes_:
        boxes = [ax.xaxis.label.get_window_extent() for ax in axes]
        for left, right in pairwise(boxes):
            assert left.x1 < right.x0
    extent = figure.get_tightbbox()
    assert extent.x0 >= 0 and extent.x1 <= 5.5 and extent.y0 >= 0 and extent.y1 <= figure.get_figheight()


def test_blocks_columns_and_the_mark_are_explained():
    display, _, _, _ = make_display(k=4)
    figure = display.plot().figure_
    assert [ax.get_title() for ax in display.axes_[0]] == [
        "clean\nquery", "1st", "2nd", "3rd", "4th", "adversarial\nquery", "1st", "2nd", "3rd", "4th",
    ]  # fmt: skip
    assert [block.get_suptitle() for block in figure.subfigs] == [
        "Clean query and its neighbours", "Adversarial query and its neighbours",
    ]  # fmt: skip
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["of another class than the query"]
    assert figure.get_size_inches()[0] == 5.5


def test_it_draws_into_the_axes_it_is_given():
    display, _, _, _ = make_display()
    figure, axes = plt.subplots(2, 8)
    assert display.plot(axes=axes).figure_ is figure
    assert (display.axes_ == axes).all() and all(ax.get_images() for ax in axes.ravel())
    assert plt.get_fignums() == [figure.number] and len(figure.legends) == 1


def test_tensors_are_images_too():
    display, found, images, adversarial = make_display()
    tensors = RetrievalDisplay.from_retrievals(
        found, torch.from_numpy(images), {name: torch.from_numpy(a) for name, a in adversarial.items()}, row=4,
        class_names=NAMES,
    )  # fmt: skip
    for name, pair in display.strips.items():
        for strip, other in zip(pair, tensors.strips[name], strict=True):
            np.testing.assert_array_equal(strip.images, other.images)


def test_numbers_say_what_is_retrieved():
    display, found, _, _ = make_display()
    numbers = display.numbers()
    assert [(record["model"], record["query"]) for record in numbers] == [
        ("AT", "clean"), ("AT", "adversarial"), ("TLA", "clean"), ("TLA", "adversarial"),
    ]  # fmt: skip
    part = found["TLA"].adversarial
    assert numbers[3]["row"] == 4 and numbers[3]["true_class"] == "dog"
    assert [n["row"] for n in numbers[3]["neighbours"]] == part.indices[4].tolist()
    assert [n["correct"] for n in numbers[3]["neighbours"]] == part.correct[4].tolist()
    assert [n["class"] for n in numbers[3]["neighbours"]] == [NAMES[k] for k in part.neighbour_labels[4]]
    assert [n["distance"] for n in numbers[3]["neighbours"]] == part.distances[4].tolist()
    assert repr(display) == "RetrievalDisplay(AT, TLA, 3 neighbours)"


def test_the_same_display_gives_the_same_file():
    files = []
    for _ in range(2):
        buffer = io.BytesIO()
        make_display()[0].plot().figure_.savefig(buffer, format="png", metadata={"Software": None})
        files.append(buffer.getvalue())
    assert files[0] == files[1]


def test_retrieval_displays_refuse_what_does_not_belong_together():
    display, found, images, adversarial = make_display()
    with pytest.raises(ValueError, match="row 12 was no query; expected one of the 12 that"):
        RetrievalDisplay.from_retrievals(found, images, adversarial, row=12, class_names=NAMES)
    with pytest.raises(ValueError, match="TLA has no adversarial part"):
        RetrievalDisplay.from_retrievals(found, images, {"AT": images}, row=1, class_names=NAMES)
    other = make_display(k=2)[0].strips["AT"]
    with pytest.raises(ValueError, match=r"all strips must have one number of images\. Got \[3, 4\]"):
        RetrievalDisplay({"AT": other, "TLA": display.strips["TLA"]}, NAMES)
    with pytest.raises(ValueError, match=r"one number of images\. Got \[\]"):
        RetrievalDisplay({}, NAMES)
    with pytest.raises(ValueError, match=r"images must have the shape \(n, 1 or 3, h, w\)\. Got \(4, 2, 8, 8\)"):
        RetrievalStrip(np.zeros((4, 2, 8, 8)), np.zeros(4, int), np.arange(4), np.zeros(3))
    with pytest.raises(ValueError, match=r"must number \(4, 4, 3\)\. Got \(4, 3, 3\)"):
        RetrievalStrip(np.zeros((4, 1, 8, 8)), np.zeros(4, int), np.arange(3), np.zeros(3))


# ROC ------------------------------------------------------------------------------------------------------------------


def make_detections(names=("UM", "AT", "ALP", "TLA")):
    rng = np.random.default_rng(1)
    train, labels = rng.normal(size=(60, 4)), np.arange(60) % 3
    wrong = rng.random(80) < 0.4
    features = {name: rng.normal(size=(80, 4)) * (1 + wrong[:, None] * place) for place, name in enumerate(names)}
    return {name: detect(train, labels, features[name], wrong) for name in names}


def test_each_model_has_its_curve_and_its_area_in_the_legend():
    found = make_detections()
    display = RocDisplay.from_detections(found, title="Detection")
    assert display.plot() is display
    *curves, diagonal = display.ax_.lines
    for line, result in zip(curves, found.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), result.false_positive_rate)
        np.testing.assert_array_equal(line.get_ydata(), result.true_positive_rate)
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == [
        *(f"{name} (AUC {result.auc:.3f})" for name, result in found.items()), "chance (AUC 0.500)",
    ]  # fmt: skip
    assert display.ax_.get_title() == "Detection"


def test_models_differ_in_colour_and_in_line_style():
    *curves, _ = RocDisplay.from_detections(make_detections()).plot().ax_.lines
    assert len({to_hex(line.get_color()) for line in curves}) == 4
    assert len({str(line._dash_pattern) for line in curves}) == 4


def test_roc_draws_into_the_axes_it_is_given():
    figure, (first, second) = plt.subplots(1, 2)
    display = RocDisplay.from_detections(make_detections()).plot(ax=second)
    assert display.ax_ is second and display.figure_ is figure and not first.lines
    assert plt.get_fignums() == [figure.number]


def test_roc_numbers_are_areas_and_rates():
    curve = RocCurve("AT", np.array([0, 0, 0.1, 0.1, 1]), np.array([0, 0.3, 0.3, 0.8, 1]), 0.8)
    (record,) = RocDisplay([curve]).numbers()
    assert record == {
        "name": "AT", "auc": 0.8, "auc se": None,
        "true_positive_rate_within": {"0.01": 0.3, "0.05": 0.3, "0.1": 0.8, "0.2": 0.8, "0.5": 0.8},
    }  # fmt: skip
    assert repr(RocDisplay([curve])) == "RocDisplay(AT 0.800)"


def test_roc_displays_refuse_what_is_no_curve():
    with pytest.raises(ValueError, match=r"needs at least one curve\. Got none"):
        RocDisplay([])
    with pytest.raises(ValueError, match="the rates of 'AT' must be two sequences of one length"):
        RocCurve("AT", np.array([0, 1]), np.array([0, 0.5, 1]), 0.5)
    with pytest.raises(ValueError, match=r"the rates of 'AT' must rise from 0 to 1\. Got 0 to 0\.5"):
        RocCurve("AT", np.array([0, 1]), np.array([0, 0.5]), 0.5)


# Both -----------------------------------------------------------------------------------------------------------------


def test_drawing_leaves_data_and_style_alone():
    style = dict(plt.rcParams)
    display, _, images, _ = make_display()
    before = images.copy()
    display.plot()
    found = make_detections()
    curve = found["UM"].true_positive_rate.copy()
    RocDisplay.from_detections(found).plot()
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(found["UM"].true_positive_rate, curve)
    assert isinstance(found["UM"], DetectionResult) and dict(plt.rcParams) == style
