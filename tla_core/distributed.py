"""Several processes that share one training or extraction, as `torchrun` starts them; alone, all of it does nothing."""

import contextlib
import functools
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Its functions have the group of the moment of the import as a default: imported within a training, by the optimizer,
# they would hold that group, and the others would wait for a process that has failed.
import torch.distributed.nn
from torch import Tensor

# How long the others are waited for, in seconds; by default as long as one may decode a dataset or write a large state.
TIMEOUT_VARIABLE, DEFAULT_TIMEOUT = "TLA_RANK_TIMEOUT", 600.0
_MESSAGE = "message"
_TIME_FOR_A_MESSAGE = timedelta(seconds=2)
_TIME_FOR_THE_OTHERS = timedelta(seconds=20)  # they may be in the middle of a step when one process fails

# The trainings of one script, one after the other, are not to read what an earlier one left in the store.
_groups = itertools.count()


class RankError(RuntimeError):
    """Another process of the same command stopped; the message is its own, where it left one."""


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes that `torchrun` started; a process that fails tells the others why.

    One that neither answers nor ends, because it is stopped or the network to it is gone, is waited for
    `TLA_RANK_TIMEOUT` seconds, by default ten minutes. Where the caller has joined them already, nothing is done.

    Parameters
    ----------
    device : torch.device
        Where the tensors lie: NCCL exchanges those of GPUs, gloo those of CPUs.

    Raises
    ------
    RankError
        If another process stopped or does not answer, or this one is told to end (SIGTERM): so does torchrun when
        another one was killed.
    ValueError
        If `TLA_RANK_TIMEOUT` is no number of seconds.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    timeout = rank_timeout()
    with _joining(timeout):
        common, rank, size = _store_of_all_processes()
        store = dist.PrefixStore(f"tla/{next(_groups)}", common)
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    message = None
    with _told_to_end() as ends:
        try:
            yield
        except RankError as error:
            ends()
            message = _message_left_in(store)
            raise (RankError(message) if message else error) from error.__cause__
        except BaseException as error:
            ends()
            message = f"rank {rank} stopped: {type(error).__name__}: {error}"
            _ask(_TIME_FOR_A_MESSAGE, store.set, _MESSAGE, message)
            raise
        finally:
            dist.destroy_process_group()  # the others wait in vain no longer
            if message is not None:
                _wait_until_all_know(store, rank, size)


def rank_timeout() -> timedelta:
    """How long a process waits for the others: `TLA_RANK_TIMEOUT` in seconds, or ten minutes."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        timeout = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        timeout = timedelta()
    if timeout <= timedelta():
        raise ValueError(f"{TIMEOUT_VARIABLE} must be a number of seconds above 0. Got {text!r}.")
    return timeout


def rank_and_size() -> tuple[int, int]:
    """Number of this process, and how many there are: (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_of_rows(rows: Tensor) -> Tensor:
    """The part of the rows that falls to this process; the parts differ by one row at the most."""
    rank, size = rank_and_size()
    return rows if size == 1 else rows.tensor_split(size)[rank]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks: the inverse of `share_of_rows`. No gradient."""
    _, size = rank_and_size()
    if size == 1:
        return rows
    # A collective takes equal shapes, and shares may differ by one row.
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    _collective(dist.all_gather, counts, torch.tensor([len(rows)]))
    padded = rows.new_zeros(int(max(counts)), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(size)]
    _collective(dist.all_gather, parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


@torch.no_grad()
def average_over_ranks(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> None:
    """Replace each tensor by its mean over the processes, in one collective. Only floating-point tensors change.

    The sum is computed in `dtype`: the mean of equal float32 numbers is that number again only if summed in float64.
    """
    _, size = rank_and_size()
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    if size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).to(dtype or tensor.dtype) for tensor in tensors])
    _collective(dist.all_reduce, flat)
    flat /= size
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def broadcast_from_first(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by that of rank 0."""
    if rank_and_size()[1] > 1:
        for tensor in tensors:
            whole = tensor.contiguous()
            _collective(dist.broadcast, whole, 0)
            tensor.copy_(whole)


def first_says(answer: bool) -> bool:
    """The answer of rank 0. The other processes wait for it, and so also for what rank 0 does before."""
    return first_answers([answer])[0]


def first_answers(answers: Sequence[bool]) -> list[bool]:
    """What rank 0 answers to several questions; the others wait for it."""
    decisions = torch.tensor(answers, dtype=torch.int64)
    broadcast_from_first([decisions])
    return [bool(decision) for decision in decisions]


def wait_for_others() -> None:
    """Return when all processes have come here.

    Raises
    ------
    RankError
        If another one stopped or does not answer.
    """
    if rank_and_size()[1] > 1:
        _collective(dist.all_reduce, torch.zeros(1))


def _collective(operation, *args) -> None:
    try:
        if any(arg.is_cuda for arg in args if isinstance(arg, Tensor)):
            # NCCL waits for a process that has ended until its time is up; gloo, which CPU tensors take, notices.
            dist.all_reduce(torch.zeros(1))
        operation(*args)
    except RuntimeError as error:  # what gloo and NCCL raise has no type of its own
        message, _, _ = str(error).partition(". ")
        reason = "ended without a message: it was killed, or ran out of memory"
        if "imed out" in message:
            reason = (
                f"has not answered for {rank_timeout().total_seconds():g} s: it is stopped or hangs, or the network to"
                f" it is gone ({TIMEOUT_VARIABLE} says how long it is waited for, in seconds)"
            )
        raise RankError(
            f"another process of this command {reason}. What was stored is kept; the same command goes on from it."
            f" ({message})"
        ) from error


@functools.cache
def _store_of_all_processes() -> tuple[dist.Store, int, int]:
    """The store that rank 0 or `torchrun` serves, and this process's rank among how many. Joined once."""
    return next(dist.rendezvous("env://", timeout=rank_timeout()))


@contextmanager
def _joining(timeout: timedelta) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # also of the store
        raise RankError(
            f"the processes of this command did not all join within {timeout.total_seconds():g} s"
            f" ({TIMEOUT_VARIABLE}): one did not start, or cannot be reached. ({str(error).partition('. ')[0]})"
        ) from error


@contextmanager
def _told_to_end() -> Iterator[Callable[[], None]]:
    """Turn SIGTERM into an error with words. What is yielded ends that, for a process that fails otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ends() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def told(*_) -> None:
        ends()
        raise RankError(
            "this process was told to end (SIGTERM): by torchrun, because another process of this command was killed or"
            " failed, or by a cluster whose time is up. What was stored is kept; the same command goes on from it."
        )

    handler = signal.signal(signal.SIGTERM, told)
    try:
        yield ends
    finally:
        signal.signal(signal.SIGTERM, handler)


def _ask(limit: timedelta, question: Callable, *args: Any) -> Any:
    """The store's answer, or None: a store whose process is stopped never answers, whatever timeout it is given."""
    answers = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # rank 0 holds the store, and may have been killed
            answers.append(question(*args))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit.total_seconds() + 1)
    return answers[0] if answers else None


def _message_left_in(store: dist.Store) -> str | None:
    def read() -> str:
        store.wait([_MESSAGE], _TIME_FOR_A_MESSAGE)
        return store.get(_MESSAGE).decode()

    return _ask(_TIME_FOR_A_MESSAGE, read)


def _wait_until_all_know(store: dist.Store, rank: int, size: int) -> None:
    """Stay until every process has read the message: the store ends with rank 0, and torchrun kills when one ends."""

    def wait() -> None:
        store.set(f"{rank} knows", "")
        store.wait([f"{other} knows" for other in range(size)], _TIME_FOR_THE_OTHERS)

    _ask(_TIME_FOR_THE_OTHERS, wait)
