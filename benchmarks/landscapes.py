"""Loss landscapes beside the loop that a user writes: one point after the other."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.landscape import Landscape, input_landscape
from benchmarks.inputs import Setup, test_images, trained_model, untrained_model
from benchmarks.timing import Line, times_in_turn

RADIUS = 0.6  # twice the eps of MNIST
# Points along each axis: at full width the loop takes seconds for these few.
MINI_RESOLUTION, FULL_RESOLUTION = 31, 15
# Of a loss, in units of the highest loss of the grid or 1, whichever is more: folded batch norm rounds in another way.
TOLERANCE = 1e-4


def input_landscapes(setup: Setup) -> Iterator[Line]:
    """`input_landscape` on the network of `mini` and on Table 1 at its full width."""
    images, labels = test_images(2)
    trained, where = trained_model(setup, "at")
    untrained = untrained_model(setup, "lenet", test_images(64)[0], width=setup.width)
    for name, model, resolution, said in (
        ("network of mini", trained, MINI_RESOLUTION, f"Table 1 at an eighth of its width, {where}"),
        ("Table 1 at full width", untrained, FULL_RESOLUTION, f"Table 1, width {setup.width:g}, untrained"),
    ):
        resolution = min(resolution, setup.gradient_images)
        yield landscape_line(setup, name, model, images[0], labels[0], resolution, said)


def landscape_line(
    setup: Setup, name: str, model: nn.Module, image: Tensor, label: Tensor, resolution: int, network: str
) -> Line:
    """A grid of ours beside the loop over its points."""

    def ours() -> Landscape:
        return input_landscape(model, image, label, radius=RADIUS, resolution=resolution)

    found = ours()
    x = image.to(setup.device).float() / 255
    first, second = torch.from_numpy(found.directions).to(setup.device)

    def loop() -> np.ndarray:
        return loss_point_by_point(model, x, int(label), found.axis, first, second)

    agreed, failure = judge_losses(found.loss, loop())
    peer = {"point by point": loop}
    (times,) = times_in_turn(ours, peer, pairs=setup.pairs, device=setup.device, warm_up=False).values()
    return Line(
        f"input landscape, {name}", "point by point", times,
        {"network": network, "points": resolution**2, "radius": RADIUS, "losses": agreed}, failure,
    )  # fmt: skip


def loss_point_by_point(
    model: nn.Module, x: Tensor, label: int, axis: np.ndarray, first: Tensor, second: Tensor
) -> np.ndarray:
    """The loop that a user writes, (resolution, resolution): unfolded, a batch of one for each point."""
    y = torch.tensor([label], device=x.device)
    loss = np.empty((len(axis), len(axis)))
    with torch.no_grad():
        for i, a in enumerate(axis.tolist()):
            for j, b in enumerate(axis.tolist()):
                loss[i, j] = F.cross_entropy(model((x + a * first + b * second)[None]), y).item()
    return loss


def judge_losses(ours: np.ndarray, theirs: np.ndarray) -> tuple[str, str]:
    """How far two grids differ, and what is wrong with that: empty if nothing."""
    furthest = float(np.abs(ours - theirs).max())
    said = f"from {theirs.min():.4g} to {theirs.max():.4g}, differ by {furthest:.1e} at most"
    agree = furthest <= TOLERANCE * max(1.0, float(theirs.max()))  # False for NaN
    return said, "" if agree else f"the losses, {said}: expected {TOLERANCE:g}"
