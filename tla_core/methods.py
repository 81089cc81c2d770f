"""One training step of each method: attack, mine, loss. Each reads like its algorithm box.

A step returns its loss with the graph attached; the training loop differentiates it and updates the weights.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tla_core.attacks import attack_mode, run_attack
from tla_core.batches import Batch, BatchSource
from tla_core.collapse import Triplets
from tla_core.config import AttackConfig, TrainConfig
from tla_core.distributed import gather_rows, share_of_rows
from tla_core.folding import fold_batch_norm
from tla_core.layers import find_layer, forward_with_layer, statistics_kept
from tla_core.losses import logit_pairing_loss, mean_square_norm_loss, norm_loss, triplet_loss
from tla_core.mining import hardest_negatives, random_negatives, semi_hard_negatives
from tla_core.runtime import derive_seed
from tla_core.taps import Tap
from tla_core.wrapping import core


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, the detached terms that it is made of, and the detached triplets of TLA."""

    total: Tensor
    terms: dict[str, Tensor]
    triplets: tuple[Triplets, ...] = ()


def um_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Undefended: cross-entropy on the clean images. `attack` is not used.

    Parameters
    ----------
    model : nn.Module
        In training mode.
    source : BatchSource
    step : int
        Number of the step since the start of the training, from 0.
    config : TrainConfig
    attack : AttackConfig
        The attack of this step, its eps ramped up.

    Returns
    -------
    StepLoss
    """
    batch = source.batch(step)
    return _sum_of(cross_entropy=_cross_entropy(model(batch.images), batch, config))


def at_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Adversarial training (Madry et al. 2018): cross-entropy on the adversarial images. See `um_step`."""
    batch = source.batch(step)
    x_adv = _adversarial(model, batch, step, config, attack)
    return _sum_of(cross_entropy=_cross_entropy(model(x_adv), batch, config))


def alp_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Adversarial logit pairing (Kannan et al. 2018): AT, and the squared distance of the logits. See `um_step`."""
    batch = source.batch(step)
    x_adv = _adversarial(model, batch, step, config, attack)
    logits_adv = model(x_adv)
    with _clean_passes(model, config):
        logits_clean = model(batch.images)
    return _sum_of(
        cross_entropy=_cross_entropy(logits_adv, batch, config),
        logit_pairing=config.lambda_alp * logit_pairing_loss(logits_clean.float(), logits_adv.float()),
    )


def tla_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Triplet loss adversarial training (Algorithm 1 of the supplement), and its variants. See `um_step`.

    Anchor, positive and negative are forwarded one after the other, each with its own batch statistics: one
    concatenated pass would be another algorithm. ``tla-rn`` draws negatives at random; ``tla-sa`` swaps the roles: the
    clean image is the anchor, its negative is sought, and the adversarial example is the positive.
    """
    forward = partial(_forward, layer=config.layer)
    # Line 3: a batch, and clean images of the same classes; the released code adds the batch's own clean images.
    batch = source.batch(step)
    of_class = source.positives(batch.labels, step).images if config.positives != "own" else None
    of_own = batch.images if config.positives != "class" else None
    # Line 4: the attack maximises the cross-entropy alone.
    x_adv = _adversarial(model, batch, step, config, attack)
    # Line 5: the negatives, out of a fresh pool.
    pool = source.pool(config.pool_size, step)
    clean = [images for images in (of_class, of_own) if images is not None]
    anchors, positives = (clean[0], [x_adv]) if config.method == "tla-sa" else (x_adv, clean)
    negative = pool.images[_negatives(model, anchors, positives, batch.labels, pool, step, config)]
    # Line 6: the loss; the clean images of the triplet carry uniform noise of size eps (supplement, C.1).
    noisy_triplet = partial(_noisy, eps=attack.eps if config.noise == "triplet" else 0.0)
    logits, h_adv = forward(model, x_adv)
    with _clean_passes(model, config):
        pairs = []
        if of_class is not None:
            pairs.append((forward(model, noisy_triplet(of_class))[1], config.margin))
        _, h_negative = forward(model, noisy_triplet(negative))
        if of_own is not None:
            _, h_own = forward(model, _noisy(of_own, attack.eps))
            pairs.append((h_own, config.margin * config.own_margin_factor))

    triplet = norm = torch.zeros((), device=logits.device)
    triplets = []
    for h_clean, margin in pairs:
        h_anchor, h_positive = (h_clean, h_adv) if config.method == "tla-sa" else (h_adv, h_clean)
        parts = (part.detach() for part in (h_anchor, h_positive, h_negative, h_clean))
        triplets.append(Triplets(*parts, margin))
        triplet = triplet + config.lambda_triplet * triplet_loss(h_anchor, h_positive, h_negative, margin)
        if config.norm_term == "l2":
            norm = norm + config.lambda_norm * norm_loss(h_anchor, h_positive, h_negative)
        else:
            weight = config.lambda_triplet * config.lambda_norm
            norm = norm + weight * mean_square_norm_loss(h_anchor, h_positive, h_negative)
    terms = {"cross_entropy": _cross_entropy(logits, batch, config), "triplet": triplet, "norm": norm}
    if config.lambda_feature:
        terms["feature_pairing"] = config.lambda_feature * logit_pairing_loss(h_own, h_adv)
    return replace(_sum_of(**terms), triplets=tuple(triplets))


STEPS = {
    "um": um_step, "at": at_step, "alp": alp_step, "tla": tla_step, "tla-rn": tla_step, "tla-sa": tla_step,
}  # fmt: skip


def _adversarial(model: nn.Module, batch: Batch, step: int, config: TrainConfig, attack: AttackConfig) -> Tensor:
    start = torch.Generator().manual_seed(derive_seed(config.seed, "attack", step))
    with attack_mode(model):  # batch norm in eval mode, for every method alike
        return run_attack(
            attack, model, batch.images, batch.labels, generator=start, indices=batch.indices, fold=True, trusted=True
        )


def _negatives(
    model: nn.Module, anchors: Tensor, positives: list[Tensor], labels: Tensor, pool: Batch, step: int,
    config: TrainConfig,
) -> Tensor:  # fmt: skip
    """Positions in the pool. Representations are compared with batch norm in eval mode and without gradients."""
    if config.method == "tla-rn":
        draws = torch.Generator().manual_seed(derive_seed(config.seed, "negatives", step))
        return share_of_rows(random_negatives(gather_rows(labels), pool.labels, generator=draws))
    with attack_mode(model), torch.inference_mode():
        layer = find_layer(model, config.layer, anchors)
        frozen = fold_batch_norm(model, keep=dict(core(model).named_modules()).get(layer.path))
        _, anchor_features = _forward(frozen, anchors, layer)
        # Each rank represents its share of the pool; the negatives are sought in the whole of it.
        pool_features = gather_rows(_forward(frozen, share_of_rows(pool.images), layer)[1])
        sought = (anchor_features, labels, pool_features, pool.labels)
        if config.negatives == "semi-hard":
            positive_features = [_forward(frozen, images, layer)[1] for images in positives]
            return semi_hard_negatives(*sought, positive_features, metric=config.mining)
        return hardest_negatives(*sought, metric=config.mining)


def _clean_passes(model: nn.Module, config: TrainConfig) -> AbstractContextManager:
    """Around the passes of clean images in training mode: do they move batch norm's running statistics?"""
    return statistics_kept(model) if config.statistics == "adversarial" else nullcontext()


def _forward(model: nn.Module, x: Tensor, layer: str | Tap) -> tuple[Tensor, Tensor]:
    """Logits and representation, in full precision whatever the network computed in."""
    logits, representation = forward_with_layer(model, x, layer)
    return logits.float(), representation.float()


def _cross_entropy(logits: Tensor, batch: Batch, config: TrainConfig) -> Tensor:
    return F.cross_entropy(logits.float(), batch.labels, label_smoothing=config.label_smoothing)


def _noisy(images: Tensor, eps: float) -> Tensor:
    if not eps:
        return images
    return (images + (2 * torch.rand_like(images) - 1) * eps).clamp_(0, 1)


def _sum_of(**terms: Tensor) -> StepLoss:
    return StepLoss(sum(terms.values()), {name: term.detach() for name, term in terms.items()})
