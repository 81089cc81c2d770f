"""What a MODEL on the command line is, by its text, and how it is called in legends."""

import json
from collections.abc import Sequence
from pathlib import Path

from tla_core.presets import METHODS, VARIANTS

MODEL_FORMS = (
    "a run or checkpoint folder, FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION, torchvision:NAME[@WEIGHTS],"
    " timm:NAME[@pretrained], or a folder of transformers"
)


def is_run(spec: str) -> bool:
    """Whether it is a folder, and none of transformers."""
    folder = Path(spec)
    return folder.is_dir() and not is_transformers_folder(folder)


def is_transformers_folder(folder: Path) -> bool:
    """Whether its ``config.json`` names a type of model, as transformers writes it."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def model_names(specs: Sequence[str]) -> dict[str, str]:
    """MODEL -> a short name that tells it apart from the others.

    Examples
    --------
    >>> model_names(["torchvision:resnet18@DEFAULT", "net.py:small"])
    {'torchvision:resnet18@DEFAULT': 'resnet18', 'net.py:small': 'small'}
    >>> model_names(["a.py:net", "b.py:net"])
    {'a.py:net': 'a.py:net', 'b.py:net': 'b.py:net'}
    """
    if len(set(specs)) < len(specs):
        raise ValueError("a model is named twice; expected different ones.")
    runs = [spec for spec in specs if is_run(spec)]
    names = dict(zip(runs, run_names(tuple(map(Path, runs))), strict=True))
    for spec in specs:
        if spec not in names:
            names[spec] = spec.rpartition(":")[2].partition("@")[0] if ":" in spec else Path(spec).resolve().name
    short = list(names.values())
    return {spec: names[spec] if short.count(names[spec]) == 1 else spec for spec in specs}


def run_names(runs: tuple[Path, ...]) -> list[str]:
    """What panels are called: the methods, and where these are the same, the ends of the paths that tell them apart.

    Examples
    --------
    >>> run_names((Path("runs/mini/mnist/um/seed0"), Path("runs/mini/mnist/tla@code/seed0")))
    ['UM', 'TLA@code']
    >>> run_names((Path("runs/mini/mnist/um/seed0"), Path("runs/mini/mnist/um/seed1")))
    ['um/seed0', 'um/seed1']
    >>> run_names((Path("checkpoints/cifar10-um"), Path("checkpoints/cifar10-tla")))
    ['UM', 'TLA']
    """
    if len(set(runs)) < len(runs):
        raise ValueError("a run is named twice; expected different ones.")
    paths = [run.resolve().parts for run in runs]
    folders = [parts[-2 if parts[-1].startswith("seed") else -1].partition("@") for parts in paths]
    names = [_method(folder).upper() + at + variant for folder, at, variant in folders]
    length = 2
    while len(set(names)) < len(names):
        names = ["/".join(parts[-length:]) for parts in paths]
        length += 1
    return names


def _method(folder: str) -> str:
    """The method at the end of the name of a published run, ``cifar10-tla-rn``; of others the whole name."""
    return next((name for name in (*VARIANTS, *METHODS) if folder.endswith(f"-{name}")), folder)
