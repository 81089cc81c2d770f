"""Settings as frozen dataclasses: checked when made, and identified by the hash of their canonical JSON."""

import dataclasses
import hashlib
import json
import numbers
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from tla_core.attack_config import AttackConfig
from tla_core.presets import METHODS, VARIANTS, preset_fields
from tla_core.validation import check_flag, check_number, check_one_of, check_whole

# What the fields of a training may be.
_CHOICES = {
    "method": METHODS + VARIANTS,
    "normalization": ("none", "per-image"),
    "augmentation": ("none", "crop-flip", "crop-flip-saturation"),
    "optimizer": ("adam", "sgd"),
    "schedule": ("constant", "onecycle", "steps"),
    "positives": ("class", "own", "own+class"),
    "norm_term": ("l2", "mean-square"),
    "mining": ("angular", "cosine"),
    "negatives": ("hardest", "semi-hard"),
    "noise": ("triplet", "own"),
    "statistics": ("all", "adversarial"),
    "precision": ("fp32", "bf16"),
}
# Batch norm has no statistics of one image.
_LEAST = {"epochs": 1, "iterations": 0, "batch_size": 2, "pool_size": 2, "holdout": 0, "seed": 0}
_POSITIVE = ("width", "learning_rate")
_NOT_NEGATIVE = (
    "weight_decay", "lambda_triplet", "lambda_norm", "lambda_alp", "lambda_feature", "margin", "own_margin_factor",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what weights a training ends with; the device is no part of it.

    `fields_in_use` says which of the fields a training reads.

    Parameters
    ----------
    method : {"um", "at", "alp", "tla", "tla-rn", "tla-sa"}
        um, at, alp or tla; ``tla-rn`` draws the negatives at random, ``tla-sa`` swaps the anchor: clean, with an
        adversarial positive.
    dataset : str
        A name or folder that `load_dataset` knows.
    network : str
        Family of the network, see `tla_core.models`.
    width : float
        Factor on the network's channels; 1 is the published size.
    blocks : tuple of int
        Residual blocks of each group; () is the published number.
    normalization : {"none", "per-image"}
        Of the input, inside the network: none, or per-image standardisation as CIFAR-10's networks have it.
    epochs, batch_size : int
    iterations : int
        Length of the training in steps, in place of `epochs`, which then stays 1; 0 counts epochs.
    augmentation : {"none", "crop-flip", "crop-flip-saturation"}
        none; crop-flip: random crops of the image padded by an eighth of its size, and mirroring; or
        crop-flip-saturation: also a saturation between 0.5 and 1.5 of images with three channels.
    optimizer : {"adam", "sgd"}
        adam, or sgd, which has momentum 0.9.
    learning_rate : float
        The highest learning rate of the schedule.
    schedule : {"constant", "onecycle", "steps"}
        ``constant``; ``onecycle`` rises linearly and falls as a cosine; ``steps`` divides by ten at each of
        `milestones`.
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
        class: a random image of the anchor's class; own: the anchor's own clean image; own+class: two triplet terms,
        one with each.
    own_margin_factor : float
        On the margin of the triplet with the own clean image, which ``own+class`` has.
    norm_term : {"l2", "mean-square"}
        l2: the sum of the three L2 norms, times `lambda_norm`; mean-square: the released code's mean of the squares
        over batch and features, times `lambda_triplet` and `lambda_norm`.
    mining : {"angular", "cosine"}
        Negatives are sought by the angular distance, or by the signed cosine.
    negatives : {"hardest", "semi-hard"}
        hardest: the closest in the pool; semi-hard: the closest of those that are farther from the anchor than its
        positive, and the farthest where none is. tla-rn draws at random.
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
        fp32, or bf16, which runs the network under autocast; the perturbation, the loss, and all that is reported stay
        fp32.
    fine_tune : bool
        The training must start from another run's weights (`init_from`).
    step : str
        A training step of the user's in place of the method's, ``file.py:function`` or ``package.module:function``,
        with the arguments of `um_step`; it returns a mapping of terms, whose sum is the loss. "" is the method's own.
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
    step: str = ""
    seed: int = 0
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        for name in ("milestones", "blocks"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Iterable):
                raise ValueError(f"{name} must be a sequence of numbers. Got {getattr(self, name)!r}.")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, choices in _CHOICES.items():
            check_one_of(name, getattr(self, name), choices)
        for name, least in _LEAST.items():
            check_whole(name, getattr(self, name), least)
        for name in _POSITIVE:
            check_number(name, getattr(self, name), 0.0, open_low=True)
        for name in _NOT_NEGATIVE:
            check_number(name, getattr(self, name), 0.0)
        for name in ("averaging", "label_smoothing"):
            check_number(name, getattr(self, name), 0.0, 1.0, open_high=True)
        check_number("eps_ramp", self.eps_ramp, 0.0, 1.0)
        check_number("warmup", self.warmup, 0.0, 1.0, open_low=True, open_high=True)
        for share in self.milestones:
            check_number("milestones", share, 0.0, 1.0, open_low=True, open_high=True)
        for count in self.blocks:
            check_whole("blocks", count, 1)
        check_flag("fine_tune", self.fine_tune)
        if not isinstance(self.step, str) or (self.step and ":" not in self.step):
            raise ValueError(f"step must be file.py:function or package.module:function. Got {self.step!r}.")
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
        fields = preset_fields(name)
        unknown = sorted(set(overrides) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"unknown field {', '.join(unknown)}. A TrainConfig has: "
                + ", ".join(f.name for f in dataclasses.fields(cls))
            )
        if overrides.get("epochs"):
            fields.pop("iterations", None)
        if overrides.get("iterations"):
            fields.pop("epochs", None)
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
        changes = _changed(self.to_dict(), TrainConfig().to_dict())
        return {**changes, "version": self.version}

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


_OF_TRIPLETS = (
    "lambda_triplet", "lambda_norm", "margin", "pool_size", "positives", "norm_term", "noise", "lambda_feature",
    "layer",
)  # fmt: skip


def fields_in_use(config: TrainConfig) -> tuple[str, ...]:
    """The fields that decide what a training gives; the others could have any value.

    Parameters
    ----------
    config : TrainConfig

    Returns
    -------
    tuple of str
        In the order of `TrainConfig`.
    """
    tla, attacked = config.method.startswith("tla"), config.method != "um"
    unused = {
        "epochs": bool(config.iterations),
        "iterations": not config.iterations,
        "blocks": config.network == "lenet",
        "warmup": config.schedule != "onecycle",
        "milestones": config.schedule != "steps",
        "attack": not attacked,
        "eps_ramp": not attacked,
        "selection_attack": not attacked or not config.holdout,
        "lambda_alp": config.method != "alp",
        "statistics": config.method in ("um", "at"),
        "mining": not tla or config.method == "tla-rn",
        "negatives": not tla or config.method == "tla-rn",
        "own_margin_factor": not tla or config.positives != "own+class",
        "step": not config.step,
        **dict.fromkeys(_OF_TRIPLETS, not tla),
    }
    return tuple(field.name for field in dataclasses.fields(config) if not unused.get(field.name, False))


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
