"""The explorer's data as a table, for other tools."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from analysis.explore.images import png
from analysis.explore.items import Items
from analysis.explore.measures import Measures
from analysis.explore.payload import Contents


def write_parquet(path: Path, contents: Contents) -> None:
    """Write one row for each point of each model; see `EmbeddingExplorer.to_parquet`."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("to_parquet needs pyarrow, which is not installed. Run pip install pyarrow.") from error

    items = contents.items
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    clean_files = _files(contents.images, len(items.rows))
    tables = []
    for name in items.sets:
        reps = items.sets[name].subset(items.rows)
        for kind in ("clean", "adversarial"):
            if kind == "adversarial" and reps.adv_features is None:
                continue
            maps = {method: model_maps[name] for method, model_maps in contents.maps.items()}
            columns = _columns(items, name, kind, contents.measures[name], maps)
            columns |= {column.name: column.listed() for column in contents.columns}
            files = clean_files if kind == "clean" else _files(contents.adv_images.get(name), len(reps))
            columns["image"] = pa.array(files, type=image_type)
            tables.append(pa.table(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        parquet.write_table(pa.concat_tables(tables, promote_options="permissive"), unfinished, compression="zstd")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _columns(items: Items, name: str, kind: str, measures: Measures, maps: dict[str, np.ndarray]) -> dict:
    reps = items.sets[name].subset(items.rows)
    n, classes = len(reps), np.array(reps.class_names, dtype=object)
    prefix = "" if kind == "clean" else "adv_"
    predictions = getattr(reps, f"{prefix}predictions")
    columns = {
        "model": [name] * n,
        "kind": [kind] * n,
        "index": reps.indices,
        "label": classes[reps.labels].tolist(),
        "prediction": [None] * n if predictions is None else classes[predictions].tolist(),
        "confidence": getattr(measures, f"{prefix}confidence"),
        "outcome": _outcomes(reps),
        "moved": measures.moved,
        "class_distance": getattr(measures, f"{prefix}class_distance"),
    }
    rows = slice(0, n) if kind == "clean" else slice(n, 2 * n)
    for method, coords in maps.items():
        columns |= {f"{method}_x": coords[rows, 0], f"{method}_y": coords[rows, 1]}
    return {key: [None] * n if values is None else values for key, values in columns.items()}


def _outcomes(reps) -> list[str | None]:
    """What the attack did to each image."""
    if reps.predictions is None or reps.adv_predictions is None:
        return [None] * len(reps)
    is_right, is_still_right = reps.predictions == reps.labels, reps.adv_predictions == reps.labels
    return np.where(~is_right, "wrong before", np.where(is_still_right, "withstood", "fooled")).tolist()


def _files(pixels: np.ndarray | None, n: int) -> list[dict | None]:
    return [None] * n if pixels is None else [{"bytes": png(image), "path": None} for image in pixels]
