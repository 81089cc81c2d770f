"""The modified LeNet of Table 1: 3x3 convolutions and batch normalisation."""

from torch import Tensor, nn


class LeNet(nn.Module):
    """Table 1 of the supplement: two blocks of two 3x3 convolutions, then two linear layers.

    Parameters
    ----------
    width : float
        Factor on the channels and hidden units; 1 is Table 1.
    in_channels, image_size, n_classes : int
        1, 28 and 10 in Table 1.

    Raises
    ------
    ValueError
        If the images are too small to be pooled twice.
    """

    # Table 6 names its layers only by height: the second convolution of each block, after batch norm, before ReLU.
    layer_names = {"lower": "features.4", "middle": "features.11", "higher": "penultimate"}  # noqa: RUF012

    def __init__(
        self, *, width: float = 1.0, in_channels: int = 1, image_size: int = 28, n_classes: int = 10
    ) -> None:
        super().__init__()
        if image_size < 4:
            raise ValueError(f"LeNet pools twice and needs images of at least 4 x 4 pixels. Got {image_size}.")
        c1, c2, c3, c4, hidden = (max(1, round(width * channels)) for channels in (32, 64, 128, 256, 1024))
        self.features = nn.Sequential(
            *_conv(in_channels, c1), *_conv(c1, c2), nn.MaxPool2d(2),
            *_conv(c2, c3), *_conv(c3, c4), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.hidden = nn.Sequential(nn.Linear((image_size // 4) ** 2 * c4, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.classifier = nn.Linear(hidden, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] -> logits (n, classes)."""
        return self.classifier(self.hidden(self.features(x)))


def _conv(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()
