import copy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from analysis.display import FalseClassesDisplay, FalseClassPanel, ProjectionDisplay
from analysis.display.style import CLEAN_COLOUR, DEFAULT_STYLE, class_colour, class_marker
from analysis.maps import ClassMap
from analysis.projection import Projection

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = ("cat", "dog", "deer", "frog")


def make_panel(true_class=1, seed=0, n=30, **changes):
    rng = np.random.default_rng(seed)
    values = {
        "clean_coords": rng.normal(size=(n, 2)).astype(np.float32),
        "adv_coords": rng.normal(size=(20, 2)).astype(np.float32),
        "adv_predictions": np.repeat([true_class, (true_class + 1) % 4, (true_class + 2) % 4], (8, 10, 2)),
        "true_class": true_class,
        "class_names": NAMES,
    }
    return FalseClassPanel(**values | changes)


def make_projection(n=40):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    return ProjectionDisplay.from_projection(Projection(rng.normal(size=(n, 2)), {}), labels, NAMES, title="UM")


def drawn_points(ax):
    """(colour, points) of each scatter, in drawing order."""
    return [(to_hex(c.get_facecolor()[0]), np.asarray(c.get_offsets())) for c in ax.collections if len(c.get_offsets())]


def legend_labels(legend):
    return [text.get_text() for text in legend.get_texts()]


# Where they draw ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_projection, make_panel])
def test_a_display_draws_into_the_axes_it_is_given_and_returns_itself(make):
    plt.close("all")  # those of other tests
    figure, axes = plt.subplots(1, 2)
    display = make()
    assert display.plot(ax=axes[1]) is display
    assert display.ax_ is axes[1] and display.figure_ is figure
    assert not axes[0].collections and axes[1].collections
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("make", [make_projection, make_panel])
def test_a_display_makes_a_figure_of_its_own_each_time_without_axes(make):
    display = make()
    first = display.plot().figure_
    second = display.plot().figure_
    assert first is not second and display.ax_.figure is second
    assert len(first.axes) == len(second.axes) == 1


def test_a_grid_draws_into_the_axes_it_is_given_in_rows_and_columns():
    display = make_grid()
    figure, axes = plt.subplots(2, 3)
    assert display.plot(axes=axes) is display
    assert display.figure_ is figure and display.axes_.shape == (2, 3)
    for row, row_axes in zip(display.rows, display.axes_, strict=True):
        for panel, ax in zip(row, row_axes, strict=True):
            assert panel.ax_ is ax
            np.testing.assert_array_equal(drawn_points(ax)[0][1], panel.clean_coords)
    assert len(figure.legends) == 1
    flat = make_grid().plot(axes=axes.ravel())
    assert (flat.axes_ == axes).all()


def make_grid():
    rows = [[make_panel(k, seed=10 * k + m) for m in range(3)] for k in (1, 3)]
    return FalseClassesDisplay(rows, ["UM, robust 0.0%", "AT, robust 80.0%", "TLA, robust 90.0%"])


# What they draw -------------------------------------------------------------------------------------------------------


def test_a_projection_shows_every_point_in_its_class_colour():
    display = make_projection().plot()
    assert display.ax_.get_title() == "UM"
    drawn = drawn_points(display.ax_)
    assert [colour for colour, _ in drawn] == [class_colour(k) for k in range(3)]
    for k, (_, points) in enumerate(drawn):
        np.testing.assert_array_equal(points, display.coords[display.labels == k])
    assert legend_labels(display.ax_.get_legend()) == ["cat", "dog", "deer"]


def test_a_panel_shows_every_point_the_clean_ones_below():
    panel = make_panel().plot()
    drawn = drawn_points(panel.ax_)
    assert [colour for colour, _ in drawn] == [CLEAN_COLOUR, *(class_colour(k) for k in (1, 2, 3))]
    np.testing.assert_array_equal(drawn[0][1], panel.clean_coords)
    for k, (_, points) in zip((1, 2, 3), drawn[1:], strict=True):
        np.testing.assert_array_equal(points, panel.adv_coords[panel.adv_predictions == k])
    assert legend_labels(panel.ax_.get_legend()) == ["clean images", "dog", "deer", "frog"]


def test_the_rarest_false_class_is_drawn_last():
    predictions = np.repeat([0, 2, 3, 1], (3, 9, 1, 7))
    drawn = drawn_points(make_panel(1, adv_predictions=predictions).plot().ax_)
    assert [colour for colour, _ in drawn[1:]] == [class_colour(k) for k in (1, 2, 0, 3)]


def test_a_panel_says_which_share_is_false():
    panel = make_panel()
    assert panel.false_share == 12 / 20
    assert panel.plot().ax_.get_title() == "60% false"
    assert make_panel(title="AT").plot().ax_.get_title() == "AT"
    assert "60.0% false" in repr(panel) and "'dog'" in repr(panel)


def test_a_panel_from_a_class_map():
    panel = make_panel()
    rows = np.arange(30)
    class_map = ClassMap(1, panel.clean_coords, panel.adv_coords, rows, rows[:20], panel.adv_predictions, {})
    made = FalseClassPanel.from_map(class_map, list(NAMES), title="mine")
    assert made.adv_coords is panel.adv_coords and (made.true_class, made.class_names) == (1, NAMES)
    assert made.plot().ax_.get_title() == "mine"


def test_a_panel_without_adversarial_examples_or_false_classes_is_drawn():
    empty = make_panel(adv_coords=np.zeros((0, 2)), adv_predictions=np.zeros(0, int)).plot()
    assert len(drawn_points(empty.ax_)) == 1 and np.isnan(empty.false_share)
    assert make_panel(adv_predictions=np.full(20, 1)).plot().ax_.get_title() == "0% false"


def test_a_grid_names_models_above_and_classes_beside_and_has_one_legend():
    display = make_grid().plot()
    figure = display.figure_
    titles = [ax.get_title() for ax in display.axes_[0]]
    assert [title.splitlines()[0] for title in titles] == display.column_titles
    assert all("60%" in ax.get_title() for ax in display.axes_.ravel())
    assert [ax.get_ylabel() for ax in display.axes_[:, 0]] == ["dog", "frog"]
    assert not any(ax.get_legend() for ax in display.axes_.ravel())
    (legend,) = figure.legends
    assert legend_labels(legend) == ["clean images", *NAMES]
    assert figure.get_size_inches()[0] == 5.5


def test_legend_and_points_have_the_same_colours():
    display = make_grid().plot()
    (legend,) = display.figure_.legends
    entries = zip(legend_labels(legend), legend.legend_handles, strict=True)
    shown = {label: to_hex(handle.get_markerfacecolor()) for label, handle in entries}
    assert shown == {"clean images": CLEAN_COLOUR, **{name: class_colour(k) for k, name in enumerate(NAMES)}}
    drawn = {colour for ax in display.axes_.ravel() for colour, _ in drawn_points(ax)}
    assert drawn == set(shown.values())


def test_a_grids_numbers_count_what_it_shows():
    numbers = make_grid().numbers()
    assert len(numbers) == 6
    assert numbers[5] == {
        "true_class": "frog", "column": "TLA, robust 90.0%", "clean_points": 30, "adversarial_points": 20,
        "false_share": 0.6, "predicted_as": {"cat": 10, "dog": 2, "frog": 8},
    }  # fmt: skip


def test_one_panel_is_a_grid_too():
    display = FalseClassesDisplay.from_panels([[make_panel()]], ["UM"]).plot()
    assert display.axes_.shape == (1, 1) and display.figure_.legends
    assert repr(display) == "FalseClassesDisplay(1 classes x 1 models)"


# What they leave alone ------------------------------------------------------------------------------------------------


def test_drawing_changes_no_data_and_no_style():
    before_style = dict(plt.rcParams)
    for display in (make_projection(), make_panel(), make_grid()):
        before = copy.deepcopy(display)
        display.plot()
        panels = [p for row in getattr(display, "rows", []) for p in row] or [display]
        originals = [p for row in getattr(before, "rows", []) for p in row] or [before]
        for panel, original in zip(panels, originals, strict=True):
            for name, value in vars(original).items():
                np.testing.assert_array_equal(getattr(panel, name), value)
    assert dict(plt.rcParams) == before_style


# What they refuse -----------------------------------------------------------------------------------------------------


def test_labels_must_be_as_many_as_points():
    with pytest.raises(ValueError, match=r"labels must have the shape \(5,\)\. Got \(4,\)"):
        ProjectionDisplay.from_projection(Projection(np.zeros((5, 2)), {}), np.zeros(4, int), NAMES)


def test_a_grid_must_be_full():
    with pytest.raises(ValueError, match=r"each row must have 2 panels, one for each title\. Got \[2, 1\]"):
        FalseClassesDisplay([[make_panel(), make_panel()], [make_panel()]], ["UM", "AT"])
    with pytest.raises(ValueError, match=r"each row must have 1 panels.* Got \[\]"):
        FalseClassesDisplay([], ["UM"])


def test_a_row_of_a_grid_has_one_true_class():
    with pytest.raises(ValueError, match=r"panels of a row must have one true class\. Got \[1, 2\]"):
        FalseClassesDisplay([[make_panel(1), make_panel(2)]], ["UM", "AT"])


# Style ----------------------------------------------------------------------------------------------------------------


def test_colour_and_marker_are_unique_up_to_a_hundred_classes():
    assert len({(class_colour(k), class_marker(k)) for k in range(100)}) == 100
    assert len({class_colour(k) for k in range(10)}) == len({class_marker(k) for k in range(10)}) == 10
    assert CLEAN_COLOUR not in {class_colour(k) for k in range(10)}


def test_the_style_holds_only_inside_its_block():
    before = plt.rcParams["pdf.fonttype"]
    with DEFAULT_STYLE.applied():
        assert plt.rcParams["pdf.fonttype"] == 42 and plt.rcParams["font.size"] == 7
    assert plt.rcParams["pdf.fonttype"] == before
