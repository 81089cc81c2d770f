"""channels_last, in which convolutions are faster, where a network shows that it can do it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tla_core.modes import attack_mode

# What another order of additions may change, as a fraction of the largest number.
_ROUNDED = 1e-3


def to_channels_last(model: nn.Module, x: Tensor) -> bool:
    """Lay the weights out in channels_last, if one image then has the same logits and gradients.

    A network that flattens with ``.view`` cannot do it, forward or backward.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] -> logits.
    x : Tensor, (n, c, h, w), float32 in [0, 1]
        The first image is used.

    Returns
    -------
    bool
        Whether they are laid out so now.
    """
    if not any(parameter.ndim == 4 for parameter in model.parameters()):
        return False
    layout = _layout(model)
    expected = _passes(model, x[:1])
    try:
        model.to(memory_format=torch.channels_last)
        passes = _passes(model, x[:1])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # view size is not compatible
        passes = None
    if passes is not None and all(_agree(*pair) for pair in zip(passes, expected, strict=True)):
        return True
    _restore(layout)
    return False


@contextmanager
def layout_kept(model: nn.Module) -> Iterator[None]:
    """After the block the weights have the layout again that they had before."""
    layout = _layout(model)
    try:
        yield
    finally:
        _restore(layout)


def _layout(model: nn.Module) -> list[tuple[Tensor, tuple[int, ...]]]:
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.ndim == 4]
    return [(tensor, tensor.stride()) for tensor in tensors]


def _restore(layout: list[tuple[Tensor, tuple[int, ...]]]) -> None:
    # By strides: weights of one channel count as contiguous in either layout, and a convolution tells them apart.
    for tensor, strides in layout:
        if tensor.stride() != strides:
            laid_out = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
            tensor.data = laid_out.copy_(tensor.data)


def _passes(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The logits, and the gradients of a sum of them by the image and the weights."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with attack_mode(model), torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        for parameter in weights:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            logits = model(x)
            total = (logits * torch.arange(logits.shape[1], device=x.device).add(1).cos()).sum()
            gradients = torch.autograd.grad(total, [x, *weights], allow_unused=True) if total.requires_grad else ()
    return [logits.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _agree(tensor: Tensor, expected: Tensor) -> bool:
    largest = expected.abs().amax().nan_to_num(0)
    return bool(((tensor - expected).abs() <= _ROUNDED * largest + 1e-9).all()) or not expected.isfinite().all()
