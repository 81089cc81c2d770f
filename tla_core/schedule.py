"""What a step is made with, as pure functions of the settings: learning rate, attack, optimizer, held-out images."""

import math

import torch
from torch import Tensor, nn

from tla_core.config import AttackConfig, TrainConfig
from tla_core.runtime import derive_seed


def learning_rate(config: TrainConfig, share: float) -> float:
    """The learning rate after a share of the training, in [0, 1)."""
    if config.schedule == "steps":
        return config.learning_rate * 0.1 ** sum(share >= milestone for milestone in config.milestones)
    if config.schedule == "constant":
        return config.learning_rate
    if share < config.warmup:
        return config.learning_rate * (0.04 + 0.96 * share / config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (share - config.warmup) / (1 - config.warmup)))


def ramped_attack(config: TrainConfig, step: int, total_steps: int) -> AttackConfig:
    """The training attack at a step: eps and step size grow linearly over the first `eps_ramp` of the training."""
    share = (step + 1) / (config.eps_ramp * total_steps) if config.eps_ramp and config.attack.eps else 1.0
    return config.attack if share >= 1 else config.attack.scaled(config.attack.eps * share)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum; weight decay only on weights of two and more dimensions (conv and linear)."""
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)


def split_holdout(labels: Tensor, n_holdout: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split training indices into those that are trained on and those held out, balanced over the classes.

    Parameters
    ----------
    labels : Tensor, (n,)
    n_holdout, seed : int

    Returns
    -------
    kept, held_out : Tensor, int64
        Both in ascending order.

    Raises
    ------
    ValueError
        If nothing would be left to train on, of all classes or of one.
    """
    if n_holdout >= len(labels):
        raise ValueError(f"holdout must be less than the {len(labels)} training images. Got {n_holdout}.")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derive_seed(seed, "holdout")))
    # Rank of each image within its class, in random order: taking the lowest ranks takes from all classes alike.
    by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    rank = torch.empty(len(labels), dtype=torch.int64)
    rank[by_class] = torch.arange(len(labels)) - starts
    chosen = torch.argsort(rank, stable=True)[:n_holdout]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[chosen] = True
    emptied = torch.bincount(labels[mask], minlength=len(sizes)) == sizes
    emptied = (emptied & (sizes > 0)).nonzero()[:, 0].tolist()
    if emptied:
        raise ValueError(
            f"holdout {n_holdout} would leave no image of class {emptied[0]} to train on, which has"
            f" {sizes[emptied[0]]}. Hold out fewer."
        )
    return (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
