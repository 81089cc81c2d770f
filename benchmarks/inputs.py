"""What all benchmarks share: how large they are, the device, images, networks, and the conditions to report."""

import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import tla_core as tla
from tla_core.batches import BatchSource
from tla_core.config import TrainConfig
from tla_core.models import build_model

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Setup:
    """How large the benchmarks are, and where they run.

    Attributes
    ----------
    pairs : int
    device : torch.device
    images : int
        Images that are evaluated.
    steps : int
        Of PGD in the evaluations.
    peer_batches : tuple of int
        Batch sizes of which the peers get the one that is best for them.
    sizes : (int, int)
        Numbers of images between which the cost of one must not change.
    gradient_images, gradient_steps : int
        Of the attacks that are timed alone.
    training_attack_steps : int
        At most, of the attack in the training step at full width.
    width : float
        Of the network that stands for Table 1 at its full width.
    training : dict
        Overrides of the presets of the models that are trained where there is no run of them.
    runs, kept : Path
        Where runs are looked for, and where models are trained that are not found there.
    say : callable
        Told what is being done.
    """

    pairs: int = 3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    images: int = 1000
    steps: int = 20
    peer_batches: tuple[int, ...] = (64, 256, 1000)
    sizes: tuple[int, int] = (1000, 60_000)
    gradient_images: int = 256
    gradient_steps: int = 5
    training_attack_steps: int = 40
    width: float = 1.0
    training: dict[str, Any] = field(default_factory=dict)
    runs: Path = ROOT / "runs"
    kept: Path = ROOT / "benchmarks" / ".cache"
    say: Callable[[str], None] = lambda _: None


def conditions(device: torch.device) -> dict[str, Any]:
    """The conditions of all lines."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _processor() -> str:
    """Family and model of the processor: names are often withheld where machines are lent."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    parts = [fields.get("model name", ""), *numbers]
    return ", ".join(filter(None, parts)) or platform.processor() or platform.machine()


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def test_images(n: int) -> tuple[Tensor, Tensor]:
    """uint8 images (n, 1, 28, 28) and labels (n,) of the embedded MNIST subset, from the start again where it ends."""
    data = tla.load_dataset("mnist-mini", "test")
    rows = torch.arange(n) % len(data)
    return data.images[rows], data.labels[rows]


def trained_model(setup: Setup, method: str) -> tuple[nn.Module, str]:
    """The model of ``mini/mnist/<method>`` and where it lies; trained first if there is none."""
    folder = setup.runs / "mini" / "mnist" / method / "seed0"
    try:
        model = tla.load_model(folder, device=setup.device)
    except FileNotFoundError:
        folder = setup.kept / "mini" / "mnist" / method
        if not (folder / "model.safetensors").exists():
            setup.say(f"training mini/mnist/{method}, once")
        config = TrainConfig.preset(f"mini/mnist/{method}", **setup.training)
        tla.train(config, folder, device=setup.device, replace=True, progress=False)
        model = tla.load_model(folder, device=setup.device)
    return model, str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)


def untrained_model(setup: Setup, network: str, images: Tensor, **settings: Any) -> nn.Module:
    """A network with random weights, in eval mode, whose batch norm knows the statistics of the images.

    What a gradient costs does not depend on the weights.
    """
    size = {"in_channels": images.shape[1], "image_size": images.shape[2], "n_classes": 10}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(network, **{"width": 1.0, "blocks": (), "normalization": "none", **settings, **size})
    model = model.to(setup.device)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum, momentum = 1.0, norm.momentum
    with torch.no_grad():
        model.train()(images[:64].float().to(setup.device) / 255)
    for norm in norms:
        norm.momentum = momentum
    return model.eval()


def colour_images(n: int) -> tuple[Tensor, Tensor]:
    """Synthetic uint8 images (n, 3, 32, 32), and labels (n,) of ten classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.arange(n) % 10


def training_source(setup: Setup, config: TrainConfig, images: Tensor, labels: Tensor) -> BatchSource:
    """What the steps of a training draw from."""
    return BatchSource(
        images, labels, batch_size=config.batch_size, seed=config.seed, device=setup.device,
        augmentation=config.augmentation,
    )  # fmt: skip


@cache
def oracles() -> ModuleType:
    """``tests/oracles.py``, by its path: installed packages may bring a module `tests` of their own."""
    spec = importlib.util.spec_from_file_location("tla_oracles", ROOT / "tests" / "oracles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
