"""The networks, by the name of their family. Each takes images in [0, 1] and normalises them itself."""

from torch import nn

from tla_core.models.lenet import LeNet

NETWORKS = {"lenet": LeNet}


def build_model(network: str, *, width: float, in_channels: int, image_size: int, n_classes: int) -> nn.Module:
    """Make a network with fresh weights.

    Parameters
    ----------
    network : str
        Name of the family.
    width : float
        Factor on the channels; 1 is the published size.
    in_channels, image_size, n_classes : int
        Of the images (image_size x image_size pixels) and the labels.

    Raises
    ------
    ValueError
        For an unknown family (they are listed), or a size that it cannot take.
    """
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}. There are: {', '.join(NETWORKS)}.")
    return NETWORKS[network](width=width, in_channels=in_channels, image_size=image_size, n_classes=n_classes)


__all__ = ["NETWORKS", "LeNet", "build_model"]
