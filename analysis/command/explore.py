"""`tla explore`: writes the explorer of some runs and opens it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from tla_core.presets import METHODS, VARIANTS


def explore(
    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help="Run folders, one to six.")]],
    eps: Annotated[float | None, arg(help="Perturbation level; by default that of the dataset's attack.")] = None,
    points: Annotated[int, arg(help="The most points of a panel, an image with its attacked one being two.")] = 2000,
    methods: Annotated[tuple[str, ...], arg(help="Maps to switch between.")] = ("tsne", "umap", "pca"),
    k: Annotated[int, arg(help="Nearest neighbours that are shown at first.")] = 5,
    full_images: Annotated[
        Literal["none", "page", "beside"], arg(help="Where images above 96 pixels are in full size, for a click.")
    ] = "none",
    out: Annotated[Path | None, arg(help="The file; by default explorer-epsE.html beside the results.")] = None,
    parquet: Annotated[bool, arg(help="Write the same as a table too, OUT.parquet.")] = False,
    serve: Annotated[bool, arg(help="Serve the file to this machine alone, until Ctrl+C.")] = False,
    port: Annotated[int, arg(help="Port for --serve; 0 takes a free one.")] = 0,
    open_page: Annotated[bool, arg(name="open", help="Open the page in the browser.")] = True,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Look into the embeddings of one run or several in a browser: one file, without a server or a network."""
    import webbrowser

    from analysis.explore.explorer import EmbeddingExplorer
    from analysis.representations import RepresentationSet
    from analysis.scales.run_results import extract_run, is_current, representations_target
    from analysis.scales.targets import results_dir

    if not runs:
        raise ValueError("tla explore needs a run: `tla explore runs/mini/mnist/um/seed0 runs/mini/mnist/tla/seed0`.")
    names = run_names(runs)
    sets, levels = {}, set()
    for name, run in zip(names, runs, strict=True):
        # Of a run whose representations were not made yet, no more than can be shown.
        images = None if is_current(*representations_target(run, eps)) else max(points // 2, 1)
        path = extract_run(run, eps, images=images, device=device, progress=progress)
        sets[name] = RepresentationSet.load(path)
        levels.add(sets[name].meta["attack"]["eps"])
    if len(levels) > 1:
        raise ValueError(f"the runs' attacks have different eps: {sorted(levels)}. Choose one with --eps.")
    target = out or results_dir(runs[0]).parents[1] / f"explorer-eps{levels.pop():g}.html"
    kept = target.with_suffix(".maps.safetensors")
    explorer = EmbeddingExplorer(
        sets, methods=methods, maps_file=kept, k=k, max_points=points, full_images=full_images, progress=progress
    )
    for note in explorer.notes:
        print(note)
    path = explorer.to_html(target, title=", ".join(names))
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
