"""The numbers behind the paper's tables and Fig. 7, for one scale, from its results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from analysis.accuracy import accuracy_table
from analysis.detection import COVARIANCES, DetectionResult, detect
from analysis.neighbour_metrics import RetrievalResult, knn_accuracy
from analysis.published import DETECTION
from analysis.ratios import bootstrap_r_prime, ratio, ratio_r, ratio_r_prime
from analysis.results import Results
from analysis.scales import SWEEP_COLUMN
from analysis.tables import Column, Table
from analysis.variants import PLAIN, split_variant
from tla_core.protocol import SWEEPS

_RATIOS = {"r_prime": ratio_r_prime, "r": ratio_r}
_TITLES = {"r_prime": "r′", "r": "r"}
_BEST = {"r_prime": "min", "r": "max"}
_SWEPT = {"lambda_triplet": "λ1", "margin": "margin", "layer": "layer", "pool_size": "pool size"}


def ratio_table(results: Results) -> tuple[Table, list[dict[str, Any]]]:
    """Table 3: r′ and r of each method, on every dataset and at each of its levels.

    Parameters
    ----------
    results : Results

    Returns
    -------
    table : Table
    per_class : list of dict
        The values behind the means: dataset, method, eps, ratio, class, value (nan where left out).
    """
    rows = {method: {"method": method.upper()} for method in results.methods}
    columns, per_class, left_out, counts = [Column("method", "method")], [], [], []
    for dataset in results.scale.datasets:
        sizes = []
        for eps in results.levels(dataset):
            for method in results.methods:
                reps = results.representations(method, eps, dataset=dataset)
                for name, compute in _RATIOS.items():
                    found = compute(reps, **_drawn_from(results, dataset, eps, name))
                    rows[method][f"{dataset} {name} {eps:g}"] = found.value
                    where = {"dataset": dataset, "method": method.upper(), "eps": eps, "ratio": name}
                    names = zip(reps.class_names, found.per_class, strict=True)
                    per_class += [{**where, "class": k, "value": value} for k, value in names]
                    if found.left_out:
                        left_out.append(f"{len(found.left_out)} of {_TITLES[name]} at {eps:.3g} for {method.upper()}")
            columns += [
                Column(f"{dataset} {name} {eps:g}", f"{_TITLES[name]}, {dataset}, ε {eps:.3g}", best=_BEST[name])
                for name in _RATIOS
            ]
            sizes.append(len(reps))
        images = " and ".join(f"{n:,}" for n in dict.fromkeys(sizes))
        counts.append(f"{dataset}: {images} test images, {results.attack_note(dataset)}")
    caption = (
        "Table 3: ratios r′ (lower is better) and r (higher is better) of mean angular distances, penultimate layer; "
        f"{'; '.join(counts)}, and as many steps at the other level. Classes left out, for want of adversarial"
        f" examples: {'; '.join(left_out) or 'none'}."
    )
    return Table(columns, list(rows.values()), caption), per_class


def _drawn_from(results: Results, dataset: str, eps: float | None, ratio: str) -> dict[str, int]:
    """What r′ must be told where it is of a part of the test images."""
    if ratio != "r_prime" or not results.scale.images_at(dataset, eps):
        return {}
    return {"drawn_from": len(results.test_images(dataset).labels)}


def ratio_spread_table(results: Results) -> Table | None:
    """Mean and standard deviation of r′, r and the accuracies over seeds; None where the scale has no such runs.

    Each number is that of the dataset's own level of attack. Under ``"by seed"`` the rows hold the values behind the
    means: name -> seed -> value.
    """
    rows, counts = [], set()
    for dataset in results.scale.datasets:
        for method in results.methods:
            runs = results.scale.spread_runs(dataset, method)
            if len(runs) < 2:
                continue
            counts.add(len(runs))
            by_seed: dict[str, dict[int, float]] = {}
            for variant, seed in runs:
                reps = results.representations(variant, dataset=dataset, seed=seed)
                values = {
                    name: compute(reps, **_drawn_from(results, dataset, None, name)).value
                    for name, compute in _RATIOS.items()
                }
                values |= {"clean": reps.accuracy, "robust": reps.robust_accuracy}
                for name, value in values.items():
                    by_seed.setdefault(name, {})[seed] = value
            row: dict[str, Any] = {"method": method.upper(), "dataset": dataset, "seeds": len(runs)}
            for name, of_seeds in by_seed.items():
                values = list(of_seeds.values())
                row |= {name: float(np.mean(values)), f"{name} sd": float(np.std(values, ddof=1))}
            rows.append(row | {"by seed": by_seed})  # so that differences between methods can be judged in pairs
    if not rows:
        return None
    columns = [Column("method", "method"), Column("dataset", "dataset", align="left"), Column("seeds", "seeds")]
    columns += [Column(name, _TITLES[name], error=f"{name} sd", best=_BEST[name]) for name in _RATIOS]
    columns += [Column(name, f"{name}, %", digits=1, percent=True, error=f"{name} sd") for name in ("clean", "robust")]
    variant = results.scale.spread.get("variant")
    length = f" with the shorter training of the variant {variant!r}" if variant else ""
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
    caption = (
        f"Table 3, how much seeds matter: mean ± standard deviation over {seeds} seeds{length}. Robust: under the"
        " attack that r′ and r are of; the checks for masked gradients are made with the main text's accuracies, of one"
        " seed."
    )
    return Table(columns, rows, caption)


def difference_table(results: Results) -> Table:
    """Differences of r′ between methods, with the standard error of a bootstrap over the test images.

    Both methods' r′ are of the same resamples, so that what is hard about an image is not taken for a difference.
    """
    pairs, rows = list(combinations(results.methods, 2)), []
    for dataset in results.scale.datasets:
        for eps in results.levels(dataset):
            values, resamples = {}, {}
            for method in results.methods:
                reps = results.representations(method, eps, dataset=dataset)
                drawn_from = _drawn_from(results, dataset, eps, "r_prime")
                values[method] = ratio_r_prime(reps, **drawn_from).value
                resamples[method] = bootstrap_r_prime(reps, **drawn_from)
            row: dict[str, Any] = {"dataset": dataset, "eps": eps, "images": len(reps)}
            for one, other in pairs:
                row |= {
                    f"{one} {other}": values[one] - values[other],
                    f"{one} {other} se": float(np.nanstd(resamples[one] - resamples[other], ddof=1)),
                }
            rows.append(row)
    columns = [Column("dataset", "dataset"), Column("eps", "ε", digits=4), Column("images", "test images")]
    columns += [
        Column(f"{one} {other}", f"{one.upper()} − {other.upper()}", digits=4, error=f"{one} {other} se")
        for one, other in pairs
    ]
    caption = (
        f"Table 3, differences of r′ between methods, ± standard error: {len(resamples[method])} bootstrap resamples of"
        " the test images, class by class, the same of every method; one training each."
    )
    return Table(columns, rows, caption)


def distance_table(results: Results) -> Table:
    """What r′ is made of, at the level of each dataset's own attack: mean distances, averaged over classes.

    Clean images of a class from one another, from those of the other classes, and from the adversarial examples made
    from that class.
    """
    rows = []
    for dataset in results.scale.datasets:
        for method in results.methods:
            reps = results.representations(method, dataset=dataset)
            features, labels = np.asarray(reps.features), np.asarray(reps.labels)
            own = ratio_r_prime(reps, **_drawn_from(results, dataset, None, "r_prime"))
            others = [_mean_distance(features[labels != k], features[labels == k]) for k in np.unique(labels)]
            within, attacked, apart = (float(np.nanmean(values)) for values in (own.inner, own.cross, others))
            rows.append({
                "method": method.upper(), "dataset": dataset, "within": within, "attacked": attacked, "apart": apart,
                "apart / within": apart / within,
            })  # fmt: skip
    columns = [
        Column("method", "method"), Column("dataset", "dataset", align="left"),
        Column("within", "clean, within a class"), Column("attacked", "attacked, from the own class"),
        Column("apart", "clean, from other classes"), Column("apart / within", "from other classes / within"),
    ]  # fmt: skip
    caption = (
        "What r′ is made of: mean angular distances (1 − |cos|), penultimate layer, mean over classes; r′ divides the"
        " second by the first, class by class."
    )
    return Table(columns, rows, caption)


def _mean_distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(ratio(one, np.zeros(len(one), int), other, np.zeros(len(other), int)).cross[0])


def rise_table(results: Results) -> tuple[Table, list[dict[str, Any]]]:
    """How far the loss rises around many images, in the plane of each that all models share.

    Returns
    -------
    table : Table
        Mean rise with its standard error over images; and in how many of them a model's loss rises least.
    per_image : list of dict
        The values behind the means: model, row of the test set, rise.
    """
    found = {method.upper(): results.loss_rises(method) for method in results.methods if method != "um"}
    rises = {name: np.array(list(of.values())) for name, of in found.items()}
    lowest = np.argmin(list(rises.values()), axis=0)
    rows = [
        {
            "model": name, "rise": float(of.mean()), "rise se": float(of.std(ddof=1) / len(of) ** 0.5),
            "least": float((lowest == place).mean()),
        }
        for place, (name, of) in enumerate(rises.items())
    ]  # fmt: skip
    dataset, shape = results.scale.dataset_of("landscapes"), results.scale.landscape
    columns = [
        Column("model", "model"), Column("rise", "rise of the loss", digits=4, best="min", error="rise se"),
        Column("least", "rises least, % of images", digits=1, percent=True, best="max"),
    ]  # fmt: skip
    side = shape["rise"]["resolution"]
    caption = (
        f"Figure 8, over {len(lowest)} test images of {dataset}: how far the highest loss lies above that of the image,"
        f" mean ± standard error; {side} × {side} points to ±{shape['radius']:g} eps along two random directions, the"
        " same for every model."
    )
    per_image = [{"model": name, "row": row, "rise": rise} for name, of in found.items() for row, rise in of.items()]
    return Table(columns, rows, caption), per_image


def sweep_table(results: Results, name: str) -> Table:
    """Table 4, 5 or 6: accuracy of TLA under PGD-100 for each value of a setting, beside the published one.

    Parameters
    ----------
    results : Results
    name : {"table4", "table5", "table6", "pool_size"}
    """
    sweep = SWEEPS[name]
    dataset = results.scale.dataset_of("sweeps")
    published: Sequence[float | None] = sweep.published or (None,) * len(sweep.values)
    rows = []
    for (value, method), paper in zip(results.scale.sweep(name).items(), published, strict=True):
        found = results.accuracy(method, only=(SWEEP_COLUMN,), dataset=dataset)
        rows.append({
            "value": str(value), "clean": found.accuracy["clean"], "clean se": found.standard_error["clean"],
            "robust": found.accuracy[SWEEP_COLUMN], "robust se": found.standard_error[SWEEP_COLUMN],
            "paper": None if paper is None else paper / 100,
        })  # fmt: skip
    columns = [
        Column("value", _SWEPT[sweep.field]),
        Column("clean", "clean, %", digits=2, percent=True, error="clean se"),
        Column("robust", f"{SWEEP_COLUMN}, %", digits=2, percent=True, best="max", error="robust se"),
        Column("paper", "paper, %", digits=2, percent=True, best="max"),
    ]
    images = len(found.correct[SWEEP_COLUMN])
    config = results.scale.config(dataset, method)
    fixed = "".join(f", {field} {value:g}" for field, value in sweep.base.items())
    title = f"Table {name[-1]}" if name.startswith("table") else "Beyond the supplement"
    caption = (
        f"{title}: TLA with different values of {_SWEPT[sweep.field]}{fixed}; {dataset}, {config.length} of training,"
        f" {found.attacks[SWEEP_COLUMN]['steps']} steps of PGD on {images:,} test images, ± standard error; one seed."
        " The paper's column: its full network and training. How far PGD is from the strongest attack: main_accuracy."
    )
    return Table(columns, rows, caption)


def main_accuracy_table(results: Results, dataset: str | None = None) -> Table:
    """The main text's accuracy table of a dataset, for every method that the scale evaluates."""
    dataset = dataset or results.scale.datasets[0]
    methods = results.scale.table_methods(dataset)
    table = accuracy_table({method.upper(): results.accuracy(method, dataset=dataset) for method in methods})
    copy = results.scale.copy_of(dataset, methods[0])
    if copy is None:
        return table
    name, seed = copy
    variant = split_variant(name)[1]
    training = f" with the shorter training of the variant {variant!r}" if variant in PLAIN else ""
    training = training or (f" with {variant}" if variant else "")
    return replace(table, caption=f"{table.caption}; BB from a copy of the same method, seed {seed}{training}.")


def knn_table(results: Results, dataset: str | None = None, *, k: int = 50) -> Table:
    """Accuracy of a vote of the k nearest training images, for clean and adversarial test images of each method."""
    dataset = dataset or results.scale.datasets[0]
    rows = []
    for method in results.methods:
        gallery = results.train_representations(method, dataset=dataset)
        reps = results.representations(method, dataset=dataset)
        row: dict[str, Any] = {"method": method.upper()}
        for name, features in (("clean", reps.features), ("adversarial", reps.adv_features)):
            value = knn_accuracy(gallery.features, gallery.labels, features, reps.labels, k=k)
            row |= {name: value, f"{name} se": (value * (1 - value) / len(reps)) ** 0.5}
        rows.append(row | {"model": reps.accuracy, "model robust": reps.robust_accuracy})
    columns = [Column("method", "method")]
    columns += [
        Column(name, f"kNN, {name}, %", digits=2, percent=True, best="max", error=f"{name} se")
        for name in ("clean", "adversarial")
    ]
    columns += [
        Column("model", "model itself, clean, %", digits=2, percent=True),
        Column("model robust", "model itself, attacked, %", digits=2, percent=True),
    ]
    caption = (
        f"kNN accuracy (K = {k}, angular distance, {len(gallery):,} training images as neighbours), ± standard error,"
        f" on {len(reps):,} test images of {dataset}; {results.attack_note(dataset)}."
    )
    return Table(columns, rows, caption)


def detection_of(
    results: Results, method: str, dataset: str | None = None, *, covariance: str = "shared", unit_length: bool = False
) -> DetectionResult:
    """Detection of what a model misclassifies among its clean and adversarial test images together.

    Parameters
    ----------
    results : Results
    method : str
    dataset : str, optional
        By default the scale's first.
    covariance : {"shared", "own"}
        That of the Gaussians (`detect`).
    unit_length : bool
        Whether representations are divided by their Euclidean norms first, so that directions alone count, as in
        angular distances.
    """
    gallery = results.train_representations(method, dataset=dataset)
    reps = results.representations(method, dataset=dataset)
    train, features = gallery.features, np.concatenate([reps.features, reps.adv_features])
    if unit_length:
        from sklearn.preprocessing import normalize

        train, features = normalize(train), normalize(features)  # a row of zeros, which a ReLU can leave, stays
    wrong = np.concatenate([reps.predictions, reps.adv_predictions]) != np.tile(np.asarray(reps.labels), 2)
    return detect(train, gallery.labels, features, wrong, covariance=covariance)


def detection_table(results: Results, dataset: str | None = None) -> Table:
    """How much the area under the detection's ROC curve depends on what the paper does not say of its Gaussians."""
    dataset = dataset or results.scale.datasets[0]
    kinds = {
        f"{covariance}{', unit length' * unit_length}": {"covariance": covariance, "unit_length": unit_length}
        for unit_length in (False, True)
        for covariance in COVARIANCES
    }
    rows = []
    for method in results.methods:
        paper = DETECTION.get(dataset, {}).get(method.upper())
        row: dict[str, Any] = {"method": method.upper(), "paper": None if paper is None else paper / 100}
        for kind, options in kinds.items():
            found = detection_of(results, method, dataset, **options)
            row |= {kind: found.auc, f"{kind} se": found.auc_error}
        rows.append(row)
    columns = [Column("method", "method")]
    columns += [
        Column(kind, f"{kind}, %", digits=2, percent=True, best="max", error=f"{kind} se") for kind in kinds
    ]  # fmt: skip
    columns.append(Column("paper", "paper, %", digits=2, percent=True, best="max"))
    caption = (
        "Area under the ROC curve of detecting misclassified inputs among clean and adversarial test images of"
        f" {dataset}, ± standard error (Hanley and McNeil 1982): one Gaussian per class, with the covariance that all"
        " share or its own, of representations as they are or of unit length;"
        f" {results.attack_note(dataset)}."
    )
    return Table(columns, rows, caption)


def query_to_show(retrieved: Mapping[str, RetrievalResult], *, among: np.ndarray | None = None) -> int:
    """The first test image for which the models' answers to its adversarial example differ most, whoever is right.

    Parameters
    ----------
    retrieved : mapping of str to RetrievalResult
        Of all test images, for each model.
    among : ndarray, (n,), bool, optional
        Which images may be shown; by default all.
    """
    precision = np.stack([found.adversarial.precision_at_k for found in retrieved.values()])
    rows = next(iter(retrieved.values())).adversarial.rows
    differ = np.ptp(precision, axis=0)
    return int(rows[np.argmax(differ if among is None else np.where(among[rows], differ, -1))])
