"""A GPU's step of the published CIFAR-10 trainings: its share of the matrix rate, and what all steps would take."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.floor import count_operations
from benchmarks.inputs import Setup, colour_images, training_source
from benchmarks.timing import Line, times_in_turn
from tla_core.config import TrainConfig
from tla_core.methods import STEPS
from tla_core.models import build_model
from tla_core.schedule import make_optimizer

PRESETS = ("supplement/cifar10/tla", "code/cifar10/tla")
PAPER_V100_HOURS = 36
PEER = "the same operations at the measured bf16 matrix rate"


def published_training(setup: Setup) -> Iterator[Line]:
    """The step of each published CIFAR-10 training of TLA, in fp32 and bf16. Only on a GPU: a CPU takes minutes."""
    if setup.device.type != "cuda":
        return
    for preset in PRESETS:
        for precision in ("fp32", "bf16"):
            setup.say(f"{preset}, {precision}")
            yield training_line(setup, preset, {"precision": precision})


def training_line(
    setup: Setup, preset: str, overrides: Mapping[str, Any], *, n_images: int = 10_000, n_steps: int = 10,
    matrix_size: int = 8192,
) -> Line:  # fmt: skip
    """A training step beside a matrix product of as many operations: the ratio is the share of the matrix rate.

    Parameters
    ----------
    setup : Setup
    preset : str
    overrides : mapping
        Fields of the preset that are replaced.
    n_images : int
        Synthetic images that the steps draw from.
    n_steps : int
        Steps that are timed at once.
    matrix_size : int
        Of the square matrices whose product tells the matrix rate.

    Returns
    -------
    Line
        Seconds of one step, and of its operations at the matrix rate.
    """
    config = TrainConfig.preset(preset, **overrides)
    images, labels = colour_images(n_images)
    source = training_source(setup, config, images, labels)
    model = build_model(
        config.network, width=config.width, blocks=config.blocks, normalization=config.normalization, in_channels=3,
        image_size=32, n_classes=10,
    )  # fmt: skip
    model = model.to(setup.device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, config)

    def one_step(number: int) -> None:
        """As `train` does it; what it writes, and the accuracy on held-out images, is not in it."""
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = STEPS[config.method](model, source, number, config, config.attack)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        optimizer.step()

    operations = count_operations(lambda: one_step(0))
    left, right = (torch.randn(matrix_size, matrix_size, device=setup.device).bfloat16() for _ in range(2))
    products = 5
    (measured,) = times_in_turn(
        lambda: [one_step(number) for number in range(n_steps)],
        {"": lambda: [left @ right for _ in range(products)]},
        pairs=setup.pairs, device=setup.device,
    ).values()  # fmt: skip
    rates = [products * 2 * matrix_size**3 / matrix for _, matrix in measured]
    times = tuple((step / n_steps, operations / rate) for (step, _), rate in zip(measured, rates, strict=True))
    line = Line(f"training step of {preset}, {config.precision}", PEER, times)
    step = sorted(ours for ours, _ in times)[len(times) // 2]
    total = config.iterations or config.epochs * source.steps_per_epoch
    line.conditions.update(
        {
            "network": f"{config.network}, width {config.width:g}, blocks {config.blocks}",
            "attack": str(config.attack),
            "batch_size": config.batch_size, "pool_size": config.pool_size, "precision": config.precision,
            "data": "synthetic images of CIFAR-10's shape", "teraflop_per_step": operations / 1e12,
            "bf16_matrix_teraflop_per_s": sorted(rates)[len(rates) // 2] / 1e12,
            "share_of_bf16_matrix_rate": line.ratio, "steps": total, "projected_hours": step * total / 3600,
            "paper": f"{PAPER_V100_HOURS} hours on one V100",
        }
    )  # fmt: skip
    return line
