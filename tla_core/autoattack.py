"""AutoAttack (Croce and Hein 2020) by `pyautoattack`, as an attack that `evaluate` takes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tla_core.chunks import images_at_once
from tla_core.folding import folded_if_equal, says_the_same
from tla_core.layers import model_device
from tla_core.validation import check_one_of, check_radius


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """The standard ensemble: APGD on cross-entropy, targeted APGD and FAB, and Square, one after the other.

    Parameters
    ----------
    eps : float
        Radius of the ball in pixel units.
    norm : {"linf", "l2"}
    version : {"standard", "plus", "rand"}
        ``rand`` is for stochastic models.
    seed : int

    Raises
    ------
    ValueError
        For an unknown norm or version, or an eps that is out of range.
    ImportError
        When it runs and `pyautoattack` is not installed.

    Notes
    -----
    It sees the model with batch norm folded, like our own attacks; `evaluate` judges the examples on the model itself.
    Outcomes depend on the batch size, since the random numbers are drawn for a batch at once. With fewer than four
    classes, for which the targeted loss is not defined, the ensemble is APGD on cross-entropy, FAB and Square.
    """

    image_steps: ClassVar[int] = 7000  # gradients and queries that a robust image takes, for progress bars

    eps: float = 8 / 255
    norm: str = "linf"
    version: str = "standard"
    seed: int = 0

    def __post_init__(self) -> None:
        check_one_of("norm", self.norm, ("linf", "l2"))
        check_one_of("version", self.version, ("standard", "plus", "rand"))
        check_radius("eps", self.eps, self.norm)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial images (n, c, h, w), float32 in [0, 1], of the images that it breaks; the others as they are."""
        try:
            from pyautoattack import AutoAttack as Ensemble
        except ImportError as error:
            raise ImportError(
                "AutoAttack needs pyautoattack: `pip install pyautoattack`, or install with the extra [robustness]."
            ) from error
        network = folded_if_equal(model, x)
        x_adv = self._run(Ensemble, network, x, y)
        if network is not model and not says_the_same(network, model, x_adv):
            x_adv = self._run(Ensemble, model, x, y)
        return x_adv

    def _run(self, ensemble_type: type, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        device = model_device(model)
        norm = {"linf": "Linf", "l2": "L2"}[self.norm]
        settings = {"eps": self.eps, "norm": norm, "seed": self.seed, "device": device}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            with torch.no_grad():
                n_classes = model(x[:1]).shape[1]
            if n_classes < 4:  # the targeted loss compares four classes
                ensemble = ensemble_type(model, version="custom", attacks=["apgd-ce", "fab", "square"], **settings)
            else:
                ensemble = ensemble_type(model, version=self.version, **settings)
                ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = min(9, n_classes - 1)
            return ensemble.run_standard_evaluation(x, y, batch_size=images_at_once(x))[0]

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": "autoattack", "eps": self.eps, "norm": self.norm, "version": self.version, "seed": self.seed}

    def __str__(self) -> str:
        return f"AutoAttack ({self.version}), eps {self.eps:g} ({self.norm})"
