"""Small models, images and project folders that several test files share."""

import contextlib
import functools
import resource
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import load_tensors, save_tensors
from tla_core.config import TrainConfig
from tla_core.datasets import ImageDataset, load_dataset
from tla_core.models import LeNet
from tla_core.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[1]


@functools.cache
def mnist_images(n: int, split: str = "test") -> ImageDataset:
    """The first n images of the embedded MNIST subset, whose classes alternate."""
    data = load_dataset("mnist-mini", split)
    return ImageDataset(data.images[:n], data.labels[:n], data.class_names, data.name, split, data.source)


def tiny_lenet(seed: int = 0) -> LeNet:
    """Table 1 at a 16th of its width, in eval mode, with batch norm statistics of real images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LeNet(width=1 / 16)
        with torch.no_grad():
            model(mnist_images(64).images / 255)
    return model.eval()


def thin_resnet18(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with an eighth of the channels in its blocks: the same modules, much faster."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class Thin(ResNet):
        def _make_layer(self, block, planes, *args, **options):
            return super()._make_layer(block, planes // 8, *args, **options)

    net = Thin(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
    net.fc = nn.Linear(512 // 8, num_classes)
    return net


def trained(model: nn.Module, n: int = 1000) -> nn.Module:
    """The model after three passes over the first n training images, right often; in eval mode."""
    data = mnist_images(n, "train")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(3):
        for rows in torch.randperm(n).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.images[rows] / 255), data.labels[rows]).backward()
            optimizer.step()
    return model.eval()


def classified_right(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """Those of the first n test images that the model gets right, float32 in [0, 1], and their classes."""
    data = mnist_images(n)
    x = data.images.float() / 255
    right = model(x).argmax(1) == data.labels
    return x[right], data.labels[right]


def project_folder(root: Path, **changes) -> Path:
    """A project root whose scale `mini` is small enough for a test: seconds to train, milliseconds to map."""
    scale = {
        "datasets": ["mnist"],
        "methods": ["um", "tla"],
        "seeds": [0],
        "notebooks": ["fig1_3_false_classes", "table3_distance_ratios"],
        "points_per_class": {"clean": 36, "adversarial": 12},
        "tsne_iterations": 250,
        "overrides": {method: tiny_training() for method in ("um", "at", "alp", "tla")},
    }
    path = root / "workflow" / "scales" / "mini.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(scale | changes))
    return root


def tiny_training(**changes) -> dict:
    """Overrides of a preset that make one epoch a matter of a second."""
    attack = {"steps": 1}
    short = {"width": 0.0625, "epochs": 1, "batch_size": 100, "holdout": 20}
    return {**short, "attack": attack, "selection_attack": attack, **changes}


def use_few_images(monkeypatch, n_train: int = 200, n_test: int = 400) -> None:
    """Let every `load_dataset` of this process give the first images of the embedded subset only."""
    few = {"train": mnist_images(n_train, "train"), "test": mnist_images(n_test)}

    def load_few(name, split, **options):
        return few[split] if name == "mnist-mini" else load_dataset(name, split, **options)

    monkeypatch.setattr("tla_core.datasets.load_dataset", load_few)
    monkeypatch.setattr("tla_core.training.load_dataset", load_few)


def numpy_images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (n, 1, 28, 28) and labels (n,)."""
    data = mnist_images(n)
    return data.images.numpy(), data.labels.numpy()


def tiny_config(method="um", **overrides):
    """Settings of a training on some eighty digits, of two epochs that take a moment."""
    attack = AttackConfig(eps=0.1, step_size=0.1, steps=1)
    settings = {
        "width": 1 / 32, "epochs": 2, "batch_size": 20, "holdout": 20, "pool_size": 10, "attack": attack,
        "selection_attack": attack, "learning_rate": 0.006, "averaging": 0.0,
    }  # fmt: skip
    return TrainConfig.preset(f"mini/mnist/{method}", **{**settings, **overrides})


class Linear(nn.Module):
    """A linear classifier, whose exact robust accuracy `oracles.linear_robust_correct` knows."""

    def __init__(self, weight, bias):
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], len(weight))
        self.layer.weight.data, self.layer.bias.data = torch.tensor(weight), torch.tensor(bias)

    def forward(self, x):
        return self.layer(x.flatten(1))


def changed(array: np.ndarray, index, value) -> np.ndarray:
    """A copy of an array in which some entries are others."""
    array = array.copy()
    array[index] = value
    return array


@contextlib.contextmanager
def file_size_limit(n_bytes: int):
    """Files cannot grow beyond this, as on a full disk; the limit is the operating system's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def change_scale(root: Path, name: str = "mini", **changes) -> None:
    """Give a scale of a project other settings."""
    path = root / "workflow" / "scales" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def unfinish(run: RunFolder, step: int) -> None:
    """Take a run's model away, and set its state back to a step."""
    run.model_path.unlink()
    tensors, metadata = load_tensors(run.state_path)
    save_tensors(run.state_path, tensors, {**metadata, "step": step, "finished": False})


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
