"""Runs as RobustBench's zoo has them, and checkpoints of that zoo: its own loader is the oracle where it is there."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY, mnist_images, tiny_config
from torch import nn

import tla_core as tla
from analysis.command.arguments import ModelOptions
from analysis.command.main import main
from analysis.command.opening import open_model

RUN = REPOSITORY / "checkpoints/cifar10-tla"
BELOW = Path("cifar10/Linf")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("robustbench")
    assert main(["publish", str(RUN), "--robustbench", "--out", str(out)]) == 0
    return out


def entry_of(out):
    spec = importlib.util.spec_from_file_location("an_entry", out / "model_zoo/cifar10_tla.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ENTRY


def assert_same_model(model):
    images, expected = torch.rand(8, 3, 32, 32), tla.load_model(RUN)
    torch.testing.assert_close(model(images), expected(images))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_an_entry_names_the_class_and_the_state_dict_holds_tensors_alone(published):
    name, entry = entry_of(published)
    content = torch.load(published / "models" / BELOW / f"{name}.pt", weights_only=True)
    # What its loader does to names before it loads them strictly: ours have nothing that it would take off.
    assert not [key for key in content if "module." in key or "model." in key]
    model = entry["model"]().eval()
    model.load_state_dict(content, strict=True)
    assert_same_model(model)


def test_robustbench_itself_loads_it(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "pkg_resources", types.ModuleType("pkg_resources"))  # which it cannot do without
    zoo = pytest.importorskip("robustbench.utils")
    dataset, threat = zoo.BenchmarkDataset.cifar_10, zoo.ThreatModel.Linf
    name, entry = entry_of(published)
    monkeypatch.setitem(zoo.all_models[dataset][threat], name, entry)
    assert_same_model(zoo.load_model(name, model_dir=published / "models", dataset="cifar10", threat_model="Linf"))


def test_its_numbers_are_those_of_the_card(published):
    info = json.loads((published / "model_info" / BELOW / "cifar10_tla.json").read_text())
    assert "measured on cifar10-jpeg, a copy of the images" in info["footnote"]
    outcomes = {name: o.double().mean().item() for name, o in outcomes_of(RUN).items()}
    assert (info["eps"], info["dataset"], info["architecture"]) == ("8/255", "cifar10", "WideResNetTable2")
    assert info["clean_acc"] == f"{100 * outcomes['clean']:.2f}"
    assert info["autoattack_acc"] == f"{100 * outcomes['AutoAttack']:.2f}"
    assert "AutoAttack on 1,000 of 10,000 test images" in info["footnote"]


def outcomes_of(folder):
    from analysis.scales.accuracy_store import load_outcomes

    return load_outcomes(folder / "accuracy-test.safetensors")[0]


def test_the_same_run_gives_the_same_bytes(published, tmp_path):
    assert main(["publish", str(RUN), "--robustbench", "--out", str(tmp_path)]) == 0
    files = [path.relative_to(published) for path in published.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all((published / path).read_bytes() == (tmp_path / path).read_bytes() for path in files)


def test_what_the_zoo_cannot_have_is_refused(tmp_path, capsys):
    assert main(["publish", str(REPOSITORY / "checkpoints/mnist-tla"), "--robustbench", "--out", str(tmp_path)]) == 1
    assert "RobustBench has no models of mnist: expected a run on cifar10" in capsys.readouterr().err
    images = mnist_images(40, "train")
    mine = tla.ImageDataset(images.images, images.labels, name="cifar10")
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    config = tiny_config("um", epochs=1, dataset="cifar10")
    tla.train(config, tmp_path / "run", model=network, dataset=mine, progress=False)
    assert main(["publish", str(tmp_path / "run"), "--robustbench", "--out", str(tmp_path)]) == 1
    assert "trained a network of the user's" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


# Checkpoints of the zoo: no original is here, so stand-ins have its layout of names ----------------------------------

NETS = '''
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
    def forward(self, x):
        return x + self.conv1(self.bn1(x).relu())

class Group(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(Block())
    def forward(self, x):
        return self.layer(x)

class Wide(nn.Module):
    """Named as RobustBench's WideResNet is."""
    def __init__(self):
        super().__init__()
        self.conv1, self.block1, self.bn1 = nn.Conv2d(3, 4, 3), Group(), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)
    def forward(self, x):
        return self.fc(self.bn1(self.block1(self.conv1(x))).relu().mean((2, 3)))
'''


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
@pytest.mark.parametrize("names", [(), ("mu", "sigma"), ("normalize.mean", "normalize.std")])
def test_a_checkpoint_of_the_zoo_is_opened_with_its_normalisation(prefix, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    network = open_model("nets.py:Wide", ModelOptions()).model.model
    mean, std = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
    content = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    content |= {f"{prefix.removesuffix('model.')}{name}": value.view(1, 3, 1, 1)
                for name, value in zip(names, (mean, std), strict=False)}  # fmt: skip
    torch.save({"state_dict": content, "epoch": 30}, tmp_path / "Someone2020Robust.pt")
    options = ModelOptions(weights=tmp_path / "Someone2020Robust.pt")
    model, x = open_model("nets.py:Wide", options).model, torch.rand(4, 3, 16, 16)
    expected = network((x - mean[:, None, None]) / std[:, None, None]) if names else network(x)
    torch.testing.assert_close(model(x), expected)
    told = ModelOptions(weights=options.weights, mean=(0.0,) * 3, std=(1.0,) * 3)
    torch.testing.assert_close(open_model("nets.py:Wide", told).model(x), network(x))
