"""Draws batches, positives and negative pools from a dataset that lies on the device as uint8, and augments them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tla_core.random_numbers import counter_uniform
from tla_core.runtime import derive_seed
from tla_core.validation import scale_images


@dataclass(frozen=True)
class Batch:
    """A batch of one step: images (n, c, h, w) float32 in [0, 1], labels (n,), and indices (n,) in the dataset."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class BatchSource:
    """Everything that a step draws; each draw depends on (seed, step) alone, so that a resumed run draws the same.

    Parameters
    ----------
    images : Tensor, (n, c, h, w), uint8
    labels : Tensor, (n,), int64
    batch_size : int
        Of all ranks together.
    seed : int
    device : torch.device
    augmentation : {"none", "crop-flip", "crop-flip-saturation"}
        See `augment`.
    rank, world_size : int
        With several processes each takes its own share of every batch and its positives; pools are the same on all.

    Raises
    ------
    ValueError
        If the processes cannot share a batch equally, with at least two images each.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, batch_size: int, seed: int, device: torch.device,
        augmentation: str = "none", rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        self.images = images.to(device)  # uint8: a quarter of the memory of float32, and faster to gather
        self.labels = labels.to(device)
        self.batch_size = min(batch_size, len(labels))
        if self.batch_size % world_size or self.batch_size < 2 * world_size:
            raise ValueError(
                f"{world_size} processes must share a batch equally, with two images or more each. Got a batch of"
                f" {self.batch_size}; use a multiple of {world_size}."
            )
        self.seed = seed
        self.steps_per_epoch = len(labels) // self.batch_size  # the incomplete last batch waits for another epoch
        self._augmentation = augmentation
        self._rank, self._world_size = rank, world_size
        rows_by_class = torch.argsort(labels, stable=True)
        self._by_class = rows_by_class.to(device)
        self._class_sizes = torch.bincount(labels).to(device)
        self._class_starts = self._class_sizes.cumsum(0) - self._class_sizes
        self._epoch_order: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step: consecutive parts of the epoch's permutation."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            order = torch.randperm(len(self.labels), generator=self._generator("epoch", epoch))
            self._epoch_order = (epoch, order.to(self.labels.device))
        indices = self._epoch_order[1][position * self.batch_size : (position + 1) * self.batch_size]
        return self._take(self._share(indices), "batch", step)

    def positives(self, labels: Tensor, step: int) -> Batch:
        """For each label a random image of that class; it may be the anchor's own."""
        generator = self._generator("positives", step)
        draw = self._share(torch.rand(len(labels) * self._world_size, generator=generator, dtype=torch.float64))
        offset = (draw.to(labels.device, non_blocking=True) * self._class_sizes[labels]).long()
        return self._take(self._by_class[self._class_starts[labels] + offset], "positives", step)

    def pool(self, size: int, step: int) -> Batch:
        """`size` different random images, of all classes; the same on all ranks."""
        size = min(size, len(self.labels))
        order = torch.randperm(len(self.labels), generator=self._generator("pool", step))
        return self._take(order[:size].to(self.labels.device, non_blocking=True), "pool", step)

    def _share(self, indices: Tensor) -> Tensor:
        size = len(indices) // self._world_size
        return indices[self._rank * size : (self._rank + 1) * size]

    def _take(self, indices: Tensor, purpose: str, step: int) -> Batch:
        images = scale_images(self.images[indices])
        if self._augmentation != "none":
            seed = derive_seed(self.seed, "augmentation", purpose, step)
            images = augment(images, indices, seed=seed, saturation=self._augmentation.endswith("saturation"))
        return Batch(images, self.labels[indices], indices)

    def _generator(self, *parts: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, *parts))


def augment(images: Tensor, indices: Tensor, *, seed: int, saturation: bool = False) -> Tensor:
    """Crop at random out of the zero-padded image, mirror half of the images, and optionally change the saturation.

    Parameters
    ----------
    images : Tensor, (n, c, h, w), float32 in [0, 1]
    indices : Tensor, (n,), int64
        What happens to an image depends on (seed, index) alone.
    seed : int
    saturation : bool
        Scale the distance to the grey image by a factor in [0.5, 1.5]; only for images of three channels.

    Returns
    -------
    Tensor, (n, c, h, w), float32 in [0, 1]
        Out of the image padded by an eighth of its size on each side: 4 pixels of CIFAR-10's 32, as Madry et al. do.
    """
    n, channels, height, width = images.shape
    pad = (height // 8, width // 8)
    draw = counter_uniform(seed, indices, 0, 4)
    top, left = ((draw[:, k, None] * (2 * pad[k] + 1)).long() for k in (0, 1))
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = torch.where(draw[:, 2, None] < 0.5, columns.flip(1), columns) + left
    rows = torch.arange(height, device=images.device) + top
    padded = torch.nn.functional.pad(images, (pad[1], pad[1], pad[0], pad[0]))
    image = torch.arange(n, device=images.device)[:, None, None]
    images = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # one gather for all
    if saturation and channels == 3:
        red, green, blue = images.unbind(1)
        grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]  # ITU-R BT.601, what image libraries call grey
        images = (grey + (0.5 + draw[:, 3, None, None, None]) * (images - grey)).clamp_(0, 1)
    return images
