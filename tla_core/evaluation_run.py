"""What `evaluate` measures: who is classified correctly, who survives each attack, and the checks of both."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tla_core.attack_config import LOSSES, AttackConfig
from tla_core.attacks import Attack, TransferAttack, is_correct, run_attack
from tla_core.chunks import forward_in_chunks
from tla_core.layers import model_device
from tla_core.masking import MaskingCheck, attack_checks, model_checks, search_check
from tla_core.validation import check_label_range, scale_images


class EvaluationRun:
    """One evaluation: its images, its settings, and what has been measured so far."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, attacks: dict[str, Attack], known: dict[str, Tensor], *,
        batch_size: int, generator: torch.Generator | None, fold: bool, early_stop: bool,
    ) -> None:  # fmt: skip
        self.model, self.images, self.labels, self.attacks, self.known = model, images, labels, attacks, known
        self.batch_size, self.generator, self.fold, self.early_stop = batch_size, generator, fold, early_stop
        self.device = model_device(model)
        self.batches = [rows.to(self.device) for rows in torch.arange(len(images)).split(batch_size)]
        self.correct: dict[str, Tensor] = {}
        self.checks: dict[str, dict[str, MaskingCheck]] = {}
        self.is_unstable = False
        self.bar: tqdm | None = None

    def total_steps(self) -> int:
        """What the progress bar counts to."""
        steps = [image_steps(attack) for name, attack in self.attacks.items() if name not in self.known]
        return len(self.images) * (("clean" not in self.known) + sum(steps))

    def measure_clean(self, *, check_model: bool) -> None:
        """Who is classified correctly, and the checks of the model."""
        judge = _Judge(self.model, twice=True)
        if "clean" in self.known:
            self.correct["clean"] = self.known["clean"]
        else:
            self.correct["clean"] = self._outcome(lambda x, y, rows: judge(x, y), 1)
        checks = {}
        if check_model and not set(self.attacks) <= set(self.known):
            loss = _loss_to_check(self.attacks)
            checks = model_checks(self.model, self.images, self.labels, loss=loss, batch_size=self.batch_size)
        self.checks["model"] = checks | judge.check()
        self.is_unstable = any(check.values.get("changed_share", 0) > 0 for check in self.checks["model"].values())

    def measure_attack(self, name: str, *, check: bool, search: bool) -> None:
        """Who survives an attack, and the checks of that outcome."""
        attack = self.attacks[name]
        survived, restarts_done = _outcome_so_far(attack, self.attacks, self.correct)
        judge = _Judge(self.model, twice=self.is_unstable)
        survivors = partial(self._survivors, judge, attack, survived.to(self.device), restarts_done)
        self.correct[name] = self._outcome(survivors, image_steps(attack))
        checks = self._checks_of(name, search) if check else {}
        self.checks[name] = checks | judge.check()

    def _outcome(self, outcome_of_batch: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int) -> Tensor:
        """Batch by batch, from images, labels and their rows; (n,), bool, on the CPU."""
        outcomes = []
        for rows in self.batches:
            x = scale_images(self.images[rows.cpu()].to(self.device))
            y = self.labels[rows.cpu()].to(self.device)
            outcomes.append(outcome_of_batch(x, y, rows))
            self.bar.update(steps * len(rows))
        return torch.cat(outcomes).cpu()

    def _survivors(
        self, judge: "_Judge", attack: Attack, survived: Tensor, restarts_done: int, x: Tensor, y: Tensor, rows: Tensor
    ) -> Tensor:
        """Which images of a batch survive all restarts, (n,), bool; those that earlier restarts broke are not tried."""
        alive = survived[rows].clone()
        with torch.no_grad():
            n_classes = self.model(x[:1]).shape[1]
        starts = range(1)
        inner = attack.attack if isinstance(attack, TransferAttack) else attack
        if isinstance(inner, AttackConfig):
            starts = range(restarts_done * max(inner.n_targets(n_classes), 1), inner.n_starts(n_classes))
        for start in starts:
            open_rows = alive.nonzero()[:, 0]
            if not len(open_rows):
                break
            x_adv = run_attack(
                attack, self.model, x[open_rows], y[open_rows], generator=self.generator, indices=rows[open_rows],
                restart=start, fold=self.fold, stop_when_broken=self.early_stop,
            )  # fmt: skip
            alive[open_rows] = judge(x_adv, y[open_rows])
        return alive

    def _checks_of(self, name: str, search: bool) -> dict[str, MaskingCheck]:
        """The checks of an attack; the last one in a ball also gets the search, which is run once for all of them."""
        shared = {
            "generator": self.generator, "batch_size": self.batch_size, "fold": self.fold,
            "known": self.checks["model"],
        }  # fmt: skip
        checks = attack_checks(self.model, self.images, self.labels, self.attacks[name], self.correct[name], **shared)
        gradient_attacks = _gradient_attacks_beside(name, self.attacks)
        if search and gradient_attacks and name == [other for other in gradient_attacks if other not in self.known][-1]:
            outcomes = self.correct | self.known
            survived = torch.stack([outcomes[other] for other in gradient_attacks]).all(0)
            attacks = {other: self.attacks[other] for other in gradient_attacks}
            checks["black_box"] = search_check(self.model, self.images, self.labels, attacks, survived, **shared)
        return checks


class _Judge:
    """Says which images are classified correctly, and counts those whose outputs cannot be relied on."""

    def __init__(self, model: nn.Module, *, twice: bool) -> None:
        self.model, self.twice = model, twice
        self.images = self.not_finite = self.changed = 0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Bool, (n,). Forwarded twice, an image has to be right both times, among different images."""
        logits = forward_in_chunks(self.model, x)
        check_label_range(y, logits)
        correct = is_correct(logits, y)
        self.images += len(x)
        self.not_finite += (~logits.isfinite().all(1)).sum()
        if self.twice:
            second_logits = torch.empty_like(logits)
            for part in (slice(0, None, 2), slice(1, None, 2)):
                if len(x[part]):
                    second_logits[part] = forward_in_chunks(self.model, x[part])
            is_changed = (second_logits.argmax(1) != logits.argmax(1)) & logits.isfinite().all(1)
            self.changed += is_changed.sum()
            correct &= ~is_changed
        return correct

    def check(self) -> dict[str, MaskingCheck]:
        """The check ``predictions``, if images count as wrong although they may have been predicted right."""
        counts = {"not_finite": int(self.not_finite), "changed_share": int(self.changed)}
        words = {"not_finite": "have outputs that are NaN or infinite", "changed_share": "change their predicted class"}
        parts = [f"{count} {words[name]}" for name, count in counts.items() if count]
        if not parts:
            return {}
        message = (
            f"of {self.images} images that were forwarded {' and '.join(parts)}, when forwarded again among others:"
            if counts["changed_share"]
            else f"of {self.images} images that were forwarded {parts[0]}:"
        )
        values = {name: count / self.images for name, count in counts.items()}
        message += " they count as wrong. See the checks of the model."
        return {"predictions": MaskingCheck("predictions", False, message, values)}


# What is attacked, and how often -------------------------------------------------------------------------------------


def image_steps(attack: Attack) -> int:
    """Steps of all restarts, the unit of the progress bar; of a callable its `image_steps`, or 1."""
    attack = attack.attack if isinstance(attack, TransferAttack) else attack
    if not isinstance(attack, AttackConfig):
        return getattr(attack, "image_steps", 1)
    return attack.steps * attack.restarts * max(attack.targets, 1)


def _outcome_so_far(attack: Attack, attacks: Mapping[str, Attack], correct: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Who survived the same attack with fewer restarts, if that was run already, and the number of these restarts."""
    if isinstance(attack, AttackConfig):
        restarts = {
            name: other.restarts
            for name, other in attacks.items()
            if name in correct and isinstance(other, AttackConfig) and other.restarts <= attack.restarts
            and replace(attack, restarts=other.restarts) == other
        }  # fmt: skip
        if restarts:
            name = max(restarts, key=restarts.__getitem__)
            return correct[name], restarts[name]
    return correct["clean"], 0


def _gradient_attacks_beside(name: str, attacks: Mapping[str, Attack]) -> list[str]:
    """All gradient attacks in the ball of the named one, which is among them; empty if it is no gradient attack."""
    balls = {
        key: (each.norm, each.eps)
        for key, each in attacks.items()
        if isinstance(each, AttackConfig) and each.takes_gradients
    }
    return [key for key, ball in balls.items() if name in balls and ball == balls[name]]


def _loss_to_check(attacks: Mapping[str, Attack]) -> str:
    """The cross-entropy, which saturates, unless no attack ascends it."""
    inner = [attack.attack if isinstance(attack, TransferAttack) else attack for attack in attacks.values()]
    losses = {attack.loss for attack in inner if isinstance(attack, AttackConfig)}
    return next((loss for loss in LOSSES if loss in losses), LOSSES[0])
