"""The accuracy table of a run: stored after each attack, gone on with, shown beside others."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny import mnist_images, project_folder, use_few_images

from analysis.command import main as cli
from analysis.scales import accuracy
from analysis.scales.accuracy import RunAccuracy, accuracy_table, evaluate_run, missing_columns, with_strongest
from analysis.scales.accuracy_attacks import AUTOATTACK, run_attacks
from analysis.scales.results import Results
from analysis.scales.run_results import run_config, run_images
from analysis.scales.targets import results_dir
from tla_core.attack_config import AttackConfig
from tla_core.attacks import TransferAttack
from tla_core.batches import BatchSource
from tla_core.checkpoint import CheckpointError, file_sha256, load_tensors, save_tensors
from tla_core.training import load_model, train

ATTACKS = {
    "FGSM": AttackConfig(name="fgsm", eps=0.1),
    "PGD": AttackConfig(eps=0.1, step_size=0.05, steps=2),
    "long": AttackConfig(eps=0.1, step_size=0.05, steps=3),
}


@pytest.fixture(autouse=True)
def _few_images_and_nothing_written_here(monkeypatch, tmp_path):
    use_few_images(monkeypatch, n_test=100)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = project_folder(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_few_images(monkeypatch)
        Results("mini", root=root, progress=False).run("um")
    return root


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "project")
    return tmp_path / "project/runs/mini/mnist/um/seed0"


def test_accuracies_are_stored_with_settings_checks_and_what_they_belong_to(run):
    result = evaluate_run(run, ATTACKS, limits={"long": 40}, progress=False)
    assert [len(outcome) for outcome in result.correct.values()] == [100, 100, 100, 40]
    assert list(result.correct) == ["clean", "FGSM", "PGD", "long"] and "clean 0." in repr(result)
    stored = json.loads(result.path.with_suffix(".json").read_text())
    assert stored["checkpoint_sha256"] == file_sha256(run / "model.safetensors") and stored["of"] == 100
    for name, accuracy_ in result.accuracy.items():
        entry = stored["accuracies"][name]
        assert entry["accuracy"] == accuracy_ and entry["images"] == len(result.correct[name])
        error = (accuracy_ * (1 - accuracy_) / entry["images"]) ** 0.5
        assert entry["standard_error"] == pytest.approx(error)
    assert stored["accuracies"]["PGD"]["settings"]["steps"] == 2
    of_attack = {"perturbed", "ascent", "steps", "restarts", "unbounded"}
    assert set(stored["accuracies"]["FGSM"]["checks"]) == of_attack
    assert set(stored["accuracies"]["PGD"]["checks"]) == of_attack | {"black_box"}, "once, of the last in the ball"
    assert set(stored["accuracies"]["clean"]["checks"]) == {"stochastic", "batch", "outputs", "gradients"}
    # The 40 images are spread evenly over the 100.
    rows = torch.arange(40) * 100 // 40
    assert (result.correct["long"] <= result.correct["clean"][rows]).all()


def test_an_interrupted_evaluation_goes_on_at_the_attack_where_it_was(run, monkeypatch):
    expected = evaluate_run(run, ATTACKS, progress=False).correct
    shutil.rmtree(run.parents[4] / "results")
    real, calls = accuracy.evaluate, []

    def interrupted(*args, on_outcome=None, **options):
        def store(name, *rest):
            on_outcome(name, *rest)
            calls.append(name)
            if name == "FGSM":
                raise KeyboardInterrupt

        return real(*args, on_outcome=on_outcome and store, **options)

    monkeypatch.setattr(accuracy, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, ATTACKS, progress=False)
    resumed = evaluate_run(run, ATTACKS, progress=False)
    assert calls == ["FGSM", "PGD", "long"]
    assert all(torch.equal(resumed.correct[name], expected[name]) for name in expected)
    calls.clear()
    again = evaluate_run(run, {"PGD": ATTACKS["PGD"]}, progress=False)
    assert not calls and list(again.correct) == ["clean", "PGD", "FGSM", "long"]


def test_changed_settings_images_or_weights_are_measured_again(run):
    first = evaluate_run(run, ATTACKS, progress=False)
    with pytest.warns(
        UserWarning, match=r"PGD, \d+\.\d\d % on 100 images, is measured again.*: eps was 0.1, is 0.3, st"
    ):
        changed = evaluate_run(run, {"PGD": AttackConfig(eps=0.3, step_size=0.1, steps=4)}, progress=False)
    assert first.attacks["PGD"]["eps"] == 0.1 and changed.attacks["PGD"]["eps"] == 0.3
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # another outcome of the last image
    with pytest.warns(UserWarning, match=r"accuracy-test\.safetensors was altered.*measures again what it held"):
        again = evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False)
    assert list(again.correct) == ["clean", "FGSM"]


def test_a_smaller_measurement_never_replaces_a_larger_one(run, monkeypatch):
    few = {"FGSM": 10}
    assert len(evaluate_run(run, ATTACKS, limits=few, progress=False).correct["FGSM"]) == 10
    larger = evaluate_run(run, ATTACKS, progress=False)
    assert len(larger.correct["FGSM"]) == 100
    monkeypatch.setattr(accuracy, "load_model", lambda *args, **options: pytest.fail("nothing is to be measured"))
    assert missing_columns(run, ATTACKS, limits=few) == []
    again = evaluate_run(run, ATTACKS, limits=few, progress=False)
    assert torch.equal(again.correct["FGSM"], larger.correct["FGSM"])


def test_a_larger_and_a_new_attack_are_measured_together(run):
    """On the images of each, whatever the others are stored on."""
    evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False)
    few = dict.fromkeys(ATTACKS, 40)
    lengths = {
        name: len(found) for name, found in evaluate_run(run, ATTACKS, limits=few, progress=False).correct.items()
    }
    assert lengths == {"clean": 100, "FGSM": 100, "PGD": 40, "long": 40}


def test_two_evaluations_side_by_side_lose_nothing(run, monkeypatch):
    """The one stores an attack while the other is measuring another."""
    before, began = accuracy.evaluate, []

    def with_another(*args, **options):
        if not began:
            began.append(evaluate_run)
            evaluate_run(run, {"FGSM": ATTACKS["FGSM"], "long": ATTACKS["long"]}, progress=False)
        return before(*args, **options)

    monkeypatch.setattr(accuracy, "evaluate", with_another)
    result = evaluate_run(run, {"PGD": ATTACKS["PGD"], "long": ATTACKS["long"]}, limits={"long": 20}, progress=False)
    assert {name: len(found) for name, found in result.correct.items()} == dict.fromkeys(
        ("clean", "PGD", "long", "FGSM"), 100
    )
    monkeypatch.setattr(accuracy, "load_model", lambda *args, **options: pytest.fail("nothing is to be measured"))
    assert list(evaluate_run(run, ATTACKS, progress=False).correct) == ["clean", *ATTACKS]
    assert set(json.loads(result.path.with_suffix(".json").read_text())["accuracies"]) == {"clean", *ATTACKS}


@pytest.mark.parametrize(("inside", "word"), [(".", "."), ("..", "seed0"), ("../..", "um/seed0")])
def test_a_run_is_evaluated_from_inside_the_runs(inside, word, run, monkeypatch, capsys):
    """And its results lie where they would otherwise."""
    monkeypatch.chdir(run / inside)
    assert cli.main(["evaluate", word, "--only", "FGSM", "--images", "20", "--no-progress"]) == 0
    assert (results_dir(run) / "accuracy-test.safetensors").is_file() and not (run / "results").exists()
    assert str(results_dir(run)) in capsys.readouterr().out


def test_a_checkpoint_below_a_folder_called_runs_keeps_its_results(tmp_path, monkeypatch):
    """Only the runs of the project count, not those that the project lies in."""
    project = project_folder(tmp_path / "runs" / "mine")
    (project / "checkpoints" / "x").mkdir(parents=True)
    monkeypatch.chdir(project)
    assert results_dir("checkpoints/x") == Path("checkpoints/x/results")
    monkeypatch.chdir(project / "checkpoints")
    assert results_dir("x") == Path("x/results")
    assert results_dir("runs/a/seed0") == Path("results/a/seed0")


def test_a_run_that_is_trained_again_meanwhile_is_not_mixed_up(run, monkeypatch):
    before = evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False).path.read_bytes()
    evaluate = accuracy.evaluate

    def and_other_weights(*args, **options):
        tensors, metadata = load_tensors(run / "model.safetensors")
        save_tensors(run / "model.safetensors", {name: tensor + 1 for name, tensor in tensors.items()}, metadata)
        return evaluate(*args, **options)

    monkeypatch.setattr(accuracy, "evaluate", and_other_weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was replaced while it was evaluated"):
        evaluate_run(run, ATTACKS, progress=False)
    assert (results_dir(run) / "accuracy-test.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff"])
def test_damaged_accuracies_for_people_are_written_again(content, run):
    path = evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False).path.with_suffix(".json")
    before = path.read_bytes()
    path.write_bytes(content)
    evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: metadata.update(kind="maps"),
        lambda tensors, metadata: metadata.update(columns=[]),
        lambda tensors, metadata: metadata["columns"].update(FGSM=[]),
        lambda tensors, metadata: metadata.pop("checkpoint_sha256"),
        lambda tensors, metadata: metadata["columns"]["FGSM"].update(images=7),
        lambda tensors, metadata: metadata["columns"].pop("FGSM"),
        lambda tensors, metadata: tensors.pop("clean"),
        lambda tensors, metadata: tensors.update(FGSM=torch.ones(100)),
    ],
)
def test_accuracies_that_do_not_fit_together_are_named_and_measured_again(change, run):
    first = evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False)
    tensors, metadata = load_tensors(first.path)
    change(tensors, metadata)
    save_tensors(first.path, tensors, metadata)
    with pytest.warns(UserWarning, match=r"accuracy-test\.safetensors (does not hold|was altered).*measures again"):
        assert missing_columns(run, {"FGSM": ATTACKS["FGSM"]}) == ["clean", "FGSM"]
    with pytest.warns(UserWarning, match="measures again"):
        again = evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False)
    assert again.accuracy == first.accuracy
    assert missing_columns(run, {"FGSM": ATTACKS["FGSM"]}) == []


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(run, monkeypatch):
    stored = evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False)

    def fail(path, *_):
        raise OSError(30, f"could not write {path}: Read-only file system")

    monkeypatch.setattr(accuracy, "evaluate", lambda *args, **options: pytest.fail("it must not be measured"))
    monkeypatch.setattr(accuracy, "check_writable", fail)
    with pytest.raises(OSError, match=r"could not write .*accuracy-test\.safetensors"):
        evaluate_run(run, ATTACKS, progress=False)
    stored.path.with_suffix(".json").unlink()
    # What is stored can be looked at all the same.
    monkeypatch.setattr("analysis.scales.accuracy_store.write_atomic", fail)
    assert evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False).accuracy == stored.accuracy


def test_the_columns_are_the_papers_and_a_copy_beside_the_run_is_found(run):
    names, strong = ["FGSM", "BIM40", "C&W40", "PGD40", "PGD100", "20PGD100", "MIM200"], ["APGD-CE", "APGD-T", "Square"]
    attacks = run_attacks(run, restarts=20)[0]
    assert list(attacks) == names + strong
    assert str(attacks["APGD-T"]) == "APGD 100, dlr, eps 0.3 (linf), 9 targets"
    copy = run.parents[1] / "um@copy" / "seed1"
    shutil.copytree(run, copy)
    attacks = run_attacks(run, restarts=3)[0]
    assert list(attacks) == [*names[:5], "3PGD100", "MIM200", "BB100", *strong] and attacks["3PGD100"].restarts == 3
    assert isinstance(attacks["BB100"], TransferAttack) and attacks["BB100"].attack.steps == 100


def test_the_table_of_several_runs_marks_the_best_and_names_fewer_images(run):
    result = evaluate_run(run, ATTACKS, limits={"long": 40}, progress=False)
    table = accuracy_table({"UM": result, "again": result})
    assert [c.title for c in table.columns] == ["", "Clean", "FGSM", "PGD", "long"]
    assert table.rows[0]["PGD"] == result.accuracy["PGD"] and "long on 40" in table.caption
    assert table.rows[0]["PGD se"] == result.standard_error["PGD"]
    # Both runs are the same: each column's best is marked twice.
    assert all(table.is_best(row, column) for row in table.rows for column in table.columns[1:])


def outcomes(path, **correct):
    return RunAccuracy({name: torch.tensor(values) for name, values in correct.items()}, path=path)


def test_the_table_prints_each_accuracy_with_its_error_and_a_dash_for_what_was_not_measured(tmp_path):
    runs = {
        "AT": outcomes(tmp_path, clean=[True] * 3 + [False], PGD20=[True, False]),
        "TLA": outcomes(tmp_path, clean=[True] * 4),
    }
    table = accuracy_table(runs)
    assert table.caption == "Accuracy in %, with standard errors, on 4 images; PGD20 on 2"
    # sqrt(p (1 - p) / n): 0.75 of 4, all of 4, half of 2.
    assert table.to_markdown().splitlines()[2:4] == [
        "| AT | 75.00 ± 21.65 | 50.00 ± 35.36 |", "| TLA | **100.00** ± 0.00 | – |"
    ]  # fmt: skip
    assert table.to_csv().splitlines()[0] == "model,clean,clean se,PGD20,PGD20 se"
    assert accuracy_table(runs, caption="Mine.").caption == "Mine."


def test_a_table_needs_runs():
    with pytest.raises(ValueError, match=r"a table needs at least one row\. Got none"):
        accuracy_table({})


def test_costly_columns_see_fewer_images_and_the_strongest_attacks_a_thousand(run):
    _, limits = run_attacks(run)
    strong = {"APGD-CE": 1000, "APGD-T": 1000, "Square": 1000}
    assert limits == {"PGD100": 500, "3PGD100": 500, "MIM200": 500, **strong}  # the defaults of mnist-mini
    assert run_attacks(run, long_images=50, restarts=1)[1] == {"PGD100": 50, "1PGD100": 50, "MIM200": 50, **strong}
    assert "Square" not in run_attacks(run, square=0)[0]
    assert run_attacks(run, autoattack=30, only=["AutoAttack", "FGSM"])[1] == {AUTOATTACK: 30}
    with pytest.raises(ValueError, match=r"no column PGD7\. There are: clean, FGSM, BIM40"):
        run_attacks(run, only=["PGD7"])


def test_the_strongest_is_the_worst_case_of_each_image_that_apgd_was_run_on():
    everything = torch.ones(8, dtype=torch.bool)
    broken = {name: everything.clone() for name in ("FGSM", "APGD-CE", "APGD-T")}
    broken["APGD-CE"], broken["APGD-T"] = torch.tensor([1, 0, 1, 1]).bool(), torch.tensor([1, 1, 0, 1]).bool()
    few = torch.tensor([0, 1]).bool()  # images 0 and 4 of 8, which are the first and third of APGD's four
    broken["FGSM"][6] = False  # the last of APGD's
    correct = with_strongest({"clean": everything, **broken, "few": few})
    assert correct["strongest"].tolist() == [False, False, False, False]
    del broken["FGSM"]
    assert with_strongest({"clean": everything, **broken})["strongest"].tolist() == [True, False, False, True]
    assert "strongest" not in with_strongest({"clean": everything, "APGD-CE": few})


@pytest.mark.parametrize("other", [("linf", 0.9), ("linf", 0.1), ("l2", 0.3)])
def test_an_attack_in_another_ball_is_none_of_the_strongest(other):
    other = dict(zip(("norm", "eps"), other, strict=True))
    everything, nothing = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    correct = {"clean": everything, "APGD-CE": everything, "APGD-T": everything, "PGD-7": nothing}
    settings = {name: {"norm": "linf", "eps": 0.3} for name in ("APGD-CE", "APGD-T")}
    assert with_strongest(correct, settings | {"PGD-7": other})["strongest"].all()
    assert not with_strongest(correct, settings | {"PGD-7": settings["APGD-T"]})["strongest"].any()
    assert not with_strongest(correct, settings | {"PGD-7": {}})["strongest"].any()


def test_the_table_shows_the_strongest_last_and_says_what_it_is(run):
    attacks = {name: AttackConfig(name="apgd", eps=0.1, steps=2) for name in ("APGD-CE", "APGD-T")}
    result = evaluate_run(run, attacks | ATTACKS, limits={"APGD-CE": 50, "APGD-T": 50}, progress=False)
    table = accuracy_table({"UM": result})
    assert table.columns[-1].title == "strongest" and "strongest on 50" in table.caption
    assert "the worst case for each image of all attacks that were run" in table.caption
    worst = torch.stack([result.correct[name] for name in ("APGD-CE", "APGD-T")]).all(0) & result.correct["PGD"][::2]
    assert table.rows[0]["strongest"] <= worst.double().mean()
    stored = json.loads(result.path.with_suffix(".json").read_text())["accuracies"]
    assert stored["strongest"]["accuracy"] == result.accuracy["strongest"] and stored["strongest"]["images"] == 50


def test_missing_is_what_an_evaluation_would_measure(run, monkeypatch):
    limits = {"long": 40}
    assert missing_columns(run, ATTACKS, limits=limits) == ["clean", *ATTACKS]
    assert not (run.parents[4] / "results").exists(), "asking stores nothing"
    evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, progress=False)
    assert missing_columns(run, ATTACKS, limits=limits) == ["PGD", "long"]
    result = evaluate_run(run, ATTACKS, limits=limits, progress=False)
    before = result.path.read_bytes()
    assert missing_columns(run, ATTACKS, limits=limits) == [] == missing_columns(run, {})
    # Other images, other settings, another split.
    assert missing_columns(run, ATTACKS) == ["long"]
    assert missing_columns(run, ATTACKS, limits={"long": 40, "PGD": 10}) == []  # what is there is of more images
    assert missing_columns(run, {**ATTACKS, "PGD": ATTACKS["long"]}, limits=limits) == ["PGD"]
    assert missing_columns(run, ATTACKS, split="train", limits=limits) == ["clean", *ATTACKS]
    assert result.path.read_bytes() == before
    # What is not missing is not measured: a model that could not be loaded is not asked for.
    monkeypatch.setattr(accuracy, "load_model", lambda *_, **__: pytest.fail("nothing is to be measured"))
    again = evaluate_run(run, ATTACKS, limits=limits, progress=False)
    assert again.accuracy == result.accuracy


def test_the_holdout_split_is_what_the_training_did_not_see(run, monkeypatch, tmp_path):
    config = run_config(run)
    data, seen, real = mnist_images(200, "train"), set(), BatchSource._take

    def spied(source, *arguments):
        batch = real(source, *arguments)
        seen.update((image * 255).round().byte().numpy().tobytes() for image in batch.images)
        return batch

    monkeypatch.setattr(BatchSource, "_take", spied)
    # 180 images in batches of 60: an epoch shows each of them.
    train(dataclasses.replace(config, batch_size=60), tmp_path / "again", dataset=data, progress=False)
    every = [image.numpy().tobytes() for image in data.images]
    held_out = run_images(run, "holdout")
    assert len(seen) == 180 and len(set(every)) == 200
    assert {image.numpy().tobytes() for image in held_out.images} == set(every) - seen
    assert [every[k] for k in range(200) if every[k] not in seen] == [i.numpy().tobytes() for i in held_out.images]


def test_the_holdout_split_is_evaluated_and_stored_by_its_name(run):
    result = evaluate_run(run, {"FGSM": ATTACKS["FGSM"]}, split="holdout", progress=False)
    held_out = run_images(run, "holdout")
    with torch.no_grad():
        logits = load_model(run)(held_out.images / 255)
    assert torch.equal(result.correct["clean"], logits.argmax(1) == held_out.labels)
    assert result.path.name == "accuracy-holdout.safetensors" and len(result.correct["FGSM"]) == 20
    assert missing_columns(run, {"FGSM": ATTACKS["FGSM"]}, split="holdout") == []
    assert missing_columns(run, {"FGSM": ATTACKS["FGSM"]}) == ["clean", "FGSM"]


def test_a_run_whose_held_out_images_are_unknown_has_no_such_split(run, tmp_path, monkeypatch):
    config = run_config(run)
    train(dataclasses.replace(config, holdout=0), tmp_path / "all", progress=False)
    with pytest.raises(ValueError, match=r"held out none of its training images \(holdout 0\)\. Train it"):
        evaluate_run(tmp_path / "all", {}, split="holdout", progress=False)
    use_few_images(monkeypatch, n_train=150)
    with pytest.raises(ValueError, match=r"trained on .* with 200 images, and not on what mnist-mini is here: .* 150"):
        evaluate_run(run, {}, split="holdout", progress=False)


def test_missing_columns_of_no_run_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: there is no config\.json"):
        missing_columns(tmp_path, ATTACKS)


@dataclass(frozen=True)
class Negatives:
    """Breaks what the negative of an image breaks, and calls itself AutoAttack."""

    def __call__(self, model, x, y):
        return 1 - x

    def describe(self):
        return {"name": "autoattack", "eps": 0.1, "norm": "linf"}


def test_autoattack_is_compared_with_the_gradient_attacks_on_its_images(run):
    attacks = {"PGD": ATTACKS["PGD"], AUTOATTACK: Negatives()}
    result = evaluate_run(run, attacks, limits={AUTOATTACK: 50}, progress=False)
    stored = json.loads(result.path.with_suffix(".json").read_text())["accuracies"][AUTOATTACK]["checks"]
    assert stored == result.checks[AUTOATTACK]
    assert stored["ensemble"]["values"]["stronger"] == result.accuracy[AUTOATTACK]
    assert stored["ensemble"]["values"]["weaker"] == result.correct["PGD"][::2].double().mean()
    # What is measured later is compared as well, without measuring the other again.
    strong = {**attacks, "strong": AttackConfig(eps=0.1, step_size=0.05, steps=40)}
    again = evaluate_run(run, strong, limits={AUTOATTACK: 50}, progress=False)
    assert again.checks[AUTOATTACK]["ensemble"]["values"]["weaker"] == again.correct["strong"][::2].double().mean()


def test_gaps_are_one_line_each_and_stored_comparisons_are_made_again():
    everything = torch.ones(100, dtype=torch.bool)
    correct = {"clean": everything, "PGD": everything, AUTOATTACK: torch.arange(50) < 40}
    old = {"name": "ensemble", "passed": True, "message": "within 10 %", "values": {}}  # of an earlier version
    columns = {
        "clean": {"settings": {}, "images": 100, "checks": {}},
        "PGD": {"settings": {"name": "pgd", "eps": 0.1, "norm": "linf", "steps": 3}, "checks": {}},
        AUTOATTACK: {"settings": Negatives().describe(), "checks": {"ensemble": old}},
    }
    assert accuracy.add_comparisons(correct, columns) and not accuracy.add_comparisons(correct, columns)
    checks = {name: column["checks"] for name, column in columns.items()}
    shown = accuracy.RunAccuracy(correct, checks=checks)
    assert not shown.failed_checks
    assert shown.gaps == [
        "AutoAttack leaves 80.0% of 50 images, 20.0 ± 5.7 points less than PGD: believe the lower number."
    ]


def test_limits_of_the_strongest_attacks_and_of_all(run):
    options = {"images": 30, "long_images": 50, "strongest_steps": 7, "strongest_targets": 2, "restarts": 2}
    attacks, limits = run_attacks(run, **options)
    assert (attacks["APGD-CE"].steps, attacks["APGD-CE"].targets) == (7, 0)
    assert (attacks["APGD-T"].steps, attacks["APGD-T"].targets) == (7, 2)
    assert set(limits) == set(attacks) and set(limits.values()) == {30}  # no attack on more than those of all
    assert run_attacks(run, strongest_images=20)[1]["APGD-T"] == 20
