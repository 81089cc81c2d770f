"""What an ablation shows, as a page and as a figure."""

import math
import re
from pathlib import Path

import numpy as np

from analysis.display.effects import EffectsDisplay
from analysis.paper.ablation import Ablation
from analysis.tables import Column, Table
from tla_core.checkpoint import write_atomic

_OF_CELLS = (
    Column("cell", "training"),
    Column("clean", "clean, %", 1),
    Column("robust", "robust, %", 1, error="se"),
    Column("sd", "sd over seeds", 1),
    Column("seeds", "seeds"),
    Column("each", "robust, seed by seed"),
)
_OF_EFFECTS = (
    Column("label", "what is changed"),
    Column("mean", "difference, points", 1),
    Column("interval", "95 % interval"),
    Column("verdict", "robust accuracy: verdict", align="left"),
)


def cells_table(ablation: Ablation) -> Table:
    """Accuracies of each cell: mean and standard error over the seeds, and the standard deviation of a run."""
    records = ablation.records()
    rows = []
    for name in dict.fromkeys(name for name, _ in records):
        cell_records = [record for (cell, _), record in sorted(records.items()) if cell == name]
        n, robust = len(cell_records), 100 * np.array([record["robust"] for record in cell_records])
        sd = float(robust.std(ddof=1)) if n > 1 else math.nan
        rows.append({
            "cell": name, "clean": 100 * float(np.mean([record["clean"] for record in cell_records])),
            "robust": float(robust.mean()), "se": sd / math.sqrt(n), "sd": sd, "seeds": n,
            "each": ", ".join(f"{value:.1f}" for value in robust),
        })  # fmt: skip
    return Table(_OF_CELLS, rows)


def effects_table(ablation: Ablation) -> Table:
    """Effects with their intervals, paired by seed."""
    rows = [
        {
            "label": f"{effect.experiment}: {effect.label}", "mean": effect.mean, "verdict": effect.verdict,
            "interval": "–" if math.isnan(effect.low) else f"{effect.low:.1f} to {effect.high:.1f}",
        }
        for effect in ablation.effects()
    ]  # fmt: skip
    return Table(_OF_EFFECTS, rows)


def update_page(text: str, ablation: Ablation) -> str:
    """A page with its tables made anew: between ``<!-- cells -->``, ``<!-- effects -->`` and ``<!-- end -->``."""
    none = "Nothing was measured yet.\n"
    effects = ablation.effects()
    chance = sum(not math.isnan(effect.low) for effect in effects) * 0.05
    parts = {
        "cells": cells_table(ablation).to_markdown() if ablation.records() else none,
        "effects": effects_table(ablation).to_markdown()
        + f"\nOf {len(effects)} comparisons, {chance:.1f} intervals would exclude zero by chance alone.\n"
        if effects
        else none,
    }
    for name, part in parts.items():
        text, n = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, p=part: f"{m[1]}\n{p}\n{m[2]}", text, flags=re.S
        )
        if n != 1:
            raise ValueError(f"the page needs one block from <!-- {name} --> to <!-- end -->. Got {n}.")
    return text


def write_report(ablation: Ablation, page: Path) -> list[Path]:
    """Make the tables of the page anew, and, where there are effects, the figure beside it; returns their paths."""
    import matplotlib.pyplot as plt

    write_atomic(page, update_page(page.read_text(encoding="utf-8"), ablation).encode())
    if not ablation.effects():
        return [page]
    figure = effects_display(ablation).plot().figure_
    path = page.with_suffix(".png")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
    return [page, path]


def effects_display(ablation: Ablation) -> EffectsDisplay:
    """The figure of the effects."""
    effects = ablation.effects()
    return EffectsDisplay(
        [f"{effect.experiment}: {effect.label}" for effect in effects], [effect.mean for effect in effects],
        [effect.low for effect in effects], [effect.high for effect in effects],
        [effect.differences for effect in effects], quantity="robust accuracy",
    )  # fmt: skip
