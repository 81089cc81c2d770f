"""Slow, obvious versions of what the packages compute fast: plain loops in float64."""

import math

import numpy as np
import torch
import torch.nn.functional as F

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


def linear_cka(x, y):
    """Equation 3 and 5 of Kornblith et al. 2019 by HSIC: Gram matrices, centred by loops."""

    def centred_gram(rows):
        gram = [[sum(float(a) * float(b) for a, b in zip(u, v, strict=True)) for v in rows] for u in rows]
        n = len(rows)
        means = [sum(row) / n for row in gram]
        total = sum(means) / n
        return [[gram[i][j] - means[i] - means[j] + total for j in range(n)] for i in range(n)]

    def hsic(k, m):
        return sum(k[i][j] * m[i][j] for i in range(len(k)) for j in range(len(k)))

    k, m = centred_gram(x), centred_gram(y)
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


# training ------------------------------------------------------------------------------------------------------------


def triplet_loss(anchors, positives, negatives, margin):
    """Mean over all triplets of max(0, D(a, p) - D(a, n) + margin)."""
    terms = [
        max(0.0, distance(a, p, "angular") - distance(a, n, "angular") + margin)
        for a, p, n in zip(anchors, positives, negatives, strict=True)
    ]
    return sum(terms) / len(terms)


def hardest_negatives(anchors, anchor_labels, pool, pool_labels, metric="angular"):
    """The first pool member of another class with the smallest distance, for each anchor."""
    chosen = []
    for anchor, label in zip(anchors, anchor_labels, strict=True):
        candidates = [j for j in range(len(pool)) if pool_labels[j] != label]
        chosen.append(min(candidates, key=lambda j: (distance(anchor, pool[j], metric), j)))
    return chosen


def semi_hard_negatives(anchors, anchor_labels, pool, pool_labels, positives, metric="angular"):
    """For each anchor the nearest of another class beyond all its positives, or the farthest where there is none."""
    chosen = []
    for i, anchor in enumerate(anchors):
        candidates = [
            (distance(anchor, pool[j], metric), j) for j in range(len(pool)) if pool_labels[j] != anchor_labels[i]
        ]
        bound = max(distance(anchor, rows[i], metric) for rows in positives)
        beyond = [(far, j) for far, j in candidates if far > bound]
        chosen.append(min(beyond)[1] if beyond else max(candidates)[1])
    return chosen


def norm_term(representations, kind):
    """Mean over the triplets of |a| + |p| + |n|; or the mean over triplets and features of a^2 + p^2 + n^2."""
    total = count = 0
    for rows in zip(*representations, strict=True):
        for row in rows:
            squares = sum(entry * entry for entry in row)
            total += math.sqrt(squares) if kind == "l2" else squares / len(row)
        count += 1
    return total / count


def crop_flip(image, top, left, mirror):
    """Cut (c, h, w) out of itself with a border of zeros, an eighth of its size wide, at (top, left); then mirror."""
    channels, height, width = image.shape
    cut = np.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                row, column = i + top - height // 8, (width - 1 - j if mirror else j) + left - width // 8
                if 0 <= row < height and 0 <= column < width:
                    cut[c, i, j] = image[c, row, column]
    return cut


def plain_tla_step(
    model, x, y, positives, pool_images, pool_labels, *, start, eps, step_size, steps, margin, lambda_triplet,
    lambda_norm, label_smoothing=0.0,
):  # fmt: skip
    """One step of TLA (Algorithm 1) as one would first write it: no folding, no freezing, nothing shared.

    Also what benchmarks compare `tla_step` with, so nothing in it is slow on purpose.

    Parameters
    ----------
    model : nn.Module
        In training mode; its last linear layer reads the representation.
    x, y : Tensor, (n, c, h, w) and (n,)
        The batch.
    positives : Tensor, (n, c, h, w)
    pool_images, pool_labels : Tensor, (m, c, h, w) and (m,)
    start : Tensor, (n, c, h, w)
        Where the attack starts, within `eps` of `x`.
    eps, step_size, steps
        Of the attack (L-inf); `eps` also of the noise, drawn from torch's own generator: positives, then negatives.
    margin, lambda_triplet, lambda_norm, label_smoothing : float

    Returns
    -------
    Tensor, ()
        The loss, with its graph.
    """
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]

    def forward(images):
        seen = []
        handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits = model(images)
        handle.remove()
        return logits, seen[0]

    # Batch norm in eval mode for the attack and the search.
    model.eval()
    x_adv = start.clone().detach()
    for _ in range(steps):
        x_adv.requires_grad = True
        cost = F.cross_entropy(model(x_adv), y)
        gradient = torch.autograd.grad(cost, x_adv, retain_graph=False, create_graph=False)[0]
        x_adv = x_adv.detach() + step_size * gradient.sign()
        delta = torch.clamp(x_adv - x, min=-eps, max=eps)
        x_adv = torch.clamp(x + delta, min=0, max=1).detach()
    with torch.no_grad():
        _, anchors = forward(x_adv)
        _, candidates = forward(pool_images)
        distances = 1 - F.cosine_similarity(anchors[:, None], candidates[None], dim=-1).abs()
        distances[y[:, None] == pool_labels[None]] = 2.0  # more than any distance
        negatives = pool_images[distances.argmin(dim=1)]
    model.train()

    def noisy(images):
        return torch.clamp(images + (2 * torch.rand_like(images) - 1) * eps, 0, 1)

    logits, h_anchor = forward(x_adv)
    _, h_positive = forward(noisy(positives))
    _, h_negative = forward(noisy(negatives))
    d_positive = 1 - F.cosine_similarity(h_anchor, h_positive).abs()
    d_negative = 1 - F.cosine_similarity(h_anchor, h_negative).abs()
    triplet = F.relu(d_positive - d_negative + margin).mean()
    norm = (h_anchor.norm(dim=1) + h_positive.norm(dim=1) + h_negative.norm(dim=1)).mean()
    cross_entropy = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    return cross_entropy + lambda_triplet * triplet + lambda_norm * norm


def linear_robust_correct(weight, bias, x, y, eps, norm="linf"):
    """Which images no perturbation within eps can turn, for a linear model.

    L-inf: the worst perturbation towards another class moves each pixel by eps along the sign of the difference of the
    weights, clipped to [0, 1]: exact. L2: it moves along that difference, exact where no pixel leaves [0, 1].
    """
    correct = []
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    for image, label in zip(x.reshape(len(x), -1).astype(np.float64), y, strict=True):
        margins = []
        for other in set(range(len(weight))) - {int(label)}:
            toward_label = weight[label] - weight[other]
            step = np.sign(toward_label) if norm == "linf" else toward_label / np.linalg.norm(toward_label)
            moved = image - eps * step
            assert norm == "linf" or (moved.min() >= 0 and moved.max() <= 1)
            margins.append(np.clip(moved, 0, 1) @ toward_label + bias[label] - bias[other])
        correct.append(min(margins) > 0)
    return np.array(correct)
