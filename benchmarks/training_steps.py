"""Steps of TLA beside the implementation that one would first write (`plain_tla_step` of tests/oracles.py)."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import tla_core as tla
from benchmarks.floor import count_operations
from benchmarks.inputs import Setup, colour_images, oracles, training_source, untrained_model
from benchmarks.timing import Line, times_in_turn
from tla_core.ascent import starting_points
from tla_core.batches import BatchSource
from tla_core.config import TrainConfig
from tla_core.methods import tla_step
from tla_core.runtime import derive_seed

STEPS_COMPARED = 5
PIXEL_TOLERANCE, LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.005, 1e-4, 0.01  # shares; the last of the gradient's norm

# (model, source, number of the step, config) -> loss
Step = Callable[..., Tensor]


def tla_training_step(setup: Setup) -> Iterator[Line]:
    """On the network of `mini`, on Table 1 at its full width, and on a narrow residual network."""
    digits = tla.load_dataset("mnist-mini", "train")
    digits = digits.images, digits.labels
    narrow = TrainConfig.preset("mini/mnist/tla")
    yield _line(setup, "TLA step, network of mini", narrow, digits, 10)
    wide = TrainConfig.preset("supplement/mnist/tla", width=setup.width)
    steps = min(wide.attack.steps, setup.training_attack_steps)
    wide = dataclasses.replace(wide, attack=dataclasses.replace(wide.attack, steps=steps))
    yield _line(setup, "TLA step, Table 1 at full width", wide, digits, 1)
    residual = TrainConfig.preset("small/cifar10/tla")
    yield _line(setup, "TLA step, narrow residual network", residual, colour_images(1000), 1, "synthetic images")


def _line(
    setup: Setup, name: str, config: TrainConfig, data: tuple[Tensor, Tensor], n_steps: int, note: str = "real images"
) -> Line:
    setup.say(name)
    source = training_source(setup, config, *data)
    settings = {"width": config.width, "blocks": config.blocks, "normalization": config.normalization}
    theirs = untrained_model(setup, config.network, data[0], **settings).train()
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    # Rounding grows along an attack; a few steps show whether both do the same.
    few = dataclasses.replace(config.attack, steps=min(config.attack.steps, STEPS_COMPARED))
    said, failure = check_step(ours, theirs, source, dataclasses.replace(config, attack=few))

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
            "attack": str(config.attack), "compared_after": str(few),
            "batch_size": config.batch_size, "pool_size": config.pool_size,
            "steps_per_time": n_steps, "note": note, "results": said,
            "ours": "weights in channels_last, as `train` lays them out; the peer's as torch does",
        }, failure, operations=count_operations(run(our_step, ours)) // n_steps,
    )  # fmt: skip


def our_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig) -> Tensor:
    """The loss of `tla_step`."""
    return tla_step(model, source, step, config, config.attack).total


def plain_step(
    model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attacked: Tensor | None = None
) -> Tensor:
    """The loss of `plain_tla_step`, with the same draws; `attacked` takes the place of its own adversarial images."""
    batch, attack = source.batch(step), config.attack
    positives, pool = source.positives(batch.labels, step), source.pool(config.pool_size, step)
    steps, start = 0, attacked
    if attacked is None:
        seed = derive_seed(config.seed, "attack", step)
        steps, start = attack.steps, starting_points(attack, batch.images, seed, batch.indices, 0)
    return oracles().plain_tla_step(
        model, batch.images, batch.labels, positives.images, pool.images, pool.labels, start=start, eps=attack.eps,
        step_size=attack.step_size, steps=steps, margin=config.margin, lambda_triplet=config.lambda_triplet,
        lambda_norm=config.lambda_norm, label_smoothing=config.label_smoothing,
    )  # fmt: skip


def check_step(
    ours: nn.Module, theirs: nn.Module, source: BatchSource, config: TrainConfig, peer: Step = plain_step
) -> tuple[str, str]:
    """Compare a step of ours with the peer's; what was found, and what is wrong with it: empty if nothing.

    Where a gradient is almost zero, rounding decides to which side a pixel steps, and what follows differs by more than
    rounding. So the attacks are compared first, then the losses and gradients on the same adversarial images.
    """
    attacked, loss, gradient = _loss_and_gradient(our_step, ours, source, config)
    of_peer, _, _ = _loss_and_gradient(peer, theirs, source, config)
    _, peer_loss, peer_gradient = _loss_and_gradient(partial(peer, attacked=attacked), theirs, source, config)
    pixels = ((attacked - of_peer).abs() > 1e-4).double().mean().item()
    of_loss = abs(loss - peer_loss) / abs(peer_loss)
    of_gradient = ((gradient - peer_gradient).norm() / peer_gradient.norm()).item()
    said = (
        f"{pixels:.2%} of the attacked pixels differ; on the same attacked images the loss differs by {of_loss:.1e} of"
        f" it, the gradient by {of_gradient:.1e} of its norm"
    )
    failed = not (pixels <= PIXEL_TOLERANCE and of_loss <= LOSS_TOLERANCE and of_gradient <= GRADIENT_TOLERANCE)
    return said, said if failed else ""


def _loss_and_gradient(
    step: Step, model: nn.Module, source: BatchSource, config: TrainConfig
) -> tuple[Tensor, float, Tensor]:
    """The adversarial images, which are what a step forwards first in training mode; loss and gradient."""
    forwarded: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            forwarded.append(inputs[0].detach())

    # A copy, so that batch norm's statistics stay the same for the next comparison.
    model = copy.deepcopy(model)
    model.register_forward_pre_hook(keep)
    torch.manual_seed(0)
    loss = step(model, source, 0, config)
    loss.backward()
    return forwarded[0], loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
