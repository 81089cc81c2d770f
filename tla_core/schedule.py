"""Learning rate, attack, optimizer and held-out images of a training, as pure functions of its settings."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tla_core.attack_config import AttackConfig
from tla_core.config import TrainConfig
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


_WITH_WEIGHTS = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.MultiheadAttention,
)  # fmt: skip


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum.

    Weight decay is on the weights of linear layers, convolutions and the projections of attention alone (classes
    derived from torch's own included), and on what a weight is computed from where it is parametrised, as by
    `torch.nn.utils.parametrizations.weight_norm`. Biases, norms, embeddings, recurrent layers and a network's own
    parameters, such as a class token, have none.
    """
    decayed = {id(p) for module in model.modules() if isinstance(module, _WITH_WEIGHTS) for p in _weights(module)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)


def _weights(layer: nn.Module) -> Iterator[nn.Parameter]:
    """``weight`` or ``in_proj_weight``, or what torch stores in its place: ``weight_g``, ``original0`` and so on."""
    stored = dict(layer.named_parameters(recurse=False))
    for name, parts in getattr(layer, "parametrizations", {}).items():
        stored |= {f"{name}.{part}": value for part, value in parts.named_parameters(recurse=False)}
    return (value for name, value in stored.items() if "weight" in name)


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
    rows_by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    rank = torch.empty(len(labels), dtype=torch.int64)
    rank[rows_by_class] = torch.arange(len(labels)) - starts
    held_out_ranks = torch.argsort(rank, stable=True)[:n_holdout]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[held_out_ranks] = True
    emptied = torch.bincount(labels[mask], minlength=len(sizes)) == sizes
    emptied = (emptied & (sizes > 0)).nonzero()[:, 0].tolist()
    if emptied:
        raise ValueError(
            f"holdout {n_holdout} would leave no image of class {emptied[0]} to train on, which has"
            f" {sizes[emptied[0]]}. Hold out fewer."
        )
    return (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
