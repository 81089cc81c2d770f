"""Watches the triplets of a training: does their term do anything, and do all representations collapse into one?

A triplet whose negative is nearer than its positive draws both to the anchor, since D = 1 - cos pulls a far vector
harder than it pushes a near one. Where most are so, all representations may end in a narrow cone, and the hinge stays
at the margin (Xuan et al. 2020, "Hard negative examples are hard, but useful"). The hinge alone tells no collapse: a
training of `mini` ended at two margins while random clean images were as far from each other as at first.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tla_core.config import TrainConfig
from tla_core.losses import angular_distance, triplet_loss

# Shares of the training before which a cone, and a hinge, may be anything: TLA-RN at `mini` is above the margin until
# half of the training, and TLA, in a training that ends far below it, until two thirds.
CONE_FROM, HINGE_FROM = 0.2, 0.8
NARROW = 0.25  # share of the first distance of clean pairs


class Triplets(NamedTuple):
    """Representations (n, d) of the triplets of a step, and their margin; `clean` are those of random clean images."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    clean: Tensor
    margin: float


@torch.no_grad()
def describe_triplets(triplets: Sequence[Triplets]) -> dict[str, float]:
    """The numbers that ``metrics.jsonl`` holds of the triplets of a step.

    Returns
    -------
    dict of str to float
        ``hinge``: the triplet loss in units of the margin, 0 for a margin of 0; ``nearer``: the share with a negative
        that is nearer than the positive; ``active``: the share with a hinge above 0; ``cone``: the mean angular
        distance of random pairs of clean images.
    """
    described = []
    for anchor, positive, negative, clean, margin in triplets:
        gap = angular_distance(anchor, negative) - angular_distance(anchor, positive)
        hinge = triplet_loss(anchor, positive, negative, margin) / margin if margin else gap.new_zeros(())
        cone = angular_distance(clean, clean.roll(1, 0)).mean()
        described.append(torch.stack([hinge, (gap < 0).float().mean(), (gap < margin).float().mean(), cone]))
    values = torch.stack(described).mean(0).tolist()  # a GPU is waited for once
    return dict(zip(("hinge", "nearer", "active", "cone"), (round(value, 4) for value in values), strict=True))


def triplet_warning(
    metrics: Sequence[dict[str, Any]], config: TrainConfig, steps_per_epoch: int, total_steps: int
) -> str:
    """What is wrong with the triplets of a training after an epoch; empty if all is well.

    Parameters
    ----------
    metrics : sequence of dict
        The records of the training so far.
    config : TrainConfig
    steps_per_epoch, total_steps : int
    """
    records = [record for record in metrics if "triplets" in record]
    if not records or not config.lambda_triplet:
        return ""
    step, first = records[-1]["step"], records[0]["triplets"]["cone"]
    last_epoch = [record["triplets"] for record in records if record["step"] > step - steps_per_epoch]
    hinge, nearer, cone = (
        sum(triplets[name] for triplets in last_epoch) / len(last_epoch) for name in ("hinge", "nearer", "cone")
    )
    if step >= CONE_FROM * total_steps and cone < NARROW * first:
        problem = f"the representations collapse: random clean pairs are {cone:.3f} apart, after {first:.3f} at first"
    elif step >= HINGE_FROM * total_steps and hinge >= 1:
        problem = f"the triplet term stays at {hinge:.1f} margins, with {nearer:.0%} of negatives nearer than positives"
    else:
        return ""
    return (
        f"{problem}. Such negatives are too hard for this training: take negatives='semi-hard', positives='own', a"
        " smaller pool_size, lambda_triplet or margin, or train longer or at a higher rate."
    )
