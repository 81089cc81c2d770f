"""Finds what enters the classification head, whatever the head is, by following the logits back.

Every function of torch that a forward of two images calls is written down, with the tensors that it reads and gives.
From the logits backwards, the head is the first that brings weights in: a linear layer, a 1x1 convolution, the
similarity or the distance to prototypes; what lies behind it, such as pooling, a scale or a bias, brings in none. The
logits show whether that is right: if what enters the head is exchanged between the two images, so must the logits be.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tla_core.modes import attack_mode
from tla_core.taps import Tap, function_name, tapped, tensors_in, watch
from tla_core.wrapping import core

# Functions that bring weights in with a data tensor, by parts of their names.
_CONTRACTIONS = ("linear", "conv", "mm", "matmul", "cdist", "einsum", "tensordot")
_LAYOUT = tuple[tuple[str, weakref.ref], ...]
_known: weakref.WeakKeyDictionary[nn.Module, tuple[_LAYOUT, Tap]] = weakref.WeakKeyDictionary()


class _Event(NamedTuple):
    """One call of a function: what of it depends on the images, and what does not."""

    name: str
    data: list[Tensor]
    constants: list[Tensor]
    outputs: list[Tensor]
    position: dict[int, int]  # id of a tensor -> its place among all
    call: int  # of the innermost module that runs
    has_weights: bool


@dataclass
class Call:
    """One call of a module: what it is given and returns, and between which events it ran."""

    path: str
    module: nn.Module
    number: int
    inputs: list[Tensor]
    start: int
    outputs: Any = None
    end: int = -1
    parents: list[int] = field(default_factory=list)


class NotFoundError(ValueError):
    """What enters the head cannot be told."""


def find_penultimate(model: nn.Module, x: Tensor) -> Tap:
    """Where to read what enters the classification head; kept for as long as the model's modules stay what they are.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] -> logits. Run in eval mode, and left as it was.
    x : Tensor, (n, c, h, w), float32 in [0, 1]
        The passes are made with the first image and its negative.

    Raises
    ------
    NotFoundError
        If there is no head, or several.
    """
    inside = core(model)
    layout = tuple((path, weakref.ref(module)) for path, module in inside.named_modules(remove_duplicate=False))
    if inside in _known and _known[inside][0] == layout:
        return _known[inside][1]
    first = x[:1].detach()
    pair = torch.cat([first, 1 - first])
    reasons = []
    devices = [x.device] if x.device.type == "cuda" else []
    with attack_mode(model), torch.random.fork_rng(devices=devices), torch.no_grad():
        # Below Python are scripted modules and functions with their own gradient.
        for side in ("function", "operation"):
            record = Recorder(model, pair, side)
            try:
                tap = _tap(record, side)
                _verify(model, pair, tap, record.logits)
            except NotFoundError as error:
                reasons.append(str(error))
                continue
            _known[inside] = (layout, tap)
            return tap
    raise NotFoundError(reasons[0])


class Recorder:
    """A forward pass with every function of torch and every module that it called.

    Attributes
    ----------
    logits : Tensor, (n, classes)
    events : list
        In the order of execution.
    calls : list of Call
        In the order in which they began; the first is that of the model inside all wrappers, where it has hooks.
    """

    def __init__(self, model: nn.Module, x: Tensor, side: str = "function") -> None:
        self.events: list[_Event] = []
        self.calls: list[Call] = []
        self.n = len(x)
        self._depends = {id(x)}
        self._open: list[int] = []
        self._counts: Counter[nn.Module] = Counter()
        self._kept: list[Any] = [x]  # an id is given to another tensor otherwise
        with contextlib.ExitStack() as stack:
            for path, module in core(model).named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # it refuses hooks, or does not call them
                for handle in (
                    module.register_forward_pre_hook(self._enter(path), with_kwargs=True),
                    module.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            for context in watch(side, self._see):
                stack.enter_context(context)
            self.logits = model(x)

    def _see(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        inputs = tensors_in((args, kwargs))
        data = [tensor for tensor in inputs if id(tensor) in self._depends]
        constants = [tensor for tensor in inputs if id(tensor) not in self._depends]
        out = function(*args, **kwargs)
        name = function_name(function)
        outputs = [args[0]] if name == "__setitem__" else tensors_in(out)
        self._kept.append((inputs, outputs))
        if data and outputs:
            weights = _brings_weights(name, data, constants, outputs[0], self.n)
            self._add(name, data, constants, outputs, inputs, weights)
        return out

    def _add(self, name, data, constants, outputs, inputs, has_weights: bool) -> None:
        position = {id(tensor): place for place, tensor in reversed(list(enumerate(inputs)))}
        call = self._open[-1] if self._open else 0
        self.events.append(_Event(name, data, constants, outputs, position, call, has_weights))
        self._depends.update(map(id, outputs))

    def _enter(self, path: str) -> Callable:
        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self._counts[module] += 1
            call = Call(path, module, self._counts[module], tensors_in((args, kwargs)), len(self.events))
            call.parents = list(self._open)
            self._open.append(len(self.calls))
            self.calls.append(call)

        return enter

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        call = self.calls[self._open.pop()]
        call.outputs, call.end = output, len(self.events)
        outputs = tensors_in(output)
        self._kept.append(outputs)
        data = [tensor for tensor in call.inputs if id(tensor) in self._depends]
        unseen = [tensor for tensor in outputs if id(tensor) not in self._depends]
        if call.path and data and unseen:  # computed where no function of torch is seen
            weights = any(p.ndim >= 2 for p in module.parameters()) or hasattr(module, "_packed_params")
            self._open.append(self.calls.index(call))
            self._add(type(module).__name__, data, [], unseen, call.inputs, weights)
            self._open.pop()
            call.end = len(self.events)

    def producer(self, tensor: Tensor, limit: int) -> int:
        """The last event before the limit that returned or wrote the tensor; -1 for the images."""
        for index in range(limit - 1, -1, -1):
            if any(each is tensor for each in self.events[index].outputs):
                return index
        return -1


def _brings_weights(name: str, data: list[Tensor], constants: list[Tensor], out: Tensor, n: int) -> bool:
    contracts = any(part in name.lower() for part in _CONTRACTIONS)
    if contracts:  # the weights of quantised layers are no tensors
        return any(tensor.ndim >= 2 for tensor in constants) or (len(data) == 1 and not constants)
    # Prototypes that are subtracted, for instance; not a bias, a scale of each class, or one constant for each image.
    return any(
        sum(size > 1 for size in tensor.shape) >= 2 and not (tensor.ndim == out.ndim and tensor.shape[0] == n)
        for tensor in constants
        if tensor.is_floating_point()
    )


def _tap(record: Recorder, side: str) -> Tap:
    """Follow the logits back to the head, and say where what enters it can be read."""
    heads: set[int] = set()
    open_ends = [(record.logits, len(record.events))]
    visited = set()
    while open_ends:
        tensor, limit = open_ends.pop()
        index = record.producer(tensor, limit)
        if index < 0:
            raise NotFoundError("the logits depend on the images also by a way without weights.")
        if index in visited:
            continue
        visited.add(index)
        if record.events[index].has_weights:
            heads.add(index)
        else:
            open_ends += [(each, index) for each in record.events[index].data]
    if len(heads) != 1:
        names = ", ".join(sorted({record.events[head].name for head in heads}))
        raise NotFoundError(f"the logits come from {len(heads)} heads ({names}).")
    event = record.events[head := heads.pop()]
    data = list({id(tensor): tensor for tensor in event.data}.values())
    if len(data) != 1:
        raise NotFoundError(f"{event.name} reads {len(data)} tensors that depend on the images.")
    if data[0].ndim < 2 or len(data[0]) != record.n:
        raise NotFoundError(f"what enters {event.name} has the shape {tuple(data[0].shape)}: not one row per image.")
    return _readable(record, head, data[0], side)


def _readable(record: Recorder, head: int, tensor: Tensor, side: str) -> Tap:
    event = record.events[head]
    call = record.calls[event.call] if record.calls else None
    if call is not None and call.path:
        entered = _entry(record, head, tensor, event.call)
        if entered is not None:
            place = _place(call.inputs, entered)
            return _reduced(Tap(call.path, "input", _number(record, call), place), entered, event)
    for other in reversed(record.calls):
        outputs = tensors_in(other.outputs) if other.path else []
        written = record.producer(tensor, head)
        if 0 <= other.end <= head and written < other.end and any(each is tensor for each in outputs):
            return _reduced(Tap(other.path, "output", _number(record, other), _place(outputs, tensor)), tensor, event)
    number = sum(each.name == event.name for each in record.events[: head + 1])
    return _reduced(Tap(call.path if call else "", side, number, event.position[id(tensor)], event.name), tensor, event)


def _entry(record: Recorder, head: int, tensor: Tensor, call_index: int) -> Tensor | None:
    """The input of the head's module, if nothing with weights lies between it and the head."""
    call, index = record.calls[call_index], head
    while not any(each is tensor for each in call.inputs):
        index = record.producer(tensor, index)
        if index < call.start or record.events[index].has_weights or len(record.events[index].data) != 1:
            return None
        tensor = record.events[index].data[0]
    return tensor if tensor.ndim >= 2 and len(tensor) == record.n else None


def _number(record: Recorder, call: Call) -> int:
    last = max(each.number for each in record.calls if each.module is call.module)
    return 0 if call.number == last else call.number


def _place(tensors: list[Tensor], tensor: Tensor) -> int:
    return next(place for place, each in enumerate(tensors) if each is tensor)


def _reduced(tap: Tap, tensor: Tensor, event: _Event) -> Tap:
    """The tap with its reduction: the mean, for a head that is applied to each token or each place of a map."""
    along_last = "conv" not in event.name.lower()
    sizes = tensor.shape[1:-1] if along_last else tensor.shape[2:]
    whole = not along_last and any(each.ndim > 2 and each.shape[2:].numel() > 1 for each in event.constants)
    reduction = "mean" if sizes.numel() > 1 and not whole else "flatten"
    return Tap(tap.path, tap.side, tap.call, tap.position, tap.function, reduction, along_last)


def _verify(model: nn.Module, pair: Tensor, tap: Tap, logits: Tensor) -> None:
    """Exchange what is read between two images: the logits must follow it."""
    state = torch.get_rng_state()

    def forward(change: Callable | None) -> Tensor:
        torch.set_rng_state(state)
        with tapped(model, [tap], change) as captured:
            out = model(pair)
        if not captured[0].read:
            raise NotFoundError(f"{tap} was not read again in a second pass.")
        return out.float()

    exchanged_logits, plain_logits = forward(lambda tensor: tensor.flip(0)).flip(0), forward(None)
    # Folded kernels, and types of 8 bits, round differently in another order.
    size = plain_logits.abs().amax().clamp(min=1e-6)
    tolerance = (0.05 if torch.equal(plain_logits, plain_logits.bfloat16().float()) else 1e-3) * size
    if not ((exchanged_logits - plain_logits).abs() <= tolerance).all() and plain_logits.isfinite().all():
        raise NotFoundError(f"the logits do not depend on {tap} alone.")


def candidates(model: nn.Module, x: Tensor, limit: int = 8) -> list[str]:
    """The modules that ran last and give one row for each image, with the shapes of their outputs."""
    with attack_mode(model), torch.no_grad():
        record = Recorder(model, x[:1].detach())
    modules = {}
    for call in sorted(record.calls, key=lambda each: -each.end):
        if call.path and isinstance(call.outputs, Tensor) and call.outputs.ndim >= 2 and len(call.outputs) == 1:
            modules.setdefault(call.path, f"{call.path} {tuple(call.outputs.shape[1:])}")
    return list(modules.values())[:limit]
