"""Does a search without gradients break what survived the attacks with them?"""

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.attack_config import AttackConfig
from tla_core.attacks import run_attack
from tla_core.masking.of_models import as_batch, logits_of, undisturbed
from tla_core.masking.verdicts import GAP_TOLERANCE, MaskingCheck, share_of_all

MOST_IMAGES, MOST_QUERIES = 100, 500
_LEAST_IMAGES, _LEAST_QUERIES = 10, 20
_GRADIENT_COST = 3  # of a gradient, in forward passes


def check_black_box(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    attack: AttackConfig,
    *,
    survivor_share: float = 1.0,
    generator: torch.Generator | None = None,
    indices: Tensor | None = None,
    n_queries: int = MOST_QUERIES,
    batch_size: int = 256,
    fold: bool = True,
    survived_by: str = "",
) -> MaskingCheck:
    """Does a search without gradients break images that survived the attack?

    The Square attack (`tla_core.random_search`) in the same ball: no gradient attack that works should lose to it
    (Athalye et al. 2018, section 3.1). The check fails if, with 99 % confidence, more than 2 % of all images fall.
    Outputs that are not finite count as broken.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
        Images that survived the attack.
    y : Tensor or ndarray, (n,)
    attack : AttackConfig
        Its norm and `eps` are used.
    survivor_share : float
        Survivors as a fraction of all images, in (0, 1]; the verdict is about shares of all images.
    generator, indices
        See `pgd`.
    n_queries : int
        Forward passes of each image.
    batch_size : int
        Changes no outcome.
    fold : bool
        See `run_attack`.
    survived_by : str
        What the images survived, for the message; by default the attack.

    Returns
    -------
    MaskingCheck
        With the share ``fell`` of the survivors, the ``lower_bound`` of the share of all images, and the `queries`.
    """
    x, y = as_batch(model, x, y)
    if not len(x):
        return MaskingCheck("black_box", True, "no image survived: nothing to judge.")
    square = AttackConfig(name="square", norm=attack.norm, eps=attack.eps, steps=n_queries)
    with undisturbed(model):
        x_adv = run_attack(square, model, x, y, generator=generator, indices=indices, fold=fold)
        logits = logits_of(model, x_adv, batch_size)
    fell = (logits.argmax(1) != y) | ~logits.isfinite().all(1)
    values = share_of_all(fell, survivor_share) | {"queries": float(n_queries)}
    broken = f"{int(fell.sum())} of {len(x)} images that had survived {survived_by or attack}"
    summary = f"{n_queries} queries of Square broke {broken}"
    if values["lower_bound"] <= GAP_TOLERANCE:
        return MaskingCheck("black_box", True, f"{summary}.", values)
    return MaskingCheck(
        "black_box",
        False,
        f"{summary}, at least {values['lower_bound']:.1%} of all: a search without gradients beats the attack, so the"
        " gradients mislead. Use a black-box attack (Square, AutoAttack) or a differentiable approximation (BPDA).",
        values,
    )


def affordable_search(n_images: int, image_steps: int) -> tuple[int, int]:
    """The number of survivors to search for, and of queries for each, beside so many gradients of so many images.

    The search costs as much as the attacks did at most: 500 queries on 100 images from 1,000 images and 17 steps on.
    In a smaller evaluation both numbers are smaller by the same factor, with 10 images and 20 queries at least.
    """
    part = min(_GRADIENT_COST * n_images * image_steps / (MOST_IMAGES * MOST_QUERIES), 1.0) ** 0.5
    return max(round(part * MOST_IMAGES), _LEAST_IMAGES), max(round(part * MOST_QUERIES), _LEAST_QUERIES)
