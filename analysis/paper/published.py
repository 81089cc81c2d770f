"""The numbers of the paper: Table 3 of the supplement, and those of the first arXiv version's main text (1909.00900v1).

Accuracies in percent, as printed.
"""

METHODS = ("UM", "AT", "ALP", "TLA")

# (ratio, dataset, eps in 1/255 or, for MNIST, in pixel units) -> UM, AT, ALP, TLA. r' is of the supplement, r of v1.
RATIOS: dict[tuple[str, str, float], tuple[float, ...]] = {
    ("r_prime", "mnist", 0.03): (1.071, 1.004, 1.006, 1.005),
    ("r_prime", "mnist", 0.3): (2.159, 1.042, 1.068, 1.072),
    ("r_prime", "cifar10", 8 / 255): (3.604, 1.342, 2.313, 1.191),
    ("r_prime", "cifar10", 25 / 255): (3.682, 1.714, 3.796, 1.491),
    ("r_prime", "tiny-imagenet", 8 / 255): (1.319, 1.053, 1.040, 1.044),
    ("r_prime", "tiny-imagenet", 25 / 255): (1.480, 1.204, 1.151, 1.174),
    ("r", "mnist", 0.03): (1.485, 1.288, 1.398, 1.810),
    ("r", "mnist", 0.3): (1.194, 1.308, 1.394, 1.847),
    ("r", "cifar10", 8 / 255): (0.8082, 1.053, 1.038, 1.093),
    ("r", "cifar10", 25 / 255): (0.9208, 1.007, 1.210, 1.390),
    ("r", "tiny-imagenet", 8 / 255): (0.9236, 0.9774, 0.9840, 0.9979),
    ("r", "tiny-imagenet", 25 / 255): (0.9293, 0.9504, 0.9360, 0.9995),
}

# Dataset -> column -> UM, AT, ALP, TLA-RN, TLA-SA, TLA; columns by the names of `tla evaluate`.
TABLE_METHODS = ("UM", "AT", "ALP", "TLA-RN", "TLA-SA", "TLA")
ACCURACIES: dict[str, dict[str, tuple[float, ...]]] = {
    "mnist": {
        "clean": (99.20, 99.24, 98.91, 99.50, 99.44, 99.52),
        "FGSM": (34.48, 97.31, 97.34, 98.12, 98.14, 98.17),
        "BIM40": (0, 95.95, 96.00, 97.17, 97.08, 97.32),
        "C&W40": (0, 96.66, 96.50, 97.17, 97.45, 97.25),
        "PGD40": (0, 96.58, 96.62, 97.64, 97.50, 97.72),
        "PGD100": (0, 94.82, 95.06, 97.07, 96.78, 96.96),
        "20PGD100": (0, 93.87, 94.93, 96.73, 95.64, 96.79),
        "MIM200": (0, 95.47, 95.41, 96.84, 96.45, 96.64),
        "BB100": (81.81, 96.67, 96.95, 97.69, 97.65, 97.73),
    },
    "cifar10": {
        "clean": (95.01, 87.14, 89.79, 81.02, 86.19, 86.21),
        "FGSM": (13.35, 55.63, 60.29, 55.41, 58.80, 58.88),
        "BIM7": (0, 48.29, 50.62, 51.44, 52.19, 52.60),
        "C&W30": (0, 46.97, 47.59, 49.66, 49.64, 50.69),
        "PGD7": (0, 49.79, 51.89, 52.50, 53.53, 53.87),
        "PGD20": (0, 45.72, 48.50, 49.94, 49.70, 51.59),
        "20PGD20": (0, 45.21, 45.98, 45.55, 49.15, 50.03),
        "MIM40": (0, 45.16, 45.97, 49.63, 49.29, 50.09),
        "BB7": (7.60, 62.83, 67.27, 65.96, 61.67, 70.63),
    },
}
# Tables 4 to 6: accuracies under PGD-100 on MNIST, in the order of `tla_core.protocol.SWEEPS`; of others none.
SWEPT_ACCURACIES: dict[str, tuple[float, ...]] = {
    "table4": (94.82, 96.31, 96.96, 96.57, 96.72, 96.26),
    "table5": (96.60, 96.47, 96.72, 96.36, 96.35),
    "table6": (96.14, 96.48, 96.72, 96.34),
}
# v1 prints no more of Tiny-ImageNet.
TINY_IMAGENET = {"20PGD20": {"AT": 13.33, "ALP": 10.59, "TLA": 14.43}}

# Accuracy of the 50 nearest training images, and AUC of detecting misclassified inputs; in percent.
KNN: dict[str, dict[str, dict[str, float]]] = {
    "mnist": {
        "adversarial": {"AT": 93.01, "ALP": 95.20, "TLA": 96.98},
        "clean": {"AT": 98.68, "ALP": 98.43, "TLA": 99.47},
    },
    "cifar10": {
        "adversarial": {"AT": 47.46, "ALP": 48.85, "TLA": 51.74},
        "clean": {"AT": 87.06, "ALP": 89.63, "TLA": 86.29},
    },
}
DETECTION: dict[str, dict[str, float]] = {
    "mnist": {"UM": 94.83, "AT": 91.25, "ALP": 89.77, "TLA": 94.94},
    "cifar10": {"UM": 23.95, "AT": 61.07, "ALP": 63.15, "TLA": 69.60},
}
TEST_IMAGES = {"mnist": 10_000, "cifar10": 10_000, "tiny-imagenet": 10_000}


def published_accuracies(dataset: str) -> dict[str, dict[str, float]]:
    """Column -> method -> accuracy in percent, for a dataset of the main text; empty where it has none."""
    if dataset == "tiny-imagenet":
        return {column: dict(values) for column, values in TINY_IMAGENET.items()}
    columns = ACCURACIES.get(dataset, {})
    return {column: dict(zip(TABLE_METHODS, values, strict=True)) for column, values in columns.items()}
