"""The plan of a scale beside what Snakemake would do; the state of each artefact and run; what `clean` removes."""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from tiny import REPOSITORY, change_scale, files_of, project_folder, tiny_training, unfinish, use_few_images

from analysis.command import main as cli
from analysis.command.notebook_runner import run_notebook
from analysis.scales import targets
from analysis.scales.accuracy import evaluate_run
from analysis.scales.accuracy_attacks import run_attacks
from analysis.scales.cleaning import CATEGORIES, _remove, clean
from analysis.scales.costs import duration_text, seconds_per_step, size_text
from analysis.scales.lock import PipelineError
from analysis.scales.plan import Plan
from analysis.scales.run_results import representations_target, target_of_run
from analysis.scales.runs import list_runs, run_entries
from analysis.scales.scale import load_scale
from analysis.scales.states import fingerprints
from analysis.scales.status import scale_status, table_text
from tla_core.checkpoint import load_tensors, save_tensors
from tla_core.dataset_files import DatasetError, DatasetNotFoundError
from tla_core.run_folder import RunFolder
from tla_core.training import train

UM, AT = "runs/mini/mnist/um/seed0", "runs/mini/mnist/at/seed0"
MAPS = "results/mini/mnist/um/seed0/class-maps-eps0.3.safetensors"
REPRESENTATIONS = "results/mini/mnist/um/seed0/representations-eps0.3.safetensors"


# The list against Snakemake -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini", "small", "medium", "paper"])
def test_a_scale_consists_of_what_snakemake_would_make_by_the_same_commands(name, tmp_path):
    for folder in ("workflow", "notebooks"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    shutil.copy(tmp_path / "notebooks" / "your_own_model.ipynb", tmp_path / "notebooks" / "unlisted.ipynb")
    change_scale(tmp_path, name, notebooks=sorted(path.stem for path in (tmp_path / "notebooks").glob("*.ipynb")))
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--directory", str(tmp_path)]
    command += ["--cores", "1", "--config", f"scale={name}", "--dry-run", "--printshellcmds"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    jobs = re.findall(r"^    output: (\S+?)(?:, .*)?\n(?:    .*\n)*Shell command: (.*)", said, re.M)
    bare = {path: command.partition(" > ")[0].replace("--no-progress", "") for path, command in jobs}
    theirs = {path: " ".join(command.split()) for path, command in bare.items()}
    plan = Plan(load_scale(name, tmp_path)).artefacts
    assert {path: artefact.command for path, artefact in plan.items() if artefact.kind != "pair maps"} == theirs
    assert all(need in plan for artefact in plan.values() for need in artefact.needs)
    pairs = [artefact for artefact in plan.values() if artefact.kind == "pair maps"]
    assert pairs and {artefact.command for artefact in pairs} <= set(theirs.values())


# A project with two finished runs and their results, made once and copied ---------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two tiny trainings, and results that hold nothing but the right metadata."""
    root = project_folder(tmp_path_factory.mktemp("made"), methods=["um", "at"], notebooks=["fig1_3_false_classes"])
    scale = load_scale("mini", root)
    with pytest.MonkeyPatch.context() as patch:
        use_few_images(patch)
        for method in scale.methods:
            run = scale.run_dir("mnist", method)
            train(scale.config("mnist", method), run, progress=False)
            maps = targets.class_maps(scale.config("mnist", method), 0.3, scale.map_settings())
            for path, expected in (representations_target(run, 0.3), target_of_run(run, maps)):
                save_tensors(path, {"nothing": torch.zeros(1)}, {"meta": expected})
    for folder in ("notebooks", "figures/mini/notebooks"):
        (root / folder).mkdir(parents=True)
        shutil.copy(REPOSITORY / "notebooks" / "fig1_3_false_classes.ipynb", root / folder)
    return root


@pytest.fixture
def project(made, tmp_path):
    return shutil.copytree(made, tmp_path / "project")


NOTEBOOK = {
    "cells": [{"cell_type": "code", "source": "SCALE = 'mini'", "metadata": {"tags": ["parameters"]}, "outputs": [],
               "execution_count": None, "id": "parameters"}],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


def states(root, **options):
    return {record.artefact.path: record.state for record in scale_status("mini", root, **options).records}


def move_aside(root, run=AT):
    return RunFolder(root / run).move_aside().relative_to(root).as_posix()


# tla status -----------------------------------------------------------------------------------------------------------


def test_what_is_there_is_made_and_the_rest_is_missing_and_looking_changes_nothing(project):
    before = files_of(project)
    status = scale_status("mini", project)
    assert files_of(project) == before
    assert status.counts == {"made": 7, "stale": 0, "unfinished": 0, "missing": 1}
    (manifest,) = [record.artefact for record in status.records if record.state.name == "missing"]
    assert manifest.command == "tla manifest --scale mini"
    text = table_text(status.to_table(), leave_out=["command"])
    assert "mini: 7 made, 0 stale, 0 unfinished, 1 missing." in text and "tla manifest" not in text


def test_in_an_empty_project_all_is_missing_and_its_cost_unknown(tmp_path):
    status = scale_status("mini", project_folder(tmp_path, methods=["um", "at"]))
    assert {record.state.name for record in status.records} == {"missing"}
    assert all(record.seconds is None for record in status.records)
    assert "Remaining trainings: unknown of 2 of 2 (" in status.summary


def test_changed_settings_of_a_run_make_it_stale_and_all_that_depends_on_it(project):
    change_scale(project, overrides={"um": tiny_training(label_smoothing=0.25), "at": tiny_training()})
    found = states(project)
    assert found[f"{UM}/model.safetensors"] == ("stale", "settings changed: label_smoothing was 0.1, is 0.25")
    assert found[REPRESENTATIONS] == ("stale", f"{UM}/model.safetensors is stale")
    assert found[f"{AT}/model.safetensors"] == ("made", "")
    state, why = found["figures/mini/notebooks/fig1_3_false_classes.ipynb"]
    assert state == "stale" and why.endswith("is stale, and 1 more that it reads")


def test_a_result_of_other_weights_or_settings_or_of_another_scale_is_stale(project):
    model = project / UM / "model.safetensors"
    tensors, metadata = load_tensors(model)
    save_tensors(model, {name: tensor + 1 for name, tensor in tensors.items()}, metadata)
    assert states(project)[REPRESENTATIONS] == ("stale", "checkpoint changed")
    save_tensors(model, tensors, metadata)
    change_scale(project, tsne_iterations=251)
    state, why = states(project)[MAPS]
    assert state == "stale" and why.startswith("settings changed: settings was {") and "251" in why
    before = yaml.safe_load((project / "workflow/scales/mini.yaml").read_text())
    before |= {"tsne_iterations": 250, "presets": "mini"}
    (project / "workflow/scales/other.yaml").write_text(yaml.safe_dump(before))
    assert states(project)[MAPS] == ("stale", "results of another scale: other")


def test_an_unfinished_training_says_how_far_it_is_and_what_the_rest_takes(project, monkeypatch):
    use_few_images(monkeypatch)
    change_scale(project, overrides={"um": tiny_training(), "at": tiny_training(epochs=3)})
    shutil.rmtree(project / AT)
    scale = load_scale("mini", project)
    train(scale.config("mnist", "at"), scale.run_dir("mnist", "at"), progress=False)
    unfinish(RunFolder(project / AT), 1)
    lines = [{"step": 25 * k, "time": 100.0 + 50 * k} for k in range(1, 5)]
    (project / AT / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = scale_status("mini", project)
    record = {r.artefact.path: r for r in status.records}[f"{AT}/model.safetensors"]
    assert record.state == ("unfinished", "at step 1 of 3")  # 180 images, batches of 100
    assert record.seconds == pytest.approx(4.0)  # two steps at 2 s
    assert "Remaining trainings: 4 s (" in status.summary
    change_scale(project, overrides={"um": tiny_training(), "at": tiny_training(epochs=5)})
    record = {r.artefact.path: r for r in scale_status("mini", project).records}[f"{AT}/model.safetensors"]
    assert record.state.name == "stale" and record.seconds == pytest.approx(10.0)  # all of it


def test_a_run_that_a_living_process_holds_says_so_and_one_of_a_dead_process_does_not(project):
    unfinish(RunFolder(project / AT), 0)
    owner = project / AT / "process.json"
    owner.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
    assert states(project)[f"{AT}/model.safetensors"][1] == f"at step 0 of 1, in use by process {os.getpid()}"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner.write_text(json.dumps({"pid": ended.pid, "host": platform.node()}))
    assert states(project)[f"{AT}/model.safetensors"][1] == "at step 0 of 1"


def test_an_edited_notebook_and_newer_results_make_the_executed_copy_stale(project):
    executed = "figures/mini/notebooks/fig1_3_false_classes.ipynb"
    os.utime(project / MAPS, (time.time() + 60, time.time() + 60))
    assert states(project)[executed] == ("stale", f"{MAPS} is newer")
    os.utime(project / MAPS, (1, 1))
    source = project / "notebooks" / "fig1_3_false_classes.ipynb"
    content = json.loads(source.read_text())
    content["cells"][0]["source"] = "another text"
    source.write_text(json.dumps(content))
    assert states(project)[executed] == ("stale", "the notebook was edited")


def test_a_notebook_knows_what_it_was_made_from_whatever_the_times(project):
    executed = project / "figures/mini/notebooks/fig1_3_false_classes.ipynb"
    plan = Plan(load_scale("mini", project))
    artefact = plan.artefacts[executed.relative_to(project).as_posix()]
    (project / "notebooks" / executed.name).write_text(json.dumps(NOTEBOOK))
    run_notebook(
        project / "notebooks" / executed.name, executed, parameters={"SCALE": "mini"}, root=project,
        read=lambda: fingerprints(plan, artefact),
    )  # fmt: skip
    os.utime(project / MAPS, (time.time() + 60, time.time() + 60))
    path = executed.relative_to(project).as_posix()
    assert states(project)[path] == ("made", "")
    tensors, metadata = load_tensors(project / MAPS)
    save_tensors(project / MAPS, {name: tensor + 1 for name, tensor in tensors.items()}, metadata)
    assert states(project)[path] == ("stale", f"{MAPS} is not what it read")


def test_a_notebook_without_a_cell_or_of_other_files_was_not_made_of_these(project):
    executed = project / "figures/mini/notebooks/fig1_3_false_classes.ipynb"
    path = executed.relative_to(project).as_posix()
    source, content = project / "notebooks" / executed.name, json.loads(executed.read_text())
    source.write_text(json.dumps({**content, "cells": content["cells"][:-1]}))
    assert states(project)[path] == ("stale", "the notebook was edited")
    source.write_text(json.dumps({**content, "cells": content["cells"][::-1]}))
    assert states(project)[path] == ("stale", "the notebook was edited")
    source.write_text(json.dumps(content))
    plan = Plan(load_scale("mini", project))
    read = fingerprints(plan, plan.artefacts[path])
    content["metadata"]["tla_read"] = read
    executed.write_text(json.dumps(content))
    assert states(project)[path] == ("made", "")
    content["metadata"]["tla_read"] = {**read, "results/of/a/seed/that/is/gone": "0"}
    executed.write_text(json.dumps(content))
    assert states(project)[path] == ("stale", "results/of/a/seed/that/is/gone is not what it read")


def test_the_file_of_another_scale_may_be_broken(project):
    change_scale(project, tsne_iterations=251)
    for content in ("a: [", "just words", "datasets: 3"):
        (project / "workflow/scales/another.yaml").write_text(content)
        state, why = states(project)[MAPS]
        assert state == "stale" and why.startswith("settings changed: settings was {"), content


def test_accuracies_are_made_when_every_column_was_measured_with_the_scales_settings(project, monkeypatch):
    use_few_images(monkeypatch, n_test=20)
    change_scale(project, notebooks=["main_accuracy"], accuracy={"methods": ["um"], "restarts": 1, "long_images": 4})
    path = "results/mini/mnist/um/seed0/accuracy-test.json"
    assert states(project)[path] == ("missing", "")
    attacks, limits = run_attacks(project / UM, restarts=1, long_images=4)
    evaluate_run(project / UM, {"FGSM": attacks["FGSM"]}, limits=limits, progress=False)
    state, why = states(project)[path]
    assert state == "stale" and why.startswith("not measured, or with other settings: BIM40, C&W40")
    evaluate_run(project / UM, attacks, limits=limits, progress=False)
    assert states(project)[path] == ("made", "")
    change_scale(project, accuracy={"methods": ["um"], "restarts": 1, "long_images": 3})
    assert states(project)[path] == ("made", "")  # more images than that
    change_scale(project, accuracy={"methods": ["um"], "restarts": 1, "long_images": 5})
    state, why = states(project)[path]
    assert state == "stale" and "PGD100" in why and "FGSM" not in why

    def no_data(name, split, **_):
        raise DatasetNotFoundError("not there")

    monkeypatch.setattr("tla_core.datasets.load_dataset", no_data)
    assert states(project)[path] == ("made", "its columns were not checked: the dataset is not here")

    def damaged(name, split, **_):
        raise DatasetError("is damaged")

    # Another fault of the dataset is no excuse.
    monkeypatch.setattr("tla_core.datasets.load_dataset", damaged)
    assert states(project)[path] == ("stale", "it cannot be read: is damaged")


def test_pauses_are_no_part_of_a_training_time():
    stamps = [(0, 0.0), (10, 10.0), (20, 20.0), (30, 100_000.0), (40, 100_010.0)]
    assert seconds_per_step([{"step": s, "time": t} for s, t in stamps]) == pytest.approx(1.0)
    assert seconds_per_step([{"step": 10, "time": 1.0}]) is None


def test_sizes_and_durations_for_people():
    assert [size_text(n) for n in (0, 999, 21_400_000, None)] == ["0 B", "999 B", "21.4 MB", "unknown"]
    assert [duration_text(s) for s in (40, 720, 12_600, None)] == ["40 s", "12 min", "3.5 h", "unknown"]


# tla runs -------------------------------------------------------------------------------------------------------------


def test_all_runs_are_listed_with_what_their_scale_makes_of_them(project):
    aside = move_aside(project)
    shutil.copytree(project / UM, project / "runs/mine/one")
    shutil.copytree(project / UM, project / "runs/mini/mnist/um@short/seed1")
    shutil.copytree(project / UM, project / "runs/mini/mnist/um/seed3")
    unfinish(RunFolder(project / "runs/mine/one"), 1)
    shutil.copytree(project / UM, project / "runs/mini/broken")
    (project / "runs/mini/broken/config.json").write_text("{")
    entries = {entry.path.as_posix(): entry for entry in run_entries(project)}
    assert {path: entry.standing for path, entry in entries.items()} == {
        UM: "current",
        aside: "outdated",
        "runs/mine/one": "foreign",
        "runs/mini/mnist/um@short/seed1": "outdated",  # its seed is another
        "runs/mini/mnist/um/seed3": "outdated",
        "runs/mini/broken": "foreign",
    }
    assert entries[UM].state == "finished" and set(entries[UM].held_out) == {"clean"}
    assert set(entries[aside].held_out) == {"clean", "robust"}
    assert entries["runs/mine/one"].state == "at step 1 of 1"
    assert entries["runs/mini/broken"].state.startswith("broken: ") and "damaged" in entries["runs/mini/broken"].state
    text = table_text(list_runs(project, "mini"))
    assert entries[UM].identity[:8] in text and "runs/mine" not in text and "5 runs, " in text


DAMAGES = {
    "not text": b"\xff", "a list": b"[1]", "a number": b"3", "nothing": b"", "deep": b"[" * 100_000,
    "settings that are a list": b'{"identity": "x", "config_identity": "x", "config": [1], "data": {}, "start": {}}',
    "a setting that is a list": b'{"identity": "x", "config": {"method": []}, "data": {}, "start": {}}',
    "an identity that is a list": b'{"identity": [1], "config": {}, "data": {"images": "all"}, "start": {}}',
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.jsonl", "process.json"])
def test_one_damaged_file_hides_no_other_run(name, content, project):
    (project / UM / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lines of the metrics
        entries = {entry.path.as_posix(): entry for entry in run_entries(project)}
        text = table_text(list_runs(project))
        clean(project, remove=True)
        found = states(project)
    assert UM in text and AT in text
    assert entries[AT].state == "finished" and found[f"{AT}/model.safetensors"][0] == "made"
    damaged = name in ("config.json", "model.safetensors")
    assert entries[UM].state.startswith("broken: " if damaged else "finished")
    assert damaged is (found[f"{UM}/model.safetensors"][0] != "made")
    assert (project / UM / name).read_bytes() == content
    assert (project / MAPS).is_file(), "results of weights that may be restored are not stale"


def test_weights_with_another_bit_are_not_made_and_what_depends_on_them_waits(project):
    model = project / UM / "model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    found = states(project)
    state, why = found[f"{UM}/model.safetensors"]
    assert state == "stale" and re.search(r"was altered.*`tla repair .*um/seed0`", why)
    assert found[REPRESENTATIONS] == ("stale", f"{UM}/model.safetensors is stale")
    assert list(clean(project).removals) == []


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"{}", b"\xff"])
@pytest.mark.parametrize("path", [REPRESENTATIONS, MAPS, "figures/mini/notebooks/fig1_3_false_classes.ipynb"])
def test_a_result_of_zero_bytes_or_of_something_else_is_not_made(path, content, project, monkeypatch, capsys):
    assert states(project)[path][0] != "missing"
    (project / path).write_bytes(content)
    state, why = states(project)[path]
    assert state == "stale" and "it cannot be read" in why
    if content == b"" and path == MAPS:
        monkeypatch.chdir(project)
        assert cli.main(["status"]) == 1
        assert f"1 file(s) cannot be read; the table says why: {MAPS}." in capsys.readouterr().err


def test_no_runs_and_a_scale_that_leads_elsewhere_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no runs in .*Train one with `tla train`"):
        list_runs(tmp_path)
    with pytest.raises(ValueError, match=r"scale must be the name of a folder .* Got '\.\./elsewhere'"):
        clean(tmp_path, scale="../elsewhere", remove=True)


# tla clean ------------------------------------------------------------------------------------------------------------


def untidy(root):
    """One thing for each category; returns category -> paths."""
    aside = move_aside(root)
    failed = root / "figures/mini/notebooks/fig7_retrieval.failed.ipynb"
    failed.write_text("{}")
    temporary = root / "results/mini/mnist/um/seed0/.class-maps-eps0.3.safetensors.123.tmp"
    temporary.write_bytes(b"part")
    os.utime(temporary, (1, 1))
    return {
        "moved-aside": {aside},
        "leftovers": {failed.relative_to(root).as_posix(), temporary.relative_to(root).as_posix()},
    }


def paths_by_category(report):
    return {c: {r.path.as_posix() for r in report.removals if r.category == c} for c in CATEGORIES}


def test_clean_lists_with_sizes_and_removes_nothing_unless_told(project):
    expected = untidy(project)
    before = files_of(project)
    report = clean(project)
    assert files_of(project) == before
    assert paths_by_category(report) == expected
    assert not report.removed and report.freed == sum(r.size for r in report.removals) > 0
    assert "Nothing was removed. What is listed to go: 3 files or folders" in str(report)


def test_clean_removes_what_it_lists_and_nothing_else(project):
    untidy(project)
    before, listed = files_of(project), clean(project)
    report = clean(project, remove=True)
    assert paths_by_category(report) == paths_by_category(listed) and report.freed == listed.freed
    gone = set(before) - set(files_of(project))
    assert all(any(Path(p).is_relative_to(r.path) for r in report.removals) for p in gone)
    assert sum(len(before[path]) for path in gone) == report.freed
    assert str(report).endswith(f"Removed 3 files or folders, {size_text(report.freed)}.")
    assert not (project / "runs/mini/mnist/at").exists()
    assert (project / UM / "model.safetensors").is_file() and (project / MAPS).is_file()
    assert clean(project, remove=True).removals == ()


@pytest.mark.parametrize("foreign", ["notes.txt", "results/accuracy-test.json", ".hidden"])
def test_an_old_run_with_files_of_the_users_stays(foreign, project):
    """They were never listed, whether they were there at the time or came later."""
    aside = project / move_aside(project)
    assert aside.relative_to(project) in {removal.path for removal in clean(project).removals}
    notes = aside / foreign
    notes.parent.mkdir(exist_ok=True)
    notes.write_text("mine")
    for remove in (False, True):
        report = clean(project, remove=remove)
        (kept,) = (each for each in report.exceptions if each.path == aside.relative_to(project))
        assert kept.obstacle == f"it holds {foreign.partition('/')[0]}, which no training writes"
        assert notes.read_text() == "mine" and (aside / "model.safetensors").is_file()


def test_files_that_came_between_the_list_and_the_removal_stay(project):
    aside = project / move_aside(project)
    (aside / "notes.txt").write_text("mine")
    assert "which no training writes" in _remove(project, aside.relative_to(project))
    assert (aside / "notes.txt").is_file()


@pytest.mark.parametrize("how", ["process.json", "lock"])
def test_a_run_that_a_process_holds_stays(project, how):
    aside = project / move_aside(project)
    if how == "process.json":
        (aside / "process.json").write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        report = clean(project, remove=True)
    else:
        with FileLock(aside / "lock"):
            report = clean(project, remove=True)
    assert "in use by" in report.exceptions[0].obstacle and report.exceptions[0].path.name == aside.name
    assert (aside / "model.safetensors").is_file()
    assert "kept:\n" in str(report)


def test_nothing_is_removed_while_a_pipeline_is_at_work_and_listing_goes_on(project):
    expected = untidy(project)
    (project / ".snakemake").mkdir()
    with (project / ".snakemake" / "tla.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = files_of(project)
        with pytest.raises(PipelineError, match=r"another pipeline is at work in .*\. Wait for it, or end it"):
            clean(project, remove=True)
        assert files_of(project) == before
        assert paths_by_category(clean(project)) == expected


def test_a_young_temporary_file_stays(project):
    young = project / "results/mini/mnist/um/seed0/.x.safetensors.123.tmp"
    young.write_bytes(b"being written")
    report = clean(project, remove=True)
    assert young.is_file() and "it may still be written" in report.exceptions[0].obstacle


def test_the_batches_of_an_interrupted_extraction_go_when_they_are_old(project):
    shards = project / "results/mini/mnist/um/seed0/.x.safetensors.shards"
    shards.mkdir(parents=True)
    (shards / "000000000.safetensors").write_bytes(b"a batch")
    assert [each.path.name for each in clean(project, remove=True).exceptions] == [shards.name] and shards.is_dir()
    os.utime(shards, (1, 1))
    (removal,) = clean(project, remove=True).removals
    assert removal.size == 7 and "the same command would go on from them" in removal.reason and not shards.exists()


def test_links_are_not_followed(project, tmp_path):
    untidy(project)
    outside = tmp_path / "outside"
    shutil.copytree(project, outside)
    before = files_of(outside)
    shutil.rmtree(project / "results")
    (project / "results").symlink_to(outside / "results")
    shutil.move(project / "runs/mini/mnist", project / "was")
    (project / "runs/mini/mnist").symlink_to(outside / "runs/mini/mnist")
    (project / "figures/mini/notebooks/x.failed.ipynb").symlink_to(outside / "workflow/scales/mini.yaml")
    report = clean(project, categories=CATEGORIES, remove=True)
    assert [r.path.name for r in report.removals] == ["fig7_retrieval.failed.ipynb"]
    assert files_of(outside) == before


def test_a_link_inside_an_old_run_is_removed_and_what_it_leads_to_stays(project, tmp_path):
    aside = project / move_aside(project)
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "kept").write_text("kept")
    (aside / "tensorboard").symlink_to(target)
    clean(project, remove=True)
    assert not aside.exists() and (target / "kept").is_file()


def test_what_is_committed_stays(project):
    untidy(project)
    subprocess.run(["git", "-C", str(project), "init", "-q"], check=True)
    subprocess.run(["git", "-C", str(project), "add", "figures", "runs"], check=True)
    report = clean(project, categories=CATEGORIES, remove=True)
    assert {r.obstacle for r in report.exceptions} == {"it is committed, or holds what is"}
    assert {r.category for r in report.removals} == {"leftovers"}
    assert (project / UM).is_dir() and (project / MAPS).is_file()


def test_an_unknown_category_is_refused(project):
    with pytest.raises(ValueError, match=r"categories must be of moved-aside, .* Got everything\."):
        clean(project, categories=["everything"])
