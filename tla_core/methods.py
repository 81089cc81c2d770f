"""One training step of each method: attack, mine, loss. Each reads like its algorithm box.

A step returns its loss with the graph attached; the training loop differentiates it and updates the weights.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tla_core.attacks import attack_mode, run_attack
from tla_core.batches import BatchSource
from tla_core.config import AttackConfig, TrainConfig
from tla_core.folding import fold_batch_norm
from tla_core.layers import forward_with_layer, resolve_layer
from tla_core.losses import logit_pairing_loss, norm_loss, triplet_loss
from tla_core.mining import hardest_negatives
from tla_core.runtime import derive_seed


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, and the detached terms that it is made of."""

    total: Tensor
    terms: dict[str, Tensor]


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
    cross_entropy = F.cross_entropy(model(batch.images), batch.labels, label_smoothing=config.label_smoothing)
    return _sum_of(cross_entropy=cross_entropy)


def at_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Adversarial training (Madry et al. 2018): cross-entropy on the adversarial images. See `um_step`."""
    batch = source.batch(step)
    x_adv = _adversarial(model, batch, step, config, attack)
    cross_entropy = F.cross_entropy(model(x_adv), batch.labels, label_smoothing=config.label_smoothing)
    return _sum_of(cross_entropy=cross_entropy)


def alp_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Adversarial logit pairing (Kannan et al. 2018): AT, and the squared distance of the logits. See `um_step`."""
    batch = source.batch(step)
    x_adv = _adversarial(model, batch, step, config, attack)
    logits_adv = model(x_adv)
    logits_clean = model(batch.images)
    cross_entropy = F.cross_entropy(logits_adv, batch.labels, label_smoothing=config.label_smoothing)
    return _sum_of(
        cross_entropy=cross_entropy,
        logit_pairing=config.lambda_alp * logit_pairing_loss(logits_clean, logits_adv),
    )


def tla_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Triplet loss adversarial training (Algorithm 1 of the supplement). See `um_step`.

    Anchor, positive and negative are forwarded one after the other, each with its own batch statistics: one
    concatenated pass would be another algorithm.
    """
    # Line 3: a batch, and positives of the same classes.
    batch = source.batch(step)
    positive = source.positives(batch.labels, step)
    # Line 4: the attack maximises the cross-entropy alone.
    x_adv = _adversarial(model, batch, step, config, attack)
    # Line 5: the hardest negatives of a fresh pool, sought with batch norm in eval mode and without gradients.
    pool = source.pool(config.pool_size, step)
    with attack_mode(model), torch.inference_mode():
        path = resolve_layer(model, config.layer)
        frozen = fold_batch_norm(model, keep=dict(model.named_modules()).get(path))
        _, anchor_features = forward_with_layer(frozen, x_adv, config.layer)
        _, pool_features = forward_with_layer(frozen, pool.images, config.layer)
    chosen = hardest_negatives(anchor_features, batch.labels, pool_features, pool.labels)
    # Line 6: the loss; the clean images of the triplet carry uniform noise of size eps (supplement, C.1).
    logits, h_anchor = forward_with_layer(model, x_adv, config.layer)
    _, h_positive = forward_with_layer(model, _noisy(positive.images, attack.eps), config.layer)
    _, h_negative = forward_with_layer(model, _noisy(pool.images[chosen], attack.eps), config.layer)
    return _sum_of(
        cross_entropy=F.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing),
        triplet=config.lambda_triplet * triplet_loss(h_anchor, h_positive, h_negative, config.margin),
        norm=config.lambda_norm * norm_loss(h_anchor, h_positive, h_negative),
    )


STEPS = {"um": um_step, "at": at_step, "alp": alp_step, "tla": tla_step}


def _adversarial(model, batch, step: int, config: TrainConfig, attack: AttackConfig) -> Tensor:
    start = torch.Generator().manual_seed(derive_seed(config.seed, "attack", step))
    with attack_mode(model):  # batch norm in eval mode, for every method alike
        return run_attack(attack, model, batch.images, batch.labels, generator=start, indices=batch.indices, fold=True)


def _noisy(images: Tensor, eps: float) -> Tensor:
    return (images + (2 * torch.rand_like(images) - 1) * eps).clamp_(0, 1)


def _sum_of(**terms: Tensor) -> StepLoss:
    return StepLoss(sum(terms.values()), {name: term.detach() for name, term in terms.items()})
