"""One door for models: any classifier becomes one from images in [0, 1] to logits (n, classes), float32."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tla_core.models.normalization import Normalize
from tla_core.modes import attack_mode, copy_of
from tla_core.validation import check_label_range, scale_images

Output = str | int | Callable[[Any], Tensor]


def wrap(
    model: nn.Module | Callable[[Tensor], Any],
    *,
    output: Output = "auto",
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    classes: Sequence[int] | Sequence[str] | None = None,
) -> nn.Module:
    """Make any classifier one from images in [0, 1] to logits (n, classes), float32.

    Only needed where something has to be said about the model: which output, what normalisation, which classes. All
    else the public functions find out for themselves.

    Parameters
    ----------
    model : nn.Module or callable
        What wraps it is seen through: ``torch.compile``, ``DataParallel``, a Lightning module without a ``forward`` of
        its own. Images are cast to the type of its parameters; it is given copies of them, which it may change.
    output : {"auto"} or str or int or callable
        Which of the outputs are the logits: a key or an attribute, a position, or a function of all that comes out.
        "auto" takes a tensor, ``.logits``, ``["logits"]``, or the only tensor with one row for each image.
    mean, std : sequence of float, (channels,), optional
        Normalisation that the model expects, in units of images in [0, 1]: it is done inside, so that `eps` of an
        attack stays in pixel units.
    classes : sequence of int or of str, optional
        The model's outputs that are your classes, in your order: class k is the model's output ``classes[k]``. Names
        need a model that has some (``config.id2label`` as in transformers, ``class_names``, or ``classes``). All other
        outputs are left out, so that an attack can only lead to another of your classes.

    Returns
    -------
    nn.Module
        It shares the weights of `model`, and its ``state_dict`` is that of `model`.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit together or the model; when it is called, if it is not clear which output is meant
        (the message shows what came out).

    Examples
    --------
    >>> model = wrap(network, output="scores", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])  # doctest: +SKIP
    """
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together. Got only one of the two.")
    model = see_through(model)
    normalize = None if mean is None else Normalize(mean, std)
    if isinstance(model, Classifier):
        if output == "auto" and (normalize is None or model.normalize is None) and model.classes is None:
            return Classifier(model.model, model.output, normalize or model.normalize, classes)
        raise ValueError("the model is wrapped already: say everything in one call of wrap(model, ...).")
    return Classifier(model, output, normalize, classes)


class Classifier(nn.Module):
    """What `wrap` returns. Its ``state_dict`` and the names of its parameters are those of the model inside.

    Attributes
    ----------
    model : nn.Module
    output : str, int or callable
    normalize : nn.Module or None
    classes : list of int or None
    """

    def __init__(
        self, model: nn.Module, output: Output = "auto", normalize: nn.Module | None = None,
        classes: Sequence[int] | Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.output = model, output
        self.training = model.training and not is_exported(model)
        self.normalize = normalize
        if normalize is not None:
            normalize.to(next((tensor.device for tensor in (*model.parameters(), *model.buffers())), "cpu"))
        self.classes = None if classes is None else _output_numbers(model, list(classes))
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] -> logits (n, classes), float32."""
        inputs = x.clone() if self.normalize is None else self.normalize(x)
        return self.logits_from(self.model(inputs.to(parameter_type(self.model))), len(x))

    def logits_from(self, out: Any, n: int) -> Tensor:
        """The logits among what the model inside returned for n images."""
        logits = pick_logits(out, self.output, n).float()
        if self.classes is None:
            return logits
        if max(self.classes) >= logits.shape[1]:
            raise ValueError(
                f"classes must be outputs of the model, 0..{logits.shape[1] - 1}. Got {max(self.classes)}."
            )
        return logits[:, torch.tensor(self.classes, device=logits.device)]

    def around(self, model: nn.Module) -> "Classifier":
        """The same around another model, such as one in which batch norm is folded."""
        other = copy.copy(self)
        other._modules = {**self._modules, "model": model}
        return other

    def named_parameters(self, *args, **kwargs):
        """Names as in the model inside."""
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield name.replace("model.", "", 1), parameter


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A state_dict of the wrapper with the names of the model inside; its normalisation is given in code."""
    for name in [name for name in state if name.startswith(prefix)]:
        value = state.pop(name)
        if name.startswith(f"{prefix}model."):
            state[prefix + name[len(prefix) + len("model.") :]] = value


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}model.{name[len(prefix) :]}"] = state.pop(name)
    if module.normalize is not None:
        state |= {f"{prefix}normalize.{name}": buffer for name, buffer in module.normalize.state_dict().items()}


# What is seen through -------------------------------------------------------------------------------------------------


class _Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.training = False

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def see_through(model: nn.Module | Callable) -> nn.Module:
    """The model that a wrapper runs: of ``torch.compile``, data parallelism, an average of weights, or Lightning.

    Raises
    ------
    TypeError
        For what is no model.
    ValueError
        For a Lightning module without a ``forward`` and with several networks in it.
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not isinstance(model, nn.Module):
        if isinstance(model, type) or not callable(model):
            description = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
            raise TypeError(f"the model must be a torch.nn.Module, or a function of images. Got {description}.")
        return _Called(model)
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    if isinstance(model, kinds):
        return model.module
    if "_orig_mod" in model._modules:  # torch.compile; its class would import the compiler
        return model._modules["_orig_mod"]
    if isinstance(model, torch.jit.ScriptModule):
        return None
    origin = getattr(type(model).forward, "__module__", None) or ""
    if type(model).forward is nn.Module.forward or origin.startswith(("lightning.", "pytorch_lightning.")):
        networks = {name: part for name, part in model.named_children() if any(True for _ in part.parameters())}
        if len(networks) != 1:
            raise ValueError(
                f"{type(model).__name__} has no forward, and {len(networks)} networks in it"
                f" ({', '.join(networks) or 'none'}): pass the one that is meant, such as"
                f" model.{next(iter(networks), 'net')}."
            )
        return next(iter(networks.values()))
    return None


def core(model: nn.Module) -> nn.Module:
    """The model inside all wrappers, `Classifier` among them: the one whose layers have the names a user knows."""
    model = see_through(model)
    return model.model if isinstance(model, Classifier) else model


def normalization_inside(model: nn.Module) -> dict[str, list[float]] | None:
    """The ``mean`` and ``std`` of the channels that `wrap` has put into a model; None where it has put none."""
    model = see_through(model)
    normalize = model.normalize if isinstance(model, Classifier) else None
    if not isinstance(normalize, Normalize):
        return None
    return {"mean": normalize.mean.flatten().tolist(), "std": normalize.std.flatten().tolist()}


def parameter_type(model: nn.Module) -> torch.dtype:
    """The floating type of the parameters that come first; float32 for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def is_exported(model: nn.Module) -> bool:
    """Whether it is the module of `torch.export`, which has one mode and says that it is the training mode."""
    return isinstance(model, torch.fx.GraphModule) and ("_guards_fn" in model._modules or "eval" in vars(model))


# Which output ---------------------------------------------------------------------------------------------------------


def pick_logits(out: Any, output: Output, n: int) -> Tensor:
    """The logits (n, classes) among what a model returned; ValueError, with what came out, where that is not clear."""
    if callable(output):
        logits = output(out)
    elif output == "auto":
        logits = _only_logits(out, n)
    else:
        try:
            logits = getattr(out, output) if isinstance(output, str) and hasattr(out, output) else out[output]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"the model has no output {output!r}. Got {describe_output(out)}.") from error
    if isinstance(logits, Tensor) and logits.ndim > 2 and logits.shape[2:].numel() == 1:
        logits = logits.flatten(1)  # a classifier that ends in a 1x1 convolution
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n:
        description = describe_output(logits)
        advice = " For one output of two classes: tla.wrap(model, output=lambda z: torch.stack([-z, z], 1) / 2)."
        single = isinstance(logits, Tensor) and logits.shape == (n,)
        raise ValueError(
            f"the model must return logits of the shape ({n}, classes). Got {description}.{advice if single else ''}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"the model must return logits, floating numbers. Got {describe_output(logits)}.")
    return logits


def _only_logits(out: Any, n: int) -> Any:
    if isinstance(out, Tensor):
        return out
    logits = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    parts = _parts(out)
    rows = {
        key: part
        for key, part in parts.items()
        if isinstance(part, Tensor) and part.is_floating_point() and part.ndim >= 2 and len(part) == n
    }
    flat = {key: part for key, part in rows.items() if part.ndim == 2}
    flat = flat or (rows if len(rows) == 1 else {})
    if len(flat) == 1:
        return next(iter(flat.values()))
    keys = list(flat) or list(parts)
    advice = " or ".join(f"tla.wrap(model, output={key!r})" for key in keys[:3])
    if not advice:
        return out
    raise ValueError(
        f"which of the model's outputs are the logits (n, classes)? For {n} images it returned {describe_output(out)}."
        f" Pass {advice}, or output=FUNCTION of what came out."
    )


def _parts(out: Any) -> dict[Any, Any]:
    if isinstance(out, Mapping):
        return dict(out)
    if isinstance(out, tuple | list):
        return dict(enumerate(out))
    return {}


def describe_output(out: Any) -> str:
    """What came out of a model, in words: the types, and the shapes of tensors."""
    if isinstance(out, Tensor):
        kind = "" if out.dtype == torch.float32 else f" {str(out.dtype).removeprefix('torch.')}"
        return f"{tuple(out.shape)}{kind}"
    parts = _parts(out)
    if not parts:
        return type(out).__name__
    texts = [f"{key!r}: {describe_output(part) if isinstance(part, Tensor) else type(part).__name__}"
             for key, part in list(parts.items())[:8]]  # fmt: skip
    return f"{type(out).__name__} of {', '.join(texts)}{', ...' if len(parts) > 8 else ''}"


def _output_numbers(model: nn.Module, classes: list[Any]) -> list[int]:
    """The outputs that are the classes; ValueError for names that the model does not know, and for repetitions."""
    names = output_names(model)
    numbers = []
    for each in classes:
        if isinstance(each, str):
            if each not in names:
                known = f"It knows {', '.join(names[:5])}, ..." if names else "It has no names of its outputs"
                raise ValueError(f"the model has no class {each!r}. {known}; give the numbers of its outputs.")
            numbers.append(names.index(each))
        elif isinstance(each, bool) or not hasattr(each, "__index__") or int(each) < 0:
            raise ValueError(f"classes must be numbers of the model's outputs, or their names. Got {each!r}.")
        else:
            numbers.append(int(each))
    if len(set(numbers)) != len(numbers) or not numbers:
        raise ValueError(f"classes must be different outputs of the model, at least one. Got {classes}.")
    return numbers


def output_names(model: nn.Module) -> list[str]:
    """What the outputs of a model are called, as far as it knows: of a `Classifier` those of its classes; or []."""
    if isinstance(model, Classifier):
        names = output_names(model.model)
        return [names[k] for k in model.classes] if names and model.classes else names
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(labels, Mapping):
        return [str(labels[key]) for key in sorted(labels, key=int)]
    for name in ("class_names", "classes"):
        if isinstance(names := getattr(model, name, None), list | tuple):
            return [str(each) for each in names]
    return []


# The door -------------------------------------------------------------------------------------------------------------


def as_classifier(
    model: nn.Module | Callable, images: Tensor, labels: Tensor | None = None, *, n_classes: int | None = None
) -> nn.Module:
    """The classifier of a user's model, as two images show it; every public function puts its model through here.

    Parameters
    ----------
    model : nn.Module or callable
    images : Tensor, (n, c, h, w)
        Checked images; two are forwarded in eval mode, without a trace.
    labels : Tensor, (n,), optional
        Checked labels, of which none may lie beyond the model's outputs.
    n_classes : int, optional
        How many names of classes there are: the model must not have more outputs.

    Returns
    -------
    nn.Module
        `model` itself, if it takes float32 images and leaves them alone, and returns logits; otherwise what is inside
        it, in a `Classifier`.

    Raises
    ------
    TypeError, ValueError
        If it is no model; if it is not clear which output are the logits; if there are fewer outputs than labels need,
        or more than class names.
    """
    # What can be told without a forward.
    model = see_through(model)
    if any(parameter.is_inference() for parameter in model.parameters()):
        model = copy_of(model)  # autograd refuses what was made in inference mode
    if not isinstance(model, Classifier) and (parameter_type(model) != torch.float32 or is_exported(model)):
        model = Classifier(model)
    # Two images show the rest.
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with attack_mode(model), torch.random.fork_rng(devices=devices), torch.no_grad():
        x = scale_images(images[:2].to(device))
        images_seen = x.clone()
        try:
            out = model(images_seen)
        except Exception as error:
            error.add_note(f"This happened when the first images, {tuple(x.shape)}, were put through the model.")
            raise
    if not isinstance(model, Classifier):
        is_plain = (
            isinstance(out, Tensor) and out.ndim == 2 and out.dtype == torch.float32 and torch.equal(images_seen, x)
        )
        if not is_plain:
            model = Classifier(model)
            out = model.logits_from(out, len(x))
    # Whether labels and class names fit the outputs.
    if labels is not None and len(labels):
        check_label_range(labels.max().expand(len(x)), out)
    elif len(out) != len(x):
        check_label_range(torch.zeros(len(x), dtype=torch.long), out)
    if n_classes is not None and out.shape[1] > n_classes:
        raise ValueError(
            f"the model has {out.shape[1]} outputs, and there are {n_classes} names of classes: say which outputs they"
            f" are, tla.wrap(model, classes=[...]) with {n_classes} numbers or names."
        )
    return model
