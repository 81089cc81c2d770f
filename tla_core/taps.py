"""Reads tensors out of a forward pass: what enters or leaves a module, or what is handed to a function of torch."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tla_core.wrapping import core, describe_output


@dataclass(frozen=True)
class Tap:
    """A place in a forward pass.

    Attributes
    ----------
    path : str
        Of the module, in the model inside all wrappers; of a function the module that calls it, "" for the model.
    side : {"output", "input", "function", "operation"}
        What the module returns or is given; or what is given to a function of torch; or to an operation below autograd,
        as of scripted modules, whose gradient cannot be had.
    call : int
        Which call of that module, or of the function in a forward, counted from 1; 0 is the last one.
    position : int, optional
        Which of the tensors that are passed or returned; None if there must be one.
    function : str
        Its name.
    reduction : {"", "cls", "mean", "max", "flatten"}
        How tokens or a spatial map become one vector.
    channels_last : bool, optional
        Whether a vector is along the last dimension; None to judge by the shape.
    """

    path: str
    side: str = "output"
    call: int = 0
    position: int | None = None
    function: str = ""
    reduction: str = ""
    channels_last: bool | None = None

    def __str__(self) -> str:
        place = self.path or "the model"
        call_words = f", call {self.call}" if self.call else ""
        if self.side in ("function", "operation"):
            return f"what {place} gives to {self.function}{call_words}"
        return f"the {self.side} of {place}{call_words}"


@dataclass
class Captured:
    """The tensor that a tap has read, or what came in its place, and the number of calls."""

    value: Any = None
    calls: int = 0
    channels_last: bool | None = None
    read: bool = field(default=False)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings; of transformers' outputs as well."""
    return [leaf for leaf in tree_leaves(dict(value) if hasattr(value, "to_tuple") else value)
            if isinstance(leaf, Tensor)]  # fmt: skip


@contextmanager
def tapped(
    model: nn.Module, taps: Sequence[Tap], change: Callable[[Tensor], Tensor] | None = None
) -> Iterator[list[Captured]]:
    """Inside the block every forward of the model writes to one `Captured` for each tap.

    Parameters
    ----------
    model : nn.Module
    taps : sequence of Tap
    change : callable, optional
        The forward goes on with what it returns in place of the tensor that was read.
    """
    inside = core(model)
    captured = [Captured() for _ in taps]
    with contextlib.ExitStack() as stack:
        for tap, target in zip(taps, captured, strict=True):
            if tap.side in ("function", "operation"):
                for context in _watching(tap, target, change):
                    stack.enter_context(context)
                continue
            module = inside.get_submodule(tap.path)
            hook = _Hook(tap, target, change)
            if tap.side == "input":
                handle = module.register_forward_pre_hook(hook.before, with_kwargs=True)
            else:
                handle = module.register_forward_hook(hook.after)
            stack.callback(handle.remove)
        yield captured


class _Hook:
    def __init__(self, tap: Tap, target: Captured, change: Callable | None) -> None:
        self.tap, self.target, self.change = tap, target, change

    def _read(self, value: Any) -> Any:
        tap, target = self.tap, self.target
        target.calls += 1
        if tap.call not in (0, target.calls):
            return None
        tensors = tensors_in(value)
        if tap.position is None:
            tensor = value if isinstance(value, Tensor) else _only_tensor(value, tensors)
        else:
            tensor = tensors[tap.position] if tap.position < len(tensors) else None
        target.read = True
        # An in-place ReLU after the layer would overwrite what was read.
        target.value = tensor.clone() if isinstance(tensor, Tensor) else describe_output(value)
        if self.change is None or not isinstance(tensor, Tensor):
            return None
        return tree_map(lambda leaf: self.change(leaf) if leaf is tensor else leaf, value)

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        return self._read((args, kwargs))

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        self.target.channels_last = _normalises_last(module)
        return self._read(output)


def _only_tensor(value: Any, tensors: list[Tensor]) -> Tensor | None:
    state = getattr(value, "last_hidden_state", None)
    if isinstance(state, Tensor):
        return state
    return tensors[0] if len(tensors) == 1 else None


def _normalises_last(module: nn.Module) -> bool | None:
    """True of a module whose output has its features along the last dimension, as far as one can know."""
    return True if type(module) in (nn.LayerNorm, nn.Linear) else None


# Functions of torch ---------------------------------------------------------------------------------------------------


class FunctionWatch(TorchFunctionMode):
    """Hands every function of torch that is called from Python to `see`."""

    def __init__(self, see: Callable) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self._see(func, args, kwargs or {})


class OperationWatch(TorchDispatchMode):
    """Hands every operation to `see`, also those of scripted modules; below autograd."""

    def __init__(self, see: Callable) -> None:
        super().__init__()
        self._see = see

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self._see(func, args, kwargs or {})


def watch(side: str, see: Callable) -> list[contextlib.AbstractContextManager]:
    """The contexts in which `see(function, args, kwargs)` is called in place of each function or operation."""
    if side == "function":
        return [FunctionWatch(see)]
    # A scripted module is optimised from its second run on, and then takes other operations.
    return [torch.jit.optimized_execution(False), torch.no_grad(), OperationWatch(see)]


def function_name(function: Callable) -> str:
    """How a function or an operation is called."""
    return str(function) if isinstance(function, torch._ops.OpOverload) else getattr(function, "__name__", "")


def _watching(tap: Tap, target: Captured, change: Callable | None) -> list[contextlib.AbstractContextManager]:
    def see(function: Callable, args: tuple, kwargs: dict) -> Any:
        if function_name(function) == tap.function:
            target.calls += 1
            if tap.call == target.calls:
                tensor = tensors_in((args, kwargs))[tap.position or 0]
                target.read, target.value = True, tensor.clone()
                if change is not None:
                    args, kwargs = tree_map(lambda leaf: change(leaf) if leaf is tensor else leaf, (args, kwargs))
        return function(*args, **kwargs)

    return watch(tap.side, see)
