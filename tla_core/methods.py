"""One training step of each method: attack, mine, loss. Each reads like its algorithm box.

A step returns its loss with the graph attached; the training loop differentiates it and updates the weights.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tla_core.attack_config import AttackConfig
from tla_core.attacks import attack_mode, run_attack
from tla_core.batches import Batch, BatchSource
from tla_core.collapse import Triplets
from tla_core.config import TrainConfig
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


def as_step_loss(terms: StepLoss | Mapping[str, Tensor]) -> StepLoss:
    """The loss of a step that returns its terms by their names.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For a term that is no single number, and where no gradient leads from any of them.
    """
    if isinstance(terms, StepLoss):
        return terms
    if not isinstance(terms, Mapping) or not terms or not all(isinstance(each, Tensor) for each in terms.values()):
        raise TypeError(
            'a training step must return its terms by their names, such as {"cross_entropy": loss}, whose sum is the'
            f" loss. Got {type(terms).__name__}."
        )
    for name, term in terms.items():
        if term.numel() != 1:
            raise ValueError(
                f"the term {name!r} of a training step must be one number, such as a mean over the batch. Got the shape"
                f" {tuple(term.shape)}."
            )
    if not any(term.requires_grad for term in terms.values()):
        raise ValueError(
            f"no gradient leads from the terms of a training step to anything, {', '.join(map(repr, terms))}: compute"
            " them from the model's outputs, without detaching these."
        )
    return StepLoss(sum(terms.values()), {name: term.detach() for name, term in terms.items()})


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
    return as_step_loss({"cross_entropy": _cross_entropy(model(batch.images), batch, config)})


def at_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Adversarial training (Madry et al. 2018): cross-entropy on the adversarial images. See `um_step`."""
    batch = source.batch(step)
    x_adv = _adversarial(model, batch, step, config, attack)
    return as_step_loss({"cross_entropy": _cross_entropy(model(x_adv), batch, config)})


def alp_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Adversarial logit pairing (Kannan et al. 2018): AT, and the squared distance of the logits. See `um_step`."""
    batch = source.batch(step)
    x_adv = _adversarial(model, batch, step, config, attack)
    logits_adv = model(x_adv)
    with _clean_passes(model, config):
        logits_clean = model(batch.images)
    return as_step_loss(
        {
            "cross_entropy": _cross_entropy(logits_adv, batch, config),
            "logit_pairing": config.lambda_alp * logit_pairing_loss(logits_clean.float(), logits_adv.float()),
        }
    )


def tla_step(model: nn.Module, source: BatchSource, step: int, config: TrainConfig, attack: AttackConfig) -> StepLoss:
    """Triplet loss adversarial training, line by line Algorithm 1 of the supplement. See `um_step`.

    Anchor, positive and negative are forwarded one after the other, each with its own batch statistics: one
    concatenated pass would be another algorithm. The variants of the paper and of the released code are choices within
    a line, and stand in the function that the line calls.
    """
    # Line 3: a minibatch, and clean images of the same classes.
    batch = source.batch(step)
    positives = _positives(source, batch, step, config)
    # Line 4: the adversarial images. The attack maximises the cross-entropy alone.
    x_adv = _adversarial(model, batch, step, config, attack)
    # Line 5: a fresh pool, and in it the negative of each image.
    pool = source.pool(config.pool_size, step)
    negatives = pool.images[_negatives(model, x_adv, positives, batch.labels, pool, step, config)]
    # Line 6: the loss on these images.
    logits, h_adv = _forward(model, x_adv, config.layer)
    h_clean = _clean_representations(model, positives, negatives, attack.eps, config)
    triplets = _triplets(h_adv, h_clean, config)
    triplet_term = norm_term = torch.zeros((), device=logits.device)
    for anchor, positive, negative, _, margin in triplets:
        triplet_term = triplet_term + config.lambda_triplet * triplet_loss(anchor, positive, negative, margin)
        norm_term = norm_term + _norm_term(anchor, positive, negative, config)
    terms = {"cross_entropy": _cross_entropy(logits, batch, config), "triplet": triplet_term, "norm": norm_term}
    if config.lambda_feature:
        terms["feature_pairing"] = config.lambda_feature * logit_pairing_loss(h_clean["own"], h_adv)
    detached = tuple(Triplets(*(h.detach() for h in triplet[:-1]), triplet.margin) for triplet in triplets)
    return replace(as_step_loss(terms), triplets=detached)


STEPS = {
    "um": um_step, "at": at_step, "alp": alp_step, "tla": tla_step, "tla-rn": tla_step, "tla-sa": tla_step,
}  # fmt: skip


def _adversarial(model: nn.Module, batch: Batch, step: int, config: TrainConfig, attack: AttackConfig) -> Tensor:
    start = torch.Generator().manual_seed(derive_seed(config.seed, "attack", step))
    with attack_mode(model):  # batch norm in eval mode, for every method alike
        return run_attack(
            attack, model, batch.images, batch.labels, generator=start, indices=batch.indices, fold=True, trusted=True
        )


def _positives(source: BatchSource, batch: Batch, step: int, config: TrainConfig) -> dict[str, Tensor]:
    """``"class"``: random clean images of the same classes; ``"own"``: those of the batch, as in the released code."""
    images = {}
    if config.positives != "own":
        images["class"] = source.positives(batch.labels, step).images
    if config.positives != "class":
        images["own"] = batch.images
    return images


def _negatives(
    model: nn.Module, x_adv: Tensor, positives: dict[str, Tensor], labels: Tensor, pool: Batch, step: int,
    config: TrainConfig,
) -> Tensor:  # fmt: skip
    """Positions in the pool: random ones for tla-rn, otherwise those that are hardest or semi-hard.

    Representations are compared with batch norm in eval mode and without gradients.
    """
    if config.method == "tla-rn":
        draws = torch.Generator().manual_seed(derive_seed(config.seed, "negatives", step))
        return share_of_rows(random_negatives(gather_rows(labels), pool.labels, generator=draws))
    clean = list(positives.values())
    anchors, others = (clean[0], [x_adv]) if config.method == "tla-sa" else (x_adv, clean)
    with attack_mode(model), torch.inference_mode():
        layer = find_layer(model, config.layer, anchors)
        folded = fold_batch_norm(model, keep=dict(core(model).named_modules()).get(layer.path))
        _, h_anchors = _forward(folded, anchors, layer)
        # Each rank represents its share of the pool; the negatives are sought in the whole of it.
        h_pool = gather_rows(_forward(folded, share_of_rows(pool.images), layer)[1])
        if config.negatives == "semi-hard":
            h_positives = [_forward(folded, images, layer)[1] for images in others]
            return semi_hard_negatives(h_anchors, labels, h_pool, pool.labels, h_positives, metric=config.mining)
        return hardest_negatives(h_anchors, labels, h_pool, pool.labels, metric=config.mining)


def _clean_representations(
    model: nn.Module, positives: dict[str, Tensor], negatives: Tensor, eps: float, config: TrainConfig
) -> dict[str, Tensor]:
    """The representations of the positives and the ``"negative"``, with uniform noise of size eps (supplement, C.1).

    In the released code only the batch's own images have noise.
    """
    images = positives | {"negative": negatives}
    representations = {}
    with _clean_passes(model, config):
        for kind in ("class", "negative", "own"):  # the order in which noise is drawn and running statistics move
            if kind in images:
                x = _noisy(images[kind], eps if config.noise == "triplet" or kind == "own" else 0.0)
                _, representations[kind] = _forward(model, x, config.layer)
    return representations


def _triplets(h_adv: Tensor, h_clean: dict[str, Tensor], config: TrainConfig) -> list[Triplets]:
    """One for each kind of positives. The anchor is the adversarial image; tla-sa swaps it with the positive."""
    margins = {"class": config.margin, "own": config.margin * config.own_margin_factor}
    triplets = []
    for kind, margin in margins.items():
        if kind in h_clean:
            anchor, positive = (h_clean[kind], h_adv) if config.method == "tla-sa" else (h_adv, h_clean[kind])
            triplets.append(Triplets(anchor, positive, h_clean["negative"], h_clean[kind], margin))
    return triplets


def _norm_term(anchor: Tensor, positive: Tensor, negative: Tensor, config: TrainConfig) -> Tensor:
    """The weighted norm term, of the paper or of the released code."""
    if config.norm_term == "l2":
        return config.lambda_norm * norm_loss(anchor, positive, negative)
    return config.lambda_triplet * config.lambda_norm * mean_square_norm_loss(anchor, positive, negative)


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
