"""The main text's accuracy table of a dataset: every method that the scale evaluates, each with its seeds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analysis.paper.seeds import OverSeeds, error_words, images_words, is_over_seeds
from analysis.scales.accuracy import APGD_COLUMNS, STRONGEST, RunAccuracy, accuracy_table, images_note, with_strongest
from analysis.scales.named import as_results
from analysis.scales.results import Results
from analysis.scales.variants import PLAIN, split_variant
from analysis.tables import Column, Table


def run_accuracies(
    results: Results | Mapping[str, Any], dataset: str | None = None, methods: Mapping[str, Any] | None = None
) -> dict[str, dict[int, RunAccuracy]]:
    """The accuracies behind a dataset's main table: method -> seed -> accuracies. For `methods` see `as_results`."""
    results = as_results(results, methods, dataset=dataset)
    dataset = dataset or results.scale.datasets[0]
    accuracies: dict[str, dict[int, RunAccuracy]] = {}
    for _, method, seed in results.table_runs(dataset):
        accuracies.setdefault(method, {})[seed] = results.accuracy(method, dataset=dataset, seed=seed)
    return accuracies


def failure_words(runs: Mapping[int, RunAccuracy], kind: str = "failed_checks") -> list[str]:
    """The ``failed_checks`` or ``gaps`` of the seeds of a method; the first seed's come without its name."""
    first = next(iter(runs))
    return [
        line if seed == first else f"seed {seed}: {line}" for seed, run in runs.items() for line in getattr(run, kind)
    ]


def accuracies_over_seeds(runs: Mapping[int, RunAccuracy]) -> dict[str, OverSeeds]:
    """Column -> accuracy: over all seeds if all were measured on the same images, otherwise of the first seed.

    The strongest is the worst case over those attacks that all seeds have.
    """
    first = next(iter(runs.values()))
    shared = [
        name
        for name, outcome in first.correct.items()
        if name != STRONGEST and all(_same(first, run, name, len(outcome)) for run in runs.values())
    ]
    outcomes = {
        seed: with_strongest({name: run.correct[name] for name in shared}, run.attacks) for seed, run in runs.items()
    }
    numbers = {}
    for name, outcome in first.correct.items():
        has_all = all(name in seed_outcomes for seed_outcomes in outcomes.values())
        column_outcomes = {seed: seed_outcomes[name] for seed, seed_outcomes in outcomes.items()} if has_all else {}
        numbers[name] = OverSeeds.of_shares(column_outcomes or {next(iter(runs)): outcome})
    return numbers


def _same(one: RunAccuracy, other: RunAccuracy, name: str, count: int) -> bool:
    return len(other.correct.get(name, ())) == count and one.attacks.get(name) == other.attacks.get(name)


def main_accuracy_table(
    results: Results | Mapping[str, Any], dataset: str | None = None, methods: Mapping[str, Any] | None = None
) -> Table:
    """The main text's accuracy table of a dataset, for every method that the scale evaluates.

    Means over the seeds of a method, in the columns that all its seeds have; other columns are of the first seed.
    Of `methods`, see `as_results`, models are attacked as the scale's are; of representations it shows the attack that
    they are of.
    """
    results = as_results(results, methods, dataset=dataset)
    dataset = dataset or results.scale.datasets[0]
    runs, seeds = run_accuracies(results, dataset), results.scale.seeds_of(dataset)
    firsts = {results.title(method): next(iter(method_runs.values())) for method, method_runs in runs.items()}
    if all(len(method_runs) == 1 for method_runs in runs.values()):
        table = accuracy_table(firsts)
        note = f"± standard error over test images, one training ({results.single_words(dataset)}){results.given_note}"
        return replace(table, caption=f"{table.caption}; {note}{_copy_words(results, dataset)}.")
    rows: list[dict[str, Any]] = []
    for method, method_runs in runs.items():
        row: dict[str, Any] = {"model": results.title(method)}
        for name, number in accuracies_over_seeds(method_runs).items():
            row |= number.record(name)
        rows.append(row)
    # The columns, and the words about their images, are those of the first seed's table.
    columns = []
    for column in accuracy_table(firsts).columns:
        is_common = column.key == "model" or any(is_over_seeds(row, column.key) for row in rows)
        columns.append(column if is_common else replace(column, title=f"{column.title}, seed {seeds[0]}"))
    return Table(columns, rows, _caption(rows, columns, firsts, seeds, results) + f"{_copy_words(results, dataset)}.")


def _caption(
    rows: list[dict[str, Any]], columns: list[Column], firsts: Mapping[str, RunAccuracy], seeds, results: Results
) -> str:
    keys = [column.key for column in columns if column.key != "model"]
    seed_columns = [key for key in keys if any(is_over_seeds(row, key) for row in rows)]
    own_models = [results.title(method) for method in results.methods if method not in results.scale.methods]
    scale_rows = [row for row in rows if row["model"] not in own_models]
    single_runs = [row["model"] for row in scale_rows if not any(is_over_seeds(row, key) for key in seed_columns)]
    images_error = images_words(rows, seed_columns, lambda error: f"{100 * error:.2f}")
    parts = [
        f"Accuracy in %, {images_note(firsts)}",
        f"in the columns {', '.join(seed_columns)} {error_words(seeds)} ({images_error})",
    ]
    if len(seed_columns) < len(keys):
        parts.append(f"all other columns {error_words(seeds[:1])}")
    if single_runs:
        parts.append(f"{' and '.join(single_runs)}: seed {seeds[0]} alone in every column")
    if STRONGEST in seed_columns:
        names = [name for name in seed_columns if name not in ("clean", STRONGEST)]
        parts.append(
            f"{STRONGEST}: the worst case for each image of all attacks that were run, over seeds of those that every"
            f" seed has ({', '.join(names)})"
        )
    if apgd_words := strongest_words(next(iter(firsts.values()))):
        parts.append(apgd_words)
    return "; ".join(parts) + results.given_note


def strongest_words(run: RunAccuracy) -> str:
    """Steps and targets of APGD: ``APGD with 100 steps, towards 9 classes``; empty where it was not run."""
    settings = [run.attacks.get(name) or {} for name in APGD_COLUMNS]
    if not all("steps" in each for each in settings):
        return ""
    return f"APGD with {settings[0]['steps']} steps, towards {settings[1].get('targets', 0)} classes"


def _copy_words(results: Results, dataset: str) -> str:
    scale = results.scale
    copies = [copy for method in scale.table_methods(dataset) if (copy := scale.copy_of(dataset, method))]
    if not copies:
        return ""
    name, seed = copies[0]
    variant = split_variant(name)[1]
    training = f" with the shorter training of the variant {variant!r}" if variant in PLAIN else ""
    training = training or (f" with {variant}" if variant else "")
    return f"; BB from a copy of the same method, seed {seed}{training}"
