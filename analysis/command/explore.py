"""`tla explore`: writes the explorer of some models and opens it."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from analysis.command.arguments import (
    MODEL_AS_IT_IS,
    OWN_DATA,
    DataOptions,
    Device,
    ModelOptions,
    OfData,
    OfModel,
    Progress,
)
from analysis.command.model_names import MODEL_FORMS, model_names

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.representations import RepresentationSet


def explore(
    specs: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL", help=f"One to six, each {MODEL_FORMS}.")]],
    eps: Annotated[float | None, arg(help="Perturbation level; by default that of the dataset's attack.")] = None,
    points: Annotated[int, arg(help="The most points of a panel, an image with its attacked one being two.")] = 2000,
    methods: Annotated[tuple[Literal["tsne", "umap", "pca"], ...], arg(help="Maps to switch between.")] = (
        "tsne",
        "umap",
        "pca",
    ),
    k: Annotated[int, arg(help="Nearest neighbours that are shown at first.")] = 5,
    full_images: Annotated[
        Literal["none", "page", "beside"], arg(help="Where images above 96 pixels are in full size, for a click.")
    ] = "none",
    layer: Annotated[str, arg(help="What is shown: penultimate, logits, or a module path.")] = "penultimate",
    model: OfModel = MODEL_AS_IT_IS,
    data: OfData = OWN_DATA,
    out: Annotated[Path | None, arg(help="The file; by default explorer-epsE.html beside the results.")] = None,
    parquet: Annotated[bool, arg(help="Write the same as a table too, OUT.parquet.")] = False,
    serve: Annotated[bool, arg(help="Serve the file to this machine alone, until Ctrl+C.")] = False,
    port: Annotated[int, arg(help="Port for --serve; 0 takes a free one.")] = 0,
    open_page: Annotated[bool, arg(name="open", help="Open the page in the browser.")] = True,
    device: Device = "auto",
    progress: Progress = True,
) -> None:
    """Look into the embeddings of one model or several in a browser: one file, without a server or a network."""
    import webbrowser

    from analysis.explore.explorer import EmbeddingExplorer

    if not specs:
        raise ValueError("tla explore needs a MODEL: `tla explore runs/mini/mnist/um/seed0 runs/mini/mnist/tla/seed0`.")
    sets, images, folder = _sets(specs, eps, points, layer, model, data, device, progress)
    levels = {reps.meta["attack"]["eps"] for reps in sets.values()}
    if len(levels) > 1:
        raise ValueError(f"the models' attacks have different eps: {sorted(levels)}. Choose one with --eps.")
    target = out or folder / f"explorer-eps{levels.pop():g}.html"
    maps_file = target.with_suffix(".maps.safetensors")
    explorer = EmbeddingExplorer(
        sets, images=images, methods=methods, maps_file=maps_file, k=k, max_points=points, full_images=full_images,
        progress=progress,
    )  # fmt: skip
    for note in explorer.notes:
        print(note)
    path = explorer.to_html(target, title=", ".join(sets))
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    if parquet:
        print(explorer.to_parquet(path.with_suffix(".parquet")))
    if serve:
        from analysis.explore.serve import page_server

        with page_server(path, port) as server:
            address = f"http://127.0.0.1:{server.server_port}/"
            print(f"{address}  until Ctrl+C", flush=True)
            if open_page:
                webbrowser.open(address)
            with suppress(KeyboardInterrupt):  # how one ends it
                server.serve_forever()
    elif open_page:
        webbrowser.open(path.resolve().as_uri())


def _sets(
    specs: tuple[str, ...], eps: float | None, points: int, layer: str, model: ModelOptions, data: DataOptions,
    device: str, progress: bool,
) -> tuple[dict[str, RepresentationSet], Tensor | None, Path]:  # fmt: skip
    """By the models' names their representations; their images, where no dataset has them; the folder of the page."""
    import numpy as np

    from analysis.command.measuring import is_own, open_subject, represent
    from analysis.command.opening import options_of
    from analysis.representations import RepresentationSet
    from analysis.scales.run_results import extract_run, is_current, representations_target
    from analysis.scales.targets import results_dir

    subjects, sets, folders, images = {}, {}, [], None
    for spec, options in options_of(specs, model).items():  # all are opened before anything takes time
        if layer == "penultimate" and is_own(spec, options, data, None):
            folders.append(results_dir(spec).parents[1])
            representations_target(spec, eps)
        else:
            subjects[spec] = open_subject(spec, options, data, device=device)
            folders.append(subjects[spec].folder)
            print(subjects[spec])
    least_images = max(points // 2, 1)  # as many as can be shown; what is stored beyond them is used too
    for spec, name in model_names(specs).items():
        if spec in subjects:
            options = {"images": least_images, "at_least": True, "progress": progress}
            path = represent(subjects[spec], eps, layers=[layer], **options)[0]
        else:
            count = None if is_current(*representations_target(spec, eps)) else least_images
            path = extract_run(spec, eps, images=count, device=device, progress=progress)
        sets[name] = RepresentationSet.load(path)
    shared = functools.reduce(np.intersect1d, [reps.indices for reps in sets.values()])
    if len(shared) and any(len(reps) != len(shared) for reps in sets.values()):  # more is stored of some models
        sets = {name: reps.subset(np.isin(reps.indices, shared)) for name, reps in sets.items()}
    if subjects:
        images = next(iter(subjects.values())).data.images[next(iter(sets.values())).indices]
    return sets, images, folders[0]
