"""The wide residual networks for CIFAR-10: Table 2 as printed, and Madry's, which it names as its source.

Both are built from Madry's pre-activation block. What Table 2 does not print, it takes from there: the order of batch
norm, activation and convolution, leaky ReLU 0.1, and shortcuts without weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tla_core.models.common import (
    TENSORFLOW_NORM,
    blocks_per_group,
    check_image_size,
    he_fan_out,
    scaled,
    unit_variance,
)
from tla_core.models.normalization import input_normalization


class WideResNet(nn.Module):
    """A 3x3 convolution, three groups of residual blocks with 160, 320 and 640 channels, average pool, linear layer.

    Use one of its two members, `WideResNetTable2` and `WideResNetMadry`. Convolutions have no bias and start from He's
    normal distribution (fan-out), the linear layer from a uniform one of variance 1 / fan-in, as Madry's do. Batch norm
    has epsilon 0.001 and momentum 0.1 (decay 0.9).

    Parameters
    ----------
    width : float
        Factor on the channels of the groups; 1 is published, 1/10 the network that is not wide. The first convolution
        keeps its 16 channels, or has those of the first group if these are fewer.
    blocks : tuple of int
        Residual blocks in each of the three groups; () are the published ones.
    normalization : {"none", "per-image"}
        Of the input; the paper's networks have "per-image".
    in_channels, image_size, n_classes : int
        3, 32 and 10 in the paper.

    Raises
    ------
    ValueError
        For a width, blocks, normalisation or image size that it cannot take.
    """

    # Table 6 names its layers only by height, on the network of Table 1: here they are the outputs of two groups.
    layer_names = {"lower": "group1", "middle": "group2", "higher": "penultimate"}  # noqa: RUF012
    published_blocks: tuple[int, ...]
    strides: tuple[int, ...]

    def __init__(
        self,
        *,
        width: float = 1.0,
        blocks: tuple[int, ...] = (),
        normalization: str = "none",
        in_channels: int = 3,
        image_size: int = 32,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        blocks = blocks_per_group(name, blocks, self.published_blocks)
        check_image_size(name, image_size, self.strides.count(2))
        c1, c2, c3 = scaled(width, 160, 320, 640)
        stem = min(16, c1)
        self.normalization = input_normalization(normalization)
        self.stem = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        # Only the very first block activates its shortcut too: nothing before it has batch norm.
        self.group1 = _group(stem, c1, self.strides[0], blocks[0], activated_shortcut=True)
        self.group2 = _group(c1, c2, self.strides[1], blocks[1])
        self.group3 = _group(c2, c3, self.strides[2], blocks[2])
        self.norm = nn.BatchNorm2d(c3, **TENSORFLOW_NORM)
        self.activation = nn.LeakyReLU(0.1)
        self.classifier = nn.Linear(c3, n_classes)
        he_fan_out(self)
        unit_variance(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] -> logits (n, classes)."""
        x = self.stem(self.normalization(x))
        x = self.group3(self.group2(self.group1(x)))
        return self.classifier(self.activation(self.norm(x)).mean((2, 3)))


class WideResNetTable2(WideResNet):
    """Table 2 of the supplement as printed: 6 blocks a group, at a half, a quarter and an eighth of the image's size.

    55,583,194 parameters: each group has one block more than in Madry's network, on half the width and height. See
    `WideResNet` for the parameters.
    """

    published_blocks = (6, 6, 6)
    strides = (2, 2, 2)


class WideResNetMadry(WideResNet):
    """WRN-32-10 of Madry et al. (2018): 5 blocks a group, at the image's size, a half and a quarter of it.

    45,901,914 parameters. See `WideResNet` for the parameters. TensorFlow pads a 3x3 convolution of stride 2 on the
    right and below, PyTorch on the left and above: for even sizes the same network, mirrored.
    """

    published_blocks = (5, 5, 5)
    strides = (1, 2, 2)


class _Block(nn.Module):
    """Pre-activation block of two 3x3 convolutions; batch norm directly after the first one, so that it folds."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, activated_shortcut: bool) -> None:
        super().__init__()
        self.activated_shortcut = activated_shortcut
        self.norm1 = nn.BatchNorm2d(channels_in, **TENSORFLOW_NORM)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out, **TENSORFLOW_NORM)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.activation = nn.LeakyReLU(0.1)
        self.shortcut = _Shortcut(channels_out - channels_in, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(self.norm1(x))
        shortcut = self.shortcut(activated if self.activated_shortcut else x)
        return shortcut + self.conv2(self.activation(self.norm2(self.conv1(activated))))


class _Shortcut(nn.Module):
    """Averages stride x stride pixels, and adds channels of zeros on both sides."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = extra_channels // 2, extra_channels - extra_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            # ceil_mode: the convolution beside it rounds odd sizes up.
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, self.before, self.after)) if self.after else x


def _group(
    channels_in: int, channels_out: int, stride: int, blocks: int, *, activated_shortcut: bool = False
) -> nn.Sequential:
    first = _Block(channels_in, channels_out, stride, activated_shortcut)
    return nn.Sequential(first, *(_Block(channels_out, channels_out, 1, False) for _ in range(blocks - 1)))
