"""Reads representations, the outputs of any layers, out of any model, in the same forward pass as its logits.

A layer is named as in ``model.named_modules()``. Behind the name ``#2`` means its second call in a forward, and
``:cls``, ``:mean``, ``:max`` or ``:flatten`` say how tokens or a spatial map become one vector.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tla_core.modes import attack_mode
from tla_core.penultimate import NotFoundError, Recorder, candidates, find_penultimate
from tla_core.taps import Captured, Tap, tapped, tensors_in
from tla_core.validation import as_images
from tla_core.wrapping import as_classifier, core, is_exported, see_through

REDUCTIONS = ("cls", "mean", "max", "flatten")
_LOGITS = Tap("", "logits")


def forward_with_layer(model: nn.Module, x: Tensor, layer: str | Tap = "penultimate") -> tuple[Tensor, Tensor]:
    """Run the model once and return its logits and the representation of one layer.

    Parameters
    ----------
    model : nn.Module
    x : Tensor, (n, c, h, w), float32 in [0, 1]
    layer : str or Tap
        ``"penultimate"`` is what enters the classification head (`tla_core.penultimate`); ``"logits"`` the model's
        output; otherwise a name of the model's own ``layer_names``, or a module path as in ``model.named_modules()``.
        ``"relu#2"`` is the second of several calls (the last one by default). ``"encoder.ln:cls"`` takes the first of
        the tokens (n, tokens, d); ``":mean"`` and ``":max"`` are those over the tokens, or over the places of a spatial
        map, (n, c, h, w), or (n, h, w, c) where h = w and not c; ``":flatten"``, the default of named layers, keeps
        all.

    Returns
    -------
    logits : Tensor, (n, classes)
    representation : Tensor, (n, d)

    Raises
    ------
    ValueError
        If there is no such layer (the nearest names are listed), it is not executed, or its output is not one vector,
        tokens or a feature map for each image; if what enters the head cannot be told.
    """
    tap = layer if isinstance(layer, Tap) else find_layer(model, layer, x)
    logits, readings = forward_with_layers(model, x, [tap])
    return logits, readings[0].features


@dataclass(frozen=True)
class Reading:
    """One representation: its vectors (n, d), how often its place was passed, what they are, and of how many tokens."""

    features: Tensor
    calls: int
    description: str
    tokens: int = 0


def forward_with_layers(model: nn.Module, x: Tensor, taps: Sequence[Tap]) -> tuple[Tensor, list[Reading]]:
    """Run the model once and return its logits and the representation at each of several places (`find_layer`)."""
    inner = [tap for tap in taps if tap.side != "logits"]
    with tapped(model, inner) as captured:
        logits = model(x)
    reads = iter(captured)
    readings = []
    for tap in taps:
        each = Captured(logits, 1, read=True) if tap.side == "logits" else next(reads)
        readings.append(_reading(tap, each, len(x)))
    return logits, readings


def find_layer(model: nn.Module, layer: str, x: Tensor) -> Tap:
    """Where in a forward a layer is read; ValueError as in `forward_with_layer`.

    Parameters
    ----------
    model : nn.Module
    layer : str
    x : Tensor, (n, c, h, w), float32 in [0, 1]
        Images to find the penultimate layer by.
    """
    path, call, reduction = _parsed(model, layer)
    if path == "logits":
        return replace(_LOGITS, reduction=reduction)
    if path != "penultimate":
        return Tap(path, call=call, reduction=reduction)
    try:
        tap = find_penultimate(model, x)
    except NotFoundError as error:
        names = ", ".join(candidates(model, x)) or "none that can be read from Python"
        raise ValueError(
            f"what enters the classification head of {type(core(model)).__name__} cannot be told: {error} Name a layer;"
            f" those that ran last, with the shapes of their outputs: {names}."
        ) from error
    return replace(tap, reduction=reduction or tap.reduction)


def resolve_layer(model: nn.Module, layer: str) -> str:
    """A layer's name as the model inside all wrappers has it; ValueError if there is none."""
    path, call, reduction = _parsed(model, layer)
    return path + (f"#{call}" if call else "") + (f":{reduction}" if reduction else "")


def _parsed(model: nn.Module, layer: str) -> tuple[str, int, str]:
    """The path of a layer, which call of it (0: the last) and the reduction that is asked for ("": none)."""
    inside = core(model)
    own_names = getattr(inside, "layer_names", {})
    paths = [name for name, _ in inside.named_modules() if name]
    rest, _, reduction = str(layer).partition(":")
    name, _, call = rest.partition("#")
    if reduction not in ("", *REDUCTIONS):
        raise ValueError(f"the layer {layer!r} ends in :{reduction}. Expected one of :{', :'.join(REDUCTIONS)}.")
    if "#" in rest and (not call.isdigit() or int(call) < 1):
        raise ValueError(f"the layer {layer!r} must name a call by its number from 1, as in '{name}#2'. Got #{call}.")
    path = own_names.get(name, name)
    if path not in ("penultimate", "logits", *paths):
        path = _without_wrappers(model, path)
    if path not in ("penultimate", "logits", *paths):
        known = ["penultimate", "logits", *own_names, *paths]
        nearest = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or known[:10]
        nearest = ", ".join(dict.fromkeys(nearest))
        raise ValueError(f"the model has no layer {name!r}. The nearest names are: {nearest}.")
    if path in ("penultimate", "logits") and call:
        raise ValueError(f"{path} is one place: leave out #{call}.")
    if path not in ("penultimate", "logits") and (isinstance(inside, torch.jit.ScriptModule) or is_exported(inside)):
        kind = "an exported program" if is_exported(inside) else "a scripted or traced model"
        raise ValueError(
            f"the layer {name!r} of {kind} is not called as a module, so that it cannot be read. Take"
            " layer='penultimate' or 'logits', or pass the model that it was made from."
        )
    return path, int(call or 0), reduction


def _without_wrappers(model: nn.Module, path: str) -> str:
    """A path as the names of a compiled, parallel or wrapped model have it, as one in the model inside."""
    inside = core(model)
    for prefix, module in model.named_modules():
        if prefix and module is inside and path.startswith(f"{prefix}."):
            return path[len(prefix) + 1 :]
    while path.startswith(("model.", "module.", "_orig_mod.")):
        path = path.partition(".")[2]
    return path


# One vector for each image --------------------------------------------------------------------------------------------


def _reading(tap: Tap, captured: Captured, n: int) -> Reading:
    name = "logits" if tap.side == "logits" else tap.path
    if not captured.read:
        if captured.calls:
            raise ValueError(f"the layer {name!r} ran {captured.calls} times: there is no call {tap.call}.")
        raise ValueError(f"the layer {name!r} was not executed in the forward pass.")
    output = captured.value
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != n:
        shape = tuple(output.shape) if isinstance(output, Tensor) else output
        raise ValueError(
            f"the output of the layer {name!r} must be one vector or feature map for each of the {n} images. Got"
            f" {shape}; choose another module path."
        )
    last = captured.channels_last if tap.channels_last is None else tap.channels_last
    features, reduction_words = _one_vector(output, tap.reduction, last, name)
    description = ("the logits" if tap.side == "logits" else str(tap)) + reduction_words
    return Reading(features, captured.calls, description, output.shape[1] if output.ndim == 3 else 0)


def _one_vector(output: Tensor, reduction: str, channels_last: bool | None, name: str) -> tuple[Tensor, str]:
    """Tokens or a spatial map as (n, d), and in words what was done."""
    shape = tuple(output.shape[1:])
    if output.ndim == 2:
        if reduction in ("cls", "mean", "max"):
            raise ValueError(f"the layer {name!r} gives one vector for each image, {shape}: leave out :{reduction}.")
        return output, ""
    if reduction in ("", "flatten"):
        return output.flatten(1), f", {shape} flattened"
    if reduction == "cls":
        if output.ndim != 3:
            raise ValueError(f"the layer {name!r} gives no tokens (n, tokens, d). Got {shape} for an image.")
        return output[:, 0], f", the first of {shape[0]} tokens"
    if channels_last is None:
        square = output.ndim == 4 and shape[0] == shape[1] != shape[2]
        channels_last = output.ndim == 3 or square
    over = tuple(range(1, output.ndim - 1)) if channels_last else tuple(range(2, output.ndim))
    features = output.mean(over) if reduction == "mean" else output.amax(over)
    places = " x ".join(str(output.shape[dim]) for dim in over)
    return features, f", {reduction} over {places} of {shape}"


# What there is --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A module that ran: its path, class, number of calls, and the shape of its last output for one image."""

    path: str
    kind: str
    calls: int
    shape: tuple[int, ...] | None


class LayerList(list[Layer]):
    """The layers of a model in the order in which they ran; its text is a table.

    Attributes
    ----------
    penultimate : str
        What enters the classification head, or why that cannot be told.
    """

    def __init__(self, layers: Sequence[Layer], penultimate: str) -> None:
        super().__init__(layers)
        self.penultimate = penultimate

    def __repr__(self) -> str:
        rows = [("layer", "class", "calls", "output of one image")]
        rows += [(each.path, each.kind, str(each.calls), str(each.shape or "no tensor")) for each in self]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
                 for row in rows]  # fmt: skip
        return "\n".join([f"penultimate: {self.penultimate}", *lines])


def list_layers(model: nn.Module, image: Tensor) -> LayerList:
    """Which layers a model has, and what they give for an image; the text of the result is a table.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode and left as it was found.
    image : Tensor or ndarray, (c, h, w) or (1, c, h, w)
        uint8, or float32 in [0, 1].

    Returns
    -------
    LayerList
        Names to give to ``layer=``. Tokens (tokens, d) and spatial maps (c, h, w) become one vector by ``":cls"``,
        ``":mean"``, ``":max"`` or ``":flatten"`` behind the name; of several calls ``"#2"`` is the second.

    Raises
    ------
    TypeError, ValueError
        For a bad image, or a model that does not take it.
    """
    x = as_images(image[None] if image.ndim == 3 else image, device=model_device(model))[:1]
    model = as_classifier(model, x)
    try:
        tap = find_layer(model, "penultimate", x)
        with attack_mode(model), torch.no_grad():
            reading = forward_with_layers(model, x, [tap])[1][0]
        penultimate = f"{reading.description}: {reading.features.shape[1]} numbers"
    except ValueError as error:
        penultimate = str(error)
    with attack_mode(model), torch.no_grad():
        calls = [call for call in Recorder(model, x).calls if call.path]
    layers = {}
    for call in calls:
        tensors = tensors_in(call.outputs)
        shape = tuple(tensors[0].shape[1:]) if len(tensors) == 1 else None
        layers[call.path] = Layer(call.path, type(call.module).__name__, call.number, shape)
    return LayerList(list(layers.values()), penultimate)


# A model's state ------------------------------------------------------------------------------------------------------


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Put batch norm's running statistics back after the block. In training mode it still normalises by the batch.

    The block moves copies of the statistics, since a graph that is not differentiated yet may hold the originals.
    """
    statistics = [(module, dict(module._buffers)) for module in model.modules() if hasattr(module, "running_mean")]
    for module, buffers in statistics:
        module._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for module, buffers in statistics:
            module._buffers.update(buffers)


def model_device(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    model = model if isinstance(model, nn.Module) else see_through(model)
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
