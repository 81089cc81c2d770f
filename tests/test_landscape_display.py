import copy
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from analysis.display import SURFACE_CONFIG
from analysis.display.figures import save_figure
from analysis.display.landscape import LandscapeDisplay, LandscapesDisplay, contour_levels
from analysis.display.style import TEXT_WIDTH
from analysis.landscape import Landscape

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = ("AT", "ALP", "TLA")


def make_landscape(steepness=1.0, n=9, radius=0.6, **changes):
    """A bowl that is steeper along the first direction than along the second."""
    axis = radius * np.linspace(-1, 1, n)
    loss = (0.5 + steepness * (3 * axis[:, None] ** 2 + axis[None] ** 2 + 0.1 * axis[:, None])).astype(np.float32)
    fields = {
        "loss": loss, "axis": axis, "directions": np.ones((2, 1, 4, 4), np.float32), "centre_loss": 0.5,
        "space": "input", "params": {},
    }  # fmt: skip
    return Landscape(**fields | changes)


def make_grid(n_columns=3, models=MODELS, **settings):
    landscapes = {
        name: [make_landscape(steepness=(i + 1) * 10**j) for j in range(n_columns)] for i, name in enumerate(models)
    }
    titles = [f"digit {j}" for j in range(n_columns)]
    return LandscapesDisplay.from_landscapes(landscapes, titles, **{"eps": 0.3} | settings)


def broken(landscape):
    loss = landscape.loss.copy()
    loss[0, :2] = np.nan, np.inf
    return make_landscape(loss=loss)


# One panel ------------------------------------------------------------------------------------------------------------


def test_a_panel_draws_into_the_axes_it_is_given_and_returns_itself():
    figure, axes = plt.subplots(1, 2)
    display = LandscapeDisplay.from_landscape(make_landscape())
    assert display.plot(ax=axes[1]) is display
    assert display.ax_ is axes[1] and display.figure_ is figure
    assert not axes[0].images and axes[1].images and len(figure.axes) == 3  # a colour bar
    assert display.plot().figure_ is not figure
    assert len(display.figure_.axes) == 2  # the panel and its colour bar


def test_a_point_is_drawn_where_its_axes_say():
    landscape = make_landscape()
    ax = LandscapeDisplay.from_landscape(landscape, eps=0.3).plot().ax_
    (image,) = ax.images
    drawn, (left, right, bottom, top) = image.get_array(), image.get_extent()
    edges = np.linspace(left, right, 10)
    np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, landscape.axis / 0.3, atol=1e-12)
    assert (bottom, top) == (left, right) and image.origin == "lower"
    np.testing.assert_array_equal(drawn, landscape.loss.T)  # rows run upwards, along the second direction
    assert ax.get_title() == f"loss rises by {landscape.rise:.3g}"


@pytest.mark.parametrize(
    ("space", "eps", "unit", "radius"),
    [("input", None, "pixel units", 0.6), ("input", 0.3, "eps", 2.0), ("weights", None, "filter norms", 0.6)],
)
def test_axes_say_their_unit(space, eps, unit, radius):
    display = LandscapeDisplay.from_landscape(make_landscape(space=space), eps=eps).plot()
    assert display.axis[-1] == pytest.approx(radius)
    assert display.ax_.get_xlabel() == f"first direction ({unit})"
    assert display.ax_.get_ylabel() == f"second direction ({unit})"
    display.figure_.canvas.draw()
    assert [tick.get_text() for tick in display.ax_.get_xticklabels()] == [f"−{radius:g}", "0", f"{radius:g}"]
    assert unit in repr(display)


def test_contour_lines_are_round_losses_within_the_scale():
    assert contour_levels(0.02, 0.26) == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])
    for low, high in ((0, 1), (0.0591, 0.0595), (1, 9.9), (0.5, 900)):
        levels = contour_levels(low, high)
        assert 2 <= len(levels) <= 5 and low < levels[0] and levels[-1] < high
    display = LandscapeDisplay.from_landscape(make_landscape(), scale=(0.0, 2.0)).plot()
    assert set(display.contours_.levels) <= set(contour_levels(0.0, 2.0))
    assert display.image_.get_clim() == (0.0, 2.0)


@pytest.mark.filterwarnings("error")
def test_flat_and_broken_landscapes_are_drawn():
    flat = LandscapeDisplay.from_landscape(make_landscape(loss=np.full((9, 9), 0.5, np.float32))).plot()
    assert flat.contours_ is None and flat.image_.get_clim() == (0.5, 1.5)
    holes = LandscapeDisplay.from_landscape(broken(make_landscape())).plot()
    assert holes.image_.get_array().mask.sum() == 2 and np.isfinite(holes.rise)
    nothing = LandscapeDisplay.from_landscape(make_landscape(loss=np.full((9, 9), np.nan))).plot()
    assert nothing.image_.get_array().mask.all() and nothing.image_.get_clim() == (0, 1)
    for display in (flat, holes, nothing):
        display.figure_.canvas.draw()


# The grid -------------------------------------------------------------------------------------------------------------


def test_the_panels_of_a_column_share_one_scale_and_one_colour_bar():
    display = make_grid().plot()
    limits = [[ax.images[0].get_clim() for ax in column] for column in display.axes_.T]
    for j, column in enumerate(limits):
        losses = np.stack([row[j].loss for row in display.rows.values()])
        assert column == [(losses.min(), losses.max())] * 3
    assert len({column[0] for column in limits}) == 3
    assert len(display.figure_.axes) == 9 + 3
    assert display.figure_.get_size_inches()[0] == TEXT_WIDTH


def test_titles_name_the_model_the_image_and_the_rise():
    display = make_grid().plot()
    for i, (name, row) in enumerate(display.rows.items()):
        for j, (panel, ax) in enumerate(zip(row, display.axes_[i], strict=True)):
            assert ax.get_title().splitlines()[-1] == f"{name}: loss rises by {panel.rise:.3g}"
            assert ax.get_title().startswith(f"digit {j}\n") == (i == 0)


def test_images_are_shown_above_their_columns():
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 6, 6), dtype=np.uint8)
    display = make_grid(images=images).plot()
    header = display.figure_.axes[:3]
    for image, ax, title in zip(images, header, display.column_titles, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), image[0])
        assert ax.get_title() == title and ax.images[0].get_clim() == (0, 255)
    assert display.axes_.shape == (3, 3) and header[0] not in display.axes_
    assert not display.axes_[0, 0].get_title().startswith("digit")
    colour = make_grid(1, images=[np.zeros((3, 6, 6), np.float32)]).plot().figure_.axes[0]
    assert colour.images[0].get_array().shape == (6, 6, 3)


def test_no_text_of_a_grid_lies_on_another_or_outside_the_page():
    display = make_grid(images=np.zeros((3, 1, 6, 6), np.uint8)).plot()
    figure = display.figure_
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [ax.title for ax in figure.axes]
    for axis in (axis for ax in figure.axes if ax.axison for axis in (ax.xaxis, ax.yaxis)):
        low, high = axis.get_view_interval()
        texts.append(axis.label)
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [
        (text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_visible() and text.get_text()
    ]
    assert len(boxes) > 40
    page = figure.bbox
    for k, (text, box) in enumerate(boxes):
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1, text
        for other_text, other in boxes[k + 1 :]:
            apart = box.x0 >= other.x1 or other.x0 >= box.x1 or box.y0 >= other.y1 or other.y0 >= box.y1
            assert apart, (text, other_text)


def test_a_grid_draws_into_the_axes_it_is_given():
    figure, axes = plt.subplots(3, 3)
    display = make_grid(images=np.zeros((3, 1, 6, 6)))
    assert display.plot(axes=axes) is display
    assert display.figure_ is figure and (display.axes_ == axes).all() and len(figure.axes) == 9 + 3  # colour bars
    assert axes[0, 2].get_title().startswith("digit 2\nAT: loss rises")
    assert (make_grid().plot(axes=axes.ravel()).axes_ == axes).all()


@pytest.mark.parametrize(("n_columns", "models"), [(1, MODELS), (3, ("AT",)), (1, ("AT",)), (2, ("AT", "TLA"))])
def test_single_models_and_single_images_are_grids_too(n_columns, models):
    display = make_grid(n_columns, models).plot()
    assert display.axes_.shape == (len(models), n_columns)
    assert display.figure_.get_size_inches()[0] <= TEXT_WIDTH
    assert f"x {n_columns} images" in repr(display)


def test_numbers_say_what_is_shown():
    display = make_grid()
    numbers = display.numbers()
    assert len(numbers) == 9  # the steepest model, TLA, has both ends of each scale
    panel = display.rows["ALP"][1]
    assert numbers[4] == {
        "model": "ALP", "column": "digit 1", "centre_loss": 0.5, "lowest_loss": float(panel.loss.min()),
        "highest_loss": float(panel.loss.max()), "rise": float(panel.loss.max()) - 0.5, "radius": pytest.approx(2.0),
        "unit": "eps", "points": 81, "points_not_finite": 0,
        "colour_scale": list(display.rows["TLA"][1].range),
    }  # fmt: skip
    holes = LandscapesDisplay.from_landscapes({"AT": [broken(make_landscape())]}, ["digit"]).numbers()
    assert holes[0]["points_not_finite"] == 2
    json.dumps(numbers + holes, allow_nan=False)


def test_the_same_grid_gives_the_same_files(tmp_path):
    files = []
    for folder in ("first", "second"):
        display = make_grid(2, ("AT", "TLA"), images=np.zeros((2, 1, 6, 6), np.uint8)).plot()
        files.append(save_figure(display.figure_, tmp_path / folder / "fig8", numbers=display.numbers()))
    for ending in ("pdf", "png", "svg"):
        assert files[0][ending].read_bytes() == files[1][ending].read_bytes()
    first, second = (json.loads(each["json"].read_text()) for each in files)
    assert first["numbers"] == second["numbers"] and len(first["numbers"]) == 4


def test_drawing_changes_no_data_and_no_style():
    before_style = dict(plt.rcParams)
    display = make_grid()
    before = copy.deepcopy(display)
    display.plot()
    for row, row_before in zip(display.rows.values(), before.rows.values(), strict=True):
        for panel, panel_before in zip(row, row_before, strict=True):
            for name, value in vars(panel_before).items():
                np.testing.assert_array_equal(getattr(panel, name), value)
    assert dict(plt.rcParams) == before_style


# Surfaces -------------------------------------------------------------------------------------------------------------


def test_surfaces_have_one_range_for_each_column():
    display = make_grid()
    figure = display.surface()
    assert len(figure.data) == 9 and {trace.type for trace in figure.data} == {"surface"}
    panels = [(name, j, panel) for name, row in display.rows.items() for j, panel in enumerate(row)]
    for index, (trace, (name, j, panel)) in enumerate(zip(figure.data, panels, strict=True)):
        np.testing.assert_array_equal(trace.z, panel.loss.T)
        np.testing.assert_allclose(trace.x, panel.axis, rtol=1e-6)
        scene = figure.layout["scene" if index == 0 else f"scene{index + 1}"]
        assert scene.zaxis.range == (trace.cmin, trace.cmax) == pytest.approx(display.scales[j])
        assert scene.xaxis.title.text == "1st (eps)"
        assert figure.layout.annotations[index].text == f"{name}, digit {j}<br>loss rises by {panel.rise:.3g}"


def test_surfaces_ask_for_nothing_from_the_network_and_repeat():
    figure = make_grid(1).surface()
    assert figure.to_json() == make_grid(1).surface().to_json()
    page = figure.to_html(include_plotlyjs=False, config=SURFACE_CONFIG)
    assert '"showSendToCloud": false' in page
    assert "src=" not in page and "https://" not in page.replace("https://plot.ly", "")


def test_more_surfaces_than_a_browser_draws_are_refused():
    with pytest.raises(ValueError, match=r"at most 16 surfaces on a page\. Got 18; take fewer images"):
        make_grid(6).surface()


# What they refuse -----------------------------------------------------------------------------------------------------


def test_a_loss_must_be_a_grid_over_its_axis():
    with pytest.raises(ValueError, match=r"loss must have the shape \(4, 4\), that of the axis\. Got \(4, 3\)"):
        LandscapeDisplay(np.zeros((4, 3)), np.arange(4.0), 0.0)
    with pytest.raises(ValueError, match=r"loss must have the shape \(1, 1\)"):
        LandscapeDisplay(np.zeros((1, 1)), np.zeros(1), 0.0)


@pytest.mark.parametrize("eps", [0, -1, float("nan"), float("inf")])
def test_eps_must_be_above_0(eps):
    with pytest.raises(ValueError, match=r"eps must be above 0, and of an attack on an image\. Got"):
        LandscapeDisplay.from_landscape(make_landscape(), eps=eps)


def test_weights_have_no_eps():
    with pytest.raises(ValueError, match=r"of an attack on an image\. Got 0\.3 for Landscape\(weights"):
        LandscapeDisplay.from_landscape(make_landscape(space="weights"), eps=0.3)


def test_a_grid_must_be_full():
    one = LandscapeDisplay.from_landscape(make_landscape())
    with pytest.raises(ValueError, match=r"each row must have 2 panels, one for each column title\. Got \[2, 1\]"):
        LandscapesDisplay({"AT": [one, one], "TLA": [one]}, ["a", "b"])
    for rows, titles in (({}, ["a"]), ({"AT": []}, [])):
        with pytest.raises(ValueError, match="each row must have"):
            LandscapesDisplay(rows, titles)
    with pytest.raises(ValueError, match=r"images must be 1, one for each column\. Got 2"):
        LandscapesDisplay({"AT": [one]}, ["a"], images=np.zeros((2, 1, 4, 4)))


@pytest.mark.parametrize("changes", [{"radius": 0.3}, {"n": 7}, {"space": "weights"}])
def test_the_panels_of_a_column_have_one_axis(changes):
    with pytest.raises(ValueError, match=r"panels of column 'digit' must have one axis, to be compared\. Got"):
        LandscapesDisplay.from_landscapes({"AT": [make_landscape()], "TLA": [make_landscape(**changes)]}, ["digit"])


def test_relative_panels_of_a_column_share_the_range_of_their_rises():
    axis = np.linspace(-1, 1, 3)
    low, high = np.full((3, 3), 5.0), np.full((3, 3), 1.0)
    low[0, 0], high[2, 1], high[0, 1] = 5.25, 1.5, 0.75
    panels = {"A": (low, 5.0), "B": (high, 1.0)}
    rows = {name: [LandscapeDisplay(loss, axis, at, relative=True)] for name, (loss, at) in panels.items()}
    display = LandscapesDisplay(rows, ["x"]).plot()
    assert display.scales == [(-0.25, 0.5)]
    drawn = [panel.images[0].get_array() for panel in display.axes_[:, 0]]
    np.testing.assert_allclose(drawn[0], (low - 5).T)
    np.testing.assert_allclose(drawn[1], (high - 1).T)
    assert [record["centre_loss"] for record in display.numbers()] == [5.0, 1.0]
    assert [record["rise"] for record in display.numbers()] == [0.25, 0.5]
    with pytest.raises(ValueError, match="must have one axis"):
        LandscapesDisplay({**rows, "C": [LandscapeDisplay(low, axis, 5.0)]}, ["x"])
