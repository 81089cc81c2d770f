"""Tells from the triplets of a training whether they draw all representations together instead of apart.

A triplet whose negative is nearer than its positive draws both to the anchor, since D = 1 - cos pulls a far vector
harder than it pushes a near one. Where most are so, all representations end in a narrow cone, and the hinge stays at
the margin (Xuan et al. 2020, "Hard negative examples are hard, but useful").
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tla_core.config import TrainConfig
from tla_core.losses import angular_distance, triplet_loss

WATCHED_FROM = 0.2  # share of the training before which any hinge is normal
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
    """What ``metrics.jsonl`` says of them.

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


def collapse_message(
    metrics: Sequence[dict[str, Any]], config: TrainConfig, steps_per_epoch: int, total_steps: int
) -> str:
    """Why a training seems to collapse, after an epoch; empty where it does not.

    Parameters
    ----------
    metrics : sequence of dict
        The records of the training so far.
    config : TrainConfig
    steps_per_epoch, total_steps : int
    """
    records = [record for record in metrics if "triplets" in record]
    if not records or not config.lambda_triplet or records[-1]["step"] < WATCHED_FROM * total_steps:
        return ""
    of_epoch = [record["triplets"] for record in records if record["step"] > records[-1]["step"] - steps_per_epoch]
    hinge, cone = (sum(each[name] for each in of_epoch) / len(of_epoch) for name in ("hinge", "cone"))
    first = records[0]["triplets"]["cone"]
    signs = []
    if hinge >= 1:
        signs.append(f"the triplet term is at {hinge:.2f} margins, where equal representations have 1")
    if cone < NARROW * first:
        signs.append(f"random clean pairs are {cone:.3f} apart, after {first:.3f} at first")
    if not signs:
        return ""
    return (
        f"the representations may collapse: {'; '.join(signs)}. Negatives that are nearer than the positive draw all"
        " together: take negatives='semi-hard', positives='own', a smaller lambda_triplet, margin or pool_size."
    )
