"""Representations that look trained, made in a moment, for the tests of the explorer."""

import numpy as np

from analysis import RepresentationSet

HOSTILE = "<img src=x onerror=document.title='owned'>"


def made_set(n=60, d=6, classes=3, *, seed=0, adversarial=True, names=None, size=8, **changes):
    """n items in clusters; the attacked ones of every third item lie in the next class's cluster."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, d)) * 3
    features = centres[labels] + rng.normal(size=(n, d))
    fooled = np.arange(n) % 3 == 0
    target = np.where(fooled, (labels + 1) % classes, labels)
    adv_features = centres[target] + rng.normal(size=(n, d))
    logits = np.eye(classes)[labels] * 3
    arrays = {
        "features": features, "labels": labels, "logits": logits, "indices": np.arange(n) * 2 + 10,
        "class_names": names or tuple(f"class {k}" for k in range(classes)),
    }  # fmt: skip
    if adversarial:
        arrays |= {
            "adv_features": adv_features, "adv_logits": np.eye(classes)[target] * 2,
            "adv_images": rng.integers(0, 256, (n, 1, size, size), dtype=np.uint8),
        }  # fmt: skip
    return RepresentationSet.from_arrays(**(arrays | changes))


def random_maps(sets, methods=("tsne", "pca"), seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: {method: rng.normal(size=(len(reps) * (1 if reps.adv_features is None else 2), 2)) for method in methods}
        for name, reps in sets.items()
    }
