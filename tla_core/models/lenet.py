"""The modified LeNet of Table 1: 3x3 convolutions and batch normalisation."""

from torch import Tensor, nn

from tla_core.models.common import scaled
from tla_core.models.normalization import input_normalization


class LeNet(nn.Module):
    """Table 1 of the supplement: two blocks of two 3x3 convolutions, then two linear layers.

    Parameters
    ----------
    width : float
        Factor on the channels and hidden units; 1 is Table 1.
    blocks : tuple of int
        Must be empty: this network has no groups of residual blocks.
    normalization : {"none", "per-image"}
        Of the input; "none" in the paper.
    in_channels, image_size, n_classes : int
        1, 28 and 10 in Table 1.

    Raises
    ------
    ValueError
        If the images are too small to be pooled twice; for blocks, or a width or normalisation that it cannot take.
    """

    # Table 6 names its layers only by height: the second convolution of each block, after batch norm, before ReLU.
    layer_names = {"lower": "features.4", "middle": "features.11", "higher": "penultimate"}  # noqa: RUF012

    def __init__(
        self,
        *,
        width: float = 1.0,
        blocks: tuple[int, ...] = (),
        normalization: str = "none",
        in_channels: int = 1,
        image_size: int = 28,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        if blocks:
            raise ValueError(f"LeNet has no groups of residual blocks: blocks must be empty. Got {tuple(blocks)}.")
        if image_size < 4:
            raise ValueError(f"LeNet pools twice and needs images of at least 4 x 4 pixels. Got {image_size}.")
        c1, c2, c3, c4, hidden = scaled(width, 32, 64, 128, 256, 1024)
        self.normalization = input_normalization(normalization)
        self.features = nn.Sequential(
            *_conv(in_channels, c1), *_conv(c1, c2), nn.MaxPool2d(2),
            *_conv(c2, c3), *_conv(c3, c4), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.hidden = nn.Sequential(nn.Linear((image_size // 4) ** 2 * c4, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.classifier = nn.Linear(hidden, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] -> logits (n, classes)."""
        return self.classifier(self.hidden(self.features(self.normalization(x))))


def _conv(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()
