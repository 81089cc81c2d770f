"""The batches of an extraction as files: several processes share the work, and what is finished outlives them."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from analysis.stored import load_kind
from tla_core.checkpoint import CheckpointError, save_tensors
from tla_core.distributed import first_answers, rank_and_size, wait_for_others
from tla_core.probe import is_same

# The arrays of a batch, and where each layer was read from.
Batch = tuple[dict[str, np.ndarray], dict[str, str]]
_PROBE = "probe/"


class Shards:
    """The folder of the batches of one extraction, one file for each.

    Parameters
    ----------
    folder : Path or str
        Under `torchrun` all processes must see the same one.
    identity : callable
        The first row of a batch -> text that tells all that its arrays depend on: a file that says otherwise is made
        again.
    function : dict of str to Tensor
        What the model is known by beside its weights, see `probe`. It is stored with each batch and compared up to
        rounding, which differs from one GPU to another.
    """

    def __init__(self, folder: Path | str, identity: Callable[[int], str], function: dict[str, Tensor]) -> None:
        self.folder, self._identity, self._function = Path(folder), identity, function

    def path(self, start: int) -> Path:
        """The file of the batch that begins with that row."""
        return self.folder / f"{start:09d}.safetensors"

    def load(self, start: int) -> Batch | None:
        """What is stored of a batch; None if that is nothing, damaged, or of another extraction."""
        try:
            arrays, metadata = load_kind(self.path(start), "shard")
        except (FileNotFoundError, CheckpointError):
            return None
        if metadata["identity"] != self._identity(start):
            return None
        function = {name: torch.from_numpy(arrays.pop(f"{_PROBE}{name}")) for name in metadata["probe"]}
        return (arrays, dict(metadata["read_from"])) if is_same(function, self._function) else None

    def save(self, start: int, batch: Batch) -> None:
        """Store a batch, atomically."""
        arrays, read_from = batch
        # Pairs, since the order of layers matters.
        metadata = {
            "kind": "shard", "identity": self._identity(start), "read_from": list(read_from.items()),
            "probe": list(self._function),
        }  # fmt: skip
        function = {f"{_PROBE}{name}": tensor.numpy() for name, tensor in self._function.items()}
        save_tensors(self.path(start), arrays | function, metadata)

    def batches(
        self, starts: Sequence[int], compute: Callable[[int], Batch], advance: Callable[[int], None]
    ) -> Iterator[Batch]:
        """All batches in their order, each read or else computed and stored; the first process alone gets them.

        Parameters
        ----------
        starts : sequence of int
            The first rows of the batches.
        compute : callable
            The first row of a batch -> its arrays.
        advance : callable
            Called with the first row of each batch that is finished, in this process or another one.

        Raises
        ------
        RankError
            If another process stopped or does not answer.
        FileNotFoundError
            If what another process stored is not to be seen from the first one.
        """
        rank, size = rank_and_size()
        if size > 1:
            self._share(starts, compute, advance)
        for start in starts if rank == 0 else ():
            batch = self.load(start)
            if batch is None and size > 1:
                raise FileNotFoundError(
                    f"{self.path(start)} is not there, or is of another extraction: all processes must see the same"
                    " folder, and no second command may make the same result meanwhile. Run the same command again."
                )
            if batch is None:
                batch = compute(start)
                self.save(start, batch)
            if size == 1:
                advance(start)
            yield batch

    def _share(self, starts, compute, advance) -> None:
        """Make what is missing together with the other processes, a batch for each at a time."""
        rank, size = rank_and_size()
        finished = first_answers([rank == 0 and self.load(start) is not None for start in starts])
        for start, stored in zip(starts, finished, strict=True):
            if stored:
                advance(start)
        missing = [start for start, stored in zip(starts, finished, strict=True) if not stored]
        for first in range(0, len(missing), size):
            turn = missing[first : first + size]
            for start in turn[rank : rank + 1]:
                self.save(start, compute(start))
            wait_for_others()  # after each batch: one that has died is noticed, and nobody waits for long
            for start in turn:
                advance(start)


@contextmanager
def shards_beside(path: Path | str) -> Iterator[Path]:
    """The folder for the shards of a result, hidden beside it; it goes when the block, which stores that, has ended."""
    path = Path(path)
    folder = path.with_name(f".{path.name}.shards")
    yield folder
    if rank_and_size()[0] == 0:
        shutil.rmtree(folder, ignore_errors=True)
