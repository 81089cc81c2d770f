"""What folding batch norm, chunks that stay in the cache and channels-last weights are worth, in one run.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/attack_gradient.py

The two variants of each line run in turn on the same images, on the network of `mini`; printed is the median of the
ratio of their times over the pairs, with the smallest and the largest. No absolute times: they are noise.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import tla_core as tla
from tla_core import attacks
from tla_core.attacks import run_attack
from tla_core.models import LeNet

PAIRS = 7


def ratios(first: Callable[[], object], second: Callable[[], object]) -> str:
    """Time two variants in turn and describe second / first."""
    found = []
    for turn in range(PAIRS + 1):
        times = []
        for variant in (first, second):
            start = time.perf_counter()
            variant()
            times.append(time.perf_counter() - start)
        if turn:  # the first is the warm-up
            found.append(times[1] / times[0])
    return f"{statistics.median(found):.2f}  ({min(found):.2f} to {max(found):.2f}, {PAIRS} pairs)"


def main() -> None:
    data = tla.load_dataset("mnist-mini", "test").subset(range(256))
    attack = tla.AttackConfig(eps=0.3, step_size=0.03, steps=5)
    torch.manual_seed(0)
    model = LeNet(width=1 / 8).eval()
    last = LeNet(width=1 / 8).to(memory_format=torch.channels_last)
    first = LeNet(width=1 / 8)
    images, labels = data.images[:100] / 255, data.labels[:100]

    def attacked(*, fold: bool, chunk: int) -> Callable[[], object]:
        def variant() -> object:
            attacks._CPU_CHUNK = chunk
            return run_attack(attack, model, data.images, data.labels, fold=fold)

        return variant

    def trained(network: LeNet) -> Callable[[], object]:
        return lambda: F.cross_entropy(network(images), labels).backward()

    chunk = attacks._CPU_CHUNK
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}")
    ours = attacked(fold=True, chunk=chunk)
    print("plain / folded attack        ", ratios(ours, attacked(fold=False, chunk=chunk)))
    print(f"256 at once / chunks of {chunk}   ", ratios(ours, attacked(fold=True, chunk=256)))
    print("training step, NCHW / NHWC   ", ratios(trained(last), trained(first)))


if __name__ == "__main__":
    main()
