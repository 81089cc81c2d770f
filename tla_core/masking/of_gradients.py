"""Are the gradients there, and are they those of the function that the model computes?"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from tla_core.ascent import attack_loss
from tla_core.masking.of_models import as_batch, rounding, undisturbed
from tla_core.masking.verdicts import MaskingCheck, too_many
from tla_core.random_numbers import counter_uniform

_COMPARED_IMAGES, _DIRECTIONS = 16, 5
# Together less than half a step of 8 bits, which rounding to them undoes. Images are moved off their bytes first, since
# the maxima of a uniform background are ties, at which a network has no one slope.
_STEP, _OFF_BYTES = 2.0**-13, 0.35 / 255
# Of the larger of the two slopes. On healthy networks that by differences was 0.87 to 1.16 times that by the gradient
# (median over directions; 200 images each of 8 networks, MNIST and CIFAR-10, trained with and without attacks).
_SLOPE_TOLERANCE = 0.5
# In rounding errors of the logits: a smaller difference of two logits is not resolved.
_NOISE = 64
_BORDER_STEP = 1 / 255
_SEED = 0x6D1FF5


def check_gradients(
    model: nn.Module, x: Tensor | np.ndarray, y: Tensor | np.ndarray, loss: str = "ce", *, batch_size: int = 256
) -> MaskingCheck:
    """Does the loss have a gradient by each image: a graph, finite, not exactly zero, and the model's own?

    A model that rounds, thresholds, detaches or leaves torch has none ("shattered gradients", Athalye et al. 2018), and
    a gradient attack stays where it started. One that replaces its gradient, or turns it round, leads the attack
    elsewhere. So on 16 images the slope of the margin along the sign of its gradient is taken from that gradient and
    from central differences; in each of five directions a random half of the pixels moves.

    Parameters
    ----------
    model : nn.Module
    x : Tensor or ndarray, (n, c, h, w)
    y : Tensor or ndarray, (n,)
    loss : {"ce", "margin"}
        Of the first part; the margin has no saturated slopes.
    batch_size : int

    Returns
    -------
    MaskingCheck
        With the shares of images whose gradient is ``zero``, ``not_finite``, or missing (``no_graph``), the share of
        the compared images whose slopes ``differ``, the ``median_slope`` by differences as a fraction of that by the
        gradient, and the share ``blind_border`` of images that depend on their pixels at 0 and 1, of which none has a
        gradient.
    """
    # Which images have a gradient at all?
    x, y = as_batch(model, x, y)
    count = {"zero": 0, "not_finite": 0, "no_graph": 0}
    with undisturbed(model):
        for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            gradient = _input_gradient(model, part, lambda z, labels=labels: attack_loss(z, labels, loss))
            if gradient is None:
                count["no_graph"] += len(part)
                continue
            gradient = gradient.flatten(1)
            count["zero"] += int((gradient == 0).all(1).sum())
            count["not_finite"] += int((~gradient.isfinite()).any(1).sum())
    n = len(x)
    values = {name: k / max(n, 1) for name, k in count.items()}
    bad = torch.arange(n) < sum(count.values())
    if too_many(bad):
        kinds = {
            "zero": "exactly zero",
            "not_finite": "not finite",
            "no_graph": "missing (no graph leads to the image)",
        }
        missing = " and ".join(f"{count[name]} are {words}" for name, words in kinds.items() if count[name])
        return MaskingCheck(
            "gradients",
            False,
            f"of the gradients of {n} images {missing}: a gradient attack does nothing there. Attack a differentiable"
            " approximation of what rounds, thresholds or detaches (BPDA), or with a black-box attack.",
            values,
        )

    # Is it the gradient of the model?
    differ, slope = _compare_with_differences(model, x[:_COMPARED_IMAGES], y[:_COMPARED_IMAGES])
    values |= {"differ": int(differ.sum()) / max(len(differ), 1), "median_slope": slope}
    comparison = (
        "differences of its logits are below their rounding"
        if math.isnan(slope)
        else f"the margin's slope by differences is {slope:.2f} times that by the gradient (median of {len(differ)})"
    )
    if too_many(differ):
        message = (
            f"the gradients of {int(differ.sum())} of {len(differ)} images are not those of the model: {comparison}. A"
            " gradient attack is led elsewhere. Look for a backward pass that is written by hand, or a straight-through"
            " estimate; if that is an approximation on purpose (BPDA), the check 'black_box' says how good it is."
        )
        return MaskingCheck("gradients", False, message, values)

    # Does it reach the pixels at 0 and 1?
    blind = _blind_at_the_border(model, x[:_COMPARED_IMAGES], y[:_COMPARED_IMAGES])
    values["blind_border"] = int(blind.sum()) / max(len(blind), 1)
    if too_many(blind):
        message = (
            f"no pixel at 0 or 1 has a gradient in {int(blind.sum())} of {len(blind)} images, though the logits depend"
            " on them: a gradient attack leaves these pixels where they are. If the model clips its input, leave that"
            " out: attacks stay in [0, 1] by themselves."
        )
        return MaskingCheck("gradients", False, message, values)
    message = f"{n - sum(count.values())} of {n} images have a gradient; {comparison}."
    return MaskingCheck("gradients", True, message, values)


def _compare_with_differences(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Whether the slopes of each image differ, (n,), and the median over images of their ratio; NaN below rounding."""
    indices = torch.arange(len(x), device=x.device)
    uniform = [counter_uniform(_SEED, indices, k, x[0].numel()).view_as(x) for k in range(_DIRECTIONS + 1)]
    middle = x + _OFF_BYTES * torch.where(x < 0.5, uniform[-1], -uniform[-1])
    middle = middle.clamp(_STEP, 1 - _STEP)  # a model may clip its input

    def logits_at(images: Tensor) -> Tensor:
        torch.manual_seed(_SEED)  # a random model is one function for each draw
        with torch.no_grad():
            return model(images).double()

    with undisturbed(model):
        logits = logits_at(middle)
        other = logits.scatter(1, y[:, None], -torch.inf).argmax(1)

        def margin(z: Tensor) -> Tensor:  # of a fixed pair of classes: smooth where the largest changes
            return (z.gather(1, other[:, None]) - z.gather(1, y[:, None]))[:, 0]

        torch.manual_seed(_SEED)
        gradient = _input_gradient(model, middle, margin)
        if gradient is None or logits.shape[1] == 1:
            return torch.zeros(0, dtype=torch.bool), float("nan")
        noise = _NOISE * rounding(logits) + 4 * (logits_at(middle) - logits).abs().amax(1)
        ratios, agree = [], []
        for numbers in uniform[:-1]:
            shift = _STEP * gradient.sign() * (numbers < 0.5)
            difference_change = margin(logits_at(middle + shift)) - margin(logits_at(middle - shift))
            gradient_change = 2 * (gradient.double() * shift).flatten(1).sum(1)
            larger = torch.maximum(difference_change.abs(), gradient_change.abs())
            resolved = (larger > noise) & larger.isfinite()
            agree.append(((difference_change - gradient_change).abs() <= _SLOPE_TOLERANCE * larger) | ~resolved)
            ratios.append(torch.where(resolved, difference_change / gradient_change, torch.nan))
    differ = torch.stack(agree).double().mean(0) < 0.5
    return differ, torch.stack(ratios).nanmedian(0).values.nanmedian().item()


def _blind_at_the_border(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Where no pixel at 0 or 1 has a gradient, although the logits change as these move inwards; (n,), bool."""
    border = (x == 0) | (x == 1)
    shifted_images = x + _BORDER_STEP * torch.where(x < 0.5, 1.0, -1.0) * border
    outputs = []
    with undisturbed(model):
        for images in (x, shifted_images):
            torch.manual_seed(_SEED)
            with torch.no_grad():
                outputs.append(model(images).double())
        torch.manual_seed(_SEED)
        gradient = _input_gradient(model, x, lambda logits: attack_loss(logits, y, "margin"))
    if gradient is None:
        return torch.zeros(len(x), dtype=torch.bool)
    unseen = (border & (gradient != 0)).flatten(1).sum(1) == 0
    return unseen & ((outputs[1] - outputs[0]).abs().amax(1) > _NOISE * rounding(outputs[0]))


def _input_gradient(model: nn.Module, x: Tensor, objective) -> Tensor | None:
    """Gradient of the sum of an objective of the logits by the images; None where there is no graph between them."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        try:
            total = objective(model(x).float()).sum()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            with torch.no_grad():
                model(x.detach())  # raises again unless it was the graph, as in x.numpy()
            return None
        if not total.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    return gradient
