import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from tiny import REPOSITORY, project_folder, use_few_images

from analysis.command import main as cli
from analysis.scales import run_results
from tla_core.attack_config import ATTACKS, LOSSES, AttackConfig
from tla_core.config import _CHOICES, TrainConfig, fields_in_use
from tla_core.evaluation import describe_attack
from tla_core.presets import list_presets, preset_sources
from tla_core.protocol import ANALYSIS_ATTACKS

COMMANDS = (
    "train", "evaluate", "extract", "project", "landscape", "explore", "report", "notebooks", "figures", "manifest",
    "redraw", "reproduction", "ablation", "demo", "publish", "restore", "repair", "site", "status", "runs", "clean",
    "presets", "data",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_written_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def run(*args, **options):
    return subprocess.run([sys.executable, "-m", "analysis.command", *args], capture_output=True, text=True, **options)


def fails(capsys, *args):
    """The message of a command that fails: one line on standard error, status 1, and nothing else."""
    assert cli.main(args) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("tla: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with one tiny um run, trained by the command line."""
    root = project_folder(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_few_images(monkeypatch)
        monkeypatch.chdir(root)
        flags = ["--width", "1/16", "--epochs", "1", "--holdout", "20"]
        assert cli.main(["train", "mini/mnist/um", *flags, "--no-progress"]) == 0
    return root


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    use_few_images(monkeypatch)
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


# Help -----------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_without_importing_anything_heavy():
    code = """
import sys
from analysis.command import main as cli
try:
    cli.main(["--help"])
except SystemExit as end:
    print("status", end.code)
print(sorted({"torch", "numpy", "matplotlib", "sklearn", "openTSNE", "snakemake", "papermill"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, status, heavy = done.stdout.splitlines()
    assert (status, heavy) == ("status 0", "[]")
    assert all(f"• {command} " in done.stdout for command in COMMANDS)
    assert set(COMMANDS) == set(cli.commands([]))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"usage: tla {command}" in text
    first_words = cli.commands([])[command].__doc__.split()[:4]
    assert " ".join(first_words) in " ".join(text.split())


def test_no_command_shows_the_help(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 0 and "usage: tla" in capsys.readouterr().out


def test_the_help_of_train_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "mini/mnist/tla", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 0.03)" in text and "--attack.eps NUMBER" in text and "(default: 0.3)" in text


# Errors ---------------------------------------------------------------------------------------------------------------


def test_an_error_is_one_line_on_standard_error_without_a_traceback(tmp_path):
    done = run("train", "mini/mnist/trades", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"tla: error: unknown preset 'mini/mnist/trades'. There are: {', '.join(list_presets())}.\n"


@pytest.mark.parametrize(
    ("args", "nearest"),
    [
        (["evalute"], "evaluate"),
        (["evaluate", "x", "--split", "tset"], "test"),
        (["data", "gett"], "get"),
        (["train", "mini/mnist/um", "--learning-rat", "3"], "--learning-rate"),
        (["train", "mini/mnist/tlaa"], "mini/mnist/tla"),
        (["presets", "mini/mnst/tla"], "mini/mnist/tla"),
        (["data", "get", "mnits"], "mnist"),
        (["notebooks", "fig7_retrievel"], "fig7_retrieval"),
        (["train", "mini/mnist/tla", "--method", "tala"], "tla"),
        (["train", "mini/mnist/um", "--dataset", "mnits", "--out", "x"], "mnist"),
        (["train", "mini/mnist/um", "--attack.name", "pgdd"], "pgd"),
        (["evaluate", "nets.py:net", "--data", "cifar01"], "cifar10"),
    ],
)
def test_what_is_mistyped_gets_a_suggestion(args, nearest, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TLA_ROOT", str(REPOSITORY))
    (tmp_path / "nets.py").write_text("import torch\nnet = torch.nn.Linear(1, 1)")
    try:
        status = cli.main(args)
    except SystemExit as end:
        status = end.code
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert status in (1, 2) and re.search(rf"(Did you mean|Perhaps you meant:) {re.escape(nearest)}\b", said), said


def test_the_help_names_choices_and_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "mini/mnist/tla", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    attack = {"attack.name": ATTACKS, "attack.norm": ("linf", "l2"), "attack.loss": LOSSES}
    for name, choices in {**_CHOICES, **attack}.items():
        _, _, behind = text.partition(f"--{name.replace('_', '-')} STR ")
        words, _, default = behind.partition("(default: ")
        assert default and not [choice for choice in choices if choice not in words + default.partition(")")[0]], name


def test_wrong_usage_is_refused_with_status_2(capsys):
    for args in (
        ["frobnicate"],
        ["train"],
        ["train", "mini/mnist/um", "--lamda", "3"],
        ["extract", "x", "--eps", "big"],
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(args)
        captured = capsys.readouterr()
        assert end.value.code == 2 and "Traceback" not in captured.out + captured.err
        assert captured.out == "" and captured.err


def test_bad_settings_say_what_was_expected(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(project_folder(tmp_path))
    assert "margin must be a finite number, at least 0. Got -1" in fails(
        capsys, "train", "mini/mnist/tla", "--margin", "-1"
    )
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "mini/mnist/tla", "--attack.eps", "8"])
    assert end.value.code == 2 and "did you mean 8/255?" in " ".join(capsys.readouterr().err.split())


def test_what_is_not_there_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(project_folder(tmp_path))
    for command in ("evaluate", "extract", "project"):
        assert "nowhere holds no run: there is no config.json" in fails(capsys, command, "nowhere")
    assert "there is no notebook fig9.ipynb" in fails(capsys, "notebooks", "fig9")
    assert "unknown scale 'huge'. There are: mini" in fails(capsys, "notebooks", "--scale", "huge")
    assert "unknown preset 'x'. There are: mini/mnist/um" in fails(capsys, "presets", "x")
    assert "tla data get needs a name" in fails(capsys, "data", "get")
    assert "atlantis cannot be downloaded" in fails(capsys, "data", "get", "atlantis")
    monkeypatch.chdir(tmp_path.parent)
    assert "expected a folder with workflow/scales" in fails(capsys, "notebooks")


def test_flags_before_the_preset_or_run_are_refused_rather_than_misread(capsys, monkeypatch):
    """The preset decides the defaults: were it overlooked, another network would be trained in its name."""
    monkeypatch.setattr("tla_core.training.train", lambda *args, **options: pytest.fail("it must not train"))
    assert "PRESET must come before the flags" in fails(capsys, "train", "--margin", "0.1", "mini/mnist/tla")
    assert "PRESET must come before the flags" in fails(capsys, "train", "--no-progress", "mini/mnist/tla")
    assert "RUN must come before the flags" in fails(capsys, "evaluate", "--attack.eps", "0.1", "nowhere")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("tla_core.presets.list_presets", lambda: json.loads("{"))
    with pytest.raises(json.JSONDecodeError, match="Expecting property name"):
        cli.main(["presets"])


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tla_core.training.train", interrupted)
    assert cli.main(["train", "mini/mnist/um", "--out", "x"]) == 130
    assert "interrupted. The same command goes on" in capsys.readouterr().err


# Numbers --------------------------------------------------------------------------------------------------------------


def test_an_interruption_while_it_is_imported_is_no_traceback(tmp_path):
    (tmp_path / "tyro.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(REPOSITORY)])
    command = [sys.executable, "-m", "analysis.command", "status"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "tla: interrupted before it began.\n")


def test_who_has_read_enough_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m analysis.command presets | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.stdout.startswith("preset") and done.stderr == ""


def test_only_errors_that_we_raise_lose_their_traceback(monkeypatch, capsys):
    from tla_core.attack_config import parse_number

    def said(error_of):
        monkeypatch.setattr(cli, "commands", error_of)
        return cli.main(["presets"])

    assert said(lambda args: parse_number("x")) == 1 and "tla: error:" in capsys.readouterr().err
    # A bug of ours: the same type, raised by Python inside a module of ours.
    with pytest.raises(ValueError, match="invalid literal"):
        said(eval("lambda args: int('x')", {"__name__": "tla_core.attacks"}))


def test_numbers_may_be_fractions(monkeypatch):
    seen = []
    monkeypatch.setattr("tla_core.training.train", lambda config, out, **options: seen.append(config))
    flags = [
        "--attack.eps",
        "8/255",
        "--attack.step-size",
        "2/255",
        "--learning-rate",
        "1e-4",
        "--milestones",
        "1/2",
        "3/4",
    ]
    assert cli.main(["train", "mini/mnist/tla", *flags, "--out", "x"]) == 0
    preset = TrainConfig.preset("mini/mnist/tla")
    attack = AttackConfig(eps=8 / 255, step_size=2 / 255, steps=preset.attack.steps)
    expected = TrainConfig.preset("mini/mnist/tla", attack=attack, learning_rate=1e-4, milestones=(0.5, 0.75))
    assert seen == [expected]


def test_levels_may_be_fractions(monkeypatch, capsys):
    monkeypatch.setattr(run_results, "extract_run", lambda run, eps, **options: f"{run} {eps!r} {options['images']}")
    monkeypatch.setattr("analysis.command.measuring.is_own", lambda *_: True)
    assert cli.main(["extract", "run", "--eps", "8/255", "0.3", "--images", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"run {8 / 255!r} 5", "run 0.3 5"]


# Tables ---------------------------------------------------------------------------------------------------------------


def test_presets_are_a_table(capsys):
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["preset", "length", "batch", "optimizer", "training", "attack", "weights"]
    rows = {
        line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.count("/") >= 2 and line[0] not in "# w"
    }
    assert list(rows) == list(list_presets())
    assert rows["mini/mnist/um"] == "5 epochs 50 adam 0.03 onecycle none"
    assert rows["mini/mnist/tla"].endswith("PGD 3 x 0.15, eps 0.3 0.5 / 0.001 / 0.05 / 50")
    natural = "PGD 7 x 2/255, eps 8/255"
    assert rows["supplement/cifar10/alp"] == f"55,000 steps 50 sgd 0.1 steps {natural} 0.5"
    assert rows["supplement/cifar10/tla"] == f"55,000 steps 50 sgd 0.1 steps {natural} 2 / 0.001 / 0.03 / 500"
    assert rows["code/tiny-imagenet/tla"].endswith(f"20 sgd 0.0001 steps {natural} 0.5 / 0.001 / 0.02 / 20, from AT")
    families = [line for line in lines if line.startswith("# ")]
    assert len(families) == 11
    assert families[0] == "# mnist-mini: lenet x 0.125, normalization none, augmentation none"
    assert families[4] == "# cifar10: wrn-madry x 0.4 2-2-2, normalization per-image, augmentation crop-flip"
    assert families[6] == "# cifar10: wrn-table2 6-6-6, normalization per-image, augmentation crop-flip"


def test_the_published_sweeps_stand_below_the_presets(capsys):
    assert cli.main(["presets"]) == 0
    sweeps = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[-4:]}
    assert list(sweeps) == ["table4", "table5", "table6", "pool_size"]
    assert "lambda_triplet: 0.0 (94.82), 0.025 (96.31)" in sweeps["table4"] and "with" not in sweeps["table4"]
    assert "0.2 (96.35); with lambda_triplet 2 " in sweeps["table5"] and sweeps["table6"].endswith("supplement")
    assert sweeps["pool_size"].endswith("10, 50, 100, 250, 500   ours")


def shown(capsys, preset):
    assert cli.main(["presets", preset]) == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


def test_one_preset_is_shown_with_the_source_of_each_value(capsys):
    lines = shown(capsys, "mini/mnist/tla")
    assert lines["margin"].split() == ["margin", "0.05", "supplement"]
    assert lines["epochs"].split()[-1] == "ours" and lines["seed"].split()[-1] == "default"
    assert lines["width"].split() == ["width", "0.125", "ours"]
    assert lines["not"] == "not used: blocks, iterations, milestones, lambda_alp, own_margin_factor, step"
    assert {line.split()[-1] for name, line in lines.items() if name not in ("seed", "version", "not")} == {
        "supplement", "v1", "code", "ours"
    }  # fmt: skip


@pytest.mark.parametrize("preset", list_presets())
def test_every_line_of_a_preset_ends_with_its_source(preset, capsys):
    lines = shown(capsys, preset)
    assert set(lines) - {"not"} == set(fields_in_use(TrainConfig.preset(preset)))
    sources = preset_sources(preset)
    assert all(line.split()[-1] == sources.get(name, "default") for name, line in lines.items() if name != "not")


def test_values_of_a_preset_are_shown_as_one_would_write_them(capsys):
    lines = shown(capsys, "supplement/cifar10/tla")
    assert "PGD 7 x 2/255, eps 8/255 (linf)" in lines["attack"] and "10/11 (step 50,000)" in lines["milestones"]
    assert lines["blocks"].split()[1] == "6-6-6" and lines["iterations"].split()[1] == "55000"
    milestones = shown(capsys, "supplement/tiny-imagenet/at")["milestones"]
    assert "11/15 (epoch 110), 13/15 (epoch 130)" in milestones


def test_presets_are_shown_without_importing_anything_heavy():
    code = """
import sys
from analysis.command import main as cli
cli.main(["presets"])
cli.main(["presets", "mini/mnist/tla"])
print(sorted({"torch", "numpy", "matplotlib", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_datasets_are_listed_whether_they_are_there_or_not(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TLA_DATA", str(tmp_path))
    assert cli.main(["data", "list"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert str(tmp_path) in first and "TLA_DATA" in first
    listed = {line.split()[0]: line for line in lines}
    assert list(listed) == ["mnist-mini", "mnist", "cifar10", "cifar10-jpeg", "tiny-imagenet"]
    assert "MNIST (5,000 + 5,000 subset)" in listed["mnist-mini"] and "not there" in listed["cifar10"]


# Runs -----------------------------------------------------------------------------------------------------------------


def test_train_writes_a_run_below_the_project(trained):
    record = json.loads((trained / "runs/mini/mnist/um/seed0/config.json").read_text())
    assert record["config"] == TrainConfig.preset("mini/mnist/um", width=1 / 16, epochs=1, holdout=20).to_dict()


def test_train_refuses_other_settings_unless_told_to_replace(project, capsys):
    flags = ["--width", "1/16", "--epochs", "1", "--holdout", "20", "--learning-rate", "0.001", "--no-progress"]
    message = fails(capsys, "train", "mini/mnist/um", *flags)
    assert "config.learning_rate was 0.03, is 0.001" in message and "--replace" in message
    assert cli.main(["train", "mini/mnist/um", *flags, "--replace"]) == 0
    assert "TrainResult(" in capsys.readouterr().out
    assert (project / "runs/mini/mnist/um/seed0.old-1/model.safetensors").exists()


def test_evaluate_with_an_attack_prints_and_stores_its_accuracy(project, capsys):
    run_dir = "runs/mini/mnist/um/seed0"
    assert cli.main(["evaluate", run_dir, "--attack.steps", "2", "--no-progress"]) == 0
    named, clean, robust, *checks, where = capsys.readouterr().out.splitlines()
    assert named == run_dir and all("MASKING CHECK FAILED" in line for line in checks)
    path = where.strip().removeprefix("stored in ")
    assert path == "results/mini/mnist/um/seed0/accuracy-test.safetensors"
    stored = json.loads((project / path).with_suffix(".json").read_text())["accuracies"]
    accuracy, error = (stored["clean"][key] * 100 for key in ("accuracy", "standard_error"))
    assert clean.split() == ["clean", f"{accuracy:.2f}", "%", "+-", f"{error:.2f}", "400", "images"]
    attack = ANALYSIS_ATTACKS["mnist-mini"]  # the other settings are those that the dataset is analysed with
    expected = AttackConfig(eps=attack.eps, step_size=attack.step_size, steps=2)
    assert robust.split()[0] == "PGD-2" and robust.endswith(str(expected))
    assert stored["PGD-2"]["settings"] == describe_attack(expected) and stored["PGD-2"]["images"] == 400


def test_evaluate_of_the_held_out_images(project, capsys):
    run_dir = "runs/mini/mnist/um/seed0"
    assert cli.main(["evaluate", run_dir, "--split", "holdout", "--only", "FGSM", "--no-progress"]) == 0
    _, clean, fgsm, *_, where = capsys.readouterr().out.splitlines()
    assert clean.endswith("20 images") and "20 images" in fgsm
    assert where.endswith("results/mini/mnist/um/seed0/accuracy-holdout.safetensors")


def test_evaluate_measures_the_table_of_several_runs(project, capsys):
    run_dir = "runs/mini/mnist/um/seed0"
    flags = ["--only", "FGSM", "3PGD100", "BB100", "--long-images", "5", "--restarts", "3", "--no-progress"]
    assert cli.main(["evaluate", run_dir, run_dir, "--black-box", run_dir, *flags]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:5]] == ["clean", "FGSM", "3PGD100", "BB100"]
    assert "5 images   PGD 100 x 0.01, eps 0.3 (linf), transferred from LeNet" in printed
    assert fails(capsys, "evaluate", run_dir, "--only", "PGD7").startswith(
        "tla: error: no column PGD7. There are: clean, FGSM"
    )


def test_extract_and_project_store_results_and_say_where(project, capsys):
    run_dir, below = "runs/mini/mnist/um/seed0", "results/mini/mnist/um/seed0"
    assert cli.main(["extract", run_dir, "--no-progress"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{below}/representations-eps{eps}.safetensors" for eps in (0.03, 0.3)
    ]
    assert cli.main(["project", run_dir, "--eps", "3/10", "--no-progress"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{below}/class-maps-eps0.3.safetensors"]
    assert (project / below / "class-maps-eps0.3.safetensors").exists()
