"""The numbers behind the paper's kNN accuracies, its detection, and Fig. 7 and 8, for one scale, from its results."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.detection import COVARIANCES, DetectionResult, detect
from analysis.paper.published import DETECTION
from analysis.paper.seeds import OverSeeds, error_words, images_words
from analysis.representations import RepresentationSet
from analysis.retrieval import RetrievalResult, knn_predict
from analysis.scales.results import Results
from analysis.tables import Column, Table


def rise_table(results: Results) -> tuple[Table, list[dict[str, Any]]]:
    """How far the loss rises around many images, in the plane of each that all models share.

    Returns
    -------
    table : Table
        Mean rise with its standard error, over seeds where there are several, otherwise over images; and in how many
        of the images a model's loss rises least, of the first seed.
    per_image : list of dict
        The values behind the means of the first seed: model, row of the test set, rise.
    """
    dataset, shape = results.scale.dataset_of("landscapes"), results.scale.landscape
    seeds = results.scale.seeds_of(dataset)
    by_method = {
        results.title(method): {seed: results.loss_rises(method, seed=seed) for seed in seeds}
        for method in results.scale.methods if method != "um"
    }  # fmt: skip
    firsts = {name: of_seeds[seeds[0]] for name, of_seeds in by_method.items()}
    lowest = np.argmin([list(by_image.values()) for by_image in firsts.values()], axis=0)
    rows = []
    for place, (name, of_seeds) in enumerate(by_method.items()):
        rises = np.array([list(by_image.values()) for by_image in of_seeds.values()])  # (seeds, images)
        over_seeds = rises.mean(axis=0)
        error = float(over_seeds.std(ddof=1) / len(over_seeds) ** 0.5)
        number = OverSeeds.of(dict(zip(seeds, rises.mean(axis=1), strict=True)), error)
        rows.append({"model": name, **number.record("rise"), "least": float((lowest == place).mean())})
    several = f", seed {seeds[0]}" if len(seeds) > 1 else ""
    columns = [
        Column("model", "model"), Column("rise", "rise of the loss", digits=4, best="min", error="rise se"),
        Column("least", f"rises least, % of images{several}", digits=1, percent=True, best="max"),
    ]  # fmt: skip
    side, alone = shape["rise"]["resolution"], images_words(rows, ["rise"], "{:.4f}".format)
    caption = (
        f"Figure 8, over {len(lowest)} test images of {dataset}: how far the highest loss lies above that of the image,"
        f" {error_words(seeds)}{f' ({alone})' if alone else ''}; {side} × {side} points to ±{shape['radius']:g} eps"
        " along two random directions, the same for every model."
    )
    per_image = [{"model": name, "row": row, "rise": rise} for name, of in firsts.items() for row, rise in of.items()]
    return Table(columns, rows, caption), per_image


def knn_table(results: Results, dataset: str | None = None, *, k: int = 50) -> Table:
    """Accuracy of a vote of the k nearest training images, for clean and adversarial test images of each method."""
    dataset = dataset or results.scale.datasets[0]
    rows: list[dict[str, Any]] = []
    seeds = results.scale.seeds_of(dataset)
    for method in results.methods_of(dataset):
        right: dict[str, dict[int, np.ndarray]] = {}
        for seed, reps in results.representations_of_seeds(method, dataset=dataset).items():
            gallery, labels = results.train_representations(method, dataset=dataset, seed=seed), np.asarray(reps.labels)
            for name, features in (("clean", reps.features), ("adversarial", reps.adv_features)):
                votes = knn_predict(gallery.features, gallery.labels, features, k=k)
                right.setdefault(name, {})[seed] = np.asarray(votes) == labels
            own = np.asarray(reps.predictions) == labels
            right.setdefault("model", {})[seed] = own
            right.setdefault("model robust", {})[seed] = own & (np.asarray(reps.adv_predictions) == labels)
        row = {"method": results.title(method)}
        for name, of_seeds in right.items():
            row |= OverSeeds.of_shares(of_seeds).record(name)
        rows.append(row)
    columns = [Column("method", "method")]
    columns += [
        Column(name, f"kNN, {name}, %", digits=2, percent=True, best="max", error=f"{name} se")
        for name in ("clean", "adversarial")
    ]
    columns += [
        Column("model", "model itself, clean, %", digits=2, percent=True, error="model se"),
        Column("model robust", "model itself, attacked, %", digits=2, percent=True, error="model robust se"),
    ]
    alone = images_words(rows, ("clean", "adversarial"), lambda error: f"{100 * error:.2f}")
    caption = (
        f"kNN accuracy (K = {k}, angular distance, {len(gallery):,} training images as neighbours),"
        f" {error_words(seeds)}{f' ({alone})' if alone else ''}, on {len(reps):,} test images of {dataset};"
        f" {results.attack_note(dataset)}."
    )
    return Table(columns, rows, caption)


def detection_of(
    results: Results, method: str, dataset: str | None = None, *, covariance: str = "shared", unit_length: bool = False
) -> DetectionResult:
    """Detection of what a model misclassifies among its clean and adversarial test images together; the first seed's.

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
    return _detection(gallery, reps, covariance=covariance, unit_length=unit_length)


def _detection(
    gallery: RepresentationSet, reps: RepresentationSet, *, covariance: str, unit_length: bool
) -> DetectionResult:
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
    rows, seeds = [], results.scale.seeds_of(dataset)
    for method in results.methods_of(dataset):
        paper = DETECTION.get(dataset, {}).get(results.title(method))
        row: dict[str, Any] = {"method": results.title(method), "paper": None if paper is None else paper / 100}
        sets = {
            seed: (results.train_representations(method, dataset=dataset, seed=seed), reps)
            for seed, reps in results.representations_of_seeds(method, dataset=dataset).items()
        }
        for kind, options in kinds.items():
            detections = {seed: _detection(*of_seed, **options) for seed, of_seed in sets.items()}
            # Of the same inputs: their share of the error does not become less with more seeds.
            error = float(np.mean([each.auc_error for each in detections.values()]))
            row |= OverSeeds.of({seed: each.auc for seed, each in detections.items()}, error).record(kind)
        rows.append(row)
    columns = [Column("method", "method")]
    columns += [
        Column(kind, f"{kind}, %", digits=2, percent=True, best="max", error=f"{kind} se") for kind in kinds
    ]  # fmt: skip
    columns.append(Column("paper", "paper, %", digits=2, percent=True, best="max"))
    over, alone = "test inputs (Hanley and McNeil 1982)", ""
    if len(seeds) > 1:
        alone = f" ({images_words(rows, kinds, lambda error: f'{100 * error:.2f}', over)})"
    caption = (
        "Area under the ROC curve of detecting misclassified inputs among clean and adversarial test images of"
        f" {dataset}, {error_words(seeds, over)}{alone}: one Gaussian per class, with the covariance that all share or"
        f" its own, of representations as they are or of unit length; {results.attack_note(dataset)}."
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
    precision = np.stack([each.adversarial.precision_at_k for each in retrieved.values()])
    rows = next(iter(retrieved.values())).adversarial.rows
    differ = np.ptp(precision, axis=0)
    return int(rows[np.argmax(differ if among is None else np.where(among[rows], differ, -1))])


def retrieval_table(retrieved: Mapping[str, RetrievalResult], caption: str) -> Table:
    """How often the right class is retrieved, beside Fig. 7.

    Parameters
    ----------
    retrieved : mapping of str to RetrievalResult
        Method -> what `retrieve` found.
    caption : str
        Which attack and which training this is.
    """
    rows = [
        {
            "method": name,
            "clean": of_method.clean.mean_precision, "adversarial": of_method.adversarial.mean_precision,
            "first clean": of_method.clean.first_accuracy, "first adversarial": of_method.adversarial.first_accuracy,
        }
        for name, of_method in retrieved.items()
    ]  # fmt: skip
    titles = {
        "clean": "precision@3, clean", "adversarial": "precision@3, adversarial",
        "first clean": "nearest right, clean", "first adversarial": "nearest right, adversarial",
    }  # fmt: skip
    queries = len(next(iter(retrieved.values())).clean.indices)
    return Table(
        [Column("method", "method"), *(Column(key, title, best="max") for key, title in titles.items())],
        rows,
        f"Retrieval of the right class over all {queries:,} test images; {caption}",
    )
