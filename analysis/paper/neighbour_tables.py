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
    """How far the loss rises around many images; for each image all models share one plane of directions.

    Returns
    -------
    table : Table
        Mean rise with its standard error, over seeds if there are several, otherwise over images; and the share of
        images around which a model's loss rises least, at the first seed.
    per_image : list of dict
        The values behind the means of the first seed: model, row of the test set, rise.
    """
    # Method -> seed -> row of the test set -> rise.
    dataset, shape = results.scale.dataset_of("landscapes"), results.scale.landscape
    seeds = results.scale.seeds_of(dataset)
    rises_by_method = {
        results.title(method): {seed: results.loss_rises(method, seed=seed) for seed in seeds}
        for method in results.scale.methods if method != "um"
    }  # fmt: skip
    firsts = {name: rises_by_seed[seeds[0]] for name, rises_by_seed in rises_by_method.items()}
    lowest = np.argmin([list(rises_by_image.values()) for rises_by_image in firsts.values()], axis=0)
    rows = []
    for place, (name, rises_by_seed) in enumerate(rises_by_method.items()):
        rises = np.array([list(images.values()) for images in rises_by_seed.values()])  # (seeds, images)
        image_means = rises.mean(axis=0)
        error = float(image_means.std(ddof=1) / len(image_means) ** 0.5)
        number = OverSeeds.of(dict(zip(seeds, rises.mean(axis=1), strict=True)), error)
        rows.append({"model": name, **number.record("rise"), "least": float((lowest == place).mean())})
    seed_words = f", seed {seeds[0]}" if len(seeds) > 1 else ""
    columns = [
        Column("model", "model"), Column("rise", "rise of the loss", digits=4, best="min", error="rise se"),
        Column("least", f"rises least, % of images{seed_words}", digits=1, percent=True, best="max"),
    ]  # fmt: skip
    resolution, images_error = shape["rise"]["resolution"], images_words(rows, ["rise"], "{:.4f}".format)
    caption = (
        f"Figure 8, over {len(lowest)} test images of {dataset}: how far the highest loss lies above that of the image,"
        f" {error_words(seeds)}{f' ({images_error})' if images_error else ''}; {resolution} × {resolution} points to"
        f" ±{shape['radius']:g} eps along two random directions, the same for every model."
    )
    per_image = [
        {"model": name, "row": row, "rise": rise} for name, rises in firsts.items() for row, rise in rises.items()
    ]
    return Table(columns, rows, caption), per_image


def knn_table(results: Results, dataset: str | None = None, *, k: int = 50) -> Table:
    """Accuracy of a vote of the k nearest training images, for clean and adversarial test images of each method."""
    dataset = dataset or results.scale.datasets[0]
    rows: list[dict[str, Any]] = []
    seeds = results.scale.seeds_of(dataset)
    for method in results.methods_of(dataset):
        # Kind -> seed -> which test images are right.
        outcomes: dict[str, dict[int, np.ndarray]] = {}
        for seed, reps in results.representations_of_seeds(method, dataset=dataset).items():
            gallery, labels = results.train_representations(method, dataset=dataset, seed=seed), np.asarray(reps.labels)
            for name, features in (("clean", reps.features), ("adversarial", reps.adv_features)):
                votes = knn_predict(gallery.features, gallery.labels, features, k=k)
                outcomes.setdefault(name, {})[seed] = np.asarray(votes) == labels
            model_outcome = np.asarray(reps.predictions) == labels
            outcomes.setdefault("model", {})[seed] = model_outcome
            outcomes.setdefault("model robust", {})[seed] = model_outcome & (np.asarray(reps.adv_predictions) == labels)
        row = {"method": results.title(method)}
        for name, outcomes_by_seed in outcomes.items():
            row |= OverSeeds.of_shares(outcomes_by_seed).record(name)
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
    images_error = images_words(rows, ("clean", "adversarial"), lambda error: f"{100 * error:.2f}")
    caption = (
        f"kNN accuracy (K = {k}, angular distance, {len(gallery):,} training images as neighbours),"
        f" {error_words(seeds)}{f' ({images_error})' if images_error else ''}, on {len(reps):,} test images of"
        f" {dataset}; {results.attack_note(dataset)}."
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
    misclassified = np.concatenate([reps.predictions, reps.adv_predictions]) != np.tile(np.asarray(reps.labels), 2)
    return detect(train, gallery.labels, features, misclassified, covariance=covariance)


def detection_table(results: Results, dataset: str | None = None) -> Table:
    """The area under the detection's ROC curve for each kind of Gaussians; the paper does not say which it used."""
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
            detections = {seed: _detection(*representations, **options) for seed, representations in sets.items()}
            # All seeds have the same inputs, so more seeds do not make this part of the error smaller.
            error = float(np.mean([each.auc_error for each in detections.values()]))
            row |= OverSeeds.of({seed: each.auc for seed, each in detections.items()}, error).record(kind)
        rows.append(row)
    columns = [Column("method", "method")]
    columns += [
        Column(kind, f"{kind}, %", digits=2, percent=True, best="max", error=f"{kind} se") for kind in kinds
    ]  # fmt: skip
    columns.append(Column("paper", "paper, %", digits=2, percent=True, best="max"))
    inputs, inputs_error = "test inputs (Hanley and McNeil 1982)", ""
    if len(seeds) > 1:
        inputs_error = f" ({images_words(rows, kinds, lambda error: f'{100 * error:.2f}', inputs)})"
    caption = (
        "Area under the ROC curve of detecting misclassified inputs among clean and adversarial test images of"
        f" {dataset}, {error_words(seeds, inputs)}{inputs_error}: one Gaussian per class, with the covariance that all"
        f" share or its own, of representations as they are or of unit length; {results.attack_note(dataset)}."
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
    spreads = np.ptp(precision, axis=0)
    return int(rows[np.argmax(spreads if among is None else np.where(among[rows], spreads, -1))])


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
            "clean": result.clean.mean_precision, "adversarial": result.adversarial.mean_precision,
            "first clean": result.clean.first_accuracy, "first adversarial": result.adversarial.first_accuracy,
        }
        for name, result in retrieved.items()
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
