"""Draws batches, positives and negative pools from a dataset that lies on the device as uint8."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
    seed : int
    device : torch.device
    """

    def __init__(self, images: Tensor, labels: Tensor, *, batch_size: int, seed: int, device: torch.device) -> None:
        self.images = images.to(device)  # uint8: a quarter of the memory of float32, and faster to gather
        self.labels = labels.to(device)
        self.batch_size = min(batch_size, len(labels))
        self.seed = seed
        self.steps_per_epoch = len(labels) // self.batch_size  # the incomplete last batch waits for another epoch
        by_class = torch.argsort(labels, stable=True)
        self._by_class = by_class.to(device)
        self._class_sizes = torch.bincount(labels).to(device)
        self._class_starts = self._class_sizes.cumsum(0) - self._class_sizes
        self._epoch_order: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step: consecutive parts of the epoch's permutation."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            order = torch.randperm(len(self.labels), generator=self._generator("epoch", epoch))
            self._epoch_order = (epoch, order.to(self.labels.device))
        return self._take(self._epoch_order[1][position * self.batch_size : (position + 1) * self.batch_size])

    def positives(self, labels: Tensor, step: int) -> Batch:
        """For each label a random image of that class; it may be the anchor's own."""
        draw = torch.rand(len(labels), generator=self._generator("positives", step), dtype=torch.float64)
        offset = (draw.to(labels.device) * self._class_sizes[labels]).long()
        return self._take(self._by_class[self._class_starts[labels] + offset])

    def pool(self, size: int, step: int) -> Batch:
        """`size` different random images, of all classes."""
        size = min(size, len(self.labels))
        order = torch.randperm(len(self.labels), generator=self._generator("pool", step))
        return self._take(order[:size].to(self.labels.device))

    def _take(self, indices: Tensor) -> Batch:
        return Batch(scale_images(self.images[indices]), self.labels[indices], indices)

    def _generator(self, *what: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, *what))
