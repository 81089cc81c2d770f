"""The networks, by the name of their family. Each takes images in [0, 1] and normalises them itself."""

from collections.abc import Sequence

from torch import nn

from tla_core.models.lenet import LeNet
from tla_core.models.normalization import NORMALIZATIONS, Normalize, PerImageStandardization
from tla_core.models.resnet import PreActResNet50, ResNet50
from tla_core.models.wide_resnet import WideResNetMadry, WideResNetTable2

NETWORKS = {
    "lenet": LeNet,
    "wrn-table2": WideResNetTable2,
    "wrn-madry": WideResNetMadry,
    "resnet50": ResNet50,
    "preact-resnet50": PreActResNet50,
}


def build_model(
    network: str,
    *,
    width: float = 1.0,
    blocks: Sequence[int] = (),
    normalization: str = "none",
    in_channels: int,
    image_size: int,
    n_classes: int,
) -> nn.Module:
    """Make a network with fresh weights.

    Parameters
    ----------
    network : {"lenet", "wrn-table2", "wrn-madry", "resnet50", "preact-resnet50"}
        Table 1; Table 2 as printed; Madry's WRN-32-10, which Table 2 names; ResNet-50 with the first convolution at
        stride 2; the pre-activation variant of the released code.
    width : float
        Factor on the channels; 1 is the published size.
    blocks : sequence of int
        Residual blocks in each group; () are the published ones.
    normalization : {"none", "per-image"}
        Of the input, inside the network: nothing, or `PerImageStandardization`.
    in_channels, image_size, n_classes : int
        Of the images (image_size x image_size pixels) and the labels.

    Returns
    -------
    nn.Module
        Its `layer_names` are the layers of Table 6.

    Raises
    ------
    ValueError
        For an unknown family or normalisation (they are listed), or a size that the family cannot take.
    """
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}. There are: {', '.join(NETWORKS)}.")
    return NETWORKS[network](
        width=width, blocks=tuple(blocks), normalization=normalization, in_channels=in_channels, image_size=image_size,
        n_classes=n_classes,
    )  # fmt: skip


__all__ = [
    "NETWORKS",
    "NORMALIZATIONS",
    "LeNet",
    "Normalize",
    "PerImageStandardization",
    "PreActResNet50",
    "ResNet50",
    "WideResNetMadry",
    "WideResNetTable2",
    "build_model",
]
