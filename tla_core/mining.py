"""Choosing the negatives of the triplet term in a pool of clean images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def hardest_negatives(anchors: Tensor, anchor_labels: Tensor, pool: Tensor, pool_labels: Tensor) -> Tensor:
    """For each anchor, the pool member of another class that is closest under the angular distance.

    Parameters
    ----------
    anchors : Tensor, (n, d)
        Representations of the adversarial examples.
    anchor_labels : Tensor, (n,)
    pool : Tensor, (m, d)
        Representations of clean images.
    pool_labels : Tensor, (m,)

    Returns
    -------
    Tensor, (n,), int64
        Positions in the pool; of equally close ones the first.

    Raises
    ------
    ValueError
        If the pool holds no image of another class for one of the anchors.
    """
    # One matrix product: the distance itself, broadcast over all pairs, would hold n x m x d numbers.
    distances = 1 - (F.normalize(anchors, dim=1) @ F.normalize(pool, dim=1).T).abs()
    same_class = anchor_labels[:, None] == pool_labels[None]
    distances = distances.masked_fill(same_class, torch.inf)
    nearest, chosen = distances.min(1)
    # One check for the whole batch, so that a GPU is waited for once.
    if torch.isinf(nearest).any():
        alone = anchor_labels[torch.isinf(nearest)][0].item()
        raise ValueError(
            f"the pool of {len(pool)} images has no negative for class {alone}: it holds no other class. Raise"
            " pool_size, or train on more classes."
        )
    return chosen
