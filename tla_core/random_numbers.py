"""Random numbers that are a hash of their coordinates: no generator has a state, and every device gives the same."""

import torch
from torch import Tensor


def counter_uniform(seed: int, indices: Tensor, restart: int, size: int) -> Tensor:
    """Uniform numbers that depend on (seed, index, restart, position) alone, and not on the device.

    Each is the hash of its coordinates: the 32-bit finaliser of MurmurHash3 (Appleby, public domain), in int64
    arithmetic since torch multiplies no unsigned integers.

    Parameters
    ----------
    seed : int
    indices : Tensor, (n,), int64
    restart, size : int

    Returns
    -------
    Tensor, (n, size), float32 in [0, 1)
    """
    key = _mix(torch.tensor((seed ^ 0x5BD1E995) & 0xFFFFFFFF))  # the constant, since 0 is mixed to 0
    key = _mix(_mix(key ^ ((seed >> 32) & 0xFFFFFFFF)) ^ restart).to(indices.device, non_blocking=True)
    key = _mix(_mix(key ^ (indices & 0xFFFFFFFF)) ^ (indices >> 32))
    positions = torch.arange(size, device=indices.device) * 0x9E3779B9 & 0xFFFFFFFF
    return (_mix(_mix(key)[:, None] ^ positions) >> 8).float() * 2.0**-24


def _mix(h: Tensor) -> Tensor:
    h = (h ^ (h >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ (h >> 16)
