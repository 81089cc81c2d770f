"""Reads a representation, the output of any layer, out of any model, in the same forward pass as its logits."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def forward_with_layer(model: nn.Module, x: Tensor, layer: str = "penultimate") -> tuple[Tensor, Tensor]:
    """Run the model once and return its logits and the representation of one layer.

    Parameters
    ----------
    model : nn.Module
    x : Tensor, (n, c, h, w), float32 in [0, 1]
    layer : str
        ``"penultimate"`` is the input of the last ``nn.Linear`` that was executed; ``"logits"`` the model's output;
        otherwise a name of the model's own ``layer_names``, or a module path as in ``model.named_modules()``.

    Returns
    -------
    logits : Tensor, (n, classes)
    representation : Tensor, (n, d)
        Spatial output is flattened.

    Raises
    ------
    ValueError
        If there is no such layer (the nearest names are listed), it is not executed, or its output is not one vector
        or feature map per image.
    """
    path = resolve_layer(model, layer)
    if path == "logits":
        logits = model(x)
        return logits, _flatten(logits, len(x), layer)
    with _captured(model, path) as captured:
        logits = model(x)
    if not captured:
        raise ValueError(
            f"the layer {layer!r} was not executed in the forward pass"
            + ("; the model has no nn.Linear: pass a module path instead." if path == "penultimate" else ".")
        )
    return logits, _flatten(captured[-1], len(x), layer)


def resolve_layer(model: nn.Module, layer: str) -> str:
    """Translate a layer's name into ``"penultimate"``, ``"logits"`` or a module path; ValueError if there is none."""
    own_names = getattr(model, "layer_names", {})
    path = own_names.get(layer, layer)
    if path in ("penultimate", "logits"):
        return path
    paths = [name for name, _ in model.named_modules() if name]
    if path in paths:
        return path
    known = ["penultimate", "logits", *own_names, *paths]
    nearest = difflib.get_close_matches(str(layer), known, n=5, cutoff=0.4) or known[:10]
    raise ValueError(f"the model has no layer {layer!r}. The nearest names are: {', '.join(dict.fromkeys(nearest))}.")


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Put batch norm's running statistics back after the block. In training mode it still normalises by the batch.

    The block moves copies of the statistics, since a graph that is not differentiated yet may hold the originals.
    """
    kept = [(module, dict(module._buffers)) for module in model.modules() if hasattr(module, "running_mean")]
    for module, buffers in kept:
        module._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


@contextmanager
def _captured(model: nn.Module, path: str):
    """Collect the outputs of a module, or the inputs of every linear layer, while the block runs."""
    captured: list[Tensor] = []

    def keep_output(module: nn.Module, args: tuple, output: object) -> None:
        # An in-place ReLU after the layer would overwrite what was captured.
        captured.append(output.clone() if isinstance(output, Tensor) else output)

    def keep_input(module: nn.Module, args: tuple) -> None:
        captured[:] = args[:1]

    handles = (
        [m.register_forward_pre_hook(keep_input) for m in model.modules() if isinstance(m, nn.Linear)]
        if path == "penultimate"
        else [model.get_submodule(path).register_forward_hook(keep_output)]
    )
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _flatten(output: object, n: int, layer: str) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != n:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the output of the layer {layer!r} must be one vector or feature map for each of the {n} images. Got {got}"
            "; choose another module path."
        )
    return output.flatten(1)


def model_device(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
