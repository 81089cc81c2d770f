"""The accuracies of a report: which attacks, on how many images, stored attack by attack."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from analysis.display.figures import plain
from analysis.reports.inputs import Images, Subject, digest_of
from analysis.reports.store import read_kept_json, write_kept_json
from tla_core.attack_config import AttackConfig
from tla_core.autoattack import AutoAttack
from tla_core.evaluation import Evaluation, describe_attack, evaluate
from tla_core.layers import model_device
from tla_core.masking import MaskingCheck, compare_attacks, model_checks
from tla_core.validation import scale_images

STEPS, RESTARTS, CW_STEPS = 20, 3, 30
# Of the eps of the report: what the curve goes through.
LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)
CURVE_IMAGES = 200
# By default AutoAttack takes as many images as so many operations allow: on a CPU of 2024 some 90 s, for 36 images of
# an adversarially trained network of 0.5 M parameters and 32 pixels. Fewer than ten say nothing.
AUTOATTACK_OPERATIONS, AUTOATTACK_MOST, AUTOATTACK_FEWEST = 3e12, 100, 10


@dataclass(frozen=True)
class Accuracies:
    """What was measured of one model.

    Attributes
    ----------
    evaluation : Evaluation
        Clean, and each attack that took all images.
    autoattack : Tensor, (k,), bool, or None
        Outcomes on `Images.part`.
    curve : dict of float to Tensor, (k,), bool
        eps -> outcomes on `Images.part`; 0 is clean. Empty where it was left out.
    left_out : list of str
    """

    evaluation: Evaluation
    autoattack: Tensor | None
    curve: dict[float, Tensor]
    left_out: list[str]

    @property
    def checks(self) -> dict[str, dict[str, MaskingCheck]]:
        return self.evaluation.checks

    @property
    def strongest(self) -> Tensor:
        """Which images withstood every attack that took all of them: bool (n,)."""
        outcomes = list(self.evaluation.correct.values())
        if self.autoattack is not None and len(self.autoattack) == len(outcomes[0]):
            outcomes.append(self.autoattack)
        return torch.stack(outcomes).all(0)


def main_attack(norm: str, eps: float) -> AttackConfig:
    """PGD-20, whose examples the report shows."""
    return AttackConfig(norm=norm, eps=eps, step_size=eps / 8, steps=STEPS)


def attacks_on_all(attack: AttackConfig) -> dict[str, AttackConfig]:
    """The attacks of a report's table, by name, in the ball of the main one."""
    ball = {"norm": attack.norm, "eps": attack.eps}
    return {
        "FGSM": AttackConfig(name="fgsm", **ball),
        f"PGD-{STEPS}": attack,
        f"PGD-{STEPS}, {RESTARTS} restarts": replace(attack, restarts=RESTARTS),
        f"C&W-{CW_STEPS}": AttackConfig(name="cw", step_size=attack.eps / 4, steps=CW_STEPS, **ball),
    }


class Measurement:
    """The accuracies of one model, of which each outcome is stored as soon as it is known."""

    def __init__(self, subject: Subject, data: Images, attack: AttackConfig, *, batch_size: int) -> None:
        self.subject, self.data, self.attack, self.batch_size = subject, data, attack, batch_size
        self.path: Path = subject.folder / "accuracies.json"
        self.inputs = digest_of(subject, attack, restarts=RESTARTS, cw=CW_STEPS)
        stored = read_kept_json(self.path, self.inputs) or {}
        self.correct = {name: torch.tensor(bits, dtype=torch.bool) for name, bits in stored.get("correct", {}).items()}
        self.checks: dict[str, dict[str, Any]] = stored.get("checks", {})
        self.left_out: list[str] = []

    def all_images(self, may_go_on) -> None:
        """Clean, then attack by attack, as long as time allows."""
        attacks = attacks_on_all(self.attack)
        if "model" not in self.checks:
            checks = model_checks(self.subject.model, self.data.images, self.data.labels, batch_size=self.batch_size)
            self.checks["model"] = _stored(checks)
        for place in range(len(attacks)):
            name = list(attacks)[place]
            if name in self.correct:
                continue
            if place and not may_go_on():
                self.left_out.append(name)
                continue
            # An attack is given with those before it, which are known: more restarts go on from fewer, and the search
            # without gradients looks among what withstood all of them.
            known_attacks = {other: attacks[other] for other in attacks if other in self.correct or other == name}
            result = evaluate(
                self.subject.model, self.data.images, self.data.labels, known_attacks, batch_size=self.batch_size,
                known={key: value for key, value in self.correct.items() if key in known_attacks or key == "clean"},
                search=place == len(attacks) - 1,
            )  # fmt: skip
            self.correct["clean"], self.correct[name] = result.correct["clean"], result.correct[name]
            self.checks["model"] |= _stored(result.checks.get("model", {}))
            self.checks[name] = _stored(result.checks.get(name, {}))
            self._store()

    def part_by_autoattack(self, n_images: int | None) -> None:
        """AutoAttack on as many images as are wanted, or as its operations allow."""
        k, reason = self._autoattack_images(n_images)
        name = f"AutoAttack {k}"
        if reason:
            self.left_out.append(reason)
        if k and name not in self.correct:
            rows = self.data.part(k)
            self.correct[name] = evaluate(
                self.subject.model, self.data.images[rows], self.data.labels[rows],
                {"AutoAttack": AutoAttack(eps=self.attack.eps, norm=self.attack.norm)},
                known={"clean": self.correct["clean"][rows]}, checks=False, batch_size=self.batch_size,
            ).correct["AutoAttack"]  # fmt: skip
            self._store()
        self._autoattack = self.correct.get(name)

    _autoattack: Tensor | None = None

    def _autoattack_images(self, n_images: int | None) -> tuple[int, str]:
        n = len(self.data)
        if n_images is not None:
            return min(n_images, n), "" if n_images else "AutoAttack, which was not asked for"
        operations = forward_operations(self.subject.model, self.data.images[:1])
        if not operations:
            return 0, "AutoAttack: what it would cost cannot be told; name a number of images to run it"
        survivors = torch.stack([self.correct[key] for key in ("clean", *self._on_all())]).all(0).double().mean().item()
        # A broken image takes a hundred gradients, one that withstands all of the ensemble.
        k = int(AUTOATTACK_OPERATIONS / (operations * (300 + survivors * AutoAttack.image_steps)))
        if min(k, n) < AUTOATTACK_FEWEST:
            return 0, f"AutoAttack, whose cost is too high for this network ({operations / 1e9:.3g} GFLOP an image)"
        return min(k, AUTOATTACK_MOST, n), ""

    def curve(self) -> dict[float, Tensor]:
        """Accuracy against eps, by the main attack in proportion, on a part of the images."""
        rows = self.data.part(min(CURVE_IMAGES, len(self.data)))
        largest_eps = 1.0 if self.attack.norm == "linf" else float("inf")
        levels = sorted({min(self.attack.eps * level, largest_eps) for level in LEVELS})
        missing = {f"eps {eps:.8g}": self.attack.scaled(eps) for eps in levels if f"eps {eps:.8g}" not in self.correct}
        if missing:
            result = evaluate(
                self.subject.model, self.data.images[rows], self.data.labels[rows], missing, checks=False,
                known={"clean": self.correct["clean"][rows]}, batch_size=self.batch_size,
            )  # fmt: skip
            self.correct |= {name: result.correct[name] for name in missing}
            self._store()
        return {0.0: self.correct["clean"][rows]} | {eps: self.correct[f"eps {eps:.8g}"] for eps in levels}

    def result(self, curve: Mapping[float, Tensor]) -> Accuracies:
        """All that was measured, with the comparisons of the attacks."""
        attacks = {name: each for name, each in attacks_on_all(self.attack).items() if name in self.correct}
        settings = {name: describe_attack(attack) for name, attack in attacks.items()}
        compared = dict(self.correct)
        # In the order of the attacks, which JSON does not keep.
        checks = {name: {key: MaskingCheck(**self.checks[name][key]) for key in sorted(self.checks[name])}
                  for name in ("model", *attacks) if name in self.checks}  # fmt: skip
        if self._autoattack is not None:
            compared["AutoAttack"] = self._autoattack
            described = describe_attack(AutoAttack(eps=self.attack.eps, norm=self.attack.norm))
            comparisons = compare_attacks(compared, settings | {"AutoAttack": described}, len(self.data))
            checks |= {name: checks.get(name, {}) | {check.name: check} for name, check in comparisons.items()}
        correct = {name: self.correct[name] for name in ("clean", *attacks)}
        return Accuracies(Evaluation(correct, settings, checks), self._autoattack, dict(curve), self.left_out)

    def _on_all(self) -> list[str]:
        return [name for name in attacks_on_all(self.attack) if name in self.correct]

    def _store(self) -> None:
        bits = {name: outcome.int().tolist() for name, outcome in self.correct.items()}
        write_kept_json(self.path, self.inputs, {"correct": bits, "checks": self.checks})


def forward_operations(model: nn.Module, x: Tensor) -> int:
    """Floating-point operations of one image; 0 where they cannot be counted, as of scripted modules."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(scale_images(x[:1].to(model_device(model))))
    return counter.get_total_flops()


def _stored(checks: Mapping[str, MaskingCheck]) -> dict[str, Any]:
    """As JSON; values that are no numbers are left out."""
    stored = {}
    for name, check in checks.items():
        values = {key: value for key, value in plain(check.values).items() if value is not None}
        stored[name] = asdict(replace(check, values=values))
    return stored
