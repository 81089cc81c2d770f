"""The main text's accuracy table of a dataset: every method that the scale evaluates, each with its seeds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analysis.paper.seeds import OverSeeds, error_words, images_words, is_over_seeds
from analysis.scales.accuracy import STRONG, STRONGEST, RunAccuracy, accuracy_table, images_note, with_strongest
from analysis.scales.mixed import as_results
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
    """Column -> accuracy: of all seeds where they have it of the same images, otherwise of the first alone.

    The strongest is the worst case of those attacks that all seeds have.
    """
    first = next(iter(runs.values()))
    shared = [
        name
        for name, outcome in first.correct.items()
        if name != STRONGEST and all(_same(first, run, name, len(outcome)) for run in runs.values())
    ]
    right = {seed: with_strongest({name: run.correct[name] for name in shared}) for seed, run in runs.items()}
    numbers = {}
    for name, outcome in first.correct.items():
        everywhere = all(name in of_seed for of_seed in right.values())
        of_seeds = {seed: of_seed[name] for seed, of_seed in right.items()} if everywhere else {}
        numbers[name] = OverSeeds.of_shares(of_seeds or {next(iter(runs)): outcome})
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
    firsts = {results.title(method): next(iter(of_seeds.values())) for method, of_seeds in runs.items()}
    if all(len(of_seeds) == 1 for of_seeds in runs.values()):
        table = accuracy_table(firsts)
        note = f"± standard error over test images, one training ({results.single_words(dataset)}){results.given_note}"
        return replace(table, caption=f"{table.caption}; {note}{_copy_words(results, dataset)}.")
    rows: list[dict[str, Any]] = []
    for method, of_seeds in runs.items():
        row: dict[str, Any] = {"model": results.title(method)}
        for name, number in accuracies_over_seeds(of_seeds).items():
            row |= number.record(name)
        rows.append(row)
    # Columns and what is said of their images are those of the first seed's table.
    columns = []
    for column in accuracy_table(firsts).columns:
        several = column.key == "model" or any(is_over_seeds(row, column.key) for row in rows)
        columns.append(column if several else replace(column, title=f"{column.title}, seed {seeds[0]}"))
    return Table(columns, rows, _caption(rows, columns, firsts, seeds, results) + f"{_copy_words(results, dataset)}.")


def _caption(
    rows: list[dict[str, Any]], columns: list[Column], firsts: Mapping[str, RunAccuracy], seeds, results: Results
) -> str:
    keys = [column.key for column in columns if column.key != "model"]
    over = [key for key in keys if any(is_over_seeds(row, key) for row in rows)]
    own = [results.title(method) for method in results.methods if method not in results.scale.methods]
    of_scale = [row for row in rows if row["model"] not in own]
    single = [row["model"] for row in of_scale if not any(is_over_seeds(row, key) for key in over)]
    alone = images_words(rows, over, lambda error: f"{100 * error:.2f}")
    parts = [
        f"Accuracy in %, {images_note(firsts)}",
        f"in the columns {', '.join(over)} {error_words(seeds)} ({alone})",
    ]
    if len(over) < len(keys):
        parts.append(f"all other columns {error_words(seeds[:1])}")
    if single:
        parts.append(f"{' and '.join(single)}: seed {seeds[0]} alone in every column")
    if STRONGEST in over:
        names = [name for name in over if name not in ("clean", STRONGEST)]
        parts.append(
            f"{STRONGEST}: the worst case for each image of all attacks that were run, over seeds of those that every"
            f" seed has ({', '.join(names)})"
        )
    if strong := strongest_words(next(iter(firsts.values()))):
        parts.append(strong)
    return "; ".join(parts) + results.given_note


def strongest_words(run: RunAccuracy) -> str:
    """Steps and targets of APGD: ``APGD with 100 steps, towards 9 classes``; empty where it was not run."""
    settings = [run.attacks.get(name) or {} for name in STRONG]
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
