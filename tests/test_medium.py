"""The scale `medium`: the size of its network, a recipe that all methods share, and some steps of each training."""

import numpy as np
import pytest
import torch

import tla_core as tla
from benchmarks.full_training import count_operations
from tla_core.checkpoint import load_tensors, tensor_bytes
from tla_core.config import TrainConfig, fields_in_use
from tla_core.datasets import ImageDataset
from tla_core.models import build_model
from tla_core.presets import METHODS, VARIANTS

ALL = METHODS + VARIANTS
TINY = {"width": 0.05, "batch_size": 10, "holdout": 10, "iterations": 3}


def settings(method, **changes):
    """The preset on a thin network for three steps."""
    pool = {"pool_size": 20} if method.startswith("tla") else {}
    return TrainConfig.preset(f"medium/cifar10/{method}", **{**TINY, **pool, **changes})


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    return ImageDataset(pixels, np.arange(60) % 10, tuple("abcdefghij"))


def test_the_network_has_the_size_that_the_documentation_says():
    config = TrainConfig.preset("medium/cifar10/tla")
    model = build_model(
        config.network, width=config.width, blocks=config.blocks, normalization=config.normalization, in_channels=3,
        image_size=32, n_classes=10,
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_706_906
    assert 10.8e6 < len(tensor_bytes(model.state_dict(), {})) < 12e6
    with torch.no_grad():
        assert round(count_operations(lambda: model(torch.rand(1, 3, 32, 32))) / 1e9, 3) == 0.775


def test_every_method_has_the_same_recipe():
    configs = {method: TrainConfig.preset(f"medium/cifar10/{method}") for method in ALL}
    for method, config in configs.items():
        shared = (set(fields_in_use(config)) & set(fields_in_use(configs["at"]))) - {"method"}
        assert {field: getattr(config, field) for field in shared} == {
            field: getattr(configs["at"], field) for field in shared
        }
        assert method in ("um", "at") or config.statistics == "adversarial"
    assert configs["um"].epochs >= 30 and configs["at"].precision == "bf16" and configs["at"].attack.steps == 7


@pytest.mark.parametrize("method", ALL)
def test_some_steps_of_each_training(method, images, tmp_path):
    result = tla.train(settings(method), tmp_path, dataset=images, device="cpu", progress=False)
    logged, selected = result.metrics
    assert logged["step"] == selected["step"] == 3 and np.isfinite(logged["loss"])
    assert set(selected["holdout"]) == ({"clean"} if method == "um" else {"clean", "robust"})
    with torch.no_grad():
        assert torch.isfinite(tla.load_model(tmp_path)(images.images[:4] / 255)).all()


def test_tla_without_its_terms_is_at(images, tmp_path):
    """So that what TLA is compared with differs in these terms alone."""
    nothing = {"lambda_triplet": 0.0, "lambda_norm": 0.0}
    for method, changes in (("at", {}), ("tla", nothing)):
        config = settings(method, precision="fp32", averaging=0.0, **changes)
        tla.train(config, tmp_path / method, dataset=images, device="cpu", progress=False)
    at, without = (load_tensors(tmp_path / method / "model.safetensors")[0] for method in ("at", "tla"))
    for name, tensor in at.items():
        torch.testing.assert_close(without[name], tensor, msg=lambda text, name=name: f"{name}: {text}")
