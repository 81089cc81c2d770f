"""`tla extract`, `project` and `landscape`: what is stored of a run."""

from typing import Annotated, Literal

from tyro.conf import Positional, arg

from analysis.command.arguments import (
    MODEL_AS_IT_IS,
    OWN_DATA,
    Device,
    OfData,
    OfModel,
    Out,
    Progress,
    RunDir,
)
from analysis.command.model_names import MODEL_FORMS


def extract(
    spec: Positional[Annotated[str, arg(metavar="MODEL", help=f"What to open: {MODEL_FORMS}.")]],
    eps: Annotated[tuple[float, ...], arg(help="Perturbation levels; by default all that the dataset has.")] = (),
    layer: Annotated[
        tuple[str, ...],
        arg(help="What is looked at: penultimate, logits, or module paths such as layer3:mean, each in a file."),
    ] = ("penultimate",),
    split: Annotated[Literal["test", "train"], arg(help="Of the training images only clean ones are taken.")] = "test",
    images: Annotated[int | None, arg(help="Test images, evenly spread over the set; by default all.")] = None,
    model: OfModel = MODEL_AS_IT_IS,
    data: OfData = OWN_DATA,
    out: Out = None,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Store the representations of a model: of the test images, clean and adversarial, or of the training images."""
    from analysis.command.measuring import config_for, is_own, open_subject, represent
    from analysis.scales.run_results import extract_run
    from tla_core.protocol import analysis_attack, analysis_levels

    levels = (None,)
    if split == "test":
        config = config_for(spec, data.data)
        levels = eps or analysis_levels(config)
        for level in levels:  # one that no attack can have is refused before anything is opened
            analysis_attack(config, level)
    if is_own(spec, model, data, out) and layer == ("penultimate",):
        for level in levels:
            print(extract_run(spec, level, split=split, images=images, device=device, progress=progress))
        return
    subject = open_subject(spec, model, data, split=split, out=out, device=device)
    print(subject)
    for level in levels:
        print(*represent(subject, level, layers=layer, images=images, progress=progress), sep="\n")


def project(
    run: Positional[RunDir],
    eps: Annotated[float | None, arg(help="Perturbation level; by default that of the dataset's attack.")] = None,
    scale: Annotated[str, arg(help="Whose number of points, pairs and iterations to use.")] = "mini",
    jobs: Annotated[int, arg(help="Maps that are made side by side, each by one process.")] = 1,
    progress: Progress = True,
) -> None:
    """Store t-SNE maps of a run: of each class, clean and adversarial test images together, and of the class pairs."""
    from analysis.scales.run_results import extract_run, project_pairs_run, project_run, run_config
    from analysis.scales.scale import load_scale

    settings = load_scale(scale)
    extract_run(run, eps, progress=progress)
    print(project_run(run, eps, settings.map_settings(), n_jobs=jobs, progress=progress))
    if pairs := settings.pair_settings(settings.dataset_of_run(run_config(run).dataset)):
        print(project_pairs_run(run, eps, pairs))


def landscape(
    run: Positional[RunDir],
    scale: Annotated[str, arg(help="Whose number of images, radius and resolution to use.")] = "mini",
    rise_only: Annotated[bool, arg(help="Only those whose rise is averaged, none that are drawn.")] = False,
    device: Device = "auto",
) -> None:
    """Store the loss of a run around a few test images, along two random directions that all runs share."""
    from analysis.scales.run_results import landscape_run
    from analysis.scales.scale import load_scale

    settings = load_scale(scale).landscape | ({"images": 0} if rise_only else {})
    print(landscape_run(run, settings, device=device))
