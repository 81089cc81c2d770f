"""The representations of a set of images, clean and adversarial, with what is needed to know where they come from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.frames import frame, names_of

_INTEGERS = ("labels", "predictions", "adv_predictions", "indices")
_ARRAYS = ("features", "labels", "indices", "logits", "predictions", "adv_features", "adv_logits", "adv_predictions",
           "adv_images")  # fmt: skip


@dataclass(frozen=True, repr=False, eq=False)
class RepresentationSet:
    """Representations of n images, row by row; numpy arrays throughout. Make one with `extract` or `from_arrays`.

    Attributes
    ----------
    features : ndarray, (n, d), float32
        The layer's output for the clean images.
    labels, indices : ndarray, (n,), int64
        True classes, and the images' positions in their dataset.
    logits, predictions : ndarray, (n, classes) float32 and (n,) int64, or None
    adv_features, adv_logits, adv_predictions : like the clean ones, or None without an adversarial part
    adv_images : ndarray, (n, c, h, w), uint8 or float32 in [0, 1], or None
    class_names : tuple of str
    meta : dict
        JSON values: model, dataset, layer, attack.

    Raises
    ------
    ValueError
        If the arrays do not belong together, or features are not finite.
    """

    features: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    class_names: tuple[str, ...]
    logits: np.ndarray | None = None
    predictions: np.ndarray | None = None
    adv_features: np.ndarray | None = None
    adv_logits: np.ndarray | None = None
    adv_predictions: np.ndarray | None = None
    adv_images: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.features)
        for name in ("features", "adv_features", "logits", "adv_logits"):
            value = getattr(self, name)
            if value is None:
                continue
            if value.ndim != 2 or len(value) != n:
                raise ValueError(f"{name} must have the shape ({n}, d). Got {value.shape}.")
            finite = np.isfinite(value).all(1)
            if not finite.all():
                raise ValueError(
                    f"{name} must be finite. Got NaN or infinity in {(~finite).sum()} of {n} rows, the first is row"
                    f" {int(np.argmin(finite))}; was the model trained to an end?"
                )
        if self.adv_features is not None and self.adv_features.shape != self.features.shape:
            raise ValueError(f"adv_features must have the shape {self.features.shape}. Got {self.adv_features.shape}.")
        for name in _INTEGERS:
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise ValueError(f"{name} must have the shape ({n},), one for each image. Got {value.shape}.")
        if self.adv_images is not None and (self.adv_images.ndim != 4 or len(self.adv_images) != n):
            raise ValueError(f"adv_images must have the shape ({n}, c, h, w). Got {self.adv_images.shape}.")
        for name in ("labels", "predictions", "adv_predictions"):
            value = getattr(self, name)
            if value is not None and n and not (0 <= value.min() and value.max() < len(self.class_names)):
                raise ValueError(
                    f"{name} must be in 0..{len(self.class_names) - 1}, since there are {len(self.class_names)} class"
                    f" names. Got values from {value.min()} to {value.max()}."
                )

    @classmethod
    def from_arrays(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        adv_features: np.ndarray | None = None,
        logits: np.ndarray | None = None,
        adv_logits: np.ndarray | None = None,
        predictions: np.ndarray | None = None,
        adv_predictions: np.ndarray | None = None,
        adv_images: np.ndarray | None = None,
        indices: np.ndarray | None = None,
        class_names: tuple[str, ...] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> "RepresentationSet":
        """Make a set from arrays of one's own.

        Predictions are taken from logits, indices are 0..n-1, and classes are named by their numbers where these are
        not given. For the other parameters see the attributes of the class.
        """
        arrays = {
            "features": features, "labels": labels, "adv_features": adv_features, "logits": logits,
            "adv_logits": adv_logits, "predictions": predictions, "adv_predictions": adv_predictions,
            "adv_images": adv_images, "indices": np.arange(len(features)) if indices is None else indices,
        }  # fmt: skip
        arrays = {name: _converted(name, value) for name, value in arrays.items() if value is not None}
        for kind in ("", "adv_"):
            if f"{kind}predictions" not in arrays and f"{kind}logits" in arrays:
                arrays[f"{kind}predictions"] = arrays[f"{kind}logits"].argmax(-1)
        if class_names is None:
            integers = [arrays[name] for name in ("labels", "predictions", "adv_predictions") if name in arrays]
            counts = [int(value.max(initial=-1)) + 1 for value in integers]
            counts += [arrays[name].shape[-1] for name in ("logits", "adv_logits") if name in arrays]
            class_names = tuple(str(k) for k in range(max(counts)))
        return cls(class_names=tuple(class_names), meta=dict(meta or {}), **arrays)

    @property
    def accuracy(self) -> float | None:
        """Clean accuracy, a fraction; None without predictions."""
        return None if self.predictions is None else float((self.predictions == self.labels).mean())

    @property
    def robust_accuracy(self) -> float | None:
        """Share of images classified correctly both clean and adversarial; None without an adversarial part."""
        if self.predictions is None or self.adv_predictions is None:
            return None
        return float(((self.predictions == self.labels) & (self.adv_predictions == self.labels)).mean())

    def subset(self, rows: np.ndarray) -> "RepresentationSet":
        """The set of some rows, given by their positions or by a boolean mask."""
        arrays = {name: value[rows] for name in _ARRAYS if (value := getattr(self, name)) is not None}
        return RepresentationSet(class_names=self.class_names, meta=dict(self.meta), **arrays)

    def save(self, path: Path | str) -> None:
        """Write the set into one safetensors file, atomically and with a checksum.

        Raises
        ------
        OSError
            If it cannot be written; what was there before is unchanged.
        """
        from tla_core.checkpoint import save_tensors

        arrays = {name: value for name in _ARRAYS if (value := getattr(self, name)) is not None}
        metadata = {"kind": "representations", "class_names": list(self.class_names), "meta": self.meta}
        save_tensors(path, arrays, metadata)

    @classmethod
    def load(cls, path: Path | str) -> "RepresentationSet":
        """Read what `save` wrote, and verify it.

        Raises
        ------
        FileNotFoundError, CheckpointError
            If there is no such file, or it is truncated, altered, or of another kind.
        """
        from analysis.stored import load_kind

        arrays, metadata = load_kind(path, "representations")
        return cls(class_names=tuple(metadata["class_names"]), meta=metadata["meta"], **arrays)

    def to_dataframe(self):
        """One row for each image, without the vectors: ``index``, ``class``, and where there are predictions
        ``predicted``, ``correct``, ``adv_predicted`` and ``adv_correct``, right before the attack and under it."""
        columns: dict[str, Any] = {"index": self.indices, "class": names_of(self.labels, self.class_names)}
        right = True
        for kind in ("", "adv_"):
            if (predictions := getattr(self, f"{kind}predictions")) is not None:
                right = right & (predictions == self.labels)
                columns |= {f"{kind}predicted": names_of(predictions, self.class_names), f"{kind}correct": right}
        return frame(columns)

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        adversarial = "clean and adversarial" if self.adv_features is not None else "clean only"
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.3f}"
        robust = "" if self.robust_accuracy is None else f", robust {self.robust_accuracy:.3f}"
        n, d = self.features.shape
        return f"RepresentationSet({n} images x {d}, {len(self.class_names)} classes, {adversarial}{accuracy}{robust})"


def _converted(name: str, value: np.ndarray) -> np.ndarray:
    if hasattr(value, "detach"):  # numpy has no bfloat16
        value = value.detach().cpu().float() if value.is_floating_point() else value.detach().cpu()
    value = np.asarray(value)
    if name in _INTEGERS:
        if value.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers. Got {value.dtype}.")
        return np.ascontiguousarray(value, dtype=np.int64)
    if name == "adv_images":
        if value.dtype not in (np.uint8, np.float32):
            raise ValueError(f"adv_images must be uint8 or float32. Got {value.dtype}.")
        return np.ascontiguousarray(value)
    return np.ascontiguousarray(value, dtype=np.float32)
