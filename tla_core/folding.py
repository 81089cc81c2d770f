"""Folds batch norm into the layer before it, and pools before the ReLU, while the weights stay as they are.

An attack forwards one set of weights many times, so folding them once pays: it is 1.5 to 1.9 times as fast on one core
with the network of `mini` (`make bench`). Narrow residual networks gain 1.05 to 1.2 times: a
batch norm that comes first in its block reads a sum, and cannot be folded.
"""

import copy
import inspect
import itertools
import warnings
import weakref
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from tla_core.wrapping import Classifier

_FOLDS = {nn.Conv2d: (nn.BatchNorm2d, fuse_conv_bn_weights), nn.Linear: (nn.BatchNorm1d, fuse_linear_bn_weights)}
_NORMS = tuple(norm for norm, _ in _FOLDS.values())


class _Pair(NamedTuple):
    """Paths of a layer, of the batch norm that alone reads it, and of the modules left and entered between the two."""

    layer: str
    norm: str
    left: tuple[str, ...] = ()
    entered: tuple[str, ...] = ()


class _Pairs(NamedTuple):
    """The pairs of a network, and its modules and their flags when they were looked for."""

    layout: list[tuple[str, weakref.ref, tuple[bool, ...]]]
    pairs: list[_Pair]


# Network -> whether its folded weights may be in channels_last, for networks that gave the same when folded; and the
# number of images that have to show it.
_folds_equally: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()
_EVIDENCE = 32

# Tracing takes as long as many attack steps, and a training folds anew at each step.
_known_pairs: weakref.WeakKeyDictionary[nn.Module, _Pairs] = weakref.WeakKeyDictionary()


def fold_batch_norm(model: nn.Module, *, keep: nn.Module | None = None, channels_last: bool | None = None) -> nn.Module:
    """Return a model with the same outputs up to rounding, in which batch norm costs nothing.

    A convolution or linear layer whose output only a batch norm reads becomes one layer with it; all else is shared
    with the model, which is not changed. The pairs are found by tracing the model with torch.fx, once: a later call
    traces again only if modules or their flags (such as ``training``) have changed. In a model that cannot be traced
    the pairs are the neighbours in each ``nn.Sequential``. There, a max pool directly behind a ReLU changes places with
    it: both orders give the same values and gradients, and the ReLU has a quarter of the work. A model without pairs is
    returned as it is.

    Parameters
    ----------
    model : nn.Module
        In eval mode: folding uses the running statistics. Tracing runs its forward on a copy without data.
    keep : nn.Module, optional
        A module that keeps its output, since somebody reads it.
    channels_last : bool, optional
        Lay the folded weights out so, which is faster on a CPU. By default as the network has shown to
        `folded_if_equal` that it can do: one that flattens with ``.view`` cannot.

    Returns
    -------
    nn.Module
        Valid until the weights or statistics of the model change.

    Raises
    ------
    ValueError
        If the model is in training mode.
    """
    channels_last = _folds_equally.get(model, True) if channels_last is None else channels_last
    if isinstance(model, Classifier):
        folded = fold_batch_norm(model.model, keep=keep, channels_last=channels_last)
        return model if folded is model.model else model.around(folded)
    modules = dict(model.named_modules(remove_duplicate=False))
    compiled = any("_orig_mod" in module._modules for module in modules.values())  # its wrapper cannot be copied
    if compiled or not any(type(module) in _NORMS for module in modules.values()):
        return model
    if model.training:
        raise ValueError("only a model in eval mode can be folded: call model.eval() first, or use attack_mode.")
    replacements: dict[str, nn.Module] = {}
    with torch.no_grad():
        for pair in _pairs(model, modules):
            if not _is_read_between(pair, modules, keep) and _is_foldable(modules[pair.layer], modules[pair.norm]):
                replacements[pair.layer] = _fused(modules[pair.layer], modules[pair.norm], channels_last)
                replacements[pair.norm] = nn.Identity()
    if replacements:
        replacements |= _pools_first(modules, keep)
    return _with_replaced(model, replacements) if replacements else model


@torch.no_grad()
def folded_if_equal(model: nn.Module, x: Tensor, trusted: bool = False) -> nn.Module:
    """The folded model, or the model itself where images show that the two differ.

    They do in a network that reads what lies between a convolution and its batch norm, or that computes something else
    for some images than for those it was traced with. The gradients of another network would make an attack weaker than
    it is said to be, so outputs and input gradients of `_EVIDENCE` images, evenly spread over `x`, are compared.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    x : Tensor, (n, c, h, w), float32 in [0, 1]
    trusted : bool
        Do not ask again once the model has shown it: a training asks at its first step.

    Warns
    -----
    UserWarning
        Where they differ.
    """
    known = _folds_equally.get(model)
    folded = fold_batch_norm(model, channels_last=known)
    if folded is model or (trusted and known is not None):
        return folded
    for channels_last in (True, False):
        folded = fold_batch_norm(model, channels_last=channels_last)
        try:
            if not says_the_same(folded, model, x, gradients=True):
                return model
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of .view, which asks for another layout
            continue
        _folds_equally[model] = channels_last
        return folded
    return model


def says_the_same(folded: nn.Module, model: nn.Module, x: Tensor, *, gradients: bool = False) -> bool:
    """Whether `_EVIDENCE` images, evenly spread over `x`, have the same outputs in both, and input gradients.

    Outputs of every image must agree to a thousandth of its largest logit: rounding is a hundred times less. Where
    rounding decides about a ReLU, gradients differ, so one image in 16 may have another by more than 2 %.
    """
    x = x[torch.arange(min(len(x), _EVIDENCE), device=x.device) * len(x) // min(len(x), _EVIDENCE)].detach()
    with torch.autocast(x.device.type, enabled=False):  # rounded to 8 bits, no two networks are equal
        folded_logits, folded_gradient = _outputs(folded, x, gradients)
        logits, gradient = _outputs(model, x, gradients)
    size = logits.abs().amax(1, keepdim=True)
    different = ((folded_logits - logits).abs() > 1e-3 * size).any(1)
    different |= (folded_logits.isfinite() != logits.isfinite()).any(1)
    count, quantity = int(different.sum()), "outputs"
    if not count and gradient is not None and folded_gradient is not None:
        length = gradient.flatten(1).norm(dim=1)
        count = int(((folded_gradient - gradient).flatten(1).norm(dim=1) > 0.02 * length).sum())
        count, quantity = count if 16 * count > len(x) else 0, "input gradients"
    if count:
        warnings.warn(
            f"with batch norm folded the {quantity} of {count} of {len(x)} images differ, so the model is attacked as"
            " it is, which takes longer. The network computes something else than what it was traced as; fold=False"
            " says that this is known.",
            stacklevel=3,
        )
    return not count


def _outputs(network: nn.Module, x: Tensor, gradients: bool) -> tuple[Tensor, Tensor | None]:
    """Logits, and the gradient of a sum of them with other weights for each class, where there is one."""
    if not gradients:
        with torch.no_grad():
            return network(x).float(), None
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        logits = network(x).float()
        total = (logits * torch.arange(logits.shape[1], device=x.device).add(1).cos()).sum()
        slope = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    return logits.detach(), slope


# What folds -----------------------------------------------------------------------------------------------------------


def _may_fold(layer: nn.Module, norm: nn.Module) -> bool:
    return type(layer) in _FOLDS and type(norm) is _FOLDS[type(layer)][0]


def _is_foldable(layer: nn.Module, norm: nn.Module) -> bool:
    if norm.training or norm.running_mean is None:
        return False  # it normalises by the batch
    if layer._parameters.get("weight") is None:
        return False  # its weight is computed at each call, as by spectral norm
    return len(layer.weight) == norm.num_features  # the batch norm of (n, length, features) runs over the length


def _is_read_between(pair: _Pair, modules: dict[str, nn.Module], keep: nn.Module | None) -> bool:
    """Whether somebody reads or changes what lies between the two, or the gradient there."""
    left = [modules[path] for path in (pair.layer, *pair.left)]
    entered = [modules[path] for path in (pair.norm, *pair.entered)]
    norm = modules[pair.norm]
    return bool(
        any(module is keep or module._forward_hooks for module in left)
        or any(module._forward_pre_hooks for module in entered)
        or any(module._backward_hooks or module._backward_pre_hooks for module in (*left, *entered))
        or norm._forward_hooks
    )


def _fused(layer: nn.Module, norm: nn.Module, channels_last: bool) -> nn.Module:
    _, fuse = _FOLDS[type(layer)]
    weight, bias = fuse(layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if weight.ndim == 4 and channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    fused = copy.copy(layer)
    fused._parameters = {
        "weight": nn.Parameter(weight, requires_grad=False), "bias": nn.Parameter(bias, requires_grad=False),
    }  # fmt: skip
    return fused


def _pools_first(modules: dict[str, nn.Module], keep: nn.Module | None) -> dict[str, nn.Module]:
    """By path, a ReLU and a max pool in each other's places, where nobody reads or changes what lies between."""
    swapped = {}
    for path, module in modules.items():
        if type(module).forward is not nn.Sequential.forward:
            continue
        for name, following in itertools.pairwise(module._modules):
            relu, pool = module._modules[name], module._modules[following]
            if type(relu) is not nn.ReLU or type(pool) is not nn.MaxPool2d or pool.return_indices:
                continue
            hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
            if keep in (relu, pool) or any(getattr(each, kind) for each in (relu, pool) for kind in hooks):
                continue
            swapped[f"{path}.{name}".lstrip(".")] = pool
            swapped[f"{path}.{following}".lstrip(".")] = relu
    return swapped


def _with_replaced(model: nn.Module, replacements: dict[str, nn.Module]) -> nn.Module:
    """A copy with modules replaced; modules that hold none of them are shared."""
    copies: dict[str, nn.Module] = {}

    def copied(path: str) -> nn.Module:
        if path not in copies:
            parent, _, name = path.rpartition(".")
            copies[path] = copy.copy(copied(parent)._modules[name] if path else model)
            copies[path]._modules = dict(copies[path]._modules)
            if path:
                copied(parent)._modules[name] = copies[path]
        return copies[path]

    for path, module in replacements.items():
        parent, _, name = path.rpartition(".")
        copied(parent)._modules[name] = module
    return copies[""]


# Which pairs there are ------------------------------------------------------------------------------------------------


def _pairs(model: nn.Module, modules: dict[str, nn.Module]) -> list[_Pair]:
    known = _known_pairs.get(model)
    # A forward may depend on them.
    flags = [
        tuple(value for value in vars(module).values() if value is True or value is False)
        for module in modules.values()
    ]
    if known is None or not _is_unchanged(known.layout, modules, flags):
        # Weak references, since an id may be given to the module that takes another's place.
        layout = [
            (path, weakref.ref(module), its_flags)
            for (path, module), its_flags in zip(modules.items(), flags, strict=True)
        ]
        pairs = _traced_pairs(model, modules)
        known = _Pairs(layout, _neighbouring_pairs(modules) if pairs is None else pairs)
        _known_pairs[model] = known
    return known.pairs


def _is_unchanged(layout: list, modules: dict[str, nn.Module], flags: list[tuple[bool, ...]]) -> bool:
    return len(layout) == len(modules) and all(
        path == known_path and module is known() and its_flags == known_flags
        for (path, module), its_flags, (known_path, known, known_flags) in zip(
            modules.items(), flags, layout, strict=True
        )
    )


def _neighbouring_pairs(modules: dict[str, nn.Module]) -> list[_Pair]:
    return [
        _Pair(f"{path}.{name}".lstrip("."), f"{path}.{following}".lstrip("."))
        for path, module in modules.items()
        if type(module).forward is nn.Sequential.forward
        for name, following in itertools.pairwise(module._modules)
        if _may_fold(module._modules[name], module._modules[following])
    ]


def _traced_pairs(model: nn.Module, modules: dict[str, nn.Module]) -> list[_Pair] | None:
    """The pairs of which each module is registered at one place and called once; None if the model cannot be traced."""
    places = Counter(id(module) for module in modules.values())
    graph = _traced(model)
    if graph is None:
        return None
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    # A module whose weight or statistics are read from outside, as tied weights are, must keep them.
    outside_reads = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and len(node.args) == 1 and not node.kwargs else None
        if not isinstance(source, Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        pair = source.target, node.target
        is_alone = all(
            calls[path] == 1 and places[id(modules[path])] == 1 and path not in outside_reads for path in pair
        )
        if is_alone and _may_fold(*(modules[path] for path in pair)):
            pairs.append(_Pair(*pair, _holding_only(*pair), _holding_only(*reversed(pair))))
    return pairs


def _holding_only(path: str, other: str) -> tuple[str, ...]:
    """Paths of the modules that hold `path` and not `other`."""
    parents = list(itertools.accumulate(path.split(".")[:-1], lambda outer, name: f"{outer}.{name}"))
    return tuple(parent for parent in parents if not other.startswith(f"{parent}."))


class _FoldingTracer(Tracer):
    proxy_buffer_attributes = True  # an update in place is recorded, and not carried out

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        # What holds nothing to fold may do what it likes inside, such as check the shape of its input.
        holds = any(type(part) in _FOLDS or type(part) in _NORMS for part in module.modules())
        return not holds or super().is_leaf_module(module, path)


def _traced(model: nn.Module) -> Graph | None:
    """The graph of a model's forward with its other arguments at their defaults; None if there is none."""
    if "forward" in vars(model):
        return None  # the tracer reads the class's
    device = next((tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), None)
    devices = [device] if device is not None and device.type == "cuda" else []
    try:
        arguments = list(inspect.signature(model.forward).parameters.values())[1:]
        defaults = {each.name: each.default for each in arguments if each.default is not each.empty}
        with torch.random.fork_rng(devices=devices):
            return _FoldingTracer().trace(_bare_copy(model, {}), defaults or None)
    except Exception:  # whatever the user's forward raises when it is handed no numbers
        return None


def _bare_copy(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy to trace: without hooks, with the parameters of the model, its own buffers, flags and containers."""
    if module in copies:
        return copies[module]
    bare = copies[module] = copy.copy(module)
    for name, value in vars(bare).items():
        if isinstance(value, (dict, list, set)):
            vars(bare)[name] = copy.copy(value)
    for hooks in (bare._forward_hooks, bare._forward_pre_hooks, bare._backward_hooks, bare._backward_pre_hooks):
        hooks.clear()
    for name, value in bare._buffers.items():
        bare._buffers[name] = value.clone() if isinstance(value, Tensor) else value
    bare._modules = {
        name: None if child is None else _bare_copy(child, copies) for name, child in module._modules.items()
    }
    return bare
