"""Opens the model that a user names on the command line, of whatever origin; its images: see `opening_data`."""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.command.arguments import MODEL_AS_IT_IS, ModelOptions
from analysis.command.model_names import MODEL_FORMS, is_run, is_transformers_folder, model_names
from analysis.command.model_sources import open_network
from analysis.command.user_code import functions_of, source_of
from analysis.errors import is_ours
from analysis.scales.run_results import run_config
from tla_core.checkpoint import state_digest
from tla_core.config import TrainConfig, canonical_json
from tla_core.datasets import DATASET_NAMES, ImageDataset
from tla_core.fitting import check_classes
from tla_core.modes import attack_mode
from tla_core.runtime import pick_device
from tla_core.training import load_model
from tla_core.wrapping import as_classifier, wrap


@dataclass(frozen=True)
class OpenedModel:
    """A model that a user named.

    Attributes
    ----------
    model : nn.Module
        Images in [0, 1] -> logits, float32; in eval mode, on the device.
    name : str
        Short, for legends.
    spec : str
        As it was named.
    weights_digest : str
        sha256 of its state, see `state_digest`.
    run : Path or None
        Of a run or checkpoint: its folder.
    config : TrainConfig or None
        Of a run: its settings.
    settings : dict
        What its outputs depend on besides the state, as JSON values: the normalisation, the classes, the source file.
    """

    model: nn.Module = field(repr=False)
    name: str
    spec: str
    weights_digest: str
    run: Path | None = None
    config: TrainConfig | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 of all that its outputs depend on: the state and `settings`."""
        return hashlib.sha256(canonical_json([self.weights_digest, self.settings]).encode()).hexdigest()


def open_model(spec: str, options: ModelOptions, *, n_classes: int | None = None, device: str = "cpu") -> OpenedModel:
    """Open the model that a user names.

    Parameters
    ----------
    spec : str
        One of `MODEL_FORMS`. A function is called without arguments, or with ``num_classes`` where it needs that.
    options : ModelOptions
    n_classes : int, optional
        Of the data, where they were opened first.
    device : str
        auto, cpu, cuda or cuda:N.

    Returns
    -------
    OpenedModel

    Raises
    ------
    FileNotFoundError, ValueError, TypeError, ImportError
        If there is no such model or function, a library is missing, or weights or options do not fit. Errors of the
        user's own code are passed on.
    """
    if is_run(spec):
        return _open_run(spec, options, device)
    if ":" not in spec and not is_transformers_folder(Path(spec)):
        raise _no_model(spec)
    if bool(options.mean) != bool(options.std):
        raise ValueError("--mean and --std belong together. Got only one of the two.")
    network = open_network(spec, options.weights, n_classes)
    mean, std = options.mean or network.mean, options.std or network.std
    model = wrap(network.model, output=_output(options), mean=mean or None, std=std or None, classes=_classes(options))
    model = model.to(pick_device(device)).eval()
    origin = {} if is_transformers_folder(Path(spec)) else source_of(spec)  # whose config tells networks apart
    settings = _settings(options, mean, std) | origin
    return OpenedModel(model, model_names([spec])[spec], spec, state_digest(model), settings=settings)


def open_models(
    specs: Sequence[str], options: ModelOptions, *, n_classes: int | None = None, device: str = "cpu"
) -> dict[str, OpenedModel]:
    """Open several models, by names that tell them apart; the options go to each as `options_of` says.

    Raises
    ------
    ValueError
        If a model is named twice; and as `open_model`.
    """
    own_options = options_of(specs, options)
    return {
        name: open_model(spec, own_options[spec], n_classes=n_classes, device=device)
        for spec, name in model_names(specs).items()
    }


def options_of(specs: Sequence[str], options: ModelOptions) -> dict[str, ModelOptions]:
    """The options of each model: beside other models, a run is taken as it is, and the options are for those."""
    mixed = not all(map(is_run, specs))
    return {spec: MODEL_AS_IT_IS if mixed and is_run(spec) else options for spec in specs}


def check_fits(opened: OpenedModel, data: ImageDataset) -> None:
    """Show the model two images, so that what does not fit is said before anything takes time.

    Raises
    ------
    ValueError
        If it does not take the images or returns no logits; and as `tla_core.fitting.check_classes`.
    """
    shape = "x".join(map(str, data.images.shape[1:]))
    # Arrays without names may lack the images of some classes; what has names has all classes.
    has_names = data.name in DATASET_NAMES or data.class_names != tuple(map(str, range(len(data.class_names))))
    try:
        model = as_classifier(opened.model, data.images, data.labels)
        with attack_mode(model), torch.no_grad():
            logits = model(data.images[:2].to(next(_tensors(model)).device).float() / 255)
    except Exception as error:
        if is_ours(error):
            flag = " On the command line: --output." if "tla.wrap(model, output" in str(error) else ""
            raise ValueError(f"{opened.spec}: {error}{flag}") from error
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{opened.spec} does not take the images of {data.name}, {shape}: {type(error).__name__}: {first}"
        ) from error
    check_classes(
        opened.spec, opened.model, logits, data.class_names, has_names=has_names,
        choose=lambda names: f"--classes {shlex.join(names)}",
    )  # fmt: skip


def _tensors(model: nn.Module):
    yield from model.parameters()
    yield from model.buffers()
    yield torch.empty(0)


def _open_run(spec: str, options: ModelOptions, device: str) -> OpenedModel:
    if unused := [name for name in ("weights", "mean", "std") if getattr(options, name)]:
        raise ValueError(f"{spec} is a run, which has weights and normalisation of its own: leave --{unused[0]} out.")
    config = run_config(spec)
    model = load_model(spec, device=device)
    settings = {}
    if options.output != "auto" or options.classes:
        model = wrap(model, output=_output(options), classes=_classes(options))
        settings = _settings(options, (), ())
    return OpenedModel(model, model_names([spec])[spec], spec, state_digest(model), Path(spec), config, settings)


def _no_model(spec: str) -> Exception:
    path = Path(spec)
    if path.suffix == ".py" and path.is_file():
        known = ", ".join(functions_of(path)) or "none"
        return ValueError(f"{spec} is a file: name a function in it, {spec}:FUNCTION. It has: {known}.")
    if path.is_file():
        return ValueError(f"{spec} is a file. If it holds weights, name the model, and the file as --weights {spec}.")
    return FileNotFoundError(
        f"{spec} holds no run: there is no config.json. Train one with `tla train`, or name another model. Expected"
        f" {MODEL_FORMS}."
    )


def _output(options: ModelOptions) -> str | int:
    return int(options.output) if options.output.lstrip("-").isdigit() else options.output


def _classes(options: ModelOptions) -> list[int] | list[str] | None:
    numbers = all(each.isdigit() for each in options.classes)
    return [int(each) if numbers else each for each in options.classes] or None


def _settings(options: ModelOptions, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    values = {"mean": list(mean), "std": list(std), "output": options.output, "classes": list(options.classes)}
    return {name: value for name, value in values.items() if value and value != "auto"}
