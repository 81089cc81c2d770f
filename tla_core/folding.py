"""Folds batch norm into the layer before it, for as long as the weights stand still.

An attack forwards one set of weights many times, so what can be multiplied once should be: 1.5 to 1.9 times as fast on
one core and the network of `mini` (benchmarks/attack_gradient.py).
"""

import copy
import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

_FOLDS = {nn.Conv2d: (nn.BatchNorm2d, fuse_conv_bn_eval), nn.Linear: (nn.BatchNorm1d, fuse_linear_bn_eval)}


def fold_batch_norm(model: nn.Module, *, keep: nn.Module | None = None) -> nn.Module:
    """Return a model with the same outputs up to rounding, in which batch norm costs nothing.

    A convolution or linear layer directly followed by batch norm in an ``nn.Sequential`` becomes one layer; all else is
    shared with the model, which is not changed. A model without such pairs is returned as it is.

    Parameters
    ----------
    model : nn.Module
        In eval mode: folding uses the running statistics.
    keep : nn.Module, optional
        A layer that is not folded, since somebody reads its output.

    Returns
    -------
    nn.Module
        Valid until the weights or statistics of the model change.

    Raises
    ------
    ValueError
        If the model is in training mode.
    """
    if model.training:
        raise ValueError("only a model in eval mode can be folded: call model.eval() first, or use attack_mode.")
    with torch.no_grad():
        return _folded(model, keep)


def _folded(module: nn.Module, keep: nn.Module | None) -> nn.Module:
    # Not named_children(), which leaves out None, and a module that occurs a second time.
    before = module._modules
    children = {name: None if child is None else _folded(child, keep) for name, child in before.items()}
    if type(module).forward is nn.Sequential.forward:
        _fold_neighbours(children, keep)
    if all(children[name] is before[name] for name in before):
        return module
    clone = copy.copy(module)
    clone._modules = children
    return clone


def _fold_neighbours(children: dict[str, nn.Module | None], keep: nn.Module | None) -> None:
    for name, following in itertools.pairwise(list(children)):
        layer, norm = children[name], children[following]
        norm_type, fuse = _FOLDS.get(type(layer), (None, None))
        if norm_type is None or type(norm) is not norm_type or norm.running_mean is None or norm.training:
            continue
        if layer is keep or layer._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks:
            continue  # somebody reads what lies between the two
        fused = fuse(layer, norm)
        for parameter in fused.parameters():
            parameter.requires_grad_(False)
        children[name] = fused.to(memory_format=torch.channels_last) if isinstance(fused, nn.Conv2d) else fused
        children[following] = nn.Identity()
