"""Our numbers beside the paper's: the columns of its tables and its claims, read from the sidecars of a scale."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.paper import published, seeds
from analysis.paper.verdicts import Estimate, Group, Number, paired_difference
from analysis.scales.manifest import EXPECTED, ManifestError, made_by
from analysis.scales.scale import Scale
from tla_core.protocol import analysis_attack

# What errors are over, and how a difference between methods is judged.
_OVER_CLASSES = "Errors are over classes. Differences between methods are judged paired, over classes that both have."
_OVER_SEEDS = "Errors are over seeds. Differences between methods are judged paired by seed."
_OVER_SEEDS_UNPAIRED = (
    "Errors are over seeds. Differences between methods are judged by Welch's t, since the sidecar lacks the values of"
    " single seeds."
)
_OVER_SEEDS_TOO = (
    "Errors are over seeds and test images together where there are several seeds. Differences between methods are then"
    " judged paired by seed."
)
_OVER_IMAGES = "Errors are binomial, over test images. Differences are judged as those of independent images."
_AREAS = "Errors are Hanley and McNeil's. Differences are judged as those of independent inputs."


def groups(folder: Path | str, scale: Scale) -> list[Group]:
    """All columns that the paper has too, from the sidecars of a scale's folder of figures."""
    folder = Path(folder)
    readers = (_ratios, _ratios_over_seeds, _sweeps, _accuracies, _neighbours, _detections)
    return [group for read in readers for group in read(folder, scale)]


def read_numbers(folder: Path, stem: str) -> Any:
    """The numbers in the sidecar of a figure or table; None where there is none, ManifestError where it is damaged."""
    path = folder / f"{stem}.json"
    try:
        return json.loads(path.read_bytes())["numbers"] if path.is_file() else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        artefact = next(name for name in EXPECTED if stem.startswith(name))
        raise ManifestError(folder, [f"{path.name} is damaged: {error}. {made_by(artefact, folder)}"]) from error


def _ratios(folder: Path, scale: Scale) -> Iterator[Group]:
    """Table 3: means over seeds; of one seed over classes. Differences are over the classes that both methods have."""
    numbers_stored = read_numbers(folder, "table3")
    if numbers_stored is None:
        return
    rows = {row["method"]: row for row in numbers_stored["records"]}
    ratios_by_class: dict[tuple, dict[str, dict[str, float]]] = {}
    firsts: dict[str, int | None] = {}
    for record in numbers_stored["more"]["per_class"]:
        key = record["ratio"], record["dataset"], record["eps"]
        first = firsts.setdefault(record["dataset"], record.get("seed"))
        if record["value"] is not None and record.get("seed") == first:
            ratios_by_class.setdefault(key, {}).setdefault(record["method"], {})[record["class"]] = record["value"]
    for (ratio, dataset, eps), values in ratios_by_class.items():
        paper_ratios = _printed_ratios(ratio, dataset, eps)
        if paper_ratios is None:
            continue
        name = f"{dataset} {ratio} {eps:g}"
        if _has_seeds(rows, values, name):
            yield _over_seeds("table3", dataset, _ratio_at(ratio, dataset, eps), rows, name, {
                method: Estimate(paper_ratios[method], 0) for method in values if method in paper_ratios
            }, _OVER_SEEDS)  # fmt: skip
            continue
        numbers = {
            method: Number(Estimate.of_mean(list(ratios.values())), Estimate(paper_ratios[method], 0))
            for method, ratios in values.items()
            if method in paper_ratios
        }

        def differ(one: str, other: str, values=values) -> Estimate:
            return paired_difference(values[one], values[other])

        yield Group("table3", dataset, _ratio_at(ratio, dataset, eps), numbers, _OVER_CLASSES, differ)


def _has_seeds(rows: Mapping[str, Any], names: Iterable[str], key: str) -> bool:
    """Whether all rows of these names hold a number of several seeds. Rows of older folders do not."""
    return all(name in rows and seeds.is_over_seeds(rows[name], key) for name in names)


def _over_seeds(artefact, dataset, quantity, rows, key: str, papers: Mapping[str, Estimate], basis: str) -> Group:
    """A column of numbers of several seeds."""
    numbers = {name: Number(seeds.estimate(rows[name], key), paper) for name, paper in papers.items()}
    return Group(
        artefact, dataset, quantity, numbers, basis, lambda one, other: seeds.difference(rows[one], rows[other], key)
    )


def _ratios_over_seeds(folder: Path, scale: Scale) -> Iterator[Group]:
    """The same for folders whose Table 3 has one seed: several trainings, at the level of a dataset's own attack."""
    main = (read_numbers(folder, "table3") or {"records": []})["records"]
    if any(seeds.is_over_seeds(row, key.removesuffix(" by seed")) for row in main for key in row if "by seed" in key):
        return
    records = (read_numbers(folder, "table3-seeds") or {"records": []})["records"]
    for dataset in dict.fromkeys(row["dataset"] for row in records):
        eps = analysis_attack(scale.config(dataset, scale.methods[0])).eps
        for ratio in ("r_prime", "r"):
            paper_ratios = _printed_ratios(ratio, dataset, eps) or {}
            rows = {
                row["method"]: row
                for row in records
                if row["dataset"] == dataset and row["method"] in paper_ratios and row[ratio] is not None
            }
            numbers = {
                method: Number(
                    Estimate(row[ratio], row[f"{ratio} sd"] / math.sqrt(row["seeds"]), row["seeds"] - 1),
                    Estimate(paper_ratios[method], 0),
                )
                for method, row in rows.items()
            }
            ratios_by_seed = {method: row.get("by seed", {}).get(ratio, {}) for method, row in rows.items()}

            def differ(one: str, other: str, ratios_by_seed=ratios_by_seed, numbers=numbers) -> Estimate:
                if len(ratios_by_seed[one].keys() & ratios_by_seed[other].keys()) > 1:
                    return paired_difference(ratios_by_seed[one], ratios_by_seed[other])
                return numbers[one].ours - numbers[other].ours

            if numbers:
                basis = _OVER_SEEDS if all(ratios_by_seed.values()) else _OVER_SEEDS_UNPAIRED
                yield Group("table3-seeds", dataset, _ratio_at(ratio, dataset, eps), numbers, basis, differ)


def _printed_ratios(ratio: str, dataset: str, eps: float) -> dict[str, float] | None:
    """The paper's ratio of each method at a level; None where it has none."""
    for (name, data, level), numbers in published.RATIOS.items():
        if (name, data) == (ratio, dataset) and math.isclose(level, eps, rel_tol=1e-3):
            return dict(zip(published.METHODS, numbers, strict=True))
    return None


def _ratio_at(ratio: str, dataset: str, eps: float) -> str:
    return f"{'r′' if ratio == 'r_prime' else 'r'} at ε {level_text(dataset, eps)}"


def level_text(dataset: str, eps: float) -> str:
    """As the paper writes it."""
    return f"{eps:g}" if dataset == "mnist" else f"{round(eps * 255)}/255"


def _sweeps(folder: Path, scale: Scale) -> Iterator[Group]:
    dataset = scale.dataset_of("sweeps")
    for name in ("table4", "table5", "table6"):
        records = (read_numbers(folder, name) or {"records": []})["records"]
        rows = {row["value"]: row for row in records if row.get("paper") is not None}
        papers = {value: _share(row["paper"], 10_000) for value, row in rows.items()}
        basis = f"{_OVER_IMAGES} One seed each."
        if rows and _has_seeds(rows, rows, "robust"):
            basis = _OVER_SEEDS_TOO
        elif any("robust error seeds" in row for row in rows.values()):
            basis = "One seed each; errors are the standard deviation of TLA's main runs over seeds."
        if rows:
            yield _over_seeds(name, dataset, "TLA under PGD100", rows, "robust", papers, basis)


def _accuracies(folder: Path, scale: Scale) -> Iterator[Group]:
    for dataset in scale.datasets:
        records = (read_numbers(folder, f"main_accuracy-{dataset}") or {"records": []})["records"]
        for column, paper_shares in published.published_accuracies(dataset).items():
            rows = {row["model"]: row for row in records if row.get(column) is not None}
            yield from _shares("main_accuracy", dataset, column, paper_shares, rows, column)


def _neighbours(folder: Path, scale: Scale) -> Iterator[Group]:
    for dataset, paper_kinds in published.KNN.items():
        records = (read_numbers(folder, f"knn-{dataset}") or {"records": []})["records"]
        for kind, paper_shares in paper_kinds.items():
            rows = {row["method"]: row for row in records}
            yield from _shares("knn", dataset, f"kNN, {kind}", paper_shares, rows, kind)


def _detections(folder: Path, scale: Scale) -> Iterator[Group]:
    """The paper does not say how many inputs its areas come from. They are taken to be as exact as ours."""
    for dataset, paper_areas in published.DETECTION.items():
        records = (read_numbers(folder, f"detection-densities-{dataset}") or {"records": []})["records"]
        rows = {row["method"]: row for row in records}
        if rows and _has_seeds(rows, rows, "shared"):  # the figure shows the first seed alone
            yield from _shares("detection", dataset, "AUC", paper_areas, rows, "shared", as_exact_as_ours=True)
        else:
            curves = {curve["name"]: curve for curve in read_numbers(folder, f"detection-{dataset}") or ()}
            yield from _shares("detection", dataset, "AUC", paper_areas, curves, "auc", as_exact_as_ours=True)
        # The kind of Gaussians that comes closest to the paper's numbers.
        yield from _shares(
            "detection-densities", dataset, "AUC", paper_areas, rows, "own, unit length", as_exact_as_ours=True
        )


def _share(share: float, n: int) -> Estimate:
    """A share of n images, with its binomial error."""
    return Estimate(share, math.sqrt(max(share * (1 - share), 0) / n))


def _shares(
    artefact, dataset, quantity, paper_shares, rows, key: str, as_exact_as_ours: bool = False
) -> Iterator[Group]:
    """A column of shares, in rows by method; the paper's are in percent, of all test images."""
    papers = {}
    for method, percent in paper_shares.items():
        if method not in rows:
            continue
        paper = _share(percent / 100, published.TEST_IMAGES[dataset])
        if as_exact_as_ours:
            row = rows[method]
            paper = Estimate(paper.value, row[f"{key} se of images" if seeds.is_over_seeds(row, key) else f"{key} se"])
        papers[method] = paper
    if papers:
        basis = _AREAS if as_exact_as_ours else _OVER_IMAGES
        is_over_seeds = any(seeds.is_over_seeds(rows[method], key) for method in papers)
        basis = f"{_OVER_SEEDS_TOO} {basis}" if is_over_seeds else basis
        yield _over_seeds(artefact, dataset, quantity, rows, key, papers, basis)


# What the paper claims ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A trend that the paper states, whether our numbers show it, and these numbers."""

    text: str
    verdict: str
    numbers: str


def claims(folder: Path | str, groups: Sequence[Group]) -> list[Claim]:
    """The paper's trends: confirmed, not confirmed, or within noise."""
    folder, verdicts = Path(folder), []
    for group in groups:
        if group.artefact == "table3" and group.quantity.startswith("r′"):
            verdicts.append(_is_most(f"UM has the highest {group.quantity} on {group.dataset}", group))
    for group in groups:
        if group.artefact == "table3" and group.dataset == "cifar10" and group.quantity.startswith("r′"):
            verdicts.append(_is_least(f"TLA has the lowest {group.quantity} on CIFAR-10", group))
    rises: dict[str, dict[int, float]] = {}
    rise = read_numbers(folder, "fig8-rise") or {"records": ()}
    rows_by_model = {row["model"]: row for row in rise["records"]}
    for each in (rise.get("more") or {}).get("per_image", ()):
        rises.setdefault(each["model"], {})[each["row"]] = each["rise"]
    if {"AT", "ALP", "TLA"} <= set(rises):
        means = {name: Estimate.of_mean(list(rises_by_image.values())) for name, rises_by_image in rises.items()}
        text = "The loss around an image rises least with TLA (Fig. 8)"
        group = _unpublished("fig8", means, lambda a, b: paired_difference(rises[a], rises[b]))
        if _has_seeds(rows_by_model, rises, "rise"):
            papers = dict.fromkeys(rises, Estimate(math.nan, math.nan))
            group = _over_seeds("fig8", "", "", rows_by_model, "rise", papers, _OVER_SEEDS_TOO)
        verdicts.append(_is_least(text, group))
    if retrieval := read_numbers(folder, "fig7-precision"):
        # A claim is about the lowest number, so the share of wrong neighbours is judged, not the precision.
        n = retrieval["more"]["queries"]  # not times three: the neighbours of one query are no independent trials
        wrong_shares = {row["method"]: _share(1 - row["adversarial"], n) for row in retrieval["records"]}
        text = "Attacked, TLA retrieves the wrong class least often (Fig. 7)"
        verdicts.append(_is_least(text, _unpublished("fig7", wrong_shares)))
    return verdicts


def _unpublished(artefact: str, estimates: dict[str, Estimate], differ=None) -> Group:
    """A column of numbers that the paper does not print."""
    numbers = {name: Number(estimate, Estimate(math.nan, math.nan)) for name, estimate in estimates.items()}
    return Group(artefact, "", "", numbers, differ=differ)


def _is_least(text: str, group: Group) -> Claim:
    return _stands_out(text, group, "TLA", ("AT", "ALP", "TLA"), -1)


def _is_most(text: str, group: Group) -> Claim:
    return _stands_out(text, group, "UM", ("UM", "AT", "ALP", "TLA"), 1)


def _stands_out(text: str, group: Group, method: str, methods: Sequence[str], sign: int) -> Claim:
    """Whether one method's number lies below (-1) or above (1) that of each of the others."""
    estimates = {name: group.numbers[name].ours for name in methods if name in group.numbers}
    numbers = ", ".join(f"{name} {estimate.value:.3f} ± {estimate.error:.3f}" for name, estimate in estimates.items())
    if method not in estimates or len(estimates) < 2:
        return Claim(text, "not measured", numbers)
    leads = [group.difference(method, name) for name in estimates if name != method]
    if all(lead.is_not_zero and sign * lead.value > 0 for lead in leads):
        return Claim(text, "confirmed", numbers)
    is_refuted = any(lead.is_not_zero and sign * lead.value < 0 for lead in leads)
    return Claim(text, "not confirmed" if is_refuted else "within noise", numbers)
