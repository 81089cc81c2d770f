import argparse
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny import mnist_images
from torch import nn

import tla_core as tla
from analysis.command.arguments import MODEL_AS_IT_IS
from analysis.command.opening import open_model
from tla_core.checkpoint import CheckpointError


def network(classes=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))


@pytest.fixture
def trained():
    model = network(seed=1)
    model(torch.rand(8, 3, 8, 8))
    return model.eval()


def assert_equal(model, trained):
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module.model.", "net._orig_mod."])
@pytest.mark.parametrize("key", ["", "state_dict", "model", "model_state_dict", "net", "ema", "model/state_dict"])
def test_usual_keys_and_prefixes(trained, tmp_path, key, prefix):
    content = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    for part in reversed(key.split("/")) if key else ():
        content = {"epoch": 3, part: content, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}}
    torch.save(content, tmp_path / "weights.pth")
    model = network()
    report = tla.load_weights(model, tmp_path / "weights.pth")
    assert_equal(model, trained)
    assert report.complete and report.key == key and report.prefix == prefix and report.loaded == 9


@pytest.mark.parametrize("wrapper", [nn.DataParallel, tla.wrap, lambda m: torch.compile(m, backend="eager")])
def test_safetensors_and_wrapped_models(trained, tmp_path, wrapper):
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    model = network()
    assert str(tla.load_weights(wrapper(model), tmp_path)) == "9 tensors loaded"  # the folder
    assert_equal(model, trained)


def test_a_network_behind_a_normalisation_takes_the_weights_of_the_network(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    model = nn.Sequential(tla.Normalize([0.5] * 3, [0.2] * 3), network())
    assert tla.load_weights(model, tmp_path / "weights.pt").complete
    assert_equal(model[1], trained)


def test_an_average_is_taken_where_it_is_asked_for_or_alone(trained, tmp_path):
    average = torch.optim.swa_utils.AveragedModel(trained)
    torch.save({"model": network(seed=5).state_dict(), "ema": average.state_dict()}, tmp_path / "both.pt")
    model = network()
    assert tla.load_weights(model, tmp_path / "both.pt").key == "model"
    assert_equal(model, network(seed=5))
    report = tla.load_weights(model, tmp_path / "both.pt", key="ema")
    assert (report.prefix, report.key) == ("module.", "ema")
    assert_equal(model, trained)


def test_what_does_not_fit_is_said_and_changes_nothing(trained, tmp_path):
    content = trained.state_dict() | {"aux.weight": torch.ones(2, 2)}
    del content["0.bias"]
    torch.save(content, tmp_path / "weights.pt")
    model, before = network(classes=10), network(classes=10)
    with pytest.raises(ValueError, match=r"1 missing in the file: 0.bias; 1 unexpected: aux.weight; 2 of another shape:"
                                         r" 4.weight \(4, 144\), in the model \(10, 144\)"):  # fmt: skip
        tla.load_weights(model, tmp_path / "weights.pt")
    assert_equal(model, before)
    report = tla.load_weights(model, tmp_path / "weights.pt", strict=False)
    assert report.missing == ("0.bias",) and report.unexpected == ("aux.weight",) and report.loaded == 6
    torch.testing.assert_close(model[0].weight, trained[0].weight)
    torch.testing.assert_close(model[4].weight, before[4].weight)


def test_old_files_do_not_count_batches(trained, tmp_path):
    content = {name: tensor for name, tensor in trained.state_dict().items() if "num_batches" not in name}
    torch.save(content, tmp_path / "weights.pt")
    assert tla.load_weights(network(), tmp_path / "weights.pt").complete


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"model": network()}, CheckpointError, "could run code"),
        (network(), CheckpointError, r"could run code \(.*Sequential"),
        ({"state_dict": {"a": torch.ones(1)}, "args": argparse.Namespace(x=1)}, CheckpointError, "could run code"),
        ({"epoch": 3}, ValueError, "holds no weights: no tensors by name. It has: epoch"),
        ({"other.weight": torch.ones(2)}, ValueError, "not those of this Sequential: 0 tensors loaded; 8 missing"),
        ([torch.ones(2)], ValueError, "holds no weights.* It has: list"),
        (
            {f"{part}.{name}": t for part in ("student", "teacher") for name, t in network().state_dict().items()},
            ValueError, "holds several networks, under 'student.' and 'teacher.': say which one, prefix='student.'",
        ),
        (
            network().state_dict() | {"mu": torch.ones(3), "sigma": torch.ones(3)}, ValueError,
            r"mu, sigma look like a normalisation: tla.wrap\(model, mean=",
        ),
    ],
)  # fmt: skip
def test_refuses(tmp_path, content, error, message):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(error, match=message):
        tla.load_weights(network(), tmp_path / "weights.pt")


class RunsCode:
    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_code_is_never_run(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": RunsCode()}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        tla.load_weights(network(), tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_broken_file_is_no_weights(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        tla.load_weights(network(), tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(CheckpointError, match=r"cannot be read as weights|could run code|no safetensors file"):
        tla.load_weights(network(), tmp_path / name)
    torch.jit.save(torch.jit.script(network()), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"cannot be read as weights|no safetensors file"):
        tla.load_weights(network(), tmp_path / name)


# Runs of wrapped models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrapped_run(tmp_path_factory):
    """A run of a network with a normalisation inside, and what makes the network."""
    folder = tmp_path_factory.mktemp("wrapped") / "run"
    model = tla.wrap(bare(), mean=[0.5], std=[0.2])
    weak = tla.AttackConfig(eps=0.1, step_size=0.1, steps=1)
    config = tla.TrainConfig(
        method="um", epochs=1, batch_size=20, holdout=20, averaging=0.0, attack=weak, selection_attack=weak
    )
    tla.train(config, folder, model=model, dataset=mnist_images(100), progress=False)
    return folder, model.eval()


def bare():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()


def test_the_weights_of_a_wrapped_model_are_not_those_of_the_bare_one(wrapped_run):
    run, model = wrapped_run
    with pytest.raises(ValueError, match=r"with a normalisation inside.*tla.wrap\(model, mean=\[0.5\], std=\[0.2\]\)"):
        tla.load_weights(bare(), run)
    with pytest.raises(ValueError, match=r"mean=\[0.5\], std=\[0.2\] inside. This model has mean=\[0.1\]"):
        tla.load_weights(tla.wrap(bare(), mean=[0.1], std=[0.2]), run)
    with pytest.raises(ValueError, match=r"pass tla\.wrap"):
        tla.load_model(run, model=bare())
    again = tla.wrap(bare(), mean=[0.5], std=[0.2])
    assert tla.load_weights(again, run).normalization is None
    x = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(again(x), model(x))
    torch.testing.assert_close(tla.load_model(run, model=again)(x), model(x))
    mean, std = tla.load_weights(bare(), run, strict=False).normalization
    assert mean == pytest.approx((0.5,)) and std == pytest.approx((0.2,))


def test_the_command_line_puts_the_normalisation_of_a_run_inside(wrapped_run, tmp_path):
    run, model = wrapped_run
    (tmp_path / "nets.py").write_text(
        "from torch import nn\nimport tla_core as tla\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n\n"
        "def wrapped():\n    return tla.wrap(net(), mean=[0.5], std=[0.2])\n"
    )
    x = torch.rand(5, 1, 28, 28)
    for name in ("net", "wrapped"):
        opened = open_model(f"{tmp_path}/nets.py:{name}", replace(MODEL_AS_IT_IS, weights=run), n_classes=10).model
        torch.testing.assert_close(opened(x), model(x))
