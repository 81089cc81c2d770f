"""Choosing the negatives of the triplet term in a pool of clean images."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    if metric not in ("angular", "cosine"):
        raise ValueError(f"metric must be angular or cosine. Got {metric!r}.")
    # One matrix product: the distance itself, broadcast over all pairs, would hold n x m x d numbers. In full
    # precision, since nearly equal distances are compared.
    with torch.autocast(anchors.device.type, enabled=False):
        cosine = F.normalize(anchors.float(), dim=1) @ F.normalize(pool.float(), dim=1).T
    distances = 1 - (cosine.abs() if metric == "angular" else cosine)
    same_class = anchor_labels[:, None] == pool_labels[None]
    _, chosen = distances.masked_fill(same_class, torch.inf).min(1)
    # By the labels, not the distances: those of a training that diverges are no numbers, which the loss will tell.
    _check_found(~same_class.all(1), anchor_labels, len(pool))
    return chosen


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
    same_class = anchor_labels[:, None] == pool_labels[None]
    _check_found(~same_class.all(1), anchor_labels, len(pool_labels))
    return draw.masked_fill(same_class, -1.0).argmax(1)


def _check_found(found: Tensor, anchor_labels: Tensor, pool_size: int) -> None:
    # One check for the whole batch, so that a GPU is waited for once.
    if not found.all():
        alone = anchor_labels[~found][0].item()
        raise ValueError(
            f"the pool of {pool_size} images has no negative for class {alone}: it holds no other class. Raise"
            " pool_size, or train on more classes."
        )
