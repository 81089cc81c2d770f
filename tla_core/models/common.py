"""What the families of networks share: their arguments, checked, and how weights start."""

import math
from collections.abc import Sequence

from torch import nn

# PyTorch's momentum is one minus the decay 0.9 that Madry's and the released TLA networks give; 0.001 is the epsilon of
# the TensorFlow layer that they call, where PyTorch's default is 0.00001.
TENSORFLOW_NORM = {"eps": 1e-3, "momentum": 0.1}


def scaled(width: float, *channels: int) -> tuple[int, ...]:
    """Numbers of channels times `width`, rounded, at least 1; ValueError unless 0 < width < infinity."""
    if not 0 < width < math.inf:
        raise ValueError(f"width must be a positive number; 1 is the published network. Got {width!r}.")
    return tuple(max(1, round(width * count)) for count in channels)


def blocks_per_group(network: str, blocks: Sequence[int], published: tuple[int, ...]) -> tuple[int, ...]:
    """`blocks`, or the published ones for an empty `blocks`; ValueError unless it is one positive number a group."""
    blocks = tuple(blocks) or published
    if len(blocks) != len(published) or any(not isinstance(count, int) or count < 1 for count in blocks):
        raise ValueError(
            f"blocks of {network} must be {len(published)} positive whole numbers, one for each group of residual"
            f" blocks; () are the published ones, {published}. Got {blocks}."
        )
    return blocks


def check_image_size(network: str, image_size: int, halvings: int) -> None:
    """ValueError for images so small that one of the halvings would meet a single pixel."""
    smallest = 2 ** (halvings - 1) + 1
    if image_size < smallest:
        raise ValueError(
            f"{network} halves its images {halvings} times and needs at least {smallest} x {smallest} pixels."
            f" Got {image_size}; enlarge the images, or choose another network."
        )


def he_fan_out(network: nn.Module) -> None:
    """Start all convolutions from N(0, 2 / (kernel area * output channels)): He et al. 2015, fan-out."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def unit_variance(classifier: nn.Linear) -> None:
    """Start a linear layer from the uniform distribution of variance 1 / fan-in, its bias from 0."""
    nn.init.kaiming_uniform_(classifier.weight, nonlinearity="linear")
    nn.init.zeros_(classifier.bias)
