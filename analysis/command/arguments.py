"""Arguments that several commands take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

RunDir = Annotated[Path, arg(metavar="RUN", help="Run folder, such as runs/mini/mnist/tla/seed0.")]
ScaleName = Annotated[str, arg(help="mini, or another scale of workflow/scales.")]
MODEL_HELP = (
    "Run or checkpoint folder, FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION, torchvision:NAME[@WEIGHTS],"
    " timm:NAME[@pretrained], or a folder of transformers."
)


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
