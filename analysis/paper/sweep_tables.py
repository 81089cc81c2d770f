"""Tables 4 to 6: accuracy and distance ratios of TLA for each value of a setting, with errors over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.paper.accuracy_tables import accuracies_over_seeds, strongest_words
from analysis.paper.published import SWEPT_ACCURACIES
from analysis.paper.ratio_tables import ratio_numbers
from analysis.paper.seeds import OverSeeds, error_words, images_words
from analysis.paper.verdicts import Estimate
from analysis.scales.accuracy import STRONGEST, RunAccuracy
from analysis.scales.named import as_results
from analysis.scales.results import Results
from analysis.scales.scale import SWEEP_COLUMNS
from analysis.tables import Column, Table
from tla_core.protocol import SWEEPS

SWEPT = {"lambda_triplet": "λ1", "margin": "margin", "layer": "layer", "pool_size": "pool size"}
# Key in the rows -> column of accuracies.
_SHARES = {"clean": "clean", "robust": SWEEP_COLUMNS[0], "strongest": STRONGEST}
_MARK = "*"


def sweep_accuracies(results: Results, method: str) -> dict[int, RunAccuracy]:
    """Seed -> accuracies of the runs of one value of a sweep."""
    return {
        seed: results.accuracy(method, dataset=dataset, seed=seed)
        for dataset, _, seed in results.scale.sweep_runs(method)
    }


def sweep_table(results: Results, name: str, methods: Mapping[str, Any] | None = None) -> Table:
    """Table 4, 5 or 6: TLA for each value of a setting, beside the published accuracy.

    Errors are standard errors over seeds. If each value has one training, they are the standard deviation of TLA's main
    runs over their seeds; if these have one seed too, they are the errors over test images.

    Parameters
    ----------
    results : Results
    name : {"table4", "table5", "table6", "pool_size"}
    methods : mapping of str to method, optional
        Models of one's own below the values, each by its name; see `as_results`.
    """
    sweep, scale, dataset = SWEEPS[name], results.scale, results.scale.dataset_of("sweeps")
    results = as_results(results, methods, dataset=dataset)
    values = scale.sweep(name)
    published: Sequence[float | None] = SWEPT_ACCURACIES.get(name) or (None,) * len(sweep.values)
    numbers = {value: _numbers(results, sweep_accuracies(results, method), method) for value, method in values.items()}
    for own_name in methods or {}:
        seed = scale.seeds_of(dataset)[0]
        numbers[own_name] = _numbers(results, {seed: results.accuracy(own_name, dataset=dataset)}, own_name)
    published = [*published, *(None for _ in methods or {})]
    spread, spread_seeds = _spread(results)
    own_value = _own_value(results, name)
    rows = []
    for (value, value_numbers), paper in zip(numbers.items(), published, strict=True):
        row: dict[str, Any] = {"value": str(value), "paper": None if paper is None else paper / 100}
        for key, number in value_numbers.items():
            row |= number.record(key)
            if key in spread and value in values:
                row |= {f"{key} se": spread[key], f"{key} error seeds": len(spread_seeds)}
            is_value = value in values and value != own_value
            is_apart = is_value and _is_apart(number, numbers[own_value][key], spread.get(key))
            row[f"{key} mark"] = _MARK if is_apart else ""
        rows.append(row)
    shared = {"digits": 2, "percent": True}
    titles = {"clean": "clean, %", "robust": f"{SWEEP_COLUMNS[0]}, %", "strongest": "strongest, %"}
    columns = [Column("value", SWEPT[sweep.field])]
    columns += [
        Column(key, title, best=None if key == "clean" else "max", error=f"{key} se", mark=f"{key} mark", **shared)
        for key, title in titles.items() if key in rows[0]
    ]  # fmt: skip
    columns.append(Column("paper", "paper, %", best="max", **shared))
    columns += [
        Column(key, title, best=best, error=f"{key} se", mark=f"{key} mark", basis=f"{key} left out")
        for key, title, best in (("r_prime", "r′", "min"), ("r", "r", "max"))
    ]
    return Table(columns, rows, _caption(results, name, own_value, spread_seeds, rows))


def _numbers(results: Results, accuracies: Mapping[int, RunAccuracy], method: str) -> dict[str, OverSeeds]:
    shares = accuracies_over_seeds(accuracies)
    dataset = results.scale.dataset_of("sweeps")
    return {
        **{key: shares[column] for key, column in _SHARES.items() if column in shares},
        **ratio_numbers(results, method, dataset, tuple(accuracies)),
    }


def _spread(results: Results) -> tuple[dict[str, float], tuple[int, ...]]:
    """Number -> standard deviation over the seeds of TLA's main runs, and these seeds; empty if sweeps have seeds."""
    runs = results.scale.spread_runs()
    if not runs:
        return {}, ()
    accuracies = {
        seed: results.accuracy(method, dataset=dataset, seed=seed) for dataset, method, seed in runs
    }
    numbers = _numbers(results, accuracies, "tla")
    spread = {key: number for key, number in numbers.items() if len(number.by_seed) > 1}
    return {key: float(np.std(list(n.by_seed.values()), ddof=1)) for key, n in spread.items()}, tuple(accuracies)


def _own_value(results: Results, name: str) -> Any:
    """The value that the scale's TLA has, which the others are compared with; otherwise the first."""
    sweep, dataset = SWEEPS[name], results.scale.dataset_of("sweeps")
    tla_value = getattr(results.scale.config(dataset, "tla"), sweep.field)
    fields = {
        value: getattr(results.scale.config(dataset, method), sweep.field)
        for value, method in results.scale.sweep(name).items()
    }
    return next((value for value, field in fields.items() if field == tla_value), sweep.values[0])


def _is_apart(number: OverSeeds, reference: OverSeeds, spread: float | None) -> bool:
    """Whether a number differs from another by more than two standard errors of the difference; paired by seed.

    Ratios of other classes are not compared.

    With one training each, the error joins that over test images and the standard deviation over other seeds. The
    latter alone is too small: these seeds saw the same few images, so it holds no chance among images.
    """
    if number.left_out != reference.left_out:
        return False
    shared = number.by_seed.keys() & reference.by_seed.keys()
    if len(shared) > 1:
        difference = Estimate.of_mean([number.by_seed[seed] - reference.by_seed[seed] for seed in sorted(shared)])
        return abs(difference.value) > 2 * difference.error
    errors = [error for error in (spread, spread, number.images_error, reference.images_error) if error is not None]
    return bool(errors) and abs(number.value - reference.value) > 2 * math.hypot(*errors)


def _caption(
    results: Results, name: str, own_value: Any, spread_seeds: tuple[int, ...], rows: list[dict[str, Any]]
) -> str:
    sweep, scale = SWEEPS[name], results.scale
    dataset = scale.dataset_of("sweeps")
    methods = list(scale.sweep(name).values())
    config = scale.config(dataset, methods[-1])
    runs = sweep_accuracies(results, methods[-1])
    seeds, first = tuple(runs), next(iter(runs.values()))
    base_words = "".join(f", {field} {value:g}" for field, value in sweep.base.items())
    title = f"Table {name[-1]}" if name.startswith("table") else "Beyond the supplement"
    start = ", each from the AT run of its seed" if config.fine_tune else ""
    images = ", ".join(f"{column} on {len(first.correct[column]):,}" for column in (*SWEEP_COLUMNS[:1], STRONGEST))
    images = f"{images} test images ({strongest_words(first)})"
    error = error_words(seeds)
    if spread_seeds:
        error = (
            f"one training each (seed {seeds[0]}), ± the standard deviation of TLA's main runs over seeds"
            f" {', '.join(map(str, spread_seeds))}"
        )
    images_error = images_words(rows, [key for key in _SHARES if key in rows[0]], lambda each: f"{100 * each:.2f}")
    error += f" ({images_error})" if images_error and len(seeds) + len(spread_seeds) > 1 else ""
    return (
        f"{title}: TLA with different values of {SWEPT[sweep.field]}{base_words}; {dataset}, {config.length} of"
        f" training{start}; {images}, {error}; r′ and r under {results.attack(dataset=dataset)}. {_MARK}:"
        f" differs from the row {own_value} by more than two standard errors of the difference"
        f" ({'paired by seed' if len(seeds) > 1 else 'over seeds and test images together'})."
        f" The paper's column: its full network and training{results.given_note}."
    )
