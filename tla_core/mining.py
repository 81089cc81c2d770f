"""Choosing the negatives of the triplet term in a pool of clean images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tla_core.validation import check_one_of


def hardest_negatives(
    anchors: Tensor, anchor_labels: Tensor, pool: Tensor, pool_labels: Tensor, *, metric: str = "angular"
) -> Tensor:
    """For each anchor, the pool member of another class that is closest under the angular distance.

    Parameters
    ----------
    anchors : Tensor, (n, d)
        Representations of the adversarial examples.
    anchor_labels : Tensor, (n,)
    pool : Tensor, (m, d)
        Representations of clean images.
    pool_labels : Tensor, (m,)
    metric : {"angular", "cosine"}
        ``cosine`` keeps the sign, as the released code does: opposite vectors are far from each other.

    Returns
    -------
    Tensor, (n,), int64
        Positions in the pool; of equally close ones the first.

    Raises
    ------
    ValueError
        If the pool holds no image of another class for one of the anchors, or for an unknown metric.
    """
    same_class = _same_class(anchor_labels, pool_labels)
    return _distances(anchors, pool, metric).masked_fill(same_class, torch.inf).argmin(1)


def semi_hard_negatives(
    anchors: Tensor, anchor_labels: Tensor, pool: Tensor, pool_labels: Tensor, positives: Sequence[Tensor], *,
    metric: str = "angular",
) -> Tensor:  # fmt: skip
    """For each anchor, the closest pool member of another class that is farther from it than its positives are.

    Semi-hard in the sense of Schroff et al. (2015, "FaceNet", section 3.2), without their bound by the margin. Where no
    member is farther than the positives, the farthest one.

    Parameters
    ----------
    anchors, anchor_labels, pool, pool_labels, metric
        As in `hardest_negatives`.
    positives : sequence of Tensor, (n, d)
        Each holds one positive of every anchor.

    Returns
    -------
    Tensor, (n,), int64
        Positions in the pool; of equally close ones the first.

    Raises
    ------
    ValueError
        As `hardest_negatives`.
    """
    same_class = _same_class(anchor_labels, pool_labels)
    distances = _distances(anchors, pool, metric)
    nearer = torch.stack([_distances(anchors[:, None], rows[:, None], metric)[:, 0, 0] for rows in positives]).amax(0)
    beyond = (distances > nearer[:, None]) & ~same_class
    semi_hard = distances.masked_fill(~beyond, torch.inf).argmin(1)
    farthest = distances.masked_fill(same_class, -torch.inf).argmax(1)
    return torch.where(beyond.any(1), semi_hard, farthest)


def random_negatives(anchor_labels: Tensor, pool_labels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """For each anchor a random pool member of another class (TLA-RN of the paper).

    Parameters
    ----------
    anchor_labels : Tensor, (n,)
    pool_labels : Tensor, (m,)
    generator : torch.Generator, optional
        On the CPU; None means a fresh one seeded 0.

    Returns
    -------
    Tensor, (n,), int64
        Positions in the pool.

    Raises
    ------
    ValueError
        If the pool holds no image of another class for one of the anchors.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    draw = torch.rand(len(anchor_labels), len(pool_labels), generator=generator)
    draw = draw.to(pool_labels.device, non_blocking=True)
    return draw.masked_fill(_same_class(anchor_labels, pool_labels), -1.0).argmax(1)


def _distances(anchors: Tensor, pool: Tensor, metric: str) -> Tensor:
    """From each anchor (..., n, d) to each pool member (..., m, d): (..., n, m)."""
    check_one_of("metric", metric, ("angular", "cosine"))
    # One matrix product: the distance itself, broadcast over all pairs, would hold n x m x d numbers. In full
    # precision, since nearly equal distances are compared.
    with torch.autocast(anchors.device.type, enabled=False):
        cosine = F.normalize(anchors.float(), dim=-1) @ F.normalize(pool.float(), dim=-1).mT
    return 1 - (cosine.abs() if metric == "angular" else cosine)


def _same_class(anchor_labels: Tensor, pool_labels: Tensor) -> Tensor:
    """Which pool members (n, m) are of the class of the anchor; ValueError where all are.

    By the labels, not the distances: those of a training that diverges are no numbers, which the loss will tell.
    """
    same_class = anchor_labels[:, None] == pool_labels[None]
    without_negative = same_class.all(1)
    if without_negative.any():  # one check for the whole batch, so that a GPU is waited for once
        label = anchor_labels[without_negative][0].item()
        raise ValueError(
            f"the pool of {len(pool_labels)} images has no negative for class {label}: it holds no other class. Raise"
            " pool_size, or train on more classes."
        )
    return same_class
