"""Table 3 and what belongs to it: r′ and r of each method, over seeds, their differences, and the distances behind."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from analysis.paper.seeds import OverSeeds, error_words, images_words
from analysis.paper.verdicts import Estimate
from analysis.ratio_errors import bootstrap_r_prime
from analysis.ratios import RatioResult, ratio, ratio_r, ratio_r_prime
from analysis.representations import RepresentationSet
from analysis.scales.named import as_results
from analysis.scales.results import Results
from analysis.tables import Column, Table

_RATIOS = {"r_prime": ratio_r_prime, "r": ratio_r}
_TITLES = {"r_prime": "r′", "r": "r"}
_BEST = {"r_prime": "min", "r": "max"}


def ratio_table(
    results: Results | Mapping[str, Any], methods: Mapping[str, Any] | None = None
) -> tuple[Table, list[dict[str, Any]]]:
    """Table 3: r′ and r of each method, on every dataset and at each of its levels.

    At the level of a dataset's own attack they are means over its seeds, all of the same test images; at the other
    level they are of the first seed.

    Parameters
    ----------
    results : Results or mapping of str to method
    methods : mapping of str to method, optional
        Rows beside those of a scale: representations, models, runs. See `as_results`.

    Returns
    -------
    table : Table
    per_class : list of dict
        The values behind the means: dataset, method, seed, eps, ratio, class, value (nan where left out).
    """
    results = as_results(results, methods)
    rows: dict[str, dict[str, Any]] = {method: {"method": results.title(method)} for method in results.methods}
    columns, per_class, left_out, counts = [Column("method", "method")], [], [], []
    for dataset in results.scale.datasets:
        seeds, levels = results.scale.seeds_of(dataset), results.levels(dataset)
        for eps in levels:
            sets_by_method = {m: _sets(results, m, dataset, eps) for m in results.methods_of(dataset, eps)}
            for method, sets in sets_by_method.items():
                # The entries of a method's row, and the values of each class behind them.
                title = results.title(method)
                for name in _RATIOS:
                    ratios = {seed: _ratio(results, dataset, reps, name) for seed, reps in sets.items()}
                    number = OverSeeds.of_ratios(ratios)
                    rows[method] |= number.record(f"{dataset} {name} {eps:g}")
                    for seed, result in ratios.items():
                        labels = {"dataset": dataset, "method": title, "seed": seed, "eps": eps, "ratio": name}
                        names = zip(sets[seed].class_names, result.per_class, strict=True)
                        per_class += [{**labels, "class": k, "value": value} for k, value in names]
                        if result.left_out:
                            training = title + (f", seed {seed}" if len(ratios) > 1 else "")
                            left_out.append(f"{len(result.left_out)} of {_TITLES[name]} at {eps:.3g} for {training}")
            # The columns of this level, and what the caption says of it.
            for name in _RATIOS:
                key = f"{dataset} {name} {eps:g}"
                title = f"{_TITLES[name]}, {dataset}, {_level(eps)}"
                columns.append(Column(key, title, best=_BEST[name], error=f"{key} se", basis=f"{key} left out"))
            sets = sets_by_method[results.methods[0]]
            error_text = error_words(tuple(sets)) if len(sets) > 1 else results.single_words(dataset)
            counts.append(f"{dataset}, {_level(eps)}: {len(sets[seeds[0]]):,} test images, {error_text}")
        steps_text = ", and as many steps at the other level" if len(levels) > 1 else ""
        counts[-1] += f"; {results.attack_note(dataset)}{steps_text}"
    caption = (
        "Table 3: ratios r′ (lower is better) and r (higher is better) of mean angular distances, penultimate layer; "
        f"{'; '.join(counts)}{results.given_note}. What test images alone make of differences of r′:"
        f" table3-differences. Classes left out, for want of adversarial examples: {'; '.join(left_out) or 'none'};"
        " where these are others for other methods, none is marked as the best."
    )
    return Table(columns, list(rows.values()), caption), per_class


def ratio_numbers(results: Results, method: str, dataset: str, seeds: tuple[int, ...]) -> dict[str, OverSeeds]:
    """r′ and r of some seeds of a method, under the dataset's own attack, on the images that all these seeds have."""
    sets = results.representations_of_seeds(method, dataset=dataset, seeds=seeds)
    return {
        name: OverSeeds.of_ratios({seed: _ratio(results, dataset, reps, name) for seed, reps in sets.items()})
        for name in _RATIOS
    }


def ratio_spread_table(results: Results) -> Table | None:
    """Mean and standard deviation of r′, r and the accuracies over seeds; None where no dataset has several.

    Each number is that of the dataset's own level of attack. Under ``"by seed"`` the rows hold the values behind the
    means: name -> seed -> value.
    """
    rows, counts = [], set()
    for dataset in results.scale.datasets:
        if len(results.scale.seeds_of(dataset)) < 2:
            continue
        for method in results.scale.methods:
            numbers: dict[str, dict[int, float]] = {}
            ratios: dict[str, dict[int, RatioResult]] = {name: {} for name in _RATIOS}
            for seed, reps in results.representations_of_seeds(method, dataset=dataset).items():
                for name in _RATIOS:
                    ratios[name][seed] = _ratio(results, dataset, reps, name)
                values = {name: ratios[name][seed].value for name in _RATIOS}
                values |= {"clean": reps.accuracy, "robust": reps.robust_accuracy}
                for name, value in values.items():
                    numbers.setdefault(name, {})[seed] = value
            counts.add(len(numbers["clean"]))
            row: dict[str, Any] = {"method": results.title(method), "dataset": dataset, "seeds": len(numbers["clean"])}
            for name, values_by_seed in numbers.items():
                values = list(values_by_seed.values())
                row |= {name: float(np.mean(values)), f"{name} sd": float(np.std(values, ddof=1))}
            for name in _RATIOS:  # neither other classes nor another dataset are compared
                row[f"{name} basis"] = f"{dataset} {OverSeeds.of_ratios(ratios[name]).left_out}"
            rows.append(row | {"by seed": numbers})  # so that differences between methods can be judged in pairs
    if not rows:
        return None
    columns = [Column("method", "method"), Column("dataset", "dataset", align="left"), Column("seeds", "seeds")]
    columns += [
        Column(name, _TITLES[name], error=f"{name} sd", best=_BEST[name], basis=f"{name} basis") for name in _RATIOS
    ]
    columns += [Column(name, f"{name}, %", digits=1, percent=True, error=f"{name} sd") for name in ("clean", "robust")]
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
    caption = (
        f"Table 3, how much seeds matter: mean ± standard deviation of a training (not error of the mean) over {seeds}"
        " seeds. Robust: under the attack that r′ and r are of; the checks for masked gradients are made with the main"
        " text's accuracies."
    )
    return Table(columns, rows, caption)


def difference_table(results: Results | Mapping[str, Any], methods: Mapping[str, Any] | None = None) -> Table:
    """Differences of r′ between methods, with their standard errors.

    Several seeds are paired. With one seed the error is that of a bootstrap over the test images: both methods are
    measured on the same resamples, so that a hard image does not count as a difference between them.
    """
    results = as_results(results, methods)
    pairs, rows = list(combinations(results.methods, 2)), []
    names = [f"{one} {other}" for one, other in pairs]
    for dataset in results.scale.datasets:
        for eps in results.levels(dataset):
            values: dict[str, dict[int, float]] = {}
            resamples = {}
            images: dict[str, np.ndarray] = {}
            for method in results.methods_of(dataset, eps):
                sets = _sets(results, method, dataset, eps)
                images[method] = next(iter(sets.values())).indices
                values[method] = {seed: _ratio(results, dataset, reps, "r_prime").value for seed, reps in sets.items()}
                # The same resamples of every method and seed, so that they can be averaged and subtracted.
                resamples[method] = np.mean([
                    bootstrap_r_prime(reps, **_drawn_from(results, dataset, reps, "r_prime")) for reps in sets.values()
                ], axis=0)  # fmt: skip
            first = results.methods[0]
            row: dict[str, Any] = {
                "dataset": dataset, "eps": eps, "images": len(images[first]), "seeds": len(values[first]),
            }  # fmt: skip
            for name, (one, other) in zip(names, pairs, strict=True):
                # Of the same images alone: resamples of others say nothing of a difference.
                if not {one, other} <= images.keys() or not np.array_equal(images[one], images[other]):
                    continue
                images_error = float(np.nanstd(resamples[one] - resamples[other], ddof=1))
                seeds = [seed for seed in values[one] if seed in values[other]]
                number = OverSeeds.of({seed: values[one][seed] - values[other][seed] for seed in seeds}, images_error)
                has_seeds = len(number.by_seed) > 1
                estimate = Estimate(number.value, number.error, len(number.by_seed) - 1 if has_seeds else math.inf)
                mark = "*" if estimate.is_not_zero else ""
                row |= {**number.record(name), f"{name} margin": estimate.margin, f"{name} mark": mark}
            rows.append(row)
    columns = [Column("dataset", "dataset"), Column("eps", "ε", digits=4), Column("images", "test images")]
    columns.append(Column("seeds", "trainings"))
    for name, (one, other) in zip(names, pairs, strict=True):
        title = f"{results.title(one)} − {results.title(other)}"
        columns.append(Column(name, title, digits=4, error=f"{name} se", mark=f"{name} mark"))
    images_text = images_words(rows, names, "{:.4f}".format)
    seeds = sorted({row["seeds"] for row in rows})
    seeds_text = f"over seeds, paired, where there are {seeds[-1]} trainings ({images_text}); " if images_text else ""
    caption = (
        f"Table 3, differences of r′ between methods, ± standard error: {seeds_text}of one training over test images."
        f" Over these by a bootstrap: {len(resamples[method])} resamples, class by class, the same of every method. *:"
        " the interval of 95 % does not hold 0, by Student's t with n − 1 degrees of freedom over n trainings, by the"
        " normal distribution for the bootstrap."
    )
    return Table(columns, rows, caption)


def distance_table(results: Results | Mapping[str, Any], methods: Mapping[str, Any] | None = None) -> Table:
    """The mean distances that r′ is made of, averaged over classes, at the level of each dataset's own attack.

    They are those of the first seed: from the clean images of a class to one another, to those of other classes, and to
    the adversarial examples made from that class.
    """
    results, rows = as_results(results, methods), []
    for dataset in results.scale.datasets:
        for method in results.methods_of(dataset, results.levels(dataset)[-1]):
            reps = results.representations(method, dataset=dataset)
            features, labels = np.asarray(reps.features), np.asarray(reps.labels)
            result = _ratio(results, dataset, reps, "r_prime")
            other_distances = [_mean_distance(features[labels != k], features[labels == k]) for k in np.unique(labels)]
            inner, cross = float(np.nanmean(result.inner)), float(np.nanmean(result.cross))
            outer = float(np.nanmean(other_distances))
            rows.append({
                "method": results.title(method), "dataset": dataset, "within": inner, "attacked": cross, "apart": outer,
                "apart / within": outer / inner,
            })  # fmt: skip
    columns = [
        Column("method", "method"), Column("dataset", "dataset", align="left"),
        Column("within", "clean, within a class"), Column("attacked", "attacked, from the own class"),
        Column("apart", "clean, from other classes"), Column("apart / within", "from other classes / within"),
    ]  # fmt: skip
    caption = (
        "What r′ is made of: mean angular distances (1 − |cos|), penultimate layer, mean over classes; r′ divides the"
        " second by the first, class by class. One training each, the first seed."
    )
    return Table(columns, rows, caption)


def _sets(results: Results, method: str, dataset: str, eps: float) -> dict[int, RepresentationSet]:
    """Seed -> representations: all seeds at the level of the dataset's own attack, the first seed at others."""
    seeds = results.scale.seeds_of(dataset)
    if len(seeds) > 1 and eps == results.attack(dataset=dataset).eps:
        return results.representations_of_seeds(method, dataset=dataset)
    return {seeds[0]: results.representations(method, eps, dataset=dataset)}


def _ratio(results: Results, dataset: str, reps: RepresentationSet, name: str) -> RatioResult:
    return _RATIOS[name](reps, **_drawn_from(results, dataset, reps, name))


def _drawn_from(results: Results, dataset: str, reps: RepresentationSet, ratio: str) -> dict[str, int]:
    """The option that r′ needs if the representations are of a part of the test images."""
    if ratio != "r_prime" or dataset not in results.scale.analysis_images:
        return {}
    images = len(results.test_images(dataset).labels)
    return {"drawn_from": images} if len(reps) < images else {}


def _level(eps: float) -> str:
    """Of representations that do not say what they were attacked with it is not known."""
    return "attacked" if math.isnan(eps) else f"ε {eps:.3g}"


def _mean_distance(features: np.ndarray, other_features: np.ndarray) -> float:
    classes, other_classes = np.zeros(len(features), int), np.zeros(len(other_features), int)
    return float(ratio(features, classes, other_features, other_classes).cross[0])


def class_ratio_table(results: Results, per_class: Sequence[Mapping[str, Any]]) -> Table:
    """r′ of each class of the first dataset, at its highest level, of the seed that figures show.

    Parameters
    ----------
    results : Results
    per_class : sequence of mapping
        The second of what `ratio_table` gives.
    """
    dataset = results.scale.datasets[0]
    eps, seed = results.levels(dataset)[-1], results.scale.seeds_of(dataset)[0]
    rows: dict[str, dict[str, Any]] = {}
    for record in per_class:
        if (record["dataset"], record["eps"], record["ratio"], record["seed"]) == (dataset, eps, "r_prime", seed):
            row = rows.setdefault(record["method"], {"method": record["method"]})
            row[record["class"]] = record["value"]
    classes = [key for key in next(iter(rows.values())) if key != "method"]
    columns = [Column("method", "method"), *(Column(name, name, digits=2) for name in classes)]
    return Table(columns, list(rows.values()), f"r′ of each class of {dataset} at ε {eps:.3g}, seed {seed}.")
