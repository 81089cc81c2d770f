"""Networks that come from elsewhere: functions of the user's, torchvision's, timm's, and folders of transformers."""

import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from analysis.command.user_code import call_named
from tla_core.checkpoint import state_digest
from tla_core.validation import did_you_mean
from tla_core.weights import load_weights

RANDOM = "random"


@dataclass(frozen=True)
class Network:
    """A network, and the normalisation that its weights say they expect."""

    model: nn.Module
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def open_network(spec: str, weights: Path | None, n_classes: int | None) -> Network:
    """The network that is named, with the weights of a file in it, if there is one.

    Parameters
    ----------
    spec : str
        One of `analysis.command.model_names.MODEL_FORMS`, but no run.
    weights : Path, optional
    n_classes : int, optional
        Of the data, if they are known: a network of a library is made for its own number of classes, and where the file
        has weights of another number, for this one.

    Raises
    ------
    ImportError
        If a library is not installed.
    ValueError, TypeError, OSError
        If there is no such network, it has no weights, or they do not fit.
    """
    if Path(spec).is_dir():
        return _of_transformers(Path(spec), weights)
    library, _, name = spec.partition(":")
    if library in ("torchvision", "timm"):
        return _of_library(library, name, weights, n_classes)
    model = call_named(spec, num_classes=n_classes)
    if not isinstance(model, nn.Module) and not (callable(model) and not isinstance(model, type)):
        raise TypeError(f"{spec} must give a torch.nn.Module, or a function of images. Got {type(model).__name__}.")
    if weights is not None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"{spec} gives a function, which has no weights: leave --weights out.")
        return _with_weights(Network(model), weights)
    if isinstance(model, nn.Module):
        _warn_of_fresh_weights(spec, model, n_classes)
    return Network(model)


def _warn_of_fresh_weights(spec: str, model: nn.Module, n_classes: int | None) -> None:
    """Warn where a second call gives other weights: they are random, and nothing says so later."""
    second = call_named(spec, num_classes=n_classes)
    if state_digest(second) != state_digest(model):
        warnings.warn(
            f"{spec} gives other weights at each call: what is measured is a network of random weights. Load"
            " trained ones in the function, or name a file of them, --weights FILE.",
            stacklevel=4,
        )


def _with_weights(network: Network, path: Path) -> Network:
    """Put the weights of a file in; a normalisation that lies beside them is that of the network."""
    report = load_weights(network.model, path, strict=False)
    if report.normalization and not report.missing and not report.other_shape:
        return Network(network.model, *report.normalization)
    if not report.complete:
        load_weights(network.model, path)  # raises, and says what does not fit
    return network


def _of_library(library: str, name: str, weights: Path | None, n_classes: int | None) -> Network:
    name, _, asked = name.partition("@")
    if weights is not None and asked:
        raise ValueError(f"{library}:{name}@{asked} names weights, and so does --weights {weights}: leave one out.")
    if weights is None and not asked:
        download = "DEFAULT" if library == "torchvision" else "pretrained"
        raise ValueError(
            f"{library}:{name} has no weights: pass a file of them, --weights FILE; or ask for a download,"
            f" {library}:{name}@{download}; or for a network that has learnt nothing, {library}:{name}@{RANDOM}."
        )
    make = (_torchvision if library == "torchvision" else _timm)(name, asked)
    if asked == RANDOM:
        return make(n_classes)
    if weights is None:
        try:
            return make(None)
        except OSError as error:
            raise OSError(
                f"the weights of {library}:{name}@{asked} cannot be downloaded: {error} Take a file of them, --weights"
                " FILE."
            ) from error
    try:
        return _with_weights(make(None), weights)
    except ValueError as error:
        if n_classes is None or "of another shape" not in str(error):
            raise
    return _with_weights(make(n_classes), weights)  # of a head for the user's own classes


def _torchvision(name: str, asked: str) -> Callable[[int | None], Network]:
    import torchvision.models as zoo

    if name not in zoo.list_models(module=zoo):
        near = did_you_mean(name, zoo.list_models(module=zoo))
        raise ValueError(f"torchvision has no classifier {name!r}.{near} `torchvision.models.list_models()` has all.")
    if asked in ("", RANDOM):
        return lambda count: Network(zoo.get_model(name, weights=None, **_outputs(count)))
    choices = zoo.get_model_weights(name)
    if asked not in (*choices.__members__, "DEFAULT"):
        near = did_you_mean(asked, choices.__members__)
        known = ", ".join(("DEFAULT", *choices.__members__))
        raise ValueError(f"torchvision has no weights {asked!r} of {name}.{near} There are: {known}, {RANDOM}.")
    chosen = choices[asked]

    def make(count: int | None) -> Network:
        model, transform = zoo.get_model(name, weights=chosen), chosen.transforms()
        model.class_names = list(chosen.meta["categories"])  # so that --classes may name them
        return Network(model, tuple(transform.mean), tuple(transform.std))

    return make


def _timm(name: str, asked: str) -> Callable[[int | None], Network]:
    timm = _library("timm")
    if asked not in ("", RANDOM, "pretrained"):
        raise ValueError(f"timm:NAME@ takes pretrained or {RANDOM}. Got {asked!r}.")
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise ValueError(f"timm has no model {name!r}.{near} `timm.list_models()` has all.")

    def make(count: int | None) -> Network:
        model = timm.create_model(name, pretrained=asked == "pretrained", **_outputs(count))
        config = model.pretrained_cfg if asked == "pretrained" else {}
        return Network(model, tuple(config.get("mean", ())), tuple(config.get("std", ())))

    return make


def _of_transformers(folder: Path, weights: Path | None) -> Network:
    transformers = _library("transformers")
    classifier = transformers.AutoModelForImageClassification
    if weights is not None:
        model = classifier.from_config(transformers.AutoConfig.from_pretrained(folder, local_files_only=True))
        load_weights(model, weights)
    else:
        model, report = classifier.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        if lacking := sorted(report["missing_keys"]):
            names = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            raise ValueError(
                f"{folder} has no weights of {names}: transformers would take random ones. Expected the folder of a"
                " classifier that was trained."
            )
    try:
        config = json.loads((folder / "preprocessor_config.json").read_bytes())
    except FileNotFoundError:
        config = {}
    normalises = bool(config.get("do_normalize", config.get("image_mean")))
    mean, std = (tuple(config.get(key) or ()) if normalises else () for key in ("image_mean", "image_std"))
    return Network(model, mean, std)


def _outputs(count: int | None) -> dict[str, int]:
    return {} if count is None else {"num_classes": count}


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"{name} is not installed: `pip install {name}`, or `pip install -e .[models]` in the project's folder."
        ) from error
