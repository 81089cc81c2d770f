"""Settings as frozen dataclasses: checked when made, and identified by the hash of their canonical JSON."""

import dataclasses
import hashlib
import json
import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

METHODS = ("um", "at", "alp", "tla")  # the four of every figure
VARIANTS = ("tla-rn", "tla-sa")  # of TLA, in the paper's accuracy tables
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
        _one_of("attack name", self.name, ATTACKS)
        _one_of("norm", self.norm, ("linf", "l2"))
        _one_of("loss", self.loss, LOSSES)
        check_radius("eps", self.eps, self.norm)
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
        if self.name != "apgd":  # whose first step may leave the range of the images: it is cut off at the ball
            check_radius("step_size", self.step_size, self.norm)
        _whole("steps", self.steps, 1)
        _whole("restarts", self.restarts, 1)
        _whole("targets", self.targets, 0)
        _number("momentum", self.momentum, 0.0, math.inf)
        if self.name == "apgd" and self.momentum:
            raise ValueError(f"momentum must be 0 for apgd, which has one of its own. Got {self.momentum!r}.")
        if self.name == "square" and (self.momentum or self.targets):
            got = f"momentum {self.momentum!r} and targets {self.targets!r}"
            raise ValueError(f"momentum and targets must be 0 for square, which searches at random. Got {got}.")
        if not isinstance(self.random_start, bool):
            raise ValueError(f"random_start must be True or False. Got {self.random_start!r}.")
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
        """Towards how many classes each restart is run, of a model with so many; 0 if the attack is untargeted."""
        return min(self.targets, n_classes - 1)

    def n_starts(self, n_classes: int) -> int:
        """How often the attack is run on an image that nothing breaks."""
        return self.restarts * max(self.n_targets(n_classes), 1)

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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what weights a training ends with; the device is no part of it.

    `tla_core.presets.fields_in_use` says which of the fields a training reads.

    Parameters
    ----------
    method : {"um", "at", "alp", "tla", "tla-rn", "tla-sa"}
        ``tla-rn`` draws the negatives at random, ``tla-sa`` swaps the anchor: clean, with an adversarial positive.
    dataset : str
        A name or folder that `load_dataset` knows.
    network : str
        Family of the network, see `tla_core.models`.
    width : float
        Factor on the network's channels; 1 is the published size.
    blocks : tuple of int
        Residual blocks of each group; () is the published number.
    normalization : {"none", "per-image"}
        Of the input, inside the network: per-image standardisation as CIFAR-10's networks have it.
    epochs, batch_size : int
    iterations : int
        Length of the training in steps, in place of `epochs`, which then stays 1; 0 counts epochs.
    augmentation : {"none", "crop-flip", "crop-flip-saturation"}
        Random crops of the image padded by an eighth of its size, mirroring; and a saturation between 0.5 and 1.5 of
        images with three channels.
    optimizer : {"adam", "sgd"}
        SGD has momentum 0.9.
    learning_rate : float
        The highest learning rate of the schedule.
    schedule : {"constant", "onecycle", "steps"}
        ``onecycle`` rises linearly and falls as a cosine; ``steps`` divides by ten at each of `milestones`.
    warmup : float
        Share of the training in which ``onecycle`` rises, in (0, 1).
    milestones : tuple of float
        Shares of the training at which ``steps`` divides, in (0, 1).
    weight_decay : float
        On the weights of convolutions, linear layers and attention only; see `tla_core.schedule.make_optimizer`.
    label_smoothing : float
        In [0, 1).
    lambda_triplet, lambda_norm, lambda_alp : float
        Weights of the triplet term, the norm term and logit pairing.
    margin : float
        Of the triplet term, in angular distance.
    pool_size : int
        Clean images among which the hardest negative is sought.
    positives : {"class", "own", "own+class"}
        A random image of the anchor's class; the anchor's own clean image; or two triplet terms, one with each.
    own_margin_factor : float
        On the margin of the triplet with the own clean image, which ``own+class`` has.
    norm_term : {"l2", "mean-square"}
        The sum of the three L2 norms, times `lambda_norm`; or the released code's mean of the squares over batch and
        features, times `lambda_triplet` and `lambda_norm`.
    mining : {"angular", "cosine"}
        Negatives are sought by the angular distance, or by the signed cosine.
    negatives : {"hardest", "semi-hard"}
        The closest in the pool; or the closest of those that are farther from the anchor than its positive, and the
        farthest where none is. tla-rn draws at random.
    noise : {"triplet", "own"}
        Uniform noise of size eps on all clean images of the triplet, or on the anchor's own alone: with the positives
        of ``class`` on none. The own one has it always.
    lambda_feature : float
        Weight of the squared distance between the representations of the own clean image, which ``own`` and
        ``own+class`` have, and of its adversarial example.
    statistics : {"all", "adversarial"}
        Which passes move the running statistics of batch norm: all of them, as in the released code, or those of the
        adversarial images alone. Clean images are normalised by the statistics of their own batch either way. um and at
        have no pass that this concerns.
    layer : str
        Whose output is the representation of the triplet term: ``penultimate``, ``logits``, a name that the network
        gives (``lower``, ``middle``, ``higher``) or a module path.
    attack : AttackConfig
        The attack of the training. um does not use it.
    eps_ramp : float
        Share of the training over which `eps` and the step size grow linearly from 0; 0 trains at full eps at once.
    holdout : int
        Training images held out to select the epoch, balanced over the classes; 0 keeps the last epoch.
    selection_attack : AttackConfig
        The attack on the held-out images; um selects by clean accuracy.
    averaging : float
        Decay of an exponential moving average of the weights, which is what is selected and stored; 0 is none.
    precision : {"fp32", "bf16"}
        bf16 runs the network under autocast; the perturbation, the loss, and all that is reported stay fp32.
    fine_tune : bool
        The training must start from another run's weights (`init_from`).
    seed : int
    version : int
        Raised when the training code changes what the same settings give.

    Raises
    ------
    ValueError
        For a value that is out of range or unknown, or for two that contradict each other; the message names them and
        what was expected.
    """

    method: str = "tla"
    dataset: str = "mnist-mini"
    network: str = "lenet"
    width: float = 1.0
    blocks: tuple[int, ...] = ()
    normalization: str = "none"
    epochs: int = 1
    iterations: int = 0
    batch_size: int = 50
    augmentation: str = "none"
    optimizer: str = "adam"
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup: float = 0.3
    milestones: tuple[float, ...] = ()
    weight_decay: float = 2e-4
    label_smoothing: float = 0.0
    lambda_triplet: float = 0.5
    lambda_norm: float = 1e-3
    lambda_alp: float = 0.5
    margin: float = 0.05
    pool_size: int = 50
    positives: str = "class"
    own_margin_factor: float = 1.0
    norm_term: str = "l2"
    mining: str = "angular"
    negatives: str = "hardest"
    noise: str = "triplet"
    lambda_feature: float = 0.0
    statistics: str = "all"
    layer: str = "penultimate"
    attack: AttackConfig = field(default_factory=AttackConfig)
    eps_ramp: float = 0.0
    holdout: int = 0
    selection_attack: AttackConfig = field(default_factory=AttackConfig)
    averaging: float = 0.0
    precision: str = "fp32"
    fine_tune: bool = False
    seed: int = 0
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        for name in ("milestones", "blocks"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Iterable):
                raise ValueError(f"{name} must be a sequence of numbers. Got {getattr(self, name)!r}.")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _one_of("method", self.method, METHODS + VARIANTS)
        _one_of("normalization", self.normalization, ("none", "per-image"))
        _one_of("augmentation", self.augmentation, ("none", "crop-flip", "crop-flip-saturation"))
        _one_of("positives", self.positives, ("class", "own", "own+class"))
        _one_of("norm_term", self.norm_term, ("l2", "mean-square"))
        _one_of("mining", self.mining, ("angular", "cosine"))
        _one_of("negatives", self.negatives, ("hardest", "semi-hard"))
        _one_of("noise", self.noise, ("triplet", "own"))
        _one_of("statistics", self.statistics, ("all", "adversarial"))
        _one_of("precision", self.precision, ("fp32", "bf16"))
        _one_of("optimizer", self.optimizer, ("adam", "sgd"))
        _one_of("schedule", self.schedule, ("constant", "onecycle", "steps"))
        for name in ("width", "learning_rate"):
            _number(name, getattr(self, name), 0.0, math.inf, open_low=True)
        for name in ("weight_decay", "lambda_triplet", "lambda_norm", "lambda_alp", "lambda_feature", "margin"):
            _number(name, getattr(self, name), 0.0, math.inf)
        _number("own_margin_factor", self.own_margin_factor, 0.0, math.inf)
        _number("averaging", self.averaging, 0.0, 1.0, open_high=True)
        _number("label_smoothing", self.label_smoothing, 0.0, 1.0, open_high=True)
        _number("eps_ramp", self.eps_ramp, 0.0, 1.0)
        _number("warmup", self.warmup, 0.0, 1.0, open_low=True, open_high=True)
        for share in self.milestones:
            _number("milestones", share, 0.0, 1.0, open_low=True, open_high=True)
        for count in self.blocks:
            _whole("blocks", count, 1)
        _whole("epochs", self.epochs, 1)
        _whole("iterations", self.iterations, 0)
        _whole("batch_size", self.batch_size, 2)  # batch norm has no statistics of one image
        _whole("pool_size", self.pool_size, 2)
        _whole("holdout", self.holdout, 0)
        _whole("seed", self.seed, 0)
        if not isinstance(self.fine_tune, bool):
            raise ValueError(f"fine_tune must be True or False. Got {self.fine_tune!r}.")
        for name in ("attack", "selection_attack"):
            if not isinstance(getattr(self, name), AttackConfig):
                raise ValueError(f"{name} must be an AttackConfig. Got {getattr(self, name)!r}.")
        if self.version != 1:
            raise ValueError(f"version must be 1, which this code trains. Got {self.version!r}.")
        self._check_agreement()

    def _check_agreement(self) -> None:
        if self.iterations and self.epochs != 1:
            raise ValueError(
                "epochs and iterations both give the length of the training: set iterations to 0 to count epochs, or"
                f" epochs to 1 to count iterations. Got epochs={self.epochs} and iterations={self.iterations}."
            )
        if self.positives != "own+class" and self.own_margin_factor != 1.0:
            raise ValueError(
                "own_margin_factor must be 1 unless positives is 'own+class': it is on the second of two margins. Got"
                f" {self.own_margin_factor:g} with positives {self.positives!r}; change margin."
            )
        if self.positives == "class" and self.lambda_feature != 0.0:
            raise ValueError(
                "lambda_feature must be 0 with positives 'class', where the anchor's own clean image is not forwarded."
                f" Got {self.lambda_feature:g}; take positives 'own' or 'own+class'."
            )

    @classmethod
    def preset(cls, name: str, *, seed: int = 0, **overrides: Any) -> "TrainConfig":
        """The preset of that name, with fields replaced.

        Parameters
        ----------
        name : str
            One of `list_presets`, such as ``"mini/mnist/tla"``.
        seed : int
        **overrides
            Field names and values: ``epochs=2, margin=0.1``. Of `epochs` and `iterations` the one that is given counts.

        Raises
        ------
        ValueError
            For an unknown preset or field; the message lists what there is.
        """
        from tla_core.presets import preset_fields

        fields = preset_fields(name)
        unknown = sorted(set(overrides) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"unknown field {', '.join(unknown)}. A TrainConfig has: "
                + ", ".join(f.name for f in dataclasses.fields(cls))
            )
        for given, other in (("epochs", "iterations"), ("iterations", "epochs")):
            if overrides.get(given):
                fields.pop(other, None)
        return cls(**{**fields, "seed": seed, **overrides})

    @property
    def length(self) -> str:
        """How long the training is, in words: ``70 steps`` or ``6 epochs``."""
        number, unit = (self.iterations, "step") if self.iterations else (self.epochs, "epoch")
        return f"{number:,} {unit}{'s' * (number != 1)}"

    @property
    def identity(self) -> str:
        """SHA-256 of the settings that differ from the defaults: equal settings have equal identities everywhere."""
        return identity_of(self.identifying_fields())

    def identifying_fields(self) -> dict[str, Any]:
        """The fields, as JSON values, that differ from their defaults.

        A field that is added later, with a default that changes nothing, leaves the identity of old runs as it was.
        """
        changed = _changed(self.to_dict(), TrainConfig().to_dict())
        return {**changed, "version": self.version}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return json.loads(canonical_json(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_dict`."""
        attacks = {name: values[name] for name in ("attack", "selection_attack") if isinstance(values.get(name), dict)}
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        for attack in attacks.values():
            unknown |= set(attack) - {f.name for f in dataclasses.fields(AttackConfig)}
        if unknown:
            written = "was it written by a newer version of the toolkit?"
            raise ValueError(f"unknown field {', '.join(sorted(unknown))}: {written}")
        return cls(**{**values, **{name: AttackConfig(**attack) for name, attack in attacks.items()}})


def _changed(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _changed(value, default[key]) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != default[key]
    }


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; whole floats are written as integers, so that 1 and 1.0 are the same."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): plain(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(inner) for inner in item]
        if isinstance(item, numbers.Real) and not isinstance(item, (bool, int)):  # numpy's numbers as well
            return int(item) if float(item).is_integer() else float(item)
        return item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


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


def check_radius(name: str, value: float, norm: str) -> None:
    """Raise ValueError unless `value` is a radius that images in [0, 1] can have in that norm."""
    _number(name, value, 0.0, math.inf)
    if norm == "linf" and value > 1:
        hint = f"{value:g}/255" if value <= 255 else "8/255"
        raise ValueError(
            f"{name} must be at most 1 for linf, since images are in [0, 1]. Got {value:g}; did you mean {hint}?"
        )


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}. Got {value!r}.")


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> None:
    okay = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    okay = okay and (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if not okay:
        left = "more than" if open_low else "at least"
        right = "" if high == math.inf else f" and {'less than' if open_high else 'at most'} {high:g}"
        raise ValueError(f"{name} must be a finite number, {left} {low:g}{right}. Got {value!r}.")


def _whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}. Got {value!r}.")
