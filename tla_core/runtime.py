"""The machine that a run happens on: device, derived seeds, threads, and a record of the versions."""

import hashlib
import importlib.metadata
import os
import platform
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name; ``"auto"`` is the GPU where there is one, under `torchrun` that of the process.

    Raises
    ------
    ValueError
        If a GPU is asked for where torch finds none.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        choice = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N. Got {device!r}.") from error
    if choice.type == "cuda" and (not torch.cuda.is_available() or (choice.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"torch finds {torch.cuda.device_count()} CUDA devices. Got {str(device)!r}; use device='cpu' or 'auto',"
            " and with torchrun one process for each."
        )
    return choice


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits that depends on the parts alone: the same in every process and on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Use that many torch threads in the block: another number rounds differently. None leaves them."""
    n_before = torch.get_num_threads()
    if n is not None and n != n_before:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        if torch.get_num_threads() != n_before:
            torch.set_num_threads(n_before)


@contextmanager
def end_asked() -> Iterator[Callable[[], bool]]:
    """Hold back the first SIGTERM or Ctrl+C until the end of the block, for what must not be left in between.

    A second one has its usual effect at once. Where this is no main thread, nothing is held back.

    Yields
    ------
    callable
        Whether one has come.
    """
    asked: list[int] = []
    before: dict[int, object] = {}

    def back() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(signum: int, _) -> None:
        asked.append(signum)
        back()

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                before[signum] = signal.signal(signum, note)
    try:
        yield lambda: bool(asked)
    finally:
        back()
    if asked:
        signal.raise_signal(asked[0])


@contextmanager
def full_precision(device: torch.device | str) -> Iterator[None]:
    """fp32 in the block, as reported numbers are: no autocast, and no TF32, in which cuDNN convolves unless told."""
    device = torch.device(device)
    parts = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    parts = parts if device.type == "cuda" else ()
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def environment_record(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a result depends on besides its settings: versions, processor, threads, commit."""
    device = torch.device(device)
    return {
        "python": platform.python_version(),
        "platform": platform.system(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": package_versions(),
        "commit": git_commit(),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that numbers and pictures depend on."""
    names = ("tla-toolkit", "torch", "torchvision", "numpy", "scikit-learn", "openTSNE", "umap-learn", "matplotlib")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the checkout that this code lies in, with ``+changes`` if it was edited; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        process = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+changes", "--match", ""],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
