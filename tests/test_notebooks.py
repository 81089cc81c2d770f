import json
import os
import shutil
import subprocess
import sys
import time
import warnings

import nbformat
import numpy as np
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from scipy import stats
from tiny import REPOSITORY, project_folder, tiny_training, use_few_images

from analysis import bootstrap_r_prime, detection_of, input_landscape, ratio_r_prime, run_accuracies, sweep_table
from analysis.command import main as cli
from analysis.command.jobs import job_server
from analysis.command.notebook_runner import NotebookError, run_notebook
from analysis.detection import detection_auc
from analysis.paper.redraw import changed_when_redrawn
from analysis.scales.manifest import check_manifest
from analysis.scales.results import Results
from analysis.scales.scale import load_scale
from tla_core.masking import MaskingWarning
from tla_core.presets import METHODS, VARIANTS
from tla_core.training import load_model

# The first of these tests waits for all notebooks, each in a kernel of its own.
pytestmark = pytest.mark.timeout(1200)

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
FIGURES = [
    *(f"fig{k}" for k in range(1, 9)), *(f"table{k}-plot" for k in (4, 5, 6)), "detection-mnist", "your_own_model",
]  # fmt: skip
TABLES = [
    *(f"table{k}" for k in range(1, 7)), "table3-seeds", "table3-differences", "table3-distances", "fig7-precision",
    "fig8-rise", "main_accuracy-mnist", "knn-mnist", "detection-densities-mnist",
]  # fmt: skip
# Of each kind of run some, so small that training all of them takes seconds.
SCALE = {
    "methods": ["um", "at", "tla"],
    "class_pairs": {"mnist": [["4", "9"], ["3", "5"], ["7", "2"]]},
    "pair_points": 40,
    "landscape": {"images": 2, "resolution": 5, "radius": 2, "rise": {"images": 4, "resolution": 3}},
    "sweeps": ["table4", "table5", "table6"],
    "variant_overrides": {"fine_tune": True},
    "seeds": [0, 1],
    "analysis_images": {"mnist": 200},
    "accuracy": {
        "methods": ["um", "tla-rn", "tla"], "images": 100, "long_images": 10, "restarts": 2,
        "strongest": {"images": 10, "steps": 5, "targets": 2},
        "black_box": {"variant": "", "seed": 1, "methods": ["um", "tla"]},
    },
    "overrides": {method: tiny_training() for method in (*METHODS, *VARIANTS)},
}  # fmt: skip
# What a kernel runs first: it sees the few images that the results were made from. The network of your_own_model keeps
# its modules, with an eighth of their channels, and its report looks around each image at few points.
FEW_IMAGES = """
import os
import sys

import pytest

sys.path.insert(0, {tests!r})
from tiny import thin_resnet18, use_few_images

use_few_images(pytest.MonkeyPatch())
if "your_own_model" in os.environ["TLA_COMMAND"]:  # the others need not import this
    pytest.MonkeyPatch().setattr("torchvision.models.resnet18", thin_resnet18)
    pytest.MonkeyPatch().setattr("analysis.reports.measure.LANDSCAPE_POINTS", 5)
"""


def write_notebook(path, *code):
    cells = [new_markdown_cell("# A claim"), new_code_cell('SCALE = "mini"', metadata={"tags": ["parameters"]})]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[*cells, *map(new_code_cell, code)]), path)
    return path


# As committed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert 0 < len(notebook.cells) <= 12
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_one_parameters_cell_and_derives_nothing_in_it(path):
    cells = nbformat.read(path, as_version=4).cells
    (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert parameters.source.strip() == 'SCALE = "mini"'


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_its_claim_and_only_calls(path):
    first, *rest = nbformat.read(path, as_version=4).cells
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "**The claim.**" in first.source and "**What to look for" in first.source
    code = "\n".join(cell.source for cell in rest if cell.cell_type == "code")
    assert not any(f"import {name}" in code for name in ("numpy", "torch", "matplotlib", "sklearn", "scipy"))


def test_every_notebook_belongs_to_a_scale():
    assert {path.stem for path in NOTEBOOKS} == set(load_scale("mini", REPOSITORY).notebooks)


# Executed -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served():
    """Kernels that need not import everything each: what the environment must hold for them."""
    with job_server() as address:
        yield {**address, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory, served):
    """A project with small results, in which `tla notebooks` ran the repository's notebooks and one that fails."""
    names = ["broken", *(path.stem for path in NOTEBOOKS)]
    root = project_folder(tmp_path_factory.mktemp("project"), notebooks=names, **SCALE)
    shutil.copytree(REPOSITORY / "notebooks", root / "notebooks")
    write_notebook(root / "notebooks" / "broken.ipynb", "x = 1", "x / 0", "open('never', 'w')")
    startup = root / "ipython" / "profile_default" / "startup" / "few_images.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(FEW_IMAGES.format(tests=str(REPOSITORY / "tests")))
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_few_images(monkeypatch)
        monkeypatch.setenv("IPYTHONDIR", str(root / "ipython"))
        monkeypatch.setenv("TLA_DATA", str(root / "no-data"))
        make_everything(Results("mini", root=root, progress=False))
        monkeypatch.chdir(root)
        stored = {path: path.stat().st_mtime_ns for path in (root / "results").rglob("*.safetensors")}
        for name, value in served.items():
            monkeypatch.setenv(name, value)
        status = cli.main(["notebooks"])
    now = {path: path.stat().st_mtime_ns for path in (root / "results").rglob("*.safetensors")}
    assert {path: now[path] for path in stored} == stored, "a notebook made again what was there"
    own = root / "results" / "mini" / "own"  # the training and the report of your_own_model
    new = {path.parent.name for path in now if path not in stored and own not in path.parents}
    assert new <= {"mnist"}, "a notebook missed a result"  # where the explorer keeps its maps
    return root, status


def make_everything(results):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskingWarning)  # of nets that have seen one epoch
        for method in results.methods:
            results.class_maps(method)
            results.pair_maps(method)
            results.train_representations(method)
            for eps in results.levels():
                results.representations(method, eps)
            results.representations_of_seeds(method)
            results.train_representations(method, seed=1)
        for method in results.methods[1:]:
            for seed in results.scale.seeds_of("mnist"):
                results.loss_rises(method, seed=seed)
        run_accuracies(results)
        for name in results.scale.sweeps:
            sweep_table(results, name)


def test_notebooks_leave_every_figure_and_table(executed):
    root, _ = executed
    made = {path.name for path in (root / "figures" / "mini").iterdir() if path.is_file()}
    figures = {f"{name}.{ending}" for name in FIGURES for ending in ("pdf", "png", "svg", "json", "safetensors")}
    tables = {f"{name}.{ending}" for name in TABLES for ending in ("csv", "html", "json", "md", "tex")}
    assert made == figures | tables | {"explorer.html"}


def test_the_manifest_of_what_they_leave_is_complete(executed, served, monkeypatch, capsys):
    root, _ = executed
    monkeypatch.chdir(root)
    assert cli.main(["manifest"]) == 0
    assert {path.name for path in (root / "figures" / "mini").glob("*.html")} > {"index.html"}
    (root / "figures" / "mini" / "fig8.png").write_bytes(b"")
    assert cli.main(["manifest"]) == 1
    assert "fig8" in capsys.readouterr().err
    (root / "figures" / "mini" / "index.html").unlink()
    (root / "figures" / "mini" / "manifest.json").unlink()
    run_one(root, "fig8_loss_landscape", served)


@pytest.mark.parametrize("scale", sorted(path.parent.name for path in (REPOSITORY / "figures").glob("*/manifest.json")))
def test_the_figures_that_are_here_are_complete(scale):
    check_manifest(REPOSITORY / "figures" / scale)


def test_executed_copies_are_kept_with_their_outputs_and_the_scale(executed):
    root, _ = executed
    for path in NOTEBOOKS:
        copy = nbformat.read(root / "figures/mini/notebooks" / path.name, as_version=4)
        assert all(cell.execution_count for cell in copy.cells if cell.cell_type == "code")
        assert not any(output.output_type == "error" for cell in copy.cells for output in cell.get("outputs", []))
        assert any("injected-parameters" in cell.metadata.get("tags", []) for cell in copy.cells)
        pictures = [out for cell in copy.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
        drawn = {"fig1_3_false_classes": 3, "fig4_6_class_pairs": 3, "your_own_model": 1} | dict.fromkeys(
            ("fig7_retrieval", "fig8_loss_landscape", "knn_and_detection"), 1
        ) | {"table4_6_hyperparameters": 3}
        assert len(pictures) >= drawn.get(path.stem, 0), f"{path.stem} does not show its figures"


def test_a_failing_notebook_is_named_and_the_others_go_on(executed, capsys):
    root, status = executed
    assert status == 1
    folder = root / "figures/mini/notebooks"
    assert {path.name for path in folder.iterdir()} == {"broken.failed.ipynb", *(path.name for path in NOTEBOOKS)}
    assert not (root / "never").exists()


def test_sidecars_name_the_notebook_the_runs_and_the_numbers(executed, monkeypatch):
    root, _ = executed
    use_few_images(monkeypatch)
    results = Results("mini", root=root, make=False)
    figure, table = (json.loads((root / f"figures/mini/{name}.json").read_text()) for name in ("fig1", "table3"))
    assert figure["provenance"]["command"] == "tla notebooks fig1_3_false_classes --scale mini"
    assert table["provenance"]["command"] == "tla notebooks table3_distance_ratios --scale mini"
    assert figure["sources"] == [results.source(method) for method in results.methods]
    assert table["sources"] == [results.source(method, seed=seed) for method in results.methods for seed in (0, 1)]
    robust = [f"{100 * reps.robust_accuracy:.1f}" for reps in results.representations_of_seeds("at").values()]
    assert "seed 0 of 2; robust accuracy on 200 test images, %: UM" in figure["caption"]
    assert f"AT {robust[0]}, the other {robust[1]}; TLA" in figure["caption"]
    assert "mean ± standard error over 2 trainings (seeds 0, 1)" in table["caption"]
    assert len(figure["numbers"]["panels"]) == 3 * 3
    for panel in figure["numbers"]["panels"]:
        assert panel["adversarial_points"] == 12 == sum(panel["predicted_as"].values())
    records = {record["method"]: record for record in table["numbers"]["records"]}
    for method in results.methods:
        reps = results.representations(method, 0.3)
        sets = results.representations_of_seeds(method)
        ratios = [ratio_r_prime(each, drawn_from=400).value for each in sets.values()]
        assert [len(each) for each in sets.values()] == [200, 200] and len(reps) == 400
        np.testing.assert_array_equal(sets[0].indices, sets[1].indices)
        record = records[method.upper()]
        assert record["mnist r_prime 0.3"] == np.mean(ratios)
        assert record["mnist r_prime 0.3 se"] == pytest.approx(np.std(ratios, ddof=1) / 2**0.5)
        assert record["mnist r_prime 0.03 by seed"].keys() == {"0"} and record["mnist r_prime 0.03 se"] is None
        assert figure["numbers"]["robust_accuracy"][method] == reps.robust_accuracy
    accuracies = json.loads((root / "figures/mini/main_accuracy-mnist.json").read_text())
    assert accuracies["caption"].endswith("BB from a copy of the same method, seed 1.")
    assert {record["model"] for record in accuracies["numbers"]["records"]} == {"UM", "TLA-RN", "TLA"}
    assert "eps 0.3" in figure["caption"] and "MNIST (5,000 + 5,000 subset)" in figure["caption"]


def test_distances_and_rises_are_those_of_the_runs(executed, monkeypatch):
    root, _ = executed
    use_few_images(monkeypatch)
    results = Results("mini", root=root, make=False)
    stored = {name: json.loads((root / f"figures/mini/{name}.json").read_text())["numbers"]
              for name in ("table3-differences", "table3-distances", "fig8-rise")}  # fmt: skip
    reps = results.representations("tla", 0.3)
    unit = np.asarray(reps.features) / np.linalg.norm(reps.features, axis=1, keepdims=True)
    far, classes = 1 - np.abs(unit @ unit.T), [reps.labels == k for k in range(10)]
    within = [far[np.ix_(own, own)].sum() / (own.sum() * (own.sum() - 1)) for own in classes]
    (record,) = (each for each in stored["table3-distances"]["records"] if each["method"] == "TLA")
    assert record["within"] == pytest.approx(np.mean(within), rel=1e-5)
    assert record["apart"] == pytest.approx(np.mean([far[np.ix_(~own, own)].mean() for own in classes]), rel=1e-5)
    assert record["attacked"] == pytest.approx(ratio_r_prime(reps).cross.mean())
    at_003, at_03 = stored["table3-differences"]["records"]
    one, other = (results.representations(method, 0.03) for method in ("at", "tla"))
    between = bootstrap_r_prime(one, drawn_from=400) - bootstrap_r_prime(other, drawn_from=400)
    assert (at_003["eps"], at_003["seeds"]) == (0.03, 1)
    assert at_003["at tla se"] == pytest.approx(np.nanstd(between, ddof=1))
    sets = {method: results.representations_of_seeds(method).values() for method in ("at", "tla")}
    ratios = {method: [ratio_r_prime(each, drawn_from=400).value for each in sets[method]] for method in sets}
    paired = stats.ttest_rel(ratios["at"], ratios["tla"])
    assert (at_03["eps"], at_03["seeds"]) == (0.3, 2)
    assert at_03["at tla"] == pytest.approx(np.mean(ratios["at"]) - np.mean(ratios["tla"]))
    assert at_03["at tla"] / at_03["at tla se"] == pytest.approx(paired.statistic)
    means = {
        method: np.mean([bootstrap_r_prime(each, drawn_from=400) for each in sets[method]], axis=0) for method in sets
    }
    assert at_03["at tla se of images"] == pytest.approx(np.nanstd(means["at"] - means["tla"], ddof=1))
    assert (at_03["at tla mark"] == "*") == (paired.pvalue < 0.05)
    test, eps = results.test_images(), results.attack().eps
    found = {(each["model"], each["row"]): each["rise"] for each in stored["fig8-rise"]["more"]["per_image"]}
    rows = [len(test.labels) * place // 4 for place in range(4)]
    assert set(found) == {(name, row) for name in ("AT", "TLA") for row in rows}
    model = load_model(results.run("tla"))
    rises = [
        input_landscape(
            model, test.images[row], int(test.labels[row]), radius=2 * eps, resolution=3, random_state=place
        ).rise
        for place, row in enumerate(rows)
    ]  # fmt: skip
    assert [found["TLA", row] for row in rows] == pytest.approx(rises, abs=1e-5)
    record = stored["fig8-rise"]["records"][1]
    of_seeds = np.array([list(results.loss_rises("tla", seed=seed).values()) for seed in (0, 1)])
    assert record["rise by seed"] == pytest.approx({"0": np.mean(rises), "1": of_seeds[1].mean()}, abs=1e-5)
    assert record["rise"] == pytest.approx(of_seeds.mean(), abs=1e-5)
    assert record["rise se"] == pytest.approx(abs(np.diff(of_seeds.mean(axis=1))[0]) / 2, abs=1e-5)
    assert record["rise se of images"] == pytest.approx(np.std(of_seeds.mean(axis=0), ddof=1) / 2, abs=1e-5)
    assert record["least"] == np.mean([found["TLA", row] < found["AT", row] for row in rows])


def test_densities_are_of_the_gaussians_and_representations_that_columns_name(executed, monkeypatch):
    root, _ = executed
    use_few_images(monkeypatch)
    results = Results("mini", root=root, make=False)
    stored = {name: json.loads((root / f"figures/mini/{name}.json").read_text())["numbers"]
              for name in ("detection-mnist", "detection-densities-mnist")}  # fmt: skip
    areas = {curve["name"]: curve["auc"] for curve in stored["detection-mnist"]}
    records = stored["detection-densities-mnist"]["records"]
    assert areas == {method.upper(): detection_of(results, method).auc for method in results.methods}
    train, reps = results.train_representations("tla"), results.representations_of_seeds("tla")[0]
    scaled = [each / np.linalg.norm(each, axis=1, keepdims=True)
              for each in (train.features, np.concatenate([reps.features, reps.adv_features]))]  # fmt: skip
    wrong = np.concatenate([reps.predictions, reps.adv_predictions]) != np.tile(reps.labels, 2)
    expected = detection_auc(scaled[0], train.labels, scaled[1], wrong, covariance="own")
    assert records[-1]["method"] == "TLA" and records[-1]["own, unit length by seed"]["0"] == pytest.approx(expected)


def run_one(root, name, served):
    source = root / "notebooks" / f"{name}.ipynb"
    with pytest.MonkeyPatch.context() as monkeypatch:
        for variable, value in {**served, "IPYTHONDIR": str(root / "ipython")}.items():
            monkeypatch.setenv(variable, value)
        run_notebook(
            source, root / "figures/mini/notebooks" / source.name, parameters={"SCALE": "mini"}, root=root
        )  # fmt: skip


@pytest.mark.parametrize(
    ("notebook", "names"),
    [
        ("fig1_3_false_classes", ["fig1", "fig2", "fig3"]), ("fig4_6_class_pairs", ["fig4", "fig5", "fig6"]),
        ("fig7_retrieval", ["fig7", "fig7-precision"]), ("fig8_loss_landscape", ["fig8", "fig8-rise"]),
        ("knn_and_detection", ["knn-mnist", "detection-mnist", "detection-densities-mnist"]),
        ("table4_6_hyperparameters", ["table4", "table6-plot"]),
        ("table3_distance_ratios", ["table3", "table3-seeds", "table3-differences", "table3-distances"]),
    ],
)  # fmt: skip
def test_executing_again_gives_the_same_images_and_numbers(executed, served, notebook, names):
    root, _ = executed
    folder = root / "figures" / "mini"
    before = {path.name: path.read_bytes() for name in names for path in folder.glob(f"{name}.*")}
    run_one(root, notebook, served)
    for name, content in before.items():
        if name.endswith(".json"):
            first, second = json.loads(content), json.loads((folder / name).read_text())
            assert first | {"provenance": None} == second | {"provenance": None}
        else:
            assert (folder / name).read_bytes() == content, name


def test_what_notebooks_leave_is_drawn_again_byte_for_byte(executed):
    root, _ = executed
    drawn = changed_when_redrawn(root / "figures" / "mini")
    assert {each.stem for each in drawn} == {*FIGURES, *TABLES}
    assert [each for each in drawn if each.changed] == []


# The runner -----------------------------------------------------------------------------------------------------------


def run_in(folder, *code):
    source = write_notebook(folder / "notebooks" / "mine.ipynb", *code)
    return run_notebook(source, folder / "out" / "mine.ipynb", parameters={"SCALE": "small"}, root=folder)


def test_a_notebook_runs_in_the_root_with_its_parameters_and_knows_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TLA_COMMAND", "outer")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.failed.ipynb").write_text("of an earlier run")
    code = "import os; from pathlib import Path; Path('said').write_text(f'{SCALE} {os.environ[\"TLA_COMMAND\"]}')"
    assert run_in(tmp_path, code) == tmp_path / "out" / "mine.ipynb"
    assert (tmp_path / "said").read_text() == "small tla notebooks mine --scale small"
    assert os.environ["TLA_COMMAND"] == "outer"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.ipynb"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import json; json.loads('{')", r"mine\.ipynb: cell \d+ failed with JSONDecodeError: Expecting property name"),
        ("import os; os._exit(3)", r"mine\.ipynb: .*[Kk]ernel died"),
    ],
)
def test_a_failed_notebook_leaves_no_half_made_output(tmp_path, code, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.ipynb").write_text("of an earlier run")
    with pytest.raises(NotebookError, match=message) as error:
        run_in(tmp_path, "x = 1", code)
    failed = tmp_path / "out" / "mine.failed.ipynb"
    assert str(failed) in str(error.value)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine.ipynb", "mine.failed.ipynb"}
    assert (tmp_path / "out" / "mine.ipynb").read_text() == "of an earlier run"


def test_a_kernel_spec_of_an_environment_that_is_gone_does_not_matter(tmp_path, monkeypatch):
    spec = {"argv": ["/gone/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    path = tmp_path / "kernels" / "python3" / "kernel.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**spec, "display_name": "Python 3"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    nbformat.write(new_notebook(cells=[new_code_cell("print(1 + 1)")]), tmp_path / "mine.ipynb")
    executed = run_notebook(tmp_path / "mine.ipynb", tmp_path / "out" / "mine.ipynb", parameters={}, root=tmp_path)
    assert nbformat.read(executed, as_version=4).cells[-1].outputs[0].text == "2\n"


def test_a_notebook_that_is_told_to_end_leaves_nothing(tmp_path):
    nbformat.write(
        new_notebook(cells=[new_code_cell("import time\nprint('begun')"), new_code_cell("time.sleep(100)")]),
        tmp_path / "mine.ipynb",
    )
    unfinished = tmp_path / "out" / "mine.running.ipynb"
    call = (
        "import sys\nfrom analysis.command import main\nfrom analysis.command.notebook_runner import run_notebook\n"
        "def commands(args):\n"
        "    return {'go': lambda: run_notebook('mine.ipynb', 'out/mine.ipynb', parameters={}, root='.'), 'x': int}\n"
        "main.commands = commands\nsys.exit(main.main(['go']))"
    )
    process = subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 100
    while not (unfinished.exists() and "begun\\n" in unfinished.read_text()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 143, errors
    assert os.listdir(tmp_path / "out") == []
    assert kernels and psutil.wait_procs(kernels, timeout=100)[1] == []


def test_an_unknown_notebook_lists_those_there_are(tmp_path):
    write_notebook(tmp_path / "notebooks" / "mine.ipynb")
    with pytest.raises(FileNotFoundError, match=r"there is no notebook fig9\.ipynb\. In .*notebooks there are: mine"):
        run_notebook(tmp_path / "notebooks" / "fig9.ipynb", tmp_path / "out.ipynb", parameters={}, root=tmp_path)
    assert not (tmp_path / "out.ipynb").exists()


def test_a_frame_shows_the_same_file_from_the_executed_copy(tmp_path):
    (tmp_path / "notebooks").mkdir()
    folder = tmp_path / "figures" / "mini"
    folder.mkdir(parents=True)
    (folder / "explorer.html").write_text("<p>here</p>")
    code = "from IPython.display import IFrame\nIFrame('../figures/mini/explorer.html', width=100, height=100)"
    notebook = new_notebook(cells=[new_code_cell(code)])
    nbformat.write(notebook, tmp_path / "notebooks" / "frame.ipynb")
    target = folder / "notebooks" / "frame.ipynb"
    run_notebook(tmp_path / "notebooks" / "frame.ipynb", target, parameters={}, root=tmp_path)
    (output,) = nbformat.read(target, as_version=4).cells[-1].outputs
    assert 'src="../explorer.html"' in output["data"]["text/html"]


INTERACTIVE = (
    """import sys
sys.path.insert(0, {tests!r})
import numpy as np
from explorer_sets import made_set, random_maps
from analysis import EmbeddingExplorer, LandscapeDisplay, LandscapesDisplay""",
    """axis = np.linspace(-1, 1, 5)
panel = LandscapeDisplay(axis[:, None] ** 2 + axis**2, axis, 0.0)
LandscapesDisplay({{"TLA": [panel]}}, ["a digit"]).show_surface()""",
    """sets = {{"UM": made_set(), "TLA": made_set(seed=1)}}
EmbeddingExplorer(sets, images=sets["UM"].adv_images, projections=random_maps(sets), methods=("pca",)).widget()""",
)


def test_what_is_interactive_has_a_picture_where_a_page_of_nbconverts_shows_it(tmp_path):
    """Surfaces stay beside their picture; the widget, which has no kernel in the copy, gives its place to its own."""
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    from nbconvert import HTMLExporter

    cells = [new_code_cell(code.format(tests=str(REPOSITORY / "tests"))) for code in INTERACTIVE]
    nbformat.write(new_notebook(cells=cells), tmp_path / "mine.ipynb")
    target = tmp_path / "out" / "mine.ipynb"
    run_notebook(tmp_path / "mine.ipynb", target, parameters={}, root=REPOSITORY)
    copy = nbformat.read(target, as_version=4)
    surface, widget = (output["data"] for cell in copy.cells for output in cell.get("outputs", []))
    assert set(surface) == {"application/vnd.plotly.v1+json", "image/png", "text/plain"}
    assert surface["application/vnd.plotly.v1+json"]["config"]["showSendToCloud"] is False
    assert set(widget) == {"image/png", "text/plain"}
    page, _ = HTMLExporter().from_notebook_node(copy)
    assert page.count('src="data:image/png;base64,') == 2 and "widget-view" not in page
