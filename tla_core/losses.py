"""The loss terms of the four methods, as pure functions of logits and representations."""

import torch
from torch import Tensor


def angular_distance(u: Tensor, v: Tensor) -> Tensor:
    """Angular distance ``1 - |u.v| / (|u| |v|)`` of the paper (section 3.1), row by row.

    Parameters
    ----------
    u, v : Tensor, (..., d)
        Broadcast against each other.

    Returns
    -------
    Tensor, (...)
        In [0, 1]: 0 for parallel and for opposite vectors, 1 for orthogonal ones and where one vector is zero.
    """
    return 1 - torch.cosine_similarity(u, v, dim=-1).abs()


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Triplet loss on the angular distance, the mean over *all* triplets (Algorithm 1).

    ``mean_i max(0, D(a_i, p_i) - D(a_i, n_i) + margin)``

    Parameters
    ----------
    anchor, positive, negative : Tensor, (n, d)
    margin : float

    Returns
    -------
    Tensor, ()
    """
    return (angular_distance(anchor, positive) - angular_distance(anchor, negative) + margin).clamp(min=0).mean()


def norm_loss(*representations: Tensor) -> Tensor:
    """The norm term of TLA: the mean over the batch of the summed L2 norms (not squared).

    Parameters
    ----------
    *representations : Tensor, (n, d)
        Those of anchors, positives and negatives.

    Returns
    -------
    Tensor, ()
    """
    return sum(torch.linalg.vector_norm(h, dim=1) for h in representations).mean()


def mean_square_norm_loss(*representations: Tensor) -> Tensor:
    """The norm term of the released code: the sum over the arguments of the mean square, over batch and features.

    Parameters
    ----------
    *representations : Tensor, (n, d)

    Returns
    -------
    Tensor, ()
    """
    return sum(h.square().mean() for h in representations)


def logit_pairing_loss(logits_clean: Tensor, logits_adv: Tensor) -> Tensor:
    """Adversarial logit pairing (Kannan et al. 2018): ``mean_i sum_k (z_clean - z_adv)^2``.

    The released code pairs representations of Tiny-ImageNet by the same formula.

    Parameters
    ----------
    logits_clean, logits_adv : Tensor, (n, classes)

    Returns
    -------
    Tensor, ()
    """
    return (logits_clean - logits_adv).square().sum(1).mean()
