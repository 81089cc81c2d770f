"""What a call does to a model and undoes again: eval mode, frozen parameters, compiled code run as it is written."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def attack_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode and frozen parameters inside the block; all modes, gradients, flags and buffers are put back after it.

    A class that overrides ``train`` or ``eval``, as those of LoRA do that merge their weights, is put back by calling
    it. Inside, inference mode is off and what was compiled runs as it was written: hooks are heard in it.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    registered = [
        (module, dict(module._buffers))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule) and module._buffers
    ]
    buffers = [(buffer, buffer.clone(), _version(buffer)) for buffer in model.buffers()]
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if "torch._dynamo" in sys.modules:  # otherwise nothing was compiled, and importing it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            if any(training for _, training in modes):
                with contextlib.suppress(NotImplementedError):  # an exported program has one mode
                    model.eval()
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield model
        finally:
            _put_back_modes(modes)
            for parameter in trainable:
                parameter.requires_grad_(True)
            for parameter, gradient in gradients:
                if parameter.grad is not gradient:
                    parameter.grad = gradient
            _put_back_buffers(registered, buffers)


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model with computed weights, such as those of weight norm, which torch does not copy."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    # A copy of what inference mode made is like any other; that of a scripted model is part of a graph otherwise.
    with torch.inference_mode(False), torch.no_grad():
        return copy.deepcopy(model, computed)


def _put_back_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """Outer modules come before inner ones, since ``train`` of a module sets all modules inside it."""
    for module, training in modes:
        if module.training == training:
            continue
        if type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval:
            module.train() if training else module.eval()
        module.training = training


def _put_back_buffers(
    registered: list[tuple[nn.Module, dict[str, Tensor | None]]], buffers: list[tuple[Tensor, Tensor, int | None]]
) -> None:
    for module, old_buffers in registered:
        for name, buffer in old_buffers.items():
            if module._buffers.get(name) is not buffer:  # one that is replaced at each call, such as a counter
                module._buffers[name] = buffer
    with torch.no_grad():
        for buffer, old_value, version in buffers:
            # A layer that updates its statistics even in eval mode.
            if version is None or _version(buffer) != version:
                with torch.inference_mode(buffer.is_inference()):
                    buffer.copy_(old_value)


def _version(tensor: Tensor) -> int | None:
    """How often it was written to; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version
