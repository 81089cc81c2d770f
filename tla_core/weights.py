"""Puts the weights of a file into a model, as people have them: safetensors, .pt, .pth and .ckpt, with any prefix."""

import contextlib
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tla_core.checkpoint import CheckpointError, read_metadata
from tla_core.models.normalization import Normalize
from tla_core.wrapping import core, normalization_inside

# Under which names a file holds its weights, those of the model itself before averages of them.
_KEYS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module",
    "student", "ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model",
)  # fmt: skip
_NOT_WEIGHTS = ("num_batches_tracked", "n_averaged", "_extra_state")
_SHOWN = 5


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` did.

    Attributes
    ----------
    loaded : int
        Tensors that were put into the model.
    missing : tuple of str
        Tensors of the model that the file does not have; they are what they were.
    unexpected : tuple of str
        Tensors of the file that the model does not have.
    other_shape : tuple of str
        Tensors of another shape, with both shapes; they are what they were.
    key : str
        The key under which the file holds them; "" for a file of weights alone.
    prefix : str
        What was taken off the front of the names in the file.
    normalization : tuple of tuple of float, or None
        Mean and standard deviation of the channels that the weights were trained with and the model does not have:
        those of a run of a model that `tla_core.wrap` had put them into, or a pair that is all that is unexpected, as
        in checkpoints of RobustBench. `tla_core.wrap` puts them inside.
    """

    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    other_shape: tuple[str, ...] = ()
    key: str = ""
    prefix: str = ""
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.other_shape)

    def __str__(self) -> str:
        key_words = f" under {self.key!r}" if self.key else ""
        prefix_words = f", without the prefix {self.prefix!r}" if self.prefix else ""
        parts = [f"{self.loaded} tensors loaded{key_words}{prefix_words}"]
        for words, names in (
            ("missing in the file", self.missing), ("unexpected", self.unexpected),
            ("of another shape", self.other_shape),
        ):  # fmt: skip
            if names:
                rest_words = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                parts.append(f"{len(names)} {words}: {', '.join(names[:_SHOWN])}{rest_words}")
        return "; ".join(parts)


def load_weights(
    model: nn.Module, path: Path | str, *, strict: bool = True, key: str | None = None, prefix: str | None = None
) -> LoadedWeights:
    """Put the weights of a file into a model, in place.

    Parameters
    ----------
    model : nn.Module
        What wraps it is seen through.
    path : Path or str
        A safetensors file; or one of ``torch.save`` (.pt, .pth, .ckpt, .bin), which is read by torch's ``weights_only``
        alone: code in it is never run. A folder stands for the ``model.safetensors`` in it.
    strict : bool
        Whether everything must fit. False loads what does, and returns what did not.
    key : str, optional
        Under which the file holds the weights, such as "ema"; by default the first of the usual names
        ("state_dict", "model", "net", "ema", ...).
    prefix : str, optional
        What to take off the names in the file; by default what makes most of them names of the model ("module.",
        "_orig_mod.", "model.", ...).

    Returns
    -------
    LoadedWeights

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it cannot be read, or only by running code.
    ValueError
        If nothing fits; if `strict` and something does not (the message lists the names), or the run trained a model
        with a normalisation inside and this one has none; if it has another one; if the file holds several networks.
        The model stays as it was.

    Examples
    --------
    >>> load_weights(network, "resnet18-linf.pth")  # doctest: +SKIP
    """
    # The tensors of the file, by the model's names.
    path = Path(path)
    if path.is_dir() and (path / "model.safetensors").is_file():
        path /= "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    weights, key = _weights_in(_read(path), key, path)
    inside = core(model)
    model_tensors = {name: tensor for name, tensor in inside.state_dict().items() if isinstance(tensor, Tensor)}
    weights, prefix = _renamed(weights, model_tensors, prefix, path)
    shared = [name for name in weights if name in model_tensors]
    # What fits, and a report on the rest.
    fitting_weights = {name: weights[name] for name in shared if model_tensors[name].shape == weights[name].shape}
    normalisation_names = {
        f"{place}.{name}".lstrip(".")
        for place, part in inside.named_modules()
        if isinstance(part, Normalize)
        for name in ("mean", "std")
    }
    unexpected = tuple(n for n in weights if n not in model_tensors and not n.endswith(_NOT_WEIGHTS))
    report = LoadedWeights(
        len(fitting_weights),
        tuple(
            n
            for n in model_tensors
            if n not in weights and n not in normalisation_names and not n.endswith(_NOT_WEIGHTS)
        ),
        unexpected,
        tuple(
            f"{name} {tuple(weights[name].shape)}, in the model {tuple(model_tensors[name].shape)}"
            for name in shared
            if name not in fitting_weights
        ),
        key,
        prefix,
        _normalization({name: weights[name] for name in unexpected}) or _missing_normalization(model, path, strict),
    )
    if not fitting_weights or (strict and not report.complete):
        raise ValueError(
            f"the weights of {path.name} are not those of this {type(inside).__name__}: {report}.{_advice(report)}"
        )
    inside.load_state_dict(fitting_weights, strict=False)
    return report


def _missing_normalization(
    model: nn.Module, path: Path, strict: bool
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What the run of a wrapped model had inside, and this model has not; ValueError as `load_weights` says."""
    metadata: dict[str, Any] = {}
    with contextlib.suppress(CheckpointError):  # a file of others
        metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    trained, own = metadata.get("start", {}).get("normalization"), normalization_inside(model)
    if trained is None or trained == own:
        return None
    words = f"mean={_short(trained['mean'])}, std={_short(trained['std'])}"
    if own is not None:
        raise ValueError(
            f"the weights of {path} were trained with the normalisation {words} inside. This model has"
            f" mean={_short(own['mean'])}, std={_short(own['std'])}."
        )
    if strict:
        raise ValueError(
            f"the weights of {path} were trained with a normalisation inside, which this model does not have. Put it"
            f" in first: tla.wrap(model, {words})."
        )
    return tuple(trained["mean"]), tuple(trained["std"])


def _short(numbers: list[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]


def _normalization(unexpected: dict[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    by_last = {name.rpartition(".")[2]: tensor for name, tensor in unexpected.items()}
    if len(unexpected) != 2 or set(by_last) not in ({"mean", "std"}, {"mu", "sigma"}):
        return None
    mean, std = (by_last[name] for name in sorted(by_last))
    if mean.shape != std.shape or mean.numel() != max(mean.shape, default=1) or not mean.is_floating_point():
        return None
    if not std.is_floating_point() or not (std > 0).all():
        return None
    return tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())


def _advice(report: LoadedWeights) -> str:
    normalising = [name for name in report.unexpected if name.rpartition(".")[2] in ("mean", "std", "mu", "sigma")]
    if normalising:
        names = ", ".join(normalising[:2])
        return f" {names} look like a normalisation: tla.wrap(model, mean=..., std=...) has it inside."
    return " strict=False loads what fits." if report.loaded else ""


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no safetensors file, or a truncated one: {error}.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch speaks of TorchScript archives before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), str(error))
        raise CheckpointError(
            f"{path} holds more than tensors, and reading it could run code ({first.strip()[:200]}): it is refused."
            " Where you trust it, load it yourself and save model.state_dict() alone."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0][:200]}. Expected safetensors, or what"
            " torch.save writes of model.state_dict()."
        ) from error


def _weights_in(content: Any, key: str | None, path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors by name, and the keys that lead to them."""
    way: list[str] = []
    if key is not None:
        for part in key.split("/"):
            if not isinstance(content, Mapping) or part not in content:
                known = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
                raise ValueError(f"{path.name} holds nothing under {key!r}. It has: {known[:300]}.")
            content = content[part]
            way.append(part)
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        part = next((name for name in _KEYS if isinstance(content.get(name), Mapping)), None)
        if part is None:
            break
        content = content[part]
        way.append(part)
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        known = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path.name} holds no weights: no tensors by name. It has: {known[:300]}; pass key=.")
    return tensors, "/".join(way)


def _renamed(
    weights: dict[str, Tensor], model_tensors: dict[str, Tensor], prefix: str | None, path: Path
) -> tuple[dict[str, Tensor], str]:
    """The weights by the model's names, and the prefix that was taken off."""
    if prefix is None:
        counts = Counter(
            name[: -len(model_name)]
            for model_name in model_tensors
            for name in weights
            if name == model_name or name.endswith(f".{model_name}")
        )
        inner = Counter(
            model_name[: -len(name)]
            for model_name in model_tensors
            for name in weights
            if model_name.endswith(f".{name}")
        )
        best = counts.most_common(2)
        if inner and (not best or inner.most_common(1)[0][1] > best[0][1]):  # a network in a Sequential
            outer = inner.most_common(1)[0][0]
            return {f"{outer}{name}": tensor for name, tensor in weights.items()}, ""
        if len(best) == 2 and best[0][1] == best[1][1] and "" not in counts:
            prefixes = " and ".join(repr(each) for each, _ in best)
            raise ValueError(
                f"{path.name} holds several networks, under {prefixes}: say which one, prefix={best[0][0]!r}."
            )
        prefix = "" if counts.get("", 0) == (best[0][1] if best else 0) else best[0][0]
    other_tensors = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    return {
        **{name[len(prefix) :]: weights[name] for name in weights if name.startswith(prefix)},
        **other_tensors,
    }, prefix
