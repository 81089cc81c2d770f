"""What tells two models of the same weights apart: code outside their files, tensors outside their state."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tla_core.checkpoint import CheckpointError, load_tensors, save_tensors, tensors_digest
from tla_core.config import identity_of
from tla_core.layers import model_device
from tla_core.modes import attack_mode
from tla_core.runtime import full_precision
from tla_core.validation import scale_images

PROBED = 8
_NOISE = 0.05
# Of the largest value: rounding of other threads and batch sizes stays below, another function does not.
_TOLERANCE = 1e-2


def probe(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Logits of the first images, and logits and input gradients of the same images disturbed by fixed noise.

    A defence that rounds its input and one whose gradients pass through have the same logits and other gradients.

    Parameters
    ----------
    model : nn.Module
        As of `as_classifier`.
    images : Tensor, (n, c, h, w)
        uint8, or floats in [0, 1].

    Returns
    -------
    dict of str to Tensor
        Empty for a model whose outputs are random by other numbers than torch's, which are seeded here: it cannot be
        recognised by them.
    """
    device = model_device(model)

    def seeded(x: Tensor) -> Tensor:
        # Not torch.manual_seed, which seeds every device: those that the model is not on would not be put back.
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        return model(x).float()

    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        attack_mode(model),
        full_precision(device),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        clean = scale_images(images[:PROBED].clone().to(device)).detach()
        noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)).to(device)
        disturbed = (clean + _NOISE * (2 * noise - 1)).clamp(0, 1)
        with torch.no_grad():
            logits, repeated = seeded(clean), seeded(clean)
        if not _close(logits, repeated):
            return {}
        leaf = disturbed.clone().requires_grad_()
        outputs = seeded(leaf)
        weights = torch.arange(1, outputs.shape[1] + 1, device=outputs.device)
        total = (outputs.log_softmax(1) * weights).sum()
        gradients = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
        gradients = torch.zeros_like(leaf) if gradients is None else gradients
    values = {"logits": logits, "disturbed": outputs, "gradients": gradients}
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in values.items()}


def is_same(stored: dict[str, Tensor], current: dict[str, Tensor]) -> bool:
    """Whether two probes are of the same function, up to rounding; models without a probe count as the same."""
    return not stored or not current or all(_close(stored[name], current[name]) for name in current)


def agrees_with_stored(path: Path, current: dict[str, Tensor], *, keep: bool = False) -> bool:
    """Whether a stored probe is the same as this one, or there is none; `keep` stores this one then."""
    try:
        return is_same(load_tensors(path)[0], current)
    except (FileNotFoundError, CheckpointError, KeyError):
        if keep:
            save_tensors(path, current, {"images": PROBED})
        return True


def function_identity(path: Path, parts: Sequence[str], current: dict[str, Tensor]) -> str:
    """A digest that stays what it is as long as a model does the same to the first images, up to rounding.

    Parameters
    ----------
    path : Path
        Where the probe of the model is stored, which the next one is compared with; another function's replaces it.
    parts : sequence of str
        What the function depends on beside that, such as the digests of the weights and of the images.
    current : dict of str to Tensor
        As of `probe`.
    """
    made_from = identity_of(list(parts))
    try:
        stored, metadata = load_tensors(path)
        if metadata["made_from"] == made_from and is_same(stored, current):
            return metadata["identity"]
    except (FileNotFoundError, CheckpointError, KeyError):
        pass
    identity = tensors_digest(current, made_from)
    save_tensors(path, current, {"made_from": made_from, "identity": identity})
    return identity


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = float(other.abs().max()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=_TOLERANCE * scale)
