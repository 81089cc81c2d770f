"""What the toolkit shows, in a minute: the published MNIST models on the images that come with the project."""

from __future__ import annotations

from pathlib import Path

import torch

from analysis.display import FalseClassesDisplay, FalseClassPanel
from analysis.display.figures import save_figure, save_table
from analysis.explore import EmbeddingExplorer
from analysis.extraction import extract
from analysis.maps import align_maps, map_class
from analysis.publish.model_cards import OUTCOMES, stored_accuracy
from analysis.ratios import ratio_r, ratio_r_prime
from analysis.representations import RepresentationSet
from analysis.scales.scale import project_root
from analysis.tables import Column, Table
from tla_core.attack_config import AttackConfig
from tla_core.checkpoint import CheckpointError
from tla_core.datasets import load_dataset
from tla_core.presets import METHODS
from tla_core.training import load_model

ATTACK = AttackConfig(eps=0.3, step_size=0.06, steps=10)
_CLASSES = (2, 4, 8)  # whose maps are drawn: three rows are a picture, ten a poster


def demo(
    out_dir: Path | str, *, images: int = 500, root: Path | str | None = None, progress: bool = True
) -> list[Path]:
    """Attack the published MNIST models, and show their representations: a table, maps, and an explorer.

    Nothing is trained or downloaded: the models are those of ``checkpoints/``, the images are evenly spread over the
    embedded test images of MNIST, which the models have not seen.

    Parameters
    ----------
    out_dir : Path or str
        Where ``demo.html``, ``maps`` and ``ratios`` go.
    images : int
        How many, from 300 to 5,000: of fewer a class makes no map.
    root : Path or str, optional
        Root of the project; by default that of the working directory.
    progress : bool

    Returns
    -------
    list of Path
        The explorer, the picture of the maps and the table.

    Raises
    ------
    FileNotFoundError
        If the project has no published MNIST models.
    ValueError
        For another number of images.
    """
    out_dir = Path(out_dir)
    folder = (project_root() if root is None else Path(root)) / "checkpoints"
    runs = {method: folder / f"mnist-{method}" for method in METHODS if (folder / f"mnist-{method}").is_dir()}
    if not runs:
        raise FileNotFoundError(f"no published MNIST models in {folder}. Expected mnist-um, mnist-at and others.")
    data = load_dataset("mnist-mini", "test")
    if not 300 <= images <= len(data):
        raise ValueError(f"images must be from 300 to {len(data)}. Got {images!r}.")
    rows = torch.arange(images) * len(data) // images
    sets = {}
    for method, run in runs.items():
        model = load_model(run, device="cpu")
        sets[method.upper()] = extract(
            model, data.images[rows], data.labels[rows], attack=ATTACK, indices=rows, progress=progress,
            class_names=data.class_names, meta={"dataset": data.name, "split": data.split, "source": data.source},
        )  # fmt: skip
    table = save_table(_table(sets, runs), out_dir / "ratios")["html"]
    caption = f"Maps of three classes: {ATTACK}, {data.source}."
    picture = save_figure(_maps(sets), out_dir / "maps", caption=caption)["png"]
    explorer = EmbeddingExplorer(sets, methods=("tsne", "pca"), progress=progress)
    return [explorer.to_html(out_dir / "demo.html", title="MNIST under attack"), picture, table]


def _table(sets: dict[str, RepresentationSet], runs: dict[str, Path]) -> Table:
    records = []
    for (name, reps), run in zip(sets.items(), runs.values(), strict=True):
        record = {"method": name, "clean": reps.accuracy, "robust": reps.robust_accuracy}
        try:
            record["strongest"] = stored_accuracy(run / OUTCOMES, run / "model.safetensors").accuracy.get("strongest")
        except (FileNotFoundError, CheckpointError):
            record["strongest"] = None
        for key, ratio in (("r_prime", ratio_r_prime(reps)), ("r", ratio_r(reps))):
            record |= {key: ratio.value, f"{key} left out": list(ratio.left_out)}
        records.append(record)
    columns = [
        Column("method", "method"),
        Column("clean", "clean, %", digits=1, percent=True),
        Column("robust", "PGD 10, %", digits=1, percent=True),
        Column("strongest", "strongest attack, % (card)", digits=1, percent=True),
        Column("r_prime", "r′ (lower is better)", digits=2, best="min", basis="r_prime left out"),
        Column("r", "r (higher is better)", digits=2, best="max", basis="r left out"),
    ]
    caption = (
        f"{len(reps)} test images of MNIST, {ATTACK}; the strongest attack as in the cards. r is a mean over the"
        " classes that an image is mistaken for: where these differ, none is marked as the best."
    )
    return Table(columns, records, caption)


def _maps(sets: dict[str, RepresentationSet]) -> FalseClassesDisplay:
    maps = {name: {k: map_class(reps, k) for k in _CLASSES} for name, reps in sets.items()}
    first = next(iter(maps.values()))
    aligned_maps = {name: align_maps(each, first) for name, each in maps.items()}
    names = next(iter(sets.values())).class_names
    titles = [f"{name}, robust {reps.robust_accuracy:.0%}" for name, reps in sets.items()]
    rows = [[FalseClassPanel.from_map(each[k], names) for each in aligned_maps.values()] for k in _CLASSES]
    return FalseClassesDisplay(rows, titles).plot()
