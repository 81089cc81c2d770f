"""Slow, obvious versions of what the packages compute fast: plain loops in float64."""

import math

import numpy as np

# analysis ------------------------------------------------------------------------------------------------------------


def distance(u, v, metric):
    """D(u, v) of two vectors, as the supplement writes it."""
    u, v = [float(entry) for entry in u], [float(entry) for entry in v]
    if metric == "euclidean":
        return math.sqrt(sum((a - b) ** 2 for a, b in zip(u, v, strict=True)))
    product = sum(a * b for a, b in zip(u, v, strict=True))
    cosine = product / math.sqrt(sum(a * a for a in u)) / math.sqrt(sum(b * b for b in v))
    return 1 - abs(cosine) if metric == "angular" else 1 - cosine


def ratio_per_class(cross_features, cross_classes, features, labels, metric, n_classes):
    """cross_k / inner_k of every class, nan for a class without one."""
    per_class = []
    for k in range(n_classes):
        clean = [row for row, label in zip(features, labels, strict=True) if label == k]
        adversaries = [row for row, label in zip(cross_features, cross_classes, strict=True) if label == k]
        inner = [distance(clean[i], clean[j], metric) for i in range(len(clean)) for j in range(i + 1, len(clean))]
        cross = [distance(q, c, metric) for q in adversaries for c in clean]
        if not inner or not cross or sum(inner) / len(inner) < 1e-9:
            per_class.append(math.nan)
        else:
            per_class.append((sum(cross) / len(cross)) / (sum(inner) / len(inner)))
    return np.array(per_class)


def neighbours(queries, gallery, k, metric, exclude=None):
    """Distances and indices (q, k) by comparing everything, sorted by (distance to 12 digits, index)."""
    distances, indices = [], []
    for row, query in enumerate(queries):
        found = [(round(distance(query, g, metric), 12), i) for i, g in enumerate(gallery)]
        if exclude is not None and exclude[row] >= 0:
            del found[exclude[row]]
        found = sorted(found)[:k]
        distances.append([d for d, _ in found])
        indices.append([i for _, i in found])
    return np.array(distances), np.array(indices)


# training ------------------------------------------------------------------------------------------------------------


def triplet_loss(anchors, positives, negatives, margin):
    """Mean over all triplets of max(0, D(a, p) - D(a, n) + margin)."""
    terms = [
        max(0.0, distance(a, p, "angular") - distance(a, n, "angular") + margin)
        for a, p, n in zip(anchors, positives, negatives, strict=True)
    ]
    return sum(terms) / len(terms)


def hardest_negatives(anchors, anchor_labels, pool, pool_labels):
    """The first pool member of another class with the smallest angular distance, for each anchor."""
    chosen = []
    for anchor, label in zip(anchors, anchor_labels, strict=True):
        candidates = [j for j in range(len(pool)) if pool_labels[j] != label]
        chosen.append(min(candidates, key=lambda j: (distance(anchor, pool[j], "angular"), j)))
    return chosen


def linear_robust_correct(weight, bias, x, y, eps):
    """Which images no L-inf perturbation within eps and [0, 1] can turn, for a linear model with two classes.

    The worst perturbation moves each pixel by eps against the sign of its weight, clipped to [0, 1]: exact.
    """
    correct = []
    for image, label in zip(x.reshape(len(x), -1).astype(np.float64), y, strict=True):
        toward_label = weight[label].astype(np.float64) - weight[1 - label].astype(np.float64)
        worst = np.clip(image - eps * np.sign(toward_label), 0, 1)
        correct.append(float(worst @ toward_label) + float(bias[label] - bias[1 - label]) > 0)
    return np.array(correct)
