"""Tables 4 to 6: what their runs start from, what their errors are of, what is marked, and the plot beside them."""

import json
import math

import numpy as np
import pytest
from scipy import stats
from tiny import project_folder, tiny_training, use_few_images

from analysis import Results, SweepDisplay, sweep_table
from analysis.display.drawings import drawing_bytes, load_drawing
from analysis.paper.seeds import OverSeeds
from analysis.paper.sweep_tables import _is_apart, sweep_accuracies
from analysis.scales.accuracy import STRONGEST
from analysis.scales.states import judge
from analysis.tables import Column, Table
from tla_core.checkpoint import file_sha256
from tla_core.masking import MaskingWarning
from tla_core.presets import METHODS
from tla_core.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings(f"ignore::{MaskingWarning.__module__}.{MaskingWarning.__name__}")

# Weights that differ much, so that a difference over two errors can be had from tiny trainings.
SCALE = {
    "methods": ["um", "at", "tla"], "seeds": [0, 1], "sweeps": ["table6"], "analysis_images": {"mnist": 60},
    "variant_overrides": {"fine_tune": True, "learning_rate": 0.001},
    "accuracy": {
        "images": 60, "long_images": 40, "strongest": {"images": 20, "steps": 5, "targets": 2}, "sweep_images": 30,
    },
    "overrides": {method: tiny_training() for method in METHODS},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two projects that share their runs: one seed of each value, or two."""
    root = tmp_path_factory.mktemp("sweeps")
    tables = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_few_images(monkeypatch, n_test=80)
        for seeds in ([], [0, 1]):
            results = Results("mini", root=project_folder(root, **SCALE, sweep_seeds=seeds), progress=False)
            tables[len(seeds)] = sweep_table(results, "table6")
        yield results, tables


def test_each_value_goes_on_from_the_at_run_of_its_seed(made):
    results, _ = made
    scale = results.scale
    for method in scale.sweep("table6").values():
        for dataset, _, seed in scale.sweep_runs(method):
            record = RunFolder(scale.run_dir(dataset, method, seed)).record()
            start = scale.run_dir(dataset, "at", seed)
            assert record["start"]["init_from"] == file_sha256(RunFolder(start).model_path)
            assert record["config"]["fine_tune"]
            assert judge(results.plan, results.plan.model((dataset, method, seed))).name == "made"


def test_numbers_are_of_the_runs_and_errors_over_their_seeds(made):
    results, tables = made
    method = results.scale.sweep("table6")["lower"]
    row = tables[2].rows[0]
    accuracies = [results.accuracy(method, seed=seed).accuracy for seed in (0, 1)]
    for key, column in (("clean", "clean"), ("robust", "PGD100"), ("strongest", STRONGEST)):
        values = [accuracy[column] for accuracy in accuracies]
        assert row[key] == pytest.approx(np.mean(values)) and row[f"{key} se"] == pytest.approx(stats.sem(values))
    found = sweep_accuracies(results, method)[0]
    assert [len(found.correct[name]) for name in ("clean", "PGD100", STRONGEST)] == [80, 30, 20]
    assert [row["value"] for row in tables[2].rows] == ["lower", "middle", "higher", "logits"]
    assert "mean ± standard error over 2 trainings (seeds 0, 1)" in tables[2].caption
    assert "each from the AT run of its seed" in tables[2].caption


def test_of_one_seed_the_error_is_the_spread_of_the_main_runs(made):
    results, tables = made
    values = [results.accuracy("tla", seed=seed).accuracy["PGD100"] for seed in (0, 1)]
    for row in tables[0].rows:
        assert row["robust se"] == pytest.approx(np.std(values, ddof=1)) and row["robust error seeds"] == 2
        assert set(row["robust by seed"]) == {"0"} and np.isfinite(row["r_prime se"])
    assert "± the standard deviation of TLA's main runs over seeds 0, 1 (test images alone: ±" in tables[0].caption
    assert "over seeds and test images together" in tables[0].caption and "paired by seed" in tables[2].caption


def test_a_mark_stands_where_a_difference_from_the_scales_own_value_exceeds_two_errors(made):
    _, tables = made
    own = tables[2].rows[2]
    assert "row higher" in tables[2].caption and own["robust mark"] == ""
    for row in tables[2].rows:
        for key in ("clean", "robust", "strongest", "r_prime", "r"):
            pairs = row[f"{key} by seed"], own[f"{key} by seed"]
            between = [pairs[0][seed] - pairs[1][seed] for seed in pairs[0] if seed in pairs[1]]
            expected = len(between) > 1 and abs(np.mean(between)) > 2 * stats.sem(between)
            assert (row[f"{key} mark"] == "*") == expected
    # Of one seed the spread of others is one part of the error, chance among few test images the other.
    own = tables[0].rows[2]
    for row in tables[0].rows:
        for key in ("clean", "robust", "r_prime"):
            images = [each[f"{key} se of images"] or 0 for each in (row, own)]
            expected = abs(row[key] - own[key]) > 2 * math.hypot(row[f"{key} se"], own[f"{key} se"], *images)
            assert (row[f"{key} mark"] == "*") == expected


def test_a_mark_is_printed_behind_the_error_in_every_format():
    column = Column("x", "x", digits=1, error="x se", mark="x mark")
    table = Table([Column("k", ""), column], [{"k": "a", "x": 1.0, "x se": 0.2, "x mark": "*"}, {"k": "b", "x": 2.0}])
    assert "| a | 1.0 ± 0.2 * |" in table.to_markdown() and "| b | 2.0 |" in table.to_markdown()
    assert "<td>1.0 ± 0.2 *</td>" in table.to_html() and r"1.0 $\pm$ 0.2 * \\" in table.to_latex()
    assert table.to_csv().splitlines()[:2] == ["k,x,x se,x mark", "a,1.0,0.2,*"]


def test_the_plot_shows_what_the_table_says(tmp_path):
    rows = [
        {"value": "0", "clean": 0.9, "clean se": 0.01, "robust": 0.8, "paper": None, "r_prime": 1.2, "r": math.nan},
        {"value": "2", "clean": 0.8, "clean se": 0.02, "robust": 0.7, "paper": None, "r_prime": 1.1, "r": 1.0},
    ]
    display = SweepDisplay("λ1", rows).plot()
    accuracy, r_prime, _ = display.axes_
    bars = {container.get_label(): container for container in accuracy.containers}
    assert set(bars) == {"clean", "PGD100"}  # nothing published, no strongest
    np.testing.assert_allclose(bars["clean"].lines[0].get_ydata(), [90, 80])
    (segments,) = (lines.get_segments() for lines in bars["clean"].lines[2])
    assert [np.ptp(segment[:, 1]) for segment in segments] == pytest.approx([2, 4])
    np.testing.assert_allclose(r_prime.containers[0].lines[0].get_ydata(), [1.2, 1.1])
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["0", "2"]
    assert accuracy.get_xlabel() == "λ1"
    assert display.numbers()[0]["r"] is None and json.dumps(display.numbers(), allow_nan=False)
    path = tmp_path / "plot.safetensors"
    path.write_bytes(drawing_bytes(display))
    assert load_drawing(path).rows == display.rows
    with pytest.raises(ValueError, match="at least one value"):
        SweepDisplay("λ1", [])


def test_two_images_of_a_hundred_are_no_difference_however_close_the_seeds_lie():
    one, other = (OverSeeds.of({0: share}, (share * (1 - share) / 100) ** 0.5) for share in (0.95, 0.93))
    assert not _is_apart(one, other, 0.0058)
    assert _is_apart(OverSeeds.of({0: 0.5}, 0.05), other, 0.0058)
    assert _is_apart(OverSeeds.of({0: 1.2}), OverSeeds.of({0: 1.0}), 0.05)  # ratios have no error over images
    assert not _is_apart(OverSeeds.of({0: 1.2}), OverSeeds.of({0: 1.0}), None)  # nor is any known of a single seed
