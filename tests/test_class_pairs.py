"""The display of Figures 4 to 6."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_display import drawn_points, legend_labels

from analysis.display import ClassPairDisplay, ClassPairPanel
from analysis.display.figures import save_figure
from analysis.maps import PairMap

NAMES = ("frog", "horse", "truck")
BLUE, GREEN, RED = "#4477aa", "#228833", "#ee6677"


def make_map(seed=0, n=30, m=5, classes=(0, 1)):
    rng = np.random.default_rng(seed)
    rows = np.arange(n)
    return PairMap(
        classes=classes, clean_coords=rng.normal(size=(n, 2)).astype("f4"),
        adv_coords=rng.normal(size=(m, 2)).astype("f4"), clean_labels=np.asarray(classes)[rows % 2],
        clean_rows=rows, adv_rows=rows[:m], n_attacked=40, params={},
    )  # fmt: skip


def make_panel(title="", **changes):
    return ClassPairPanel.from_map(make_map(**changes), list(NAMES), title=title)


def make_row(**changes):
    titles = ["UM\nrobust 0.0 %", "AT\nrobust 80.0 %", "TLA"]
    return ClassPairDisplay([make_panel(seed=k, m=m, **changes) for k, m in enumerate((20, 5, 0))], titles)


LEGEND = ["frog, clean", "horse, clean", "frog, adversarial, taken for horse"]


# A panel --------------------------------------------------------------------------------------------------------------


def test_a_panel_shows_both_classes_and_the_adversarial_examples_last():
    panel = make_panel().plot()
    drawn = drawn_points(panel.ax_)
    assert [colour for colour, _ in drawn] == [BLUE, GREEN, RED]
    np.testing.assert_array_equal(drawn[0][1], panel.clean_coords[panel.clean_labels == 0])
    np.testing.assert_array_equal(drawn[1][1], panel.clean_coords[panel.clean_labels == 1])
    np.testing.assert_array_equal(drawn[2][1], panel.adv_coords)
    assert legend_labels(panel.ax_.get_legend()) == LEGEND


def test_the_attacked_class_is_blue_whatever_its_number():
    panel = make_panel(classes=(2, 0)).plot()
    np.testing.assert_array_equal(drawn_points(panel.ax_)[0][1], panel.clean_coords[panel.clean_labels == 2])
    assert legend_labels(panel.ax_.get_legend())[2] == "truck, adversarial, taken for frog"


def test_a_panel_is_titled_by_what_it_is_given_or_by_the_share_that_is_mistaken():
    assert make_panel().plot().ax_.get_title() == "12.5% mistaken"
    assert make_panel(title="AT").plot().ax_.get_title() == "AT"
    assert repr(make_panel()) == "ClassPairPanel('frog' to 'horse', 5 adversarial examples)"


def test_a_panel_without_adversarial_examples_says_so():
    panel = make_panel(m=0).plot()
    assert panel.ax_.get_title() == "none mistaken" and panel.mistaken_share == 0
    assert [colour for colour, _ in drawn_points(panel.ax_)] == [BLUE, GREEN]
    assert legend_labels(panel.ax_.get_legend()) == LEGEND
    panel.figure_.canvas.draw()


def test_a_panel_draws_into_the_axes_it_is_given_and_returns_itself():
    figure, axes = plt.subplots(1, 2)
    panel = make_panel()
    assert panel.plot(ax=axes[1]) is panel and panel.ax_ is axes[1] and panel.figure_ is figure
    assert not axes[0].collections and legend_labels(axes[1].get_legend()) == LEGEND
    assert plt.get_fignums() == [figure.number]
    assert panel.plot().figure_ is not panel.plot().figure_


# A row of panels ------------------------------------------------------------------------------------------------------


def test_a_row_names_each_model_and_its_share_and_has_one_legend():
    display = make_row()
    assert display.plot() is display
    assert [ax.get_title() for ax in display.axes_] == [
        "UM\nrobust 0.0 %\n50.0% mistaken", "AT\nrobust 80.0 %\n12.5% mistaken", "TLA\nnone mistaken",
    ]  # fmt: skip
    (legend,) = display.figure_.legends
    assert legend_labels(legend) == LEGEND and not any(ax.get_legend() for ax in display.axes_)
    assert [to_hex(handle.get_markerfacecolor()) for handle in legend.legend_handles] == [BLUE, GREEN, RED]
    assert display.figure_.get_size_inches()[0] == 5.5
    for panel, ax in zip(display.panels, display.axes_, strict=True):
        assert panel.ax_ is ax
        np.testing.assert_array_equal(drawn_points(ax)[0][1], panel.clean_coords[panel.clean_labels == 0])


def test_a_row_draws_into_the_axes_it_is_given():
    figure, axes = plt.subplots(1, 3)
    display = make_row().plot(axes=axes)
    assert display.figure_ is figure and list(display.axes_) == list(axes)
    assert legend_labels(figure.legends[0]) == LEGEND
    alone = ClassPairDisplay([make_panel()], ["UM"])
    assert alone.plot(axes=axes[0]).axes_.tolist() == [axes[0]]
    assert alone.plot().figure_ is not figure and len(alone.figure_.axes) == 1


def test_its_numbers_are_what_it_shows():
    numbers = make_row().numbers()
    shared = {"attacked": "frog", "mistaken_for": "horse", "clean_points": 30}
    assert numbers == [
        {"column": "UM", **shared, "adversarial_points": 20, "mistaken_share": 0.5},
        {"column": "AT", **shared, "adversarial_points": 5, "mistaken_share": 0.125},
        {"column": "TLA", **shared, "adversarial_points": 0, "mistaken_share": 0.0},
    ]
    assert ClassPairDisplay([make_panel()], [""]).numbers()[0]["column"] == ""
    assert repr(make_row()) == "ClassPairDisplay(ClassPairPanel('frog' to 'horse', 20 adversarial examples) x 3 models)"


def test_drawing_changes_no_data_and_no_style():
    style, display = dict(plt.rcParams), make_row()
    before = copy.deepcopy(display)
    display.plot()
    for panel, original in zip(display.panels, before.panels, strict=True):
        for name, value in vars(original).items():
            np.testing.assert_array_equal(getattr(panel, name), value)
    assert dict(plt.rcParams) == style


def test_the_same_maps_give_the_same_bytes(tmp_path):
    first, again, other = (
        save_figure(display.plot().figure_, tmp_path / name / "fig4", numbers=display.numbers())
        for name, display in (("first", make_row()), ("again", make_row()), ("other", make_row(n=31)))
    )
    for ending in ("pdf", "png", "svg"):
        assert first[ending].read_bytes() == again[ending].read_bytes(), ending
        assert first[ending].read_bytes() != other[ending].read_bytes(), ending


# What it refuses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("panels", "titles", "message"),
    [
        ([], [], r"expected panels, and one title for each\. Got 0 and 0"),
        ([make_panel()], ["UM", "AT"], r"expected panels, and one title for each\. Got 1 and 2"),
        (
            [make_panel(), make_panel(classes=(1, 0))],
            ["UM", "AT"],
            r"the panels must show one pair of classes\. Got \[\(0, 1\), \(1, 0\)\]",
        ),
    ],
)
def test_a_row_must_be_complete_and_of_one_pair(panels, titles, message):
    with pytest.raises(ValueError, match=message):
        ClassPairDisplay.from_panels(panels, titles)
