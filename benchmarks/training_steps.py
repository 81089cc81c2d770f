"""Steps of TLA beside the implementation that one would first write (`plain_tla_step` of tests/oracles.py)."""

import copy
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import tla_core as tla
from benchmarks.inputs import Setup, colour_images, oracles, training_source, untrained_model
from benchmarks.timing import Line, times_in_turn
from tla_core.attacks import _start
from tla_core.batches import BatchSource
from tla_core.config import TrainConfig
from tla_core.methods import tla_step
from tla_core.runtime import derive_seed

# Relative: pixels at which a gradient is almost zero step to the other side when rounding says so.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 0.02

Step = Callable[[nn.Module, BatchSource, int, TrainConfig], Tensor]


def tla_training_step(setup: Setup) -> Iterator[Line]:
    """On the network of `mini`, on Table 1 at its full width, and on a narrow residual network."""
    digits = tla.load_dataset("mnist-mini", "train")
    digits = digits.images, digits.labels
    narrow = TrainConfig.preset("mini/mnist/tla")
    yield _line(setup, "TLA step, network of mini", narrow, digits, 10)
    wide = TrainConfig.preset("supplement/mnist/tla", width=setup.width)
    wide = dataclasses.replace(wide, attack=dataclasses.replace(wide.attack, steps=5))
    yield _line(setup, "TLA step, Table 1 at full width", wide, digits, 1, "5 steps of the attack in place of 40")
    residual = TrainConfig.preset("small/cifar10/tla")
    yield _line(setup, "TLA step, narrow residual network", residual, colour_images(1000), 2, "synthetic images")


def _line(
    setup: Setup, name: str, config: TrainConfig, data: tuple[Tensor, Tensor], n_steps: int, note: str = ""
) -> Line:
    setup.say(name)
    source = training_source(setup, config, *data)
    settings = {"width": config.width, "blocks": config.blocks, "normalization": config.normalization}
    theirs = untrained_model(setup, config.network, data[0], **settings).train()
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    said, failure = check_step((our_step, ours), (plain_step, theirs), source, config)

    def run(step: Step, model: nn.Module) -> Callable[[], None]:
        def steps() -> None:
            for number in range(n_steps):
                model.zero_grad(set_to_none=True)
                step(model, source, number, config).backward()

        return steps

    times = times_in_turn(
        run(our_step, ours), {"plain": run(plain_step, theirs)}, pairs=setup.pairs, device=setup.device,
        warm_up=n_steps > 1,
    )["plain"]  # fmt: skip
    return Line(
        name, "plain_tla_step of tests/oracles.py", tuple((a / n_steps, b / n_steps) for a, b in times),
        {
            "network": f"{config.network}, width {config.width:g}, blocks {config.blocks}, untrained",
            "attack": str(config.attack), "batch_size": config.batch_size, "pool_size": config.pool_size,
            "steps_per_time": n_steps, "note": note, "results": said,
            "ours": "weights in channels_last, as `train` lays them out; the peer's as torch does",
        }, failure,
    )  # fmt: skip


def our_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig) -> Tensor:
    """The loss of `tla_step`."""
    return tla_step(model, source, step, config, config.attack).total


def plain_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig) -> Tensor:
    """The loss of `plain_tla_step`, with the same draws."""
    batch, attack = source.batch(step), config.attack
    positives, pool = source.positives(batch.labels, step), source.pool(config.pool_size, step)
    start = _start(attack, batch.images, derive_seed(config.seed, "attack", step), batch.indices, 0)
    return oracles().plain_tla_step(
        model, batch.images, batch.labels, positives.images, pool.images, pool.labels, start=start, eps=attack.eps,
        step_size=attack.step_size, steps=attack.steps, margin=config.margin, lambda_triplet=config.lambda_triplet,
        lambda_norm=config.lambda_norm, label_smoothing=config.label_smoothing,
    )  # fmt: skip


def check_step(
    ours: tuple[Step, nn.Module], peer: tuple[Step, nn.Module], source: BatchSource, config: TrainConfig
) -> tuple[str, str]:
    """Compare loss and gradients of a step; what was found, and what is wrong with it: empty if nothing."""
    losses, gradients = [], []
    for step, model in (ours, peer):
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        loss = step(model, source, 0, config)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    of_loss = abs(losses[0] - losses[1]) / abs(losses[1])
    of_gradient = ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()
    said = f"the loss differs by a share of {of_loss:.1e}, the gradient by {of_gradient:.1e} of its norm"
    failed = not (of_loss <= LOSS_TOLERANCE and of_gradient <= GRADIENT_TOLERANCE)
    return said, said if failed else ""
