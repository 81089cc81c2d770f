"""One attack as a frozen dataclass, checked when it is made, and its numbers as people write them: 8/255."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from tla_core.validation import check_flag, check_number, check_one_of, check_radius, check_whole

ATTACKS = ("fgsm", "bim", "pgd", "mim", "cw", "apgd", "square")
LOSSES = ("ce", "margin", "dlr")


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One attack, by name and size.

    The names set what they stand for, so that the fields always say what will run: ``fgsm`` is one step of size
    `eps` from the image itself, ``bim`` has no random start, ``mim`` a momentum of 1 unless another is given,
    ``cw`` ascends the margin, and ``apgd`` begins with steps of twice `eps`, which it halves by itself, with a momentum
    of its own (Croce and Hein 2020); it returns the best iterate, the others the last. ``square`` takes no gradients: a
    random search by the margin (Andriushchenko et al. 2020), of which `steps` are the queries.

    Parameters
    ----------
    name : {"pgd", "fgsm", "bim", "mim", "cw", "apgd", "square"}
    norm : {"linf", "l2"}
        The ball that the perturbation stays in.
    eps : float
        Radius of the ball in pixel units, where images span [0, 1].
    step_size : float
        Length of one step, in pixel units of the same norm.
    steps, restarts : int
        Steps of each start, and starts; the worst case per image over the restarts counts.
    random_start : bool
        Start at a uniformly random point of the ball instead of the image.
    loss : {"ce", "margin", "dlr"}
        Ascend the cross-entropy, ``max_other - z_y`` of the logits, or the difference of logits ratio; see
        `tla_core.ascent.attack_loss`.
    momentum : float
        Decay of the accumulated L1-normalised gradients (Dong et al. 2018, eq. 6); 0 is plain PGD.
    targets : int
        Each restart is run once towards each of so many wrong classes, those with the largest clean logits; with fewer
        classes, towards all. 0 is an untargeted attack.

    Raises
    ------
    ValueError
        For a value that is out of range; the message names it and what was expected.
    """

    name: str = "pgd"
    norm: str = "linf"
    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 20
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    momentum: float = 0.0
    targets: int = 0

    def __post_init__(self) -> None:
        check_one_of("attack name", self.name, ATTACKS)
        check_one_of("norm", self.norm, ("linf", "l2"))
        check_one_of("loss", self.loss, LOSSES)
        check_radius("eps", self.eps, self.norm)
        # What the name settles.
        implied: dict[str, Any] = {}
        if self.name == "fgsm":
            implied = {"steps": 1, "step_size": self.eps, "random_start": False}
        elif self.name == "bim":
            implied = {"random_start": False}
        elif self.name == "mim":
            implied = {"momentum": self.momentum or 1.0}
        elif self.name == "cw":
            implied = {"loss": "margin"}
        elif self.name == "apgd":
            implied = {"step_size": 2 * self.eps}
        elif self.name == "square":
            implied = {"step_size": self.eps, "random_start": True, "loss": "margin"}
        for key, value in implied.items():
            object.__setattr__(self, key, value)
        # Whether the settings go together.
        if self.name != "apgd":  # whose first step may leave the range of the images: it is cut off at the ball
            check_radius("step_size", self.step_size, self.norm)
        check_whole("steps", self.steps, 1)
        check_whole("restarts", self.restarts, 1)
        check_whole("targets", self.targets, 0)
        check_number("momentum", self.momentum, 0.0)
        if self.name == "apgd" and self.momentum:
            raise ValueError(f"momentum must be 0 for apgd, which has one of its own. Got {self.momentum!r}.")
        if self.name == "square" and (self.momentum or self.targets):
            settings = f"momentum {self.momentum!r} and targets {self.targets!r}"
            raise ValueError(f"momentum and targets must be 0 for square, which searches at random. Got {settings}.")
        check_flag("random_start", self.random_start)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts must be 1 without a random start, since each would be the same. Got {self.restarts}."
            )

    @property
    def takes_gradients(self) -> bool:
        """False for a random search."""
        return self.name != "square"

    def scaled(self, eps: float) -> "AttackConfig":
        """The same attack at another `eps`: as many steps, of a size in proportion."""
        if self.eps == 0:
            raise ValueError("an attack of eps 0 cannot be scaled: its step size is in proportion to nothing.")
        return dataclasses.replace(self, eps=eps, step_size=self.step_size * eps / self.eps)

    def n_targets(self, n_classes: int) -> int:
        """The number of classes that each restart is run towards, for a model of `n_classes`; 0 if untargeted."""
        return min(self.targets, n_classes - 1)

    def n_starts(self, n_classes: int) -> int:
        """How often the attack is run on an image that nothing breaks."""
        return self.restarts * max(self.n_targets(n_classes), 1)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values: what is stored beside a result."""
        settings = {key: getattr(self, key) for key in self.__dataclass_fields__}
        # Files from before there were targeted attacks do not name the field.
        return {key: value for key, value in settings.items() if key != "targets" or value}

    def __str__(self) -> str:
        if self.name == "fgsm":
            return f"FGSM, eps {format_number(self.eps)} ({self.norm})"
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        restarts += f", {self.targets} targets" if self.targets else ""
        if self.name == "apgd":
            return f"APGD {self.steps}, {self.loss}, eps {format_number(self.eps)} ({self.norm}){restarts}"
        if not self.takes_gradients:
            return f"Square, {self.steps} queries, eps {format_number(self.eps)} ({self.norm}){restarts}"
        size = f"{self.steps} x {format_number(self.step_size)}, eps {format_number(self.eps)}"
        return f"{self.name.upper()} {size} ({self.norm}){restarts}"


def parse_number(text: str) -> float:
    """Read a number that may be a fraction: ``"8/255"``, ``"0.3"``, ``"1e-4"``.

    Raises
    ------
    ValueError
        If it is neither.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"expected a number such as 0.3 or 8/255. Got {text!r}.") from error


def format_number(value: float) -> str:
    """Write a number as `parse_number` reads it: a fraction where that, and no short decimal, is the value itself.

    ``8/255`` is written for 0.03137254901960784 and ``1/3`` for 0.3333333333333333; other numbers have six digits.
    """
    text = f"{value:g}"
    if not math.isfinite(value) or float(text) == value:
        return text
    for denominator in (*range(2, 17), 255):
        numerator = round(value * denominator)
        if numerator / denominator == value:
            return f"{numerator}/{denominator}"
    return text
