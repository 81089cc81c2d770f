"""What a user may choose of a figure's looks, and that names are shown as they are."""

import json
import sys
import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from test_display import make_grid, make_panel, make_projection
from test_redraw import landscape, pair_panel, strip

from analysis.display import (
    ClassPairDisplay,
    EffectsDisplay,
    LandscapesDisplay,
    LinesDisplay,
    RetrievalDisplay,
    RocCurve,
    RocDisplay,
    SweepDisplay,
)
from analysis.display.figures import save_figure
from analysis.display.style import DEFAULT_STYLE, FigureStyle, as_style
from analysis.display.texts import columns_that_fit, wrapped
from analysis.paper.redraw import changed_when_redrawn

PALETTE = ("#004488", "#ddaa33", "#bb5566")
THESIS = FigureStyle(font="serif", width=6.3, font_size=9, palette=PALETTE, marker_size=2, colour_map="cividis")
HOSTILE = ("_private", "$5 to $10", "x^2_\\alpha", "a class of many words, longer than what there is room for")
SWEEP = [{"value": "_0", "clean": 0.9, "robust": 0.8, "r_prime": 1.2, "r": 1.0}]


def roc(names=("AT", "TLA")):
    return RocDisplay(
        [RocCurve(name, np.array([0, 0.5, 1]), np.array([0, 0.7, 1]), 0.6) for name in names], title="$x$"
    )


def all_displays():
    return {
        "projection": make_projection(), "panel": make_panel(), "grid": make_grid(), "pair": pair_panel(),
        "pairs": ClassPairDisplay([pair_panel(), pair_panel()], ["UM", "AT"]), "landscape": landscape(),
        "landscapes": LandscapesDisplay({"AT": [landscape()], "TLA": [landscape()]}, ["cat"]),
        "retrieval": RetrievalDisplay({"AT": (strip(), strip())}, HOSTILE[:2]), "roc": roc(),
        "sweep": SweepDisplay("$λ$", SWEEP),
        "lines": LinesDisplay({"_AT": [1, 2.0], "$5 to $10": [2, None]}, ["_a", "$b$"], title="$x$", quantity="_q"),
        "effects": EffectsDisplay(["_a $b$"], [1.0], [0.5], [1.5], [[0.9, 1.1]], quantity="q"),
    }  # fmt: skip


def marker_areas(figure):
    return [size for ax in figure.axes for points in ax.collections for size in getattr(points, "get_sizes", list)()]


# Styles ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", all_displays())
def test_every_display_takes_a_style_and_keeps_it(name):
    display = all_displays()[name]
    before = dict(plt.rcParams)
    figure = display.plot(style=THESIS).figure_
    assert display.style is THESIS and display.plot().style is THESIS and dict(plt.rcParams) == before
    assert figure.get_size_inches()[0] == pytest.approx(6.3)
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert {family for text in shown for family in text.get_fontfamily()} == {"serif"}
    plain = all_displays()[name].plot()
    assert plain.style is DEFAULT_STYLE
    sizes, plain_sizes = marker_areas(figure), marker_areas(plain.figure_)
    assert sizes == pytest.approx([4 * size for size in plain_sizes])


def test_the_palette_colours_classes_curves_and_kinds_of_points():
    panel = make_panel().plot(style=THESIS)
    assert [to_hex(points.get_facecolor()[0]) for points in panel.ax_.collections[1:]] == [
        PALETTE[1],
        PALETTE[2],
        PALETTE[0],
    ]
    assert [handle.get_marker() for handle in panel.ax_.get_legend().legend_handles][1:] == [
        "s",
        "^",
        "D",
    ]  # one shifted
    assert [to_hex(line.get_color()) for line in roc().plot(style=THESIS).ax_.lines[:2]] == list(PALETTE[:2])
    pair = pair_panel().plot(style=THESIS)
    assert [to_hex(points.get_facecolor()[0]) for points in pair.ax_.collections] == list(PALETTE)
    assert landscape().plot(style=THESIS).image_.get_cmap().name == "cividis"
    assert FigureStyle(palette="tab10").palette[0] == "#1f77b4" and len(FigureStyle(palette="plasma").palette) == 10


def test_rc_leaves_matplotlibs_own_settings_alone():
    with plt.rc_context(
        {"font.family": "monospace", "font.size": 13, "figure.figsize": (4, 3), "axes.facecolor": "0.9"}
    ):
        plt.rc("axes", prop_cycle=plt.cycler(color=["#111111", "#222222"]))
        display = roc().plot(style="rc")
        assert display.ax_.title.get_fontfamily() == ["monospace"] and display.figure_.get_figwidth() == 4
        assert to_hex(display.ax_.get_facecolor()) == "#e6e6e6"
        assert [line.get_color() for line in display.ax_.lines[:2]] == ["#111111", "#222222"]
        inner = roc().plot()  # ours is ours, whatever matplotlib is set to
    assert to_hex(inner.ax_.get_facecolor()) == "#ffffff" and inner.ax_.title.get_fontfamily() == ["DejaVu Sans"]


@pytest.mark.parametrize("style", [THESIS, "rc"])
def test_a_restyled_figure_is_saved_and_drawn_again_in_its_style(style, tmp_path):
    with plt.rc_context({"lines.linewidth": 3, "font.size": 12, "axes.prop_cycle": plt.cycler(color=PALETTE)}):
        display = roc().plot(style=style)
        save_figure(display, tmp_path / "roc", numbers={}, command="c")
        display.plot(style=DEFAULT_STYLE)
        save_figure(display, tmp_path / "plain", numbers={}, command="c")
    assert (tmp_path / "roc.svg").read_bytes() != (tmp_path / "plain.svg").read_bytes()
    assert {each.stem: each.changed for each in changed_when_redrawn(tmp_path)} == {"roc": (), "plain": ()}


def test_a_style_is_its_json_again():
    for style in (DEFAULT_STYLE, THESIS, as_style("rc")):
        assert FigureStyle(**json.loads(json.dumps(style.to_dict()))) == style
    assert DEFAULT_STYLE.to_dict() == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"palette": ["no colour"]}, "palette must hold colours.*Got 'no colour'"),
        ({"palette": "no-map"}, "no colour map 'no-map'"),
        ({"colour_map": "no-map"}, "no colour map 'no-map'"),
        ({"width": 0}, "width must be a finite number, more than 0. Got 0"),
        ({"font_size": -1}, "font_size must be"),
        ({"settings": {"font.sizes": 3}}, "settings must be matplotlib's. Got 'font.sizes'"),
    ],
)
def test_a_wrong_choice_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        FigureStyle(**wrong)
    with pytest.raises(TypeError, match=r"for matplotlib.*Got .mine."):
        make_panel().plot(style="mine")


# Legends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_projection, make_panel, pair_panel, roc])
def test_a_legend_stands_on_own_axes_too_and_where_it_is_wanted(make):
    own = make().plot().ax_.get_legend()
    ax = plt.figure(layout="constrained").subplots()
    names = [text.get_text() for text in make().plot(ax).ax_.get_legend().get_texts()]
    assert names == [text.get_text() for text in own.get_texts()] and len(names) >= 3
    assert make().plot(ax, legend="upper left").ax_.get_legend()._loc == 2
    placed = make().plot(ax, legend={"loc": "lower right", "title": "$t$"}).ax_.get_legend()
    assert placed._loc == 4 and placed.get_title().get_text() == "$t$" and not placed.get_title().get_parse_math()
    assert make().plot(legend=False).ax_.get_legend() is None


def test_the_legend_of_a_grid_stands_below_the_axes_of_the_caller_and_can_be_left_out():
    figure, axes = plt.subplots(2, 3, layout="constrained")
    make_grid().plot(axes)
    figure.draw_without_rendering()
    lowest = min(ax.get_window_extent().y0 for ax in axes.flat)
    assert figure.legends[0].get_window_extent().y1 <= lowest
    for name in ("grid", "pairs", "retrieval"):
        assert not all_displays()[name].plot(legend=False).figure_.legends
    assert len(landscape().plot(legend=False).figure_.axes) == 1


# Names ----------------------------------------------------------------------------------------------------------------


def hostile_displays():
    panel = make_panel(class_names=HOSTILE, title=HOSTILE[1])
    pair = pair_panel()
    pair.class_names = HOSTILE
    return [
        panel, type(make_grid())([[make_panel(k, class_names=HOSTILE) for _ in "ab"] for k in (0, 3)], HOSTILE[:2]),
        pair, ClassPairDisplay([pair, pair], HOSTILE[:2]), roc(HOSTILE), SweepDisplay(HOSTILE[1], SWEEP),
        LandscapesDisplay({HOSTILE[0]: [landscape()], HOSTILE[1]: [landscape()]}, [HOSTILE[1]]),
        RetrievalDisplay({HOSTILE[0]: (strip(), strip()), HOSTILE[1]: (strip(), strip())}, HOSTILE),
        all_displays()["effects"], LinesDisplay({HOSTILE[0]: [1, 2], HOSTILE[1]: [2, 1]}, HOSTILE[:2]),
    ]  # fmt: skip


@pytest.mark.parametrize("place", range(10))
def test_names_are_text_letter_by_letter_and_none_is_left_out(place):
    display = hostile_displays()[place]
    figure = display.plot().figure_
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(Text) if text.get_visible()]
    named = [text for text in shown if any(sign in text.get_text() for sign in "$_^")]
    assert named and not any(text.get_parse_math() for text in named)
    for name in HOSTILE[:2] if place in (1, 3, 4, 6, 7, 9) else ():
        assert any(name in text.get_text() for text in shown), name


def test_long_names_stay_on_the_page():
    display = hostile_displays()[1]
    figure = display.plot().figure_
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
    for ax in figure.axes:
        label = ax.yaxis.label.get_window_extent()
        assert not ax.get_ylabel() or label.height <= 1.15 * ax.get_window_extent().height
    assert wrapped("a b\nc", 5, 7) == "a b\nc" and wrapped("word " * 20, 1, 7).count("\n") >= 4
    assert (
        columns_that_fit(["a" * 5] * 8, 5.5, 6.5, limit=6) == 6
        and columns_that_fit(["a" * 90] * 2, 5.5, 6.5, limit=6) == 1
    )


def test_tex_is_given_names_without_commands():
    with plt.rc_context({"text.usetex": True}):
        texts = make_panel(class_names=HOSTILE, title="50 % of _x").plot(style="rc").ax_.get_legend().get_texts()
        assert [text.get_text() for text in texts][1] == r"\$5 to \$10"


def test_names_in_surfaces_are_no_tags():
    figure = LandscapesDisplay({"<b>$x$": [landscape()]}, ["a < b"]).surface()
    assert figure.layout.annotations[0].text.startswith("&lt;b&gt;$x$, a &lt; b<br>")


def test_a_notebook_whose_backend_shows_nothing_is_told(monkeypatch):
    make_panel().plot()  # matplotlib asks for a notebook of its own when it makes the first figure
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    with pytest.warns(UserWarning, match="backend agg, which shows nothing in a notebook.*%matplotlib inline"):
        make_panel().plot()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_panel().plot()
