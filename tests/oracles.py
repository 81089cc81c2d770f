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
