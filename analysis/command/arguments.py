"""Arguments that several commands take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

RunDir = Annotated[Path, arg(metavar="RUN", help="Run folder, such as runs/mini/mnist/tla/seed0.")]
ScaleName = Annotated[str, arg(help="mini, or another scale of workflow/scales.")]
Device = Annotated[str, arg(help="auto, cpu, cuda or cuda:N.")]
Progress = Annotated[bool, arg(help="Show a progress bar.")]
Out = Annotated[
    Path | None,
    arg(
        help="Folder of the results, with one in it for each of several models. By default those of the run; for a"
        " MODEL that is no run, or other images, a folder named after both, which is printed."
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What has to be said of a MODEL that is no run: how it becomes images in [0, 1] -> logits."""

    weights: Annotated[
        Path | None,
        arg(help="File of its weights: safetensors, .pt, .pth or .ckpt. By default those that it comes with."),
    ] = None
    mean: Annotated[
        tuple[float, ...],
        arg(
            help="Normalisation that it expects, a number for each channel in units of [0, 1], such as 0.485 0.456"
            " 0.406. By default what its downloaded weights or preprocessor_config.json say, otherwise none."
        ),
    ] = ()
    std: Annotated[tuple[float, ...], arg(help="Of the same normalisation, such as 0.229 0.224 0.225.")] = ()
    output: Annotated[
        str, arg(help="Which of several outputs are the logits: a key or a position. auto: where only one can be.")
    ] = "auto"
    classes: Annotated[
        tuple[str, ...],
        arg(help="Its outputs that are the classes of DATA, in their order: numbers, or names. By default all."),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images a MODEL is shown."""

    data: Annotated[
        str | None,
        arg(
            help="mnist-mini, mnist, cifar10, cifar10-jpeg, tiny-imagenet, an image folder, an .npz or .safetensors"
            " file of images and labels, or FILE.py:FUNCTION. By default a run's own dataset; another MODEL has none."
        ),
    ] = None
    resize: Annotated[
        tuple[int, ...], arg(help="Of image files: length of the shorter side, or height and width. By default none.")
    ] = ()
    crop: Annotated[
        tuple[int, ...], arg(help="Of image files: what is cut out of the middle, one length or two. By default none.")
    ] = ()


# What a command takes where nothing is said.
MODEL_AS_IT_IS, OWN_DATA = ModelOptions(), DataOptions()
OfModel = Annotated[ModelOptions, arg(name="")]
OfData = Annotated[DataOptions, arg(name="")]


def value_of(args: Sequence[str], flag: str) -> str | None:
    """What the command line gives to a flag, before it is parsed; None where it does not stand.

    Examples
    --------
    >>> value_of(["evaluate", "net.py:net", "--data", "mnist"], "--data"), value_of(["--data=x"], "--data")
    ('mnist', 'x')
    """
    for position, word in enumerate(args):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
        if word == flag and position + 1 < len(args):
            return args[position + 1]
    return None
