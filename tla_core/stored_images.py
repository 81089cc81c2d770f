"""Images in a temporary file, for sets that need not fit into memory: written batch by batch, read by rows."""

import math
import os
import tempfile

import numpy as np
import torch
from torch import Tensor

ROWS_AT_ONCE = 64  # of a file that is written again


class StoredImages:
    """Images of one size, (n, c, h, w), in a file that goes with the object. Indexed like a tensor, it reads a tensor.

    Floats that are bytes divided by 255, as torchvision's ``ToTensor`` gives them, are stored as bytes: a quarter of
    the space, and nothing is lost.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="tla-images-")
        self._size: tuple[int, ...] = ()
        self._n = 0
        self.dtype = torch.uint8

    def append(self, images: Tensor, *, exact: bool = True) -> None:
        """Write images behind those that are there.

        Parameters
        ----------
        images : Tensor, (m, c, h, w), uint8 or float32 in [0, 1]
        exact : bool
            False rounds floats to bytes.

        Raises
        ------
        ValueError
            If they have another size than those that are there.
        OSError
            If the disk is full.
        """
        size = tuple(images.shape[1:])
        if not self._n:
            self._size = size
        elif size != self._size:
            raise ValueError(f"images must all have one size. Got {size} behind images of {self._size}.")
        images = images.detach().cpu()
        if images.dtype != torch.uint8:
            as_bytes = (images * 255).round().to(torch.uint8)
            if not exact or torch.equal(as_bytes.float() / 255, images):
                images = as_bytes
        if images.dtype != self.dtype and self.dtype == torch.uint8:
            self._store_as_floats()
        if images.dtype != self.dtype:
            images = images.float() / 255
        self._write(images)
        self._n += len(images)

    def _write(self, images: Tensor) -> None:
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(images.contiguous().numpy().data)
            self._file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            message = f"images cannot be kept in {folder}: {error.strerror}. Set TMPDIR to a folder with more room"
            raise OSError(error.errno, message) from error

    def _store_as_floats(self) -> None:
        floats = StoredImages()
        floats._size, floats.dtype = self._size, torch.float32
        for start in range(0, self._n, ROWS_AT_ONCE):
            floats._write(self[start : start + ROWS_AT_ONCE].float() / 255)
        self._file, self.dtype = floats._file, torch.float32

    def __len__(self) -> int:
        return self._n

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._n, *self._size)

    def __getitem__(self, rows: "slice | int | Tensor") -> Tensor:
        """Read some rows, (m, c, h, w), or one image, (c, h, w)."""
        numbers = torch.arange(self._n)[rows]
        images = torch.empty((numbers.numel(), *self._size), dtype=self.dtype)
        length = math.prod(self._size) * self.dtype.itemsize
        buffer = memoryview(images.numpy()).cast("B") if images.numel() else memoryview(b"")
        for place, row in enumerate(numbers.reshape(-1).tolist()):
            self._file.seek(row * length)
            self._file.readinto(buffer[place * length : (place + 1) * length])
        return images if numbers.ndim else images[0]

    def as_array(self) -> np.ndarray:
        """All images as an array that maps the file, copy-on-write; it outlives the object."""
        kind = str(self.dtype).removeprefix("torch.")
        return np.memmap(self._file, dtype=kind, mode="c", shape=self.shape)
