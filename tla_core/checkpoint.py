"""Files that are either whole or not there: safetensors with a checksum inside, and JSON, written atomically."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from tla_core.config import canonical_json

FORMAT = 1
# A zip archive (torch.save), and pickles of the protocols 2 to 5.
_PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class CheckpointError(ValueError):
    """A file that cannot be trusted: truncated, altered, of another kind, or a pickle."""


def save_tensors(path: Path | str, tensors: dict[str, Tensor | np.ndarray], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON metadata into one safetensors file, atomically and with a checksum of both.

    The same content gives the same bytes.

    Parameters
    ----------
    path : Path or str
    tensors : dict of str to Tensor or ndarray
    metadata : dict
        JSON values.

    Raises
    ------
    OSError
        If the file cannot be written (a full disk). What was there before is unchanged.
    """
    write_atomic(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: dict[str, Tensor | np.ndarray], metadata: dict[str, Any]) -> bytes:
    """The content of the file that `save_tensors` writes."""
    # safetensors refuses channels_last, sliced and tied tensors: each gets memory of its own.
    owned = {
        name: torch.as_tensor(value).detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    text = canonical_json(metadata)
    header = {"format": f"tla/{FORMAT}", "metadata": text, "sha256": tensors_digest(owned, text)}
    return _sort_metadata(to_bytes(owned, header))


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote, and verify it.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU.
    metadata : dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it is truncated or altered, has another format, or is a pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    content = path.read_bytes()
    header = _read_header(content, path)
    try:
        tensors = load_bytes(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or altered: {error}. Make it again, or take a copy.") from error
    if tensors_digest(tensors, header.get("metadata", "")) != header.get("sha256"):
        raise CheckpointError(f"{path} was altered: its content does not have the checksum it carries. Make it again.")
    return tensors, _parse_metadata(header, path)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """Read the metadata alone, without verifying the tensors: fast, for listings and comparisons."""
    return _parse_metadata(_header_of(Path(path)), Path(path))


def stored_checksum(path: Path | str) -> str:
    """The checksum of tensors and metadata that a file says it has, without verifying it."""
    return _header_of(Path(path))["sha256"]


def pack_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor], average: nn.Module | None = None
) -> dict[str, Tensor]:
    """All tensors that a training goes on from, by one flat name each."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in average.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": value for slot, value in slots.items() if value is not None}
    return tensors


def unpack_state(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Put what `pack_state` packed back into the model, its average and the optimizer; returns the best weights."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}, "average": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    model.load_state_dict(parts["model"])
    if average is not None:
        average.load_state_dict(parts["average"])
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, slot = name.split("/")
        slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return parts["best"]


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON for people to read, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_atomic(path: Path | str, content: bytes) -> None:
    """Write beside, flush to the disk, rename: a reader sees the old file or the new one, never a part.

    Raises
    ------
    OSError
        If it cannot be written; the file that was there before is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explained(path, f" ({len(content) / 1e6:.1f} MB)"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def explained(path: Path | str, size: str = "", advice: str = "") -> Iterator[None]:
    """Name the file that could not be written, and what to do: the error of a full disk names none.

    Parameters
    ----------
    path : Path or str
    size : str
        What to say behind the path.
    advice : str
        What else may help.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {path}{size}: {error.strerror or error}. What was there before is unchanged; free some"
            f" space, or check the permissions{advice}, and run the same command again",
        ) from error


def check_writable(path: Path | str) -> None:
    """Raise now, before what takes long, the error that writing a file would end in.

    Raises
    ------
    OSError
        If nothing can be written beside it.
    """
    path = Path(path)
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            trial.write_bytes(b"?")
        finally:
            trial.unlink(missing_ok=True)


def file_sha256(path: Path | str) -> str:
    """SHA-256 (hex) of a file. It is not computed again while size, time and inode of the file stay what they are."""
    state = Path(path).stat()
    return _sha256(Path(path), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(model: nn.Module) -> str:
    """sha256 of the state of a model: names, types, shapes and values of its tensors, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        dense = value.dequantize() if value.is_quantized else value
        digest.update(dense.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a rename is only durable with its folder; not every system allows it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sort_metadata(content: bytes) -> bytes:
    """safetensors writes the entries of its metadata in random order: sort them, for the checksum of the whole file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    return len(text).to_bytes(8, "little") + text + content[start:]


def _header_of(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start = size.to_bytes(8, "little") + file.read(min(size, 1 << 26))
    header = _read_header(start, path)
    try:
        ends = [each["data_offsets"][1] for name, each in json.loads(start[8:]).items() if name != "__metadata__"]
        expected = len(start) + max(ends, default=0)
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path} was altered: a tensor in its header has no place. Make it again.") from error
    if (length := path.stat().st_size) != expected:  # noticed without reading the whole file
        told = f"{length} bytes, and {expected} by its header"
        raise CheckpointError(f"{path} is truncated or was altered: {told}. Make it again.")
    return header


def _read_header(content: bytes, path: Path) -> dict[str, str]:
    """What `save_tensors` wrote beside the tensors; CheckpointError for a file that it did not write."""
    size = int.from_bytes(content[:8], "little")
    try:
        if len(content) < 8 + size:
            raise ValueError(f"{len(content)} bytes, and a header of {size}")
        header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        file_format = header.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        # Only now: the size that a safetensors file begins with may look like the start of a pickle.
        if content.startswith(_PICKLE_STARTS):
            raise CheckpointError(
                f"{path} is a pickle, as torch.save writes them. Loading one can run any code, so only safetensors"
                " files are read: load it where you trust it, and give its weights to a model that is passed as model=."
            ) from None
        raise CheckpointError(f"{path} is no safetensors file, or a truncated one: {error}.") from error
    if file_format != f"tla/{FORMAT}":
        expected = f"expected the format tla/{FORMAT}. Got {file_format!r}"
        raise CheckpointError(f"{path} is not a file of this toolkit: {expected}.")
    return header


def _parse_metadata(header: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(header["metadata"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} was altered: its metadata cannot be read ({error}). Make it again.") from error
    if not isinstance(metadata, dict):
        description = f"Got {metadata!r:.40}"
        raise CheckpointError(f"{path} was altered: its metadata must be an object. {description}. Make it again.")
    return metadata


def tensors_digest(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 (hex) of a text, and of the names, types, shapes and values of contiguous tensors on the CPU."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
