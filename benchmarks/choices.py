"""Choices of ours, each beside what it replaced: folded batch norm, chunks that stay in the cache, channels-last."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tla_core as tla
from benchmarks.floor import count_operations
from benchmarks.inputs import Setup, colour_images, test_images, untrained_model
from benchmarks.timing import Line, times_in_turn
from tla_core import chunks as chunking
from tla_core.attacks import run_attack
from tla_core.chunks import images_at_once

RESIDUAL = {"wrn-madry": (1, 1, 1), "wrn-table2": (1, 1, 1), "preact-resnet50": (1, 1, 1, 1)}


def folding(setup: Setup) -> Iterator[Line]:
    """Batch norm folded into the convolutions, in the network of `mini` and in narrow residual networks."""
    digits, labels = test_images(setup.gradient_images)
    attack = tla.AttackConfig(eps=0.3, step_size=0.03, steps=setup.gradient_steps)
    network = untrained_model(setup, "lenet", digits, width=1 / 8)
    yield _folded(setup, "network of mini", network, digits, labels, attack)
    images, labels = colour_images(max(2, setup.gradient_images // 4))
    attack = tla.AttackConfig(eps=8 / 255, step_size=2 / 255, steps=max(1, setup.gradient_steps // 2))
    for name, blocks in RESIDUAL.items():
        network = untrained_model(setup, name, images, width=0.1, blocks=blocks, normalization="per-image")
        yield _folded(setup, f"{name}, width 0.1, blocks {blocks}", network, images, labels, attack)


def chunks(setup: Setup) -> Iterator[Line]:
    """On a CPU: chunks of images, in place of all at once."""
    if setup.device.type != "cpu":
        return
    images, labels = test_images(setup.gradient_images)
    model = untrained_model(setup, "lenet", images, width=1 / 8)
    attack = tla.AttackConfig(eps=0.3, step_size=0.03, steps=setup.gradient_steps)
    pixels = chunking.CPU_CHUNK_PIXELS

    def attacked(size: int) -> None:
        chunking.CPU_CHUNK_PIXELS = size * images.shape[-1] ** 2 / torch.get_num_threads()
        try:
            run_attack(attack, model, images, labels, fold=True)
        finally:
            chunking.CPU_CHUNK_PIXELS = pixels

    peers = {f"{size} at once": lambda size=size: attacked(size) for size in (32, 64, len(images))}
    times = times_in_turn(
        lambda: run_attack(attack, model, images, labels, fold=True), peers, pairs=setup.pairs, device=setup.device
    )
    operations = count_operations(lambda: run_attack(attack, model, images, labels, fold=True))
    for peer in peers:
        yield Line(
            "attack in chunks, network of mini", peer, times[peer],
            {
                "network": "Table 1, width 0.125, untrained", "images": len(images), "attack": str(attack),
                "images_at_once": images_at_once(images.float()),
            },
            own=True, operations=operations,
        )  # fmt: skip


def channels_last(setup: Setup) -> Iterator[Line]:
    """A training step's forward and backward pass, with weights in channels_last."""
    images, labels = test_images(min(100, setup.gradient_images))
    x, y = images.to(setup.device).float() / 255, labels.to(setup.device)
    last, first = (untrained_model(setup, "lenet", images, width=1 / 8).train() for _ in range(2))
    last.to(memory_format=torch.channels_last)

    def step(model: nn.Module) -> None:
        for _ in range(5):
            F.cross_entropy(model(x), y).backward()

    peer = {"contiguous": lambda: step(first)}
    (times,) = times_in_turn(lambda: step(last), peer, pairs=setup.pairs, device=setup.device).values()
    yield Line(
        "forward and backward pass, channels_last", "contiguous", times,
        {"network": "Table 1, width 0.125, untrained", "images": len(images), "passes_per_time": 5},
        own=True, operations=count_operations(lambda: step(last)),
    )  # fmt: skip


def _folded(
    setup: Setup, name: str, model: nn.Module, images: Tensor, labels: Tensor, attack: tla.AttackConfig
) -> Line:
    def run(fold: bool) -> None:
        run_attack(attack, model, images, labels, fold=fold)

    peer = {"not folded": lambda: run(False)}
    (times,) = times_in_turn(lambda: run(True), peer, pairs=setup.pairs, device=setup.device).values()
    return Line(
        f"folded attack, {name}", "not folded", times,
        {"network": f"{name}, untrained", "images": len(images), "attack": str(attack)},
        own=True, operations=count_operations(lambda: run(True)),
    )  # fmt: skip
