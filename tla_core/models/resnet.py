"""The ResNet-50 of the supplement, and the pre-activation variant of the released code, for Tiny-ImageNet."""

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

EXPANSION = 4  # output channels of a bottleneck block, for each channel of its 3x3 convolution


class ResNet50(nn.Module):
    """ResNet-50 (He et al. 2016): 7x7 convolution of stride 2, max pool, four groups of 3-4-6-3 bottleneck blocks.

    The supplement says "a stride of 2 for the first convolution" and nothing of the max pool: it is kept, as in
    the well-known network, so that 64 pixels become 32, 16, 16, 8, 4, 2. As in torchvision, whose names the parameters
    have (its weights can be loaded), a block's stride is at its 3x3 convolution, batch norm has PyTorch's defaults,
    convolutions start from He's normal distribution (fan-out) and the linear layer from PyTorch's default.
    25,557,032 parameters with 1,000 classes, 23,917,832 with 200.

    Parameters
    ----------
    width : float
        Factor on all channels; 1 is published.
    blocks : tuple of int
        Residual blocks in each of the four groups; () are the published ones.
    normalization : {"none", "per-image"}
        Of the input; the paper's network has "per-image".
    in_channels, image_size, n_classes : int
        3, 64 and 200 in the paper.

    Raises
    ------
    ValueError
        For a width, blocks, normalisation or image size that it cannot take.
    """

    # Table 6 names its layers only by height, on the network of Table 1: here they are the outputs of two groups.
    layer_names = {"lower": "layer1", "middle": "layer2", "higher": "penultimate"}  # noqa: RUF012

    def __init__(
        self,
        *,
        width: float = 1.0,
        blocks: tuple[int, ...] = (),
        normalization: str = "none",
        in_channels: int = 3,
        image_size: int = 64,
        n_classes: int = 200,
    ) -> None:
        super().__init__()
        blocks = blocks_per_group("ResNet50", blocks, (3, 4, 6, 3))
        check_image_size("ResNet50", image_size, halvings=5)
        c1, c2, c3, c4 = scaled(width, 64, 128, 256, 512)
        self.normalization = input_normalization(normalization)
        self.conv1 = nn.Conv2d(in_channels, c1, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _group(_Bottleneck, c1, c1, 1, blocks[0])
        self.layer2 = _group(_Bottleneck, c1 * EXPANSION, c2, 2, blocks[1])
        self.layer3 = _group(_Bottleneck, c2 * EXPANSION, c3, 2, blocks[2])
        self.layer4 = _group(_Bottleneck, c3 * EXPANSION, c4, 2, blocks[3])
        self.fc = nn.Linear(c4 * EXPANSION, n_classes)
        he_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] -> logits (n, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalization(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class PreActResNet50(nn.Module):
    """The network that the released code calls Res50: four groups of 2-3-5-2 pre-activation bottleneck blocks.

    Its 7x7 convolution has stride 1 and no pooling follows, so that 64 pixels become 64, 64, 32, 16, 8. A block's
    stride is at its first 1x1 convolution; the first block of each group has a 1x1 convolution as its shortcut, which
    reads the block's input before batch norm. Batch norm has epsilon 0.001 and momentum 0.1 (decay 0.9); convolutions
    have no bias and start from He's normal distribution (fan-out), the linear layer from a uniform one of variance
    1 / fan-in. 17,980,040 parameters with 200 classes. See `ResNet50` for the parameters.
    """

    layer_names = {"lower": "group1", "middle": "group2", "higher": "penultimate"}  # noqa: RUF012

    def __init__(
        self,
        *,
        width: float = 1.0,
        blocks: tuple[int, ...] = (),
        normalization: str = "none",
        in_channels: int = 3,
        image_size: int = 64,
        n_classes: int = 200,
    ) -> None:
        super().__init__()
        blocks = blocks_per_group("PreActResNet50", blocks, (2, 3, 5, 2))
        check_image_size("PreActResNet50", image_size, halvings=3)
        c1, c2, c3, c4 = scaled(width, 64, 128, 256, 512)
        self.normalization = input_normalization(normalization)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, c1, 7, padding=3, bias=False), nn.BatchNorm2d(c1, **TENSORFLOW_NORM), nn.ReLU()
        )
        self.group1 = _group(_PreActBottleneck, c1, c1, 1, blocks[0])
        self.group2 = _group(_PreActBottleneck, c1 * EXPANSION, c2, 2, blocks[1])
        self.group3 = _group(_PreActBottleneck, c2 * EXPANSION, c3, 2, blocks[2])
        self.group4 = _group(_PreActBottleneck, c3 * EXPANSION, c4, 2, blocks[3])
        self.norm = nn.BatchNorm2d(c4 * EXPANSION, **TENSORFLOW_NORM)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(c4 * EXPANSION, n_classes)
        he_fan_out(self)
        unit_variance(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] -> logits (n, classes)."""
        x = self.stem(self.normalization(x))
        x = self.group4(self.group3(self.group2(self.group1(x))))
        return self.classifier(self.relu(self.norm(x)).mean((2, 3)))


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with batch norm; ReLU after the addition."""

    def __init__(self, channels_in: int, channels: int, stride: int, first: bool) -> None:
        super().__init__()
        channels_out = channels * EXPANSION
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.downsample = nn.Identity()
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class _PreActBottleneck(nn.Module):
    """Batch norm and ReLU before each of the 1x1, 3x3 and 1x1 convolutions; nothing after the addition."""

    def __init__(self, channels_in: int, channels: int, stride: int, first: bool) -> None:
        super().__init__()
        channels_out = channels * EXPANSION
        self.norm1 = nn.BatchNorm2d(channels_in, **TENSORFLOW_NORM)
        self.conv1 = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, **TENSORFLOW_NORM)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels, **TENSORFLOW_NORM)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu(self.norm1(x)))
        out = self.conv2(self.relu(self.norm2(out)))
        return self.conv3(self.relu(self.norm3(out))) + self.shortcut(x)


def _group(block: type[nn.Module], channels_in: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
    others = (block(channels * EXPANSION, channels, 1, False) for _ in range(blocks - 1))
    return nn.Sequential(block(channels_in, channels, stride, True), *others)
