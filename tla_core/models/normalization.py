"""Normalisation of the input inside a network, so that attacks on it keep to the pixels of images in [0, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel.

    Put it in front of your own network, ``nn.Sequential(Normalize(mean, std), net)``, in place of a normalisation of
    the dataset: then the model takes images in [0, 1], and `eps` of an attack stays in pixel units.

    Parameters
    ----------
    mean, std : sequence of float or Tensor, (channels,)
        In units of images in [0, 1]; `std` is positive. They are buffers: saved with the weights, never trained.

    Raises
    ------
    ValueError
        If the two are not one finite number for each channel, or a standard deviation is not positive.
    """

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        mean, std = (torch.as_tensor(values, dtype=torch.float32).detach().clone() for values in (mean, std))
        if mean.ndim != 1 or mean.shape != std.shape or not len(mean):
            raise ValueError(
                "mean and std must be one number for each channel. Got the shapes"
                f" {tuple(mean.shape)} and {tuple(std.shape)}."
            )
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise ValueError(f"mean must be finite, std finite and positive. Got {mean.tolist()} and {std.tolist()}.")
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] -> the same shape; ValueError for another number of channels."""
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"Normalize was made for images (n, {len(self.mean)}, h, w). Got the shape {tuple(x.shape)}; give mean"
                " and std one number for each channel of the images."
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class PerImageStandardization(nn.Module):
    """(x - mean) / max(std, 1 / sqrt(N)) of each image, over its N = c * h * w numbers.

    The formula of TensorFlow's ``per_image_standardization``, which the paper's CIFAR-10 and Tiny-ImageNet networks
    begin with; std is the population's. They apply it to images in [0, 255], so that there the lower bound acts on
    images 255 times as flat as here: only an (almost) uniform image shows the difference.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) -> the same shape, mean 0 and standard deviation 1 (less for a uniform image)."""
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
        # The bound on the variance, not on its root, whose slope at a uniform image is infinite.
        return (x - mean) * variance.clamp(min=1 / x[0].numel()).rsqrt()


NORMALIZATIONS = {"none": nn.Identity, "per-image": PerImageStandardization}


def input_normalization(name: str) -> nn.Module:
    """Make the module for a name of `NORMALIZATIONS`; ValueError for another name."""
    if name not in NORMALIZATIONS:
        raise ValueError(
            f"unknown normalization {name!r}. There are: {', '.join(NORMALIZATIONS)}; for a mean and a standard"
            " deviation put Normalize(mean, std) in front of the network."
        )
    return NORMALIZATIONS[name]()
