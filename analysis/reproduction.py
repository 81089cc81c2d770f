"""Puts the numbers of a scale's sidecars beside the paper's, with a verdict on each that follows from standard errors.

The verdicts:

* **agrees**: ours and the paper's differ by no more than two standard errors;
* **same ordering**: they differ, but the method stands to the others of its column as in the paper wherever ours are
  more than two standard errors apart, and somewhere they are;
* **too close to order**: they differ, and ours of all methods are within two standard errors of each other;
* **disagrees**: some method that is below it in the paper is above it here, by more than two standard errors, or there
  is no other method to compare.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis import published
from analysis.scales import Scale
from analysis.tables import Column, Table
from tla_core.presets import analysis_attack

AGREES, ORDERED, NOISE, DISAGREES = "agrees", "same ordering", "too close to order", "disagrees"
_ERRORS = 2  # so many standard errors are a difference


@dataclass(frozen=True)
class Number:
    """One number of ours and its standard error, and the paper's with its own; 0 where none can be had."""

    ours: float
    error: float
    paper: float
    paper_error: float = 0.0


@dataclass(frozen=True)
class Group:
    """Numbers that the paper orders by method: a column of one of its tables.

    Attributes
    ----------
    artefact, dataset, quantity : str
        ``"table3"``, ``"cifar10"``, ``"r′ at ε 8/255"``.
    numbers : dict of str to Number
        By method, or by the value of what is swept.
    differ : callable
        Standard error of the difference of ours of two methods; by default of two independent ones.
    """

    artefact: str
    dataset: str
    quantity: str
    numbers: dict[str, Number]
    differ: Callable[[str, str], float] | None = field(default=None, repr=False, compare=False)

    def difference_error(self, one: str, other: str) -> float:
        if self.differ is not None:
            return self.differ(one, other)
        return math.hypot(self.numbers[one].error, self.numbers[other].error)

    def verdict(self, name: str) -> str:
        """The verdict on one number; the module says what each means."""
        mine = self.numbers[name]
        if abs(mine.ours - mine.paper) <= _ERRORS * math.hypot(mine.error, mine.paper_error):
            return AGREES
        apart = False
        for other, theirs in self.numbers.items():
            paper, ours = mine.paper - theirs.paper, mine.ours - theirs.ours
            if other == name or abs(paper) <= _ERRORS * math.hypot(mine.paper_error, theirs.paper_error):
                continue  # the paper does not order these two
            if abs(ours) <= _ERRORS * self.difference_error(name, other):
                continue
            if paper * ours < 0:
                return DISAGREES
            apart = True
        return ORDERED if apart else NOISE if len(self.numbers) > 1 else DISAGREES


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of n images."""
    return math.sqrt(max(share * (1 - share), 0) / n)


# What the sidecars hold -----------------------------------------------------------------------------------------------


def groups(folder: Path | str, scale: Scale) -> list[Group]:
    """All columns that the paper has too, from the sidecars of a scale's folder of figures."""
    folder = Path(folder)
    readers = (_ratios, _ratios_over_seeds, _sweeps, _accuracies, _neighbours, _detections)
    return [group for read in readers for group in read(folder, scale)]


def _numbers(folder: Path, stem: str) -> Any:
    path = folder / f"{stem}.json"
    return json.loads(path.read_text(encoding="utf-8"))["numbers"] if path.is_file() else None


def _ratios(folder: Path, scale: Scale) -> Iterator[Group]:
    """Table 3. The standard error is that of a mean over classes, of a difference that of the classes' differences."""
    stored = _numbers(folder, "table3")
    if stored is None:
        return
    by_class: dict[tuple, dict[str, dict[str, float]]] = {}
    for record in stored["more"]["per_class"]:
        key = record["ratio"], record["dataset"], record["eps"]
        if record["value"] is not None:
            by_class.setdefault(key, {}).setdefault(record["method"], {})[record["class"]] = record["value"]
    for (ratio, dataset, eps), values in by_class.items():
        printed = _printed_ratios(ratio, dataset, eps)
        if printed is None:
            continue
        numbers = {
            method: Number(float(np.mean(list(of.values()))), _mean_error(list(of.values())), printed[method])
            for method, of in values.items()
            if method in printed
        }

        def differ(one: str, other: str, values=values) -> float:
            both = sorted(values[one].keys() & values[other].keys())
            return _mean_error([values[one][k] - values[other][k] for k in both])

        yield Group("table3", dataset, _ratio_at(ratio, dataset, eps), numbers, differ)


def _ratios_over_seeds(folder: Path, scale: Scale) -> Iterator[Group]:
    """The same of several trainings, at the level of a dataset's own attack; standard errors over them."""
    records = (_numbers(folder, "table3-seeds") or {"records": []})["records"]
    for dataset in dict.fromkeys(row["dataset"] for row in records):
        eps = analysis_attack(scale.config(dataset, scale.methods[0])).eps
        for ratio in ("r_prime", "r"):
            printed = _printed_ratios(ratio, dataset, eps) or {}
            numbers = {
                row["method"]: Number(row[ratio], row[f"{ratio} sd"] / math.sqrt(row["seeds"]), printed[row["method"]])
                for row in records
                if row["dataset"] == dataset and row["method"] in printed
            }
            if numbers:
                yield Group("table3-seeds", dataset, _ratio_at(ratio, dataset, eps), numbers)


def _printed_ratios(ratio: str, dataset: str, eps: float) -> dict[str, float] | None:
    """The paper's ratio of each method at a level; None where it has none."""
    for (name, data, level), numbers in published.RATIOS.items():
        if (name, data) == (ratio, dataset) and math.isclose(level, eps, rel_tol=1e-3):
            return dict(zip(published.METHODS, numbers, strict=True))
    return None


def _ratio_at(ratio: str, dataset: str, eps: float) -> str:
    return f"{'r′' if ratio == 'r_prime' else 'r'} at ε {_level(dataset, eps)}"


def _level(dataset: str, eps: float) -> str:
    """As the paper writes it."""
    return f"{eps:g}" if dataset == "mnist" else f"{round(eps * 255)}/255"


def _mean_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _sweeps(folder: Path, scale: Scale) -> Iterator[Group]:
    dataset = scale.dataset_of("sweeps")
    for name in ("table4", "table5", "table6"):
        records = (_numbers(folder, name) or {"records": []})["records"]
        numbers = {
            row["value"]: Number(row["robust"], row["robust se"], row["paper"], binomial_error(row["paper"], 10_000))
            for row in records
            if row.get("paper") is not None
        }
        if numbers:
            yield Group(name, dataset, "TLA under PGD100", numbers)


def _accuracies(folder: Path, scale: Scale) -> Iterator[Group]:
    for dataset in scale.datasets:
        records = (_numbers(folder, f"main_accuracy-{dataset}") or {"records": []})["records"]
        for column, printed in published.published_accuracies(dataset).items():
            yield from _shares("main_accuracy", dataset, column, printed, {
                row["model"]: (row[column], row[f"{column} se"]) for row in records if row.get(column) is not None
            })  # fmt: skip


def _neighbours(folder: Path, scale: Scale) -> Iterator[Group]:
    for dataset, printed in published.KNN.items():
        records = (_numbers(folder, f"knn-{dataset}") or {"records": []})["records"]
        for kind, of in printed.items():
            ours = {row["method"]: (row[kind], row[f"{kind} se"]) for row in records}
            yield from _shares("knn", dataset, f"kNN, {kind}", of, ours)


def _detections(folder: Path, scale: Scale) -> Iterator[Group]:
    """The paper does not say of how many inputs its areas are: they are taken to be as exact as ours."""
    for dataset, printed in published.DETECTION.items():
        ours = {row["name"]: (row["auc"], row["auc se"]) for row in _numbers(folder, f"detection-{dataset}") or ()}
        yield from _shares("detection", dataset, "AUC", printed, ours, as_exact_as_ours=True)
        records = (_numbers(folder, f"detection-densities-{dataset}") or {"records": []})["records"]
        kind = "own, unit length"  # of those in the table the closest to the paper's numbers
        ours = {row["method"]: (row[kind], row[f"{kind} se"]) for row in records}
        yield from _shares("detection-densities", dataset, "AUC", printed, ours, as_exact_as_ours=True)


def _shares(artefact, dataset, quantity, printed, ours, as_exact_as_ours: bool = False) -> Iterator[Group]:
    """A column of shares; the paper's are in percent, of all test images."""
    numbers = {}
    for method, percent in printed.items():
        if method not in ours:
            continue
        share = percent / 100
        binomial = binomial_error(share, published.TEST_IMAGES[dataset])
        error = ours[method][1] if as_exact_as_ours else binomial
        numbers[method] = Number(*ours[method], share, error)
    if numbers:
        yield Group(artefact, dataset, quantity, numbers)


# What the paper claims ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A trend that the paper states, and what is found of it."""

    text: str
    found: str
    numbers: str


def claims(folder: Path | str, found: Sequence[Group]) -> list[Claim]:
    """The paper's trends: confirmed, not confirmed, or within noise."""
    folder, judged = Path(folder), []
    for group in found:
        if group.artefact == "table3" and group.quantity.startswith("r′"):
            judged.append(_is_most(f"UM has the highest {group.quantity} on {group.dataset}", group))
    for group in found:
        if group.artefact == "table3" and group.dataset == "cifar10" and group.quantity.startswith("r′"):
            judged.append(_is_least(f"TLA has the lowest {group.quantity} on CIFAR-10", group))
    rises: dict[str, list[float]] = {}
    for each in ((_numbers(folder, "fig8-rise") or {}).get("more") or {}).get("per_image", ()):
        rises.setdefault(each["model"], []).append(each["rise"])
    if {"AT", "ALP", "TLA"} <= set(rises):
        numbers = {name: Number(float(np.mean(of)), _mean_error(of), math.nan) for name, of in rises.items()}

        def differ(one: str, other: str) -> float:
            return _mean_error([a - b for a, b in zip(rises[one], rises[other], strict=True)])

        text = "The loss around an image rises least with TLA (Fig. 8)"
        judged.append(_is_least(text, Group("fig8", "", "rise of the loss", numbers, differ)))
    if retrieval := _numbers(folder, "fig7-precision"):
        # Lower is what is judged: of a precision the share that is wrong.
        wrong = {row["method"]: 1 - row["adversarial"] for row in retrieval["records"]}
        n = retrieval["more"]["queries"]  # not times three: the neighbours of one query are no independent trials
        numbers = {name: Number(share, binomial_error(share, n), math.nan) for name, share in wrong.items()}
        text = "Attacked, TLA retrieves the wrong class least often (Fig. 7)"
        judged.append(_is_least(text, Group("fig7", "", "wrong among three neighbours", numbers)))
    return judged


def _is_least(text: str, group: Group) -> Claim:
    return _stands_out(text, group, "TLA", ("AT", "ALP", "TLA"), -1)


def _is_most(text: str, group: Group) -> Claim:
    return _stands_out(text, group, "UM", ("UM", "AT", "ALP", "TLA"), 1)


def _stands_out(text: str, group: Group, one: str, among: Sequence[str], sign: int) -> Claim:
    """Whether one method's number lies below (-1) or above (1) that of each of the others."""
    measured = [(name, group.numbers[name]) for name in among if name in group.numbers]
    others = [name for name, _ in measured if name != one]
    said = ", ".join(f"{name} {number.ours:.3f} ± {number.error:.3f}" for name, number in measured)
    if one not in group.numbers or not others:
        return Claim(text, "not measured", said)
    margins = [
        sign * (group.numbers[name].ours - group.numbers[one].ours) / max(group.difference_error(one, name), 1e-12)
        for name in others
    ]  # fmt: skip
    if max(margins) < -_ERRORS:
        return Claim(text, "confirmed", said)
    return Claim(text, "not confirmed" if max(margins) > _ERRORS else "within noise", said)


# The document ---------------------------------------------------------------------------------------------------------

_TITLES = {
    "table3": "Table 3: distance ratios", "table3-seeds": "Table 3 over seeds", "table4": "Table 4: λ1",
    "table5": "Table 5: the margin", "table6": "Table 6: the layer", "main_accuracy": "Accuracies of the main text",
    "knn": "Accuracy of the 50 nearest training images", "detection": "Detection of misclassified inputs",
    "detection-densities": "The same, with Gaussians of representations of unit length and a covariance for each class",
}  # fmt: skip


def report(folder: Path | str, scale: Scale, reasons: Sequence[dict[str, str]] = ()) -> str:
    """The document, as Markdown: the same sidecars and reasons give the same text.

    Parameters
    ----------
    folder : Path or str
        Such as ``figures/small``.
    scale : Scale
    reasons : sequence of dict
        ``artefact``, ``dataset``, optionally ``quantity`` and ``name``: which disagreements ``reason`` explains.

    Raises
    ------
    ValueError
        If the folder has none of the paper's numbers.
    """
    folder = Path(folder)
    found = groups(folder, scale)
    if not found:
        raise ValueError(f"{folder} holds no number that the paper has. Make it: `make figures SCALE={scale.name}`.")
    counts = [group.verdict(name) for group in found for name in group.numbers]
    summary = ", ".join(f"{counts.count(v)} {v}" for v in (AGREES, ORDERED, NOISE, DISAGREES) if v in counts)
    parts: list[str] = [
        f"# Reproduction at `{scale.name}`",
        f"Made by `tla reproduction --scale {scale.name}` from the sidecars in `figures/{scale.name}`; do not edit.",
        f"Of {len(counts)} numbers: {summary}. Verdicts follow from standard errors (± below; two of them are a"
        " difference): **agrees** with the paper's number; **same ordering** of the methods in a column, where ours are"
        " apart; **too close to order**, where they are not; **disagrees**. Standard errors of ratios are over classes,"
        " or over seeds where it says so; of accuracies over test images, ours and the paper's; of areas under a curve"
        " Hanley and McNeil's, the paper's taken to be as exact as ours.",
        "## What was trained",
        _settings(scale),
    ]
    if judged := claims(folder, found):
        columns = [Column("text", "claim"), Column("found", "found", align="left"), Column("numbers", "", align="left")]
        parts += ["## What the paper claims", Table(columns, [vars(claim) for claim in judged]).to_markdown().strip()]
    if differences := _differences(folder):
        parts += [
            "## Differences of r′ between methods",
            "Standard errors are of a bootstrap over the test images of these classes; in the other sections those of"
            " Table 3 are over classes, or over seeds.",
            differences,
        ]
    for artefact, title in _TITLES.items():
        for dataset in dict.fromkeys(group.dataset for group in found if group.artefact == artefact):
            parts += [f"## {title}, {dataset}", *_section(found, artefact, dataset, reasons)]
    if failed := _failed_checks(folder, scale):
        advice = "These accuracies are an illusion in part: believe AutoAttack's, where there is one."
        parts += ["## Failed masking checks", advice, failed]
    return "\n\n".join(parts) + "\n"


def _section(found, artefact: str, dataset: str, reasons) -> Iterator[str]:
    rows, disagreeing, percent = [], [], not artefact.startswith("table3")
    for group in (each for each in found if (each.artefact, each.dataset) == (artefact, dataset)):
        for name, number in group.numbers.items():
            verdict = group.verdict(name)
            rows.append({
                "quantity": group.quantity, "name": name, "verdict": verdict,
                **{("ours %" if percent else "ours"): number.ours, ("paper %" if percent else "paper"): number.paper},
                "error": number.error,
            })  # fmt: skip
            if verdict == DISAGREES:
                disagreeing.append((group.quantity, name))
    digits = {"digits": 2 if percent else 3, "percent": percent}
    end = " %" if percent else ""
    columns = [
        Column("quantity", ""), Column("name", "", align="left"),
        Column(f"ours{end}", f"ours{end}", error="error", **digits),
        Column(f"paper{end}", f"paper{end}", **digits), Column("verdict", "verdict", align="left"),
    ]  # fmt: skip
    yield Table(columns, rows).to_markdown().strip()
    lines = []
    for quantity, name in disagreeing:
        here = {"artefact": artefact, "dataset": dataset, "quantity": quantity, "name": name}
        known = [each["reason"] for each in reasons if all(here[key] == each[key] for key in here if key in each)]
        lines.append((known[0] if known else "Not looked into.", f"{quantity} {name}"))
    if lines:
        grouped = {reason: [what for each, what in lines if each == reason] for reason, _ in lines}
        yield "Where it disagrees:\n\n" + "\n".join(f"* {', '.join(of)}: {reason}" for reason, of in grouped.items())


def _settings(scale: Scale) -> str:
    rows = []
    for dataset in scale.datasets:
        config = scale.config(dataset, scale.methods[-1])
        counts = {len(scale.spread_runs(dataset, method)) or len(scale.seeds) for method in scale.methods}
        seeds = "–".join(map(str, sorted({min(counts), max(counts)})))
        rows.append({
            "dataset": dataset, "data": config.dataset, "network": f"{config.network}, width {config.width:g}",
            "blocks": "-".join(map(str, config.blocks)) or "–", "length": config.length, "attack": str(config.attack),
            "batch": config.batch_size, "seeds": seeds,
        })  # fmt: skip
    columns = [Column(key, key, align="left") for key in rows[0]]
    return Table(columns, rows).to_markdown().strip()


def _differences(folder: Path) -> str:
    """Each difference with its standard error, and whether it is more than noise."""
    rows = []
    for record in (_numbers(folder, "table3-differences") or {"records": []})["records"]:
        for name in (key.removesuffix(" se") for key in record if key.endswith(" se")):
            value, error = record[name], record[f"{name} se"]
            found = "within noise" if abs(value) <= _ERRORS * error else "higher" if value > 0 else "lower"
            where = f"{record['dataset']}, ε {_level(record['dataset'], record['eps'])}"
            pair = " − ".join(name.upper().split())
            rows.append({"where": where, "pair": pair, "value": value, "error": error, "found": found})
    columns = [
        Column("where", ""), Column("pair", "", align="left"),
        Column("value", "r′, difference", digits=4, error="error"), Column("found", "the first is", align="left"),
    ]  # fmt: skip
    return Table(columns, rows).to_markdown().strip() if rows else ""


def _failed_checks(folder: Path, scale: Scale) -> str:
    """Of the accuracies of the main text, and of Tables 4 to 6."""
    shown = [(dataset, f"main_accuracy-{dataset}", "") for dataset in scale.datasets]
    shown += [(scale.dataset_of("sweeps"), name, f"{_TITLES[name]}, ") for name in ("table4", "table5", "table6")]
    lines = []
    for dataset, stem, title in shown:
        failed = ((_numbers(folder, stem) or {}).get("more") or {}).get("failed_checks", {})
        for name, of in failed.items():
            lines += [f"* {dataset}, {title}{name if title else name.upper()}: {line}" for line in of]
    return "\n".join(lines)
