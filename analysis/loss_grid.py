"""What a loss landscape and its Display share; without torch, which takes seconds to import."""

import math

import numpy as np

from analysis.frames import grid


class LossGrid:
    """The loss over a plane: ``loss``, (n, n), over an ``axis`` of n steps, and ``centre_loss``."""

    loss: np.ndarray
    axis: np.ndarray
    centre_loss: float

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest finite loss of the grid; NaN where none is finite."""
        finite = self.loss[np.isfinite(self.loss)]
        return (float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan)

    @property
    def rise(self) -> float:
        """How far the highest finite loss of the grid lies above that of the centre."""
        return self.range[1] - self.centre_loss

    def to_dataframe(self):
        """One row for each point: ``first`` and ``second``, how far along each direction in units of the axis; and
        ``loss``."""
        return grid(self.loss, self.axis, "loss")
