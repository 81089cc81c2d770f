"""Files that are damaged, edited or not writable: each is named, with a command, and that command ends the state."""

import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from tiny import tiny_config as tiny
from tiny import unfinish

import tla_core as tla
from analysis.command import main as cli
from tla_core import run_folder, training_loop
from tla_core.checkpoint import CheckpointError, load_tensors, save_tensors
from tla_core.config import TrainConfig, identity_of
from tla_core.run_folder import RunConflictError, RunFolder
from tla_core.training import load_model

NOBODY = 65534


@pytest.fixture(scope="module")
def digits():
    return tla.load_dataset("mnist-mini", "train").subset(range(80))


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A finished run, which is not to be changed."""
    return fit(tmp_path_factory.mktemp("whole") / "run", digits).run_dir


@pytest.fixture
def run(whole, tmp_path):
    return RunFolder(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def no_step(monkeypatch):
    monkeypatch.setattr(training_loop, "STEPS", {})


def fit(out_dir, dataset, config=None, **options):
    return tla.train(config or tiny(), out_dir, dataset=dataset, device="cpu", progress=False, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.name != "lock"}


def finished_files(folder):
    """What a finished run consists of; config.json without the machine, which nothing beside it knows."""
    files = contents(folder)
    return {**files, "config.json": {**json.loads(files["config.json"]), "environment": None}}


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_settings(path, **fields):
    edit(path, config=json.loads(path.read_text())["config"] | fields)


def write_nan(path):
    tensors, metadata = load_tensors(path)
    for name in tensors:
        if name.endswith("weight"):
            tensors[name].view(-1)[0] = float("nan")
    save_tensors(path, tensors, metadata)


# Each makes a file one that cannot be trusted.
BITS = {
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-5] + b"\x99" + path.read_bytes()[-4:]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "no metadata": lambda path: save_tensors(path, load_tensors(path)[0], {}),
    "a list as metadata": lambda path: save_tensors(path, load_tensors(path)[0], [1]),
    "NaN": write_nan,
    "another kind": lambda path: save_tensors(path, {"x": torch.ones(2)}, {"kind": "accuracy"}),
}
TEXTS = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "not text": lambda path: path.write_bytes(path.read_bytes().replace(b"epochs", b"ep\xffchs")),
    "a list": lambda path: path.write_text("[1]"),
    "other settings": lambda path: edit_settings(path, epochs=7),
    "a bad value": lambda path: edit_settings(path, epochs="many"),
    "an unknown field": lambda path: edit_settings(path, epoch=7),
    "settings that are a list": lambda path: edit(path, config=[1]),
    "an attack that is a number": lambda path: edit_settings(path, attack=3),
    "other data": lambda path: edit(path, data={"classes": 3}),
    "data that is a text": lambda path: edit(path, data="mnist"),
    "another identity": lambda path: edit(path, identity="0" * 64),
    "no start": lambda path: path.write_text(json.dumps({"identity": "0" * 64})),
    "no machine": lambda path: edit(path, environment=None),
}
either = pytest.mark.parametrize("damage", BITS.values(), ids=BITS)


def command_in(message):
    """The words of the `tla` command that a message names."""
    return shlex.split(re.search(r"`tla (.+?)`", str(message))[1])


def obey(message):
    """Run the command that a message names."""
    assert cli.main(command_in(message)) == 0


# The weights, where the state beside them is intact -------------------------------------------------------------------


@either
def test_damaged_weights_are_named_and_the_command_of_the_message_restores_them(damage, run, whole, no_step):
    damage(run.model_path)
    with pytest.raises(CheckpointError, match=r"run/model\.safetensors .*`tla repair .*state\.safetensors") as error:
        load_model(run.path)
    obey(error.value)
    assert finished_files(run.path) == finished_files(whole)
    load_model(run.path)


@either
def test_a_training_restores_damaged_weights_from_the_state_and_says_so(damage, run, whole, digits, no_step):
    damage(run.model_path)
    with pytest.warns(UserWarning, match=r"run/model\.safetensors .*written again from state\.safetensors"):
        fit(run.path, digits)
    assert finished_files(run.path) == finished_files(whole)


@either
def test_damaged_weights_beside_an_unfinished_state_are_trained_to_the_end(damage, run, whole, digits):
    model = run.model_path.read_bytes()
    unfinish(run, 3)
    run.model_path.write_bytes(model)
    damage(run.model_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*`tla repair "):
        run.weights()
    with pytest.warns(UserWarning, match=r"model\.safetensors .*removed: state\.safetensors is of step 3,"):
        fit(run.path, digits)
    load_model(run.path)


def test_zero_bytes_are_no_finished_run(run):
    run.model_path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no safetensors file, or a truncated one"):
        run.finished_model()


# Weights and state both damaged ---------------------------------------------------------------------------------------


@either
@pytest.mark.parametrize("with_model", [True, False])
def test_what_cannot_be_restored_is_moved_aside_by_replace(with_model, damage, run, digits):
    """An error that `--replace` ends, as the message says."""
    damage(run.state_path)
    if with_model:
        damage(run.model_path)
    else:
        run.model_path.unlink()
    before = contents(run.path)
    with pytest.raises(CheckpointError, match=r"run/(model|state)\.safetensors .*`tla train .*--replace`"):
        fit(run.path, digits)
    assert contents(run.path) == before
    fit(run.path, digits, replace=True)
    assert contents(run.path.with_name("run.old-1")) == before
    load_model(run.path)


def test_damaged_weights_without_a_state_name_what_is_left_to_do(run, capsys):
    run.state_path.unlink()
    BITS["half"](run.model_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*take a copy.*`tla train .*--replace`"):
        load_model(run.path)
    assert cli.main(["repair", str(run.path)]) == 1
    assert re.search(r"model\.safetensors .*`tla train .*--replace`", capsys.readouterr().err)


@either
def test_a_damaged_state_does_not_matter_where_the_weights_are_whole(damage, run, digits, no_step, capsys):
    damage(run.state_path)
    before = contents(run.path)
    fit(run.path, digits)
    assert contents(run.path) == before
    assert cli.main(["repair", str(run.path)]) == 0
    assert "state.safetensors" in capsys.readouterr().out and not run.state_path.exists()
    fit(run.path, digits)


# config.json ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", TEXTS.values(), ids=TEXTS)
def test_a_damaged_or_edited_config_is_named_and_the_command_of_the_message_restores_it(damage, run, whole, no_step):
    damage(run.config_path)
    for reader in (run.record, run.finished_model, lambda: load_model(run.path)):
        with pytest.raises(CheckpointError, match=r"run/config\.json .*`tla repair ") as error:
            reader()
    obey(error.value)
    assert finished_files(run.path) == finished_files(whole)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", TEXTS.values(), ids=TEXTS)
def test_a_training_writes_a_damaged_config_again_and_says_so(damage, finished, run, whole, digits):
    if not finished:
        unfinish(run, 3)
    damage(run.config_path)
    with pytest.warns(UserWarning, match=r"run/config\.json .*written again from (model|state)\.safetensors"):
        fit(run.path, digits)
    assert run.record()["identity"] == RunFolder(whole).record()["identity"]


def test_settings_that_differ_are_named(run):
    edit_settings(run.config_path, epochs=7)
    with pytest.raises(CheckpointError, match=r"config\.epochs was 2, is 7"):
        run.record()
    edit_settings(run.config_path, epochs="many")
    with pytest.raises(CheckpointError, match=r"config\.json .*epochs must be a whole number.*Got 'many'"):
        run.record()


def test_a_config_of_another_run_is_refused_beside_these_weights(run, digits, tmp_path):
    """Whole in itself, and still not what these weights were trained with."""
    other = fit(tmp_path / "other", digits, tiny(seed=1)).run_dir
    shutil.copy(other / "config.json", run.config_path)
    for reader in (run.finished_model, lambda: load_model(run.path)):
        with pytest.raises(CheckpointError, match=r"config\.json contradicts.*config\.seed was 0, is 1.*`tla repair "):
            reader()
    with pytest.raises(RunConflictError, match=r"another configuration: config\.seed was 0, is 1"):
        fit(run.path, digits, tiny(seed=1))
    with pytest.warns(UserWarning, match=r"config\.json .*written again"):
        fit(run.path, digits)
    assert run.record()["config"]["seed"] == 0
    fit(run.path, digits, tiny(seed=1), replace=True)
    assert load_tensors(run.model_path)[1]["config"]["seed"] == 1 and Path(f"{run.path}.old-1").exists()


def test_weights_and_state_of_two_runs_are_not_mixed(run, digits, tmp_path):
    other = fit(tmp_path / "other", digits, tiny(seed=1)).run_dir
    shutil.copy(other / "state.safetensors", run.state_path)
    BITS["half"](run.model_path)
    with pytest.raises(RunConflictError, match=r"another configuration: config\.seed was 1, is 0\..*--replace"):
        fit(run.path, digits)


def test_an_intact_run_needs_no_repair(run, capsys):
    before = contents(run.path)
    assert cli.main(["repair", str(run.path)]) == 0
    assert "nothing to repair" in capsys.readouterr().out and contents(run.path) == before
    assert not (run.path / "process.json").exists()


def test_nothing_to_repair_from_is_said(tmp_path, capsys):
    assert cli.main(["repair", str(tmp_path / "nowhere")]) == 1
    assert "nowhere holds no run" in capsys.readouterr().err


# metrics.jsonl --------------------------------------------------------------------------------------------------------

LINES = {
    "not text": b'{"step": 1, "x": "\xff\xfe"}', "no JSON": b'{"step": 1', "a list": b"[1]", "no step": b'{"loss": 1}',
    "a step that is a text": b'{"step": "one"}', "a time that is a text": b'{"step": 1, "time": "noon"}',
    "accuracies that are a list": b'{"step": 1, "holdout": [1]}', "NUL": b"\0\0\0\0",
}  # fmt: skip


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("finished", [True, False])
def test_a_bad_line_of_the_metrics_is_named_and_nothing_behind_it_is_lost(finished, line, run, digits):
    good = run.metrics()
    first, *rest = run.metrics_path.read_bytes().splitlines(keepends=True)
    run.metrics_path.write_bytes(first + line + b"\n" + b"".join(rest))
    if not finished:
        unfinish(run, 3)
    with pytest.warns(UserWarning, match=r"run/metrics\.jsonl: line 2 .*left out.*`tla repair ") as warned:
        result = fit(run.path, digits)
    assert [record["step"] for record in result.metrics] == [record["step"] for record in good]
    if finished:
        obey(warned[0].message)
        assert run.metrics_path.read_bytes() == first + b"".join(rest)
    assert run.metrics() == result.metrics


def test_the_line_that_a_crash_cut_off_is_left_out_without_a_word(run):
    good = run.metrics()
    with run.metrics_path.open("ab") as file:
        file.write(b'{"step": 7, "lo')
    assert run.metrics() == good


# A disk that is full or cannot be written -----------------------------------------------------------------------------


@pytest.fixture
def public(whole):
    """A copy of the run where other users may read, also while it is a test of the superuser."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(shutil.copytree(whole, Path(folder, "run")))


@contextlib.contextmanager
def read_only(*folders):
    """Whatever the rights of this process are, it cannot write there."""
    before = os.geteuid()
    for folder in folders:
        os.chmod(folder, 0o555)
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)
        for folder in folders:
            os.chmod(folder, 0o755)


def test_a_finished_run_can_be_looked_at_where_nothing_can_be_written(public, whole, digits, no_step):
    before = contents(public)
    with read_only(public):
        result = fit(public, digits)
        load_model(public)
    assert contents(public) == before and result.metrics == RunFolder(whole).metrics()


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained(public, digits, no_step):
    unfinish(RunFolder(public), 3)
    message = rf"could not write {public}/lock: Permission denied.*check the permissions, or use a folder \(--out\)"
    with read_only(public), pytest.raises(OSError, match=message):
        fit(public, digits)


def test_a_full_disk_is_told_with_the_path_whatever_was_to_be_written(run, monkeypatch):
    full = OSError(28, "No space left on device")

    class Full:
        def __getattr__(self, name):
            raise full

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(Path, "open", lambda *args, **options: Full())
    with pytest.raises(OSError, match=rf"could not write {run.metrics_path}.*No space left"):
        run.append_metrics({"step": 1})
    monkeypatch.setattr(Path, "write_text", lambda *args, **options: Full().write())
    with pytest.raises(OSError, match=rf"could not write {run.path}/process\.json.*No space left"), run.locked():
        pass


def test_a_file_system_without_locks_is_named_with_a_way_out(run, monkeypatch):
    def fail(*args, **options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_folder.FileLock, "acquire", fail)
    with pytest.raises(OSError, match=rf"could not write {run.path}/lock.*No locks available.*--out"), run.locked():
        pass


def test_the_folder_that_one_is_in_can_be_trained_in_and_replaced(run, digits, monkeypatch):
    monkeypatch.chdir(run.path)
    fit(".", digits)
    with pytest.raises(RunConflictError, match=r"config\.seed was 0, is 1"):
        fit(".", digits, tiny(seed=1))
    fit(".", digits, tiny(seed=1), replace=True)
    assert RunFolder(run.path).record()["config"]["seed"] == 1
    assert RunFolder(f"{run.path}.old-1").record()["config"]["seed"] == 0


# Weights that are not numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(value, run, digits, tmp_path):
    tensors, metadata = load_tensors(run.model_path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name].view(-1)[3] = value
    save_tensors(run.model_path, tensors, metadata)
    message = rf"model\.safetensors .*{re.escape(name)}, 1 of {tensors[name].numel():,} .*NaN or infinite"
    with pytest.raises(CheckpointError, match=message):
        load_model(run.path)
    with pytest.raises(CheckpointError, match=message):
        fit(tmp_path / "next", digits, init_from=run.path)


def test_statistics_that_are_not_numbers_are_named(run):
    tensors, metadata = load_tensors(run.model_path)
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = float("nan")
    save_tensors(run.model_path, tensors, metadata)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}, 1 of .*NaN"):
        load_model(run.path)


# Another machine ------------------------------------------------------------------------------------------------------


def test_another_torch_at_a_resumption_is_told(run, digits):
    record = run.record()
    versions = record["environment"]["versions"] | {"torch": "1.0"}
    edit(run.config_path, environment=record["environment"] | {"versions": versions, "cpu_capability": "ABACUS"})
    fit(run.path, digits)  # it is finished
    unfinish(run, 3)
    with pytest.warns(UserWarning, match=r"begun with torch 1\.0, .*ABACUS.*goes on .*from step 3.*bit for bit"):
        result = fit(run.path, digits)
    assert [record["step"] for record in result.metrics if "note" in record] == [3]


# The checkpoints of the repository ------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted((Path(__file__).parents[1] / "checkpoints").glob("*/")), ids=lambda p: p.name)
def test_the_records_of_published_runs_are_whole(folder):
    """Also those that were written before fields were added."""
    record = RunFolder(folder).record()
    assert RunFolder(folder).finished_model() == folder / "model.safetensors"
    config = TrainConfig.from_dict(record["config"])
    assert config.identity == record["config_identity"]
    identified = {"config": config.identifying_fields(), "data": record["data"], "start": record["start"]}
    assert identity_of(identified) == record["identity"]
