"""The pipeline with a `tla` that only makes the files: which jobs it runs, and that Snakemake itself agrees.

What is stale is judged by what the plan was when a file was made: these files say nothing of themselves.
"""

import fcntl
import io
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny import REPOSITORY, change_scale, project_folder

from analysis.command import main as cli
from analysis.command.pipeline import PipelineError, run_pipeline, snakemake_arguments
from analysis.command.progress import _USUAL, Progress
from analysis.scales.plan import Plan
from analysis.scales.scale import load_scale
from analysis.scales.states import State
from tla_core.config import TrainConfig
from tla_core.presets import METHODS

FAKE_TLA = """#!/bin/sh
call=$*
echo "$call" >> calls.log
if [ "$1 $2" = "${FAIL:-none}" ]; then echo "made to fail" >&2; exit 1; fi
make() { mkdir -p "$(dirname "$1")" && echo "$call" > "$1"; }
case $1 in
  train) while [ "$1" != --out ]; do shift; done; make "$2/model.safetensors" ;;
  extract)
    if [ "$3" = --split ]; then make "results/${2#runs/}/representations-$4.safetensors"
    else make "results/${2#runs/}/representations-eps$4.safetensors"; fi ;;
  landscape) make "results/${2#runs/}/landscapes.safetensors" ;;
  evaluate) make "results/${2#runs/}/accuracy-test.json" ;;
  project) for of in class pair; do make "results/${2#runs/}/$of-maps-eps$4.safetensors"; done ;;
  notebooks) make "figures/$4/notebooks/$2.ipynb" ;;
  manifest) make "figures/$3/index.html"; make "figures/$3/manifest.json" ;;
esac
"""
# Fewer runs than the scale has: of each kind some.
FEWER = {
    "sweeps": ["table6"],
    "seeds": [0, 1],
    "accuracy": {"methods": list(METHODS), "long_images": 500, "black_box": {"variant": "", "seed": 1}},
}
N_NOTEBOOKS = len(list((REPOSITORY / "notebooks").glob("*.ipynb")))
# Two seeds of the methods, and layers at lambda1 = 2; one level of each run, of the first seed another
# one too, and the training images.
FROM_NOTHING = {
    "train": 8 + 4, "extract": 8 + 4 + 8 + 4, "project": 4, "landscape": 6, "evaluate": 8 + 4,
    "notebooks": N_NOTEBOOKS, "manifest": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A project with the repository's workflow and notebooks, a fake `tla`, and a Python that stands beside it."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("workflow", "notebooks"):
        shutil.copytree(REPOSITORY / folder, root / folder)
    binaries = root / "bin"
    binaries.mkdir()
    (binaries / "tla").write_text(FAKE_TLA)
    (binaries / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in binaries.iterdir():
        program.chmod(0o755)
    change_scale(root, **FEWER)
    return root


@pytest.fixture
def pipeline(checkout, monkeypatch):
    """Run the pipeline in that project; the calls of `tla` that it made."""
    monkeypatch.setattr("sys.executable", str(checkout / "bin" / "python"))
    monkeypatch.setattr("analysis.command.pipeline.judge", judge)

    def run(*extra):
        log = checkout / "calls.log"
        log.unlink(missing_ok=True)
        try:
            run_pipeline("mini", root=checkout, cores=2, extra=extra)
        finally:
            note_what_was_made(checkout, log)
        return log.read_text().splitlines() if log.exists() else []

    return run


def judge(plan, artefact, known):
    """What the real one finds by metadata, found by notes."""
    root, states = plan.scale.root, [judge(plan, need, known).name for need in plan.needs(artefact)]
    noted = json.loads(notes.read_text()) if (notes := root / "notes.json").exists() else {}
    if not (root / artefact.path).exists():
        return State("missing")
    return State("made" if noted[artefact.path] == wanted(root, artefact) and set(states) <= {"made"} else "stale")


def wanted(root, artefact):
    source = root / "notebooks" / Path(artefact.path).name
    text = source.read_text() if artefact.kind == "notebook" else ""
    return json.loads(json.dumps([artefact.command, artefact.settings, text]))


def note_what_was_made(root, log):
    plan, noted = Plan(load_scale("mini", root)).artefacts, {}
    if (root / "notes.json").exists():
        noted = json.loads((root / "notes.json").read_text())
    calls = set(log.read_text().replace(" --no-progress", "").splitlines()) if log.exists() else set()
    for path, artefact in plan.items():
        if (root / path).exists() and artefact.command.removeprefix("tla ") in calls:
            noted[path] = wanted(root, artefact)
    (root / "notes.json").write_text(json.dumps(noted))


def by_command(calls):
    return dict(Counter(call.split()[0] for call in calls))


def jobs_of_a_dry_run(capfd):
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", capfd.readouterr().out, re.M)}


def test_a_dry_run_from_nothing_lists_every_job_and_makes_nothing(pipeline, checkout, capfd):
    assert pipeline("-n") == []
    listed = jobs_of_a_dry_run(capfd)
    assert listed == {
        "train": 12, "extract": 16, "extract_train": 8, "project": 4, "landscape": 6, "evaluate": 12,
        "notebook": N_NOTEBOOKS, "manifest": 1, "all": 1, "total": 60 + N_NOTEBOOKS,
    }  # fmt: skip
    assert not (checkout / "runs").exists()


# Datasets x (methods, rn and sa) x seeds, of which one is the copy, and the sweeps on MNIST; at mini, rn and sa have
# one seed, at small, MNIST alone has three, the sweeps one, and CIFAR-10 has copies; at medium, none of these. At
# paper one value of the sweeps is among the main runs.
TRAININGS = {
    "mini": 3 * 4 + 2 + 13,
    "small": 3 * 6 + 2 * 6 + 4 + 13,
    "medium": 6,
    "paper": 3 * (2 * 6 + 4) + 12,
}


@pytest.mark.parametrize("scale", sorted(TRAININGS))
def test_every_scale_can_be_planned(scale, tmp_path, capfd):
    for folder in ("workflow", "notebooks"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    run_pipeline(scale, root=tmp_path, cores=2, extra=["-n"])
    listed = jobs_of_a_dry_run(capfd)
    assert listed["train"] == TRAININGS[scale] and listed["notebook"] == N_NOTEBOOKS - (scale == "medium")
    seeds = {"mini": 3, "paper": 3}.get(scale, 1)
    assert listed["project"] == 4 and listed["landscape"] == 3 * seeds and listed["manifest"] == 1


def test_it_makes_everything_once(pipeline, checkout):
    calls = pipeline()
    assert by_command(calls) == FROM_NOTHING
    # Each is a command that works without Snakemake, and says all that it needs.
    assert "train mini/mnist/um --seed 0 --out runs/mini/mnist/um/seed0 --replace --no-progress" in calls
    assert "extract runs/mini/mnist/at/seed0 --eps 0.03 --images 1000 --no-progress" in calls
    assert "landscape runs/mini/mnist/at/seed1 --scale mini --rise-only" in calls
    assert "project runs/mini/mnist/tla/seed0 --eps 0.3 --scale mini --no-progress" in calls
    assert "notebooks table3_distance_ratios --scale mini" in calls
    order = {call: place for place, call in enumerate(calls)}
    assert order["extract runs/mini/mnist/at/seed0 --eps 0.3 --no-progress"] > next(
        place for call, place in order.items() if call.startswith("train mini/mnist/at")
    )
    assert pipeline() == []


def test_a_changed_setting_of_one_method_makes_only_what_depends_on_it(pipeline, checkout):
    change_scale(checkout, overrides={"at": {"margin": 0.05, "epochs": 7, "attack": {"steps": 4, "eps": "1/4"}}})
    calls = pipeline()
    # Its two seeds have these settings, and the sweep's four runs go on from the first.
    assert by_command(calls) == {
        "train": 6, "extract": 9, "project": 1, "landscape": 2, "evaluate": 6, "notebooks": 9, "manifest": 1
    }  # fmt: skip
    train = next(call for call in calls if call.startswith("train") and "at/seed0" in call)
    assert train == (
        "train mini/mnist/at --seed 0 --out runs/mini/mnist/at/seed0 --epochs 7 --attack.eps 0.25 --attack.steps 4"
        " --replace --no-progress"
    )
    made = [call for call in calls if call.startswith(("extract", "project", "landscape", "evaluate"))]
    assert all("/at/" in call or "/tla@" in call for call in made)


def test_other_map_settings_make_maps_and_their_figures_only(pipeline, checkout):
    change_scale(checkout, tsne_iterations=500)
    calls = pipeline()
    assert by_command(calls) == {"project": 4, "notebooks": 2, "manifest": 1}
    assert "notebooks fig1_3_false_classes --scale mini" in calls


def test_a_changed_notebook_is_executed_again_and_one_that_only_looks_newer_is_not(pipeline, checkout):
    """In a fresh clone, file times mean nothing. Also here: the lock of a Snakemake that was killed is removed."""
    changed, touched, *_ = sorted((checkout / "notebooks").glob("*.ipynb"), reverse=True)
    changed.write_text(changed.read_text().replace("The claim.", "A claim."))
    os.utime(touched, (time.time() + 5, time.time() + 5))
    locks = checkout / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text(f"figures/mini/notebooks/{changed.name}\n")
    assert pipeline() == [f"notebooks {changed.stem} --scale mini", "manifest --scale mini"]
    assert not any(locks.glob("*"))


def test_a_failing_job_fails_the_pipeline_and_the_next_run_goes_on_from_there(pipeline, checkout, monkeypatch, capfd):
    change_scale(checkout, overrides={"um": {"epochs": 3}})
    monkeypatch.setenv("FAIL", "train mini/mnist/um")
    with pytest.raises(PipelineError, match=r"Snakemake's status 1\).* the same command goes on from there"):
        pipeline()
    assert "made to fail" in capfd.readouterr().err
    monkeypatch.delenv("FAIL")
    calls = pipeline()
    assert any(
        call.startswith("train mini/mnist/um --seed 0 --out runs/mini/mnist/um/seed0 --epochs 3") for call in calls
    )
    assert {call.split()[1] for call in calls} >= {"runs/mini/mnist/um/seed0", "fig1_3_false_classes"}


def test_a_second_pipeline_is_refused_while_one_is_at_work(pipeline, checkout):
    with (checkout / ".snakemake" / "tla.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(PipelineError, match=r"another pipeline is at work in .*\. Wait for it, or end it"):
            pipeline()


def test_maps_of_pairs_that_are_gone_are_made_again(pipeline, checkout):
    pipeline()
    next((checkout / "results").rglob("pair-maps-*.safetensors")).unlink()
    calls = pipeline()
    assert by_command(calls)["project"] == 1 and "notebooks fig4_6_class_pairs --scale mini" in calls


def test_targets_and_forced_jobs_of_the_user_reach_snakemake():
    assert snakemake_arguments([], ["some/target"])[-2:] == ["--ignore-incomplete", "some/target"]
    assert "--forcerun" in snakemake_arguments(["a", "b"], ["-n"])
    asked = snakemake_arguments(["a", "b"], ["-R", "notebook"])
    assert asked[-4:] == ["-R", "a", "b", "notebook"] and "--forcerun" not in asked


def test_every_setting_of_a_training_reaches_its_command(pipeline, checkout, monkeypatch):
    """The identity decides whether a run is trained again, the flags what is trained: both must agree."""
    overrides = {
        m: {"margin": 0.2, "selection_attack": {"name": "cw", "steps": 2}, "milestones": [0.5]} for m in METHODS
    }
    change_scale(checkout, overrides=overrides)
    # Not --until train: a training that goes on from another would be left out.
    calls = pipeline("--omit-from", "extract", "extract_train", "evaluate", "landscape", "notebook")
    assert by_command(calls) == {"train": FROM_NOTHING["train"]}
    trained = []
    monkeypatch.setattr("tla_core.training.train", lambda config, out, **options: trained.append(config))
    monkeypatch.chdir(checkout)
    for call in calls:
        assert cli.main(shlex.split(call)) == 0
    scale = load_scale("mini", checkout)
    runs = [(method, 0) for method in (*METHODS, *scale.sweep("table6").values())]
    for method in METHODS:
        runs += [(method, 1)]
    assert {c.identity for c in trained} == {scale.config("mnist", *run).identity for run in runs}
    assert {c.identity for c in trained}.isdisjoint(TrainConfig.preset(f"mini/mnist/{m}").identity for m in METHODS)


def event(kind, **fields):
    return {"event": kind, **fields}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_is_one_line_in_a_terminal_and_one_for_each_job_elsewhere(stream, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    plan = Plan(load_scale("mini", project_folder(tmp_path)))
    models = [path for path, each in plan.artefacts.items() if each.kind == "model"]
    (tmp_path / "warned.log").write_text("file.py:3: UserWarning: too hard\n")
    seconds, stream = [0.0], stream()
    progress = Progress(plan, tmp_path / "logs", stream, clock=lambda: seconds[0])
    progress.show(event("run_info", stats={"train": 2, "notebook": 1, "all": 1, "total": 4}))
    for job, path in enumerate(models):
        progress.show(
            event("job_info", jobid=job, rule_name="train", output=[path], log=["warned.log"] if job else None)
        )
    assert progress.time_left() is None  # nothing has been measured
    seconds[0] = 10.0
    progress.show(event("job_finished", job_id=0))
    # What ran beside it takes as long; the notebook as it usually compares with a training. Two cores.
    assert progress.time_left() == pytest.approx((10 - 10 + 10 * _USUAL["notebook"] / _USUAL["train"]) / 2)
    progress.show(event("job_finished", job_id=1))
    progress.show(None)
    progress.close(0)
    *shown, complete, look, logs, warned = stream.getvalue().split("\n")[:-1]
    assert complete.endswith("mini is complete: 2 made in 10 s.") and "index.html" in look and "logs" in logs
    assert warned == "1 of them warned: warned.log"
    if stream.isatty():
        assert not shown and "\r" in complete
        assert max(map(len, complete.split("\r"))) == 69  # nothing wraps
        assert "mini 1/3, about 3 s left: model mnist/tla/seed0 " in complete
    else:
        assert shown == [
            "mini 1/3 model mnist/um/seed0 (10 s), about 3 s left",
            "mini 2/3 model mnist/tla/seed0 (10 s), about 3 s left",
        ]


def test_what_failed_is_said_with_the_end_of_what_it_said(tmp_path, capsys):
    plan = Plan(load_scale("mini", project_folder(tmp_path)))
    (tmp_path / "job.log").write_text("\n".join(map(str, range(100))) + "\ntla: error: no room\n")
    progress = Progress(plan, tmp_path)
    progress.show(event("run_info", stats={"train": 2, "total": 2}))
    model = next(path for path, each in plan.artefacts.items() if each.kind == "model")
    progress.show(
        event("job_error", jobid=1, rule_name="train", output=[model], log=["job.log"], shellcmd="tla train x > y 2>&1")
    )
    errors = capsys.readouterr().err
    first, *lines = errors.splitlines()
    assert first == "FAILED: model mnist/um/seed0: tla train x"
    assert lines[-1] == "  tla: error: no room" and len(lines) == 15
    assert progress.failed == ["model mnist/um/seed0"]
    progress.show({"event": "job_info", "jobid": 1, "rule_name": "train", "output": [model], "log": ["job.log"]})
    assert capsys.readouterr().out == "Trying again: model mnist/um/seed0\n" and not progress.failed
