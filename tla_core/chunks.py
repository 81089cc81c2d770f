"""Splits a batch into parts that fit a CPU's cache, together with a network's activations."""

import math

import torch
from torch import Tensor, nn

# On a CPU images of so many pixels are forwarded at once by each thread, 96 of 32 x 32: smaller parts are dominated by
# the overhead of each operation (64 digits at once took 1.1 times as long on the network of `mini`), the activations of
# larger ones do not stay in its cache (128 images of 64 x 64 took 1.6 times as long as 48 on a narrow residual one).
# Threads share a part by images and have a cache each, so that the part grows with them: with two threads, 128 digits
# at once took 1.2 times as long as 256.
CPU_CHUNK_PIXELS = 96 * 32 * 32
_LEAST_CHUNK = 16


def images_at_once(x: Tensor) -> int:
    """Images in one part of a batch: all of them on a GPU; on a CPU as many as fit its caches, in equal parts."""
    if x.device.type != "cpu" or not len(x):
        return max(len(x), 1)
    chunk = max(CPU_CHUNK_PIXELS * torch.get_num_threads() / x.shape[2:].numel(), _LEAST_CHUNK)
    return math.ceil(len(x) / max(round(len(x) / chunk), 1))


@torch.no_grad()
def forward_in_chunks(model: nn.Module, x: Tensor) -> Tensor:
    """The logits as float32, without gradients, from one part of the batch after the other."""
    return torch.cat([model(part).float() for part in x.split(images_at_once(x))])
