"""PGD evaluations beside torchattacks and foolbox."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import tla_core as tla
from benchmarks.floor import count_operations
from benchmarks.inputs import Setup, test_images, trained_model, untrained_model
from benchmarks.timing import Line, seconds, times_in_turn
from tla_core.attacks import run_attack
from tla_core.autoattack import AutoAttack
from tla_core.config import TrainConfig
from tla_core.protocol import strongest_attacks

EPS, STEP_SIZE = 0.3, 0.03
FOLDED_TOLERANCE = 0.001  # a share of the images
UNDEFENDED, DEFENDED = "um", "at"

# (model, x, y, steps, random_start) -> which are correct, on the clean image and under the attack.
Peer = Callable[[nn.Module, Tensor, Tensor, int, bool], Tensor]


def pgd_evaluation(setup: Setup) -> Iterator[Line]:
    """`evaluate` under PGD: an adversarially trained model and an undefended one, ours and the loops users write."""
    images, labels = test_images(setup.images)
    x, y = images.to(setup.device).float() / 255, labels.to(setup.device)
    defended, _ = trained_model(setup, DEFENDED)
    batches = {name: best_batch(setup, peer, defended, x, y) for name, peer in PEERS.items()}
    for method, kind in ((DEFENDED, "adversarially trained"), (UNDEFENDED, "undefended")):
        model, where = trained_model(setup, method)
        checked = check_outcomes(setup, model, images, labels, batches)
        attack = tla.AttackConfig(eps=EPS, step_size=STEP_SIZE, steps=setup.steps)

        def ours(model=model, attack=attack) -> None:
            tla.evaluate(model, images, labels, {"PGD": attack})

        runs = {
            name: lambda peer=peer, name=name, model=model: in_batches(peer, model, x, y, setup.steps, batches[name])
            for name, peer in PEERS.items()
        }
        with _without_warnings():
            times = times_in_turn(ours, runs, pairs=setup.pairs, device=setup.device, warm_up=False)
            operations = count_operations(ours)
        for name in PEERS:
            said, failure = checked[name]
            yield Line(
                f"evaluate, PGD-{setup.steps}, {kind}", name, times[name],
                {
                    "network": f"Table 1 at an eighth of its width, {where}", "images": len(images),
                    "attack": str(attack), "ours": "tla.evaluate as it is called by default: masking checks included",
                    "peer_batch_size": batches[name], "outcomes": said,
                }, failure, operations=operations,
            )  # fmt: skip


def pgd_attack_full_width(setup: Setup) -> Iterator[Line]:
    """The attack alone on Table 1 at its full width: nothing stops early, so that the weights do not matter."""
    images, labels = test_images(min(setup.gradient_images, 128))
    model = untrained_model(setup, "lenet", images, width=setup.width)
    x, y = images.to(setup.device).float() / 255, labels.to(setup.device)
    attack = tla.AttackConfig(eps=EPS, step_size=STEP_SIZE, steps=2)

    runs = {
        name: lambda peer=peer: peer(model, x, y, attack.steps, True)
        for name, peer in {"torchattacks": _attack_torchattacks, "foolbox": _attack_foolbox}.items()
    }

    def ours() -> Tensor:
        return run_attack(attack, model, x, y, fold=True)

    times = times_in_turn(ours, runs, pairs=setup.pairs, device=setup.device)
    operations = count_operations(ours)
    for name in runs:
        yield Line(
            "PGD attack alone, Table 1 at full width", name, times[name],
            {
                "network": f"Table 1, width {setup.width:g}, untrained, batch norm calibrated: the cost of a gradient"
                " does not depend on the weights", "images": len(x), "attack": str(attack), "peer_batch_size": len(x),
            }, operations=operations,
        )  # fmt: skip


def autoattack_evaluation(setup: Setup) -> Iterator[Line]:
    """AutoAttack as `evaluate` runs it, and the attacks of the column "strongest", beside the package by itself."""
    model, where = trained_model(setup, DEFENDED)
    images, labels = test_images(max(2, setup.images // 40))
    x, y = images.to(setup.device).float() / 255, labels.to(setup.device)
    ensemble = AutoAttack(eps=EPS)
    strongest = {
        name: replace(attack, steps=max(1, attack.steps * setup.steps // 20), eps=EPS)
        for name, attack in strongest_attacks(TrainConfig.preset("mini/mnist/at"), 10).items()
    }
    correct: dict[str, Tensor] = {}

    def package() -> None:
        from pyautoattack import AutoAttack as Package

        peer = Package(model, norm="Linf", eps=EPS, seed=ensemble.seed, device=x.device)
        x_adv = peer.run_standard_evaluation(x, y, batch_size=len(x))[0]
        with torch.no_grad():
            correct["package"] = (model(x_adv).argmax(1) == y).cpu()

    def ours(name: str, attacks: Mapping[str, Any]) -> None:
        outcomes = tla.evaluate(model, images, labels, attacks, checks=False).correct
        correct[name] = torch.stack(list(outcomes.values())).all(0)

    kinds = {"AutoAttack": {"AutoAttack": ensemble}, "strongest": strongest}
    others = {"package": package, "strongest": lambda: ours("strongest", strongest)}
    found = times_in_turn(
        lambda: ours("AutoAttack", kinds["AutoAttack"]), others,
        pairs=min(setup.pairs, 2), device=setup.device, warm_up=False,
    )  # fmt: skip
    of_package = [peer for _, peer in found["package"]]
    of_strongest = [peer for _, peer in found["strongest"]]
    times = {"AutoAttack": found["package"], "strongest": tuple(zip(of_strongest, of_package, strict=True))}
    for name, attacks in kinds.items():
        robust = {key: 100 * correct[key].double().mean().item() for key in (name, "package")}
        yield Line(
            f"evaluate, {name}, adversarially trained", "pyautoattack", times[name],
            {
                "network": f"Table 1 at an eighth of its width, {where}", "images": len(x),
                "attack": "; ".join(map(str, attacks.values())),
                "robust_accuracy": robust, "images_that_differ": int((correct[name] != correct["package"]).sum()),
            },
        )  # fmt: skip


def best_batch(setup: Setup, peer: Peer, model: nn.Module, x: Tensor, y: Tensor) -> int:
    """The batch size with which a peer is fastest; of a quarter of the steps, since all cost the same."""
    steps = max(1, setup.steps // 4)
    taken = {
        size: min(seconds(lambda size=size: in_batches(peer, model, x, y, steps, size), setup.device) for _ in range(2))
        for size in setup.peer_batches
    }
    return min(taken, key=taken.get)


def check_outcomes(
    setup: Setup, model: nn.Module, images: Tensor, labels: Tensor, batches: dict[str, int]
) -> dict[str, tuple[str, str]]:
    """Compare the outcomes of each image from the same start; for each peer what was found, and what is wrong."""
    attack = tla.AttackConfig(eps=EPS, step_size=STEP_SIZE, steps=setup.steps, random_start=False)
    x, y = images.to(setup.device).float() / 255, labels.to(setup.device)
    with _without_warnings():
        plain, folded = (
            tla.evaluate(model, images, labels, {"PGD": attack}, fold=fold, checks=fold).correct["PGD"]
            for fold in (False, True)
        )
    found = {}
    for name, peer in PEERS.items():
        theirs = in_batches(peer, model, x, y, setup.steps, batches[name], random_start=False).cpu()
        found[name] = judge_outcomes(theirs, plain, folded)
    return found


def judge_outcomes(theirs: Tensor, plain: Tensor, folded: Tensor) -> tuple[str, str]:
    """What is found of the outcomes, (n,) bool, and what is wrong with them: empty if nothing."""
    n, n_plain, n_folded = len(theirs), int((theirs != plain).sum()), int((theirs != folded).sum())
    said = f"from the clean image, {n} images: {n_plain} differ unfolded, {n_folded} folded"
    failed = n_plain > 0 or n_folded > FOLDED_TOLERANCE * n
    return said, f"outcomes differ {said}" if failed else ""


def in_batches(
    peer: Peer, model: nn.Module, x: Tensor, y: Tensor, steps: int, batch_size: int, random_start: bool = True
) -> Tensor:
    """The loop that a user of the peer writes."""
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([peer(model, part, of_part, steps, random_start) for part, of_part in parts])


def _torchattacks(model: nn.Module, x: Tensor, y: Tensor, steps: int, random_start: bool) -> Tensor:
    adversarial = _attack_torchattacks(model, x, y, steps, random_start)
    with torch.no_grad():
        return (model(x).argmax(1) == y) & (model(adversarial).argmax(1) == y)


def _attack_torchattacks(model: nn.Module, x: Tensor, y: Tensor, steps: int, random_start: bool) -> Tensor:
    import torchattacks

    return torchattacks.PGD(model, eps=EPS, alpha=STEP_SIZE, steps=steps, random_start=random_start)(x, y)


def _foolbox(model: nn.Module, x: Tensor, y: Tensor, steps: int, random_start: bool) -> Tensor:
    wrapped, attack = _foolbox_attack(model, x, steps, random_start)
    _, _, broken = attack(wrapped, x, y, epsilons=EPS)  # forwards what it found once more, to say so
    with torch.no_grad():
        return (model(x).argmax(1) == y) & ~broken


def _attack_foolbox(model: nn.Module, x: Tensor, y: Tensor, steps: int, random_start: bool) -> Tensor:
    wrapped, attack = _foolbox_attack(model, x, steps, random_start)
    return attack.run(wrapped, x, y, epsilon=EPS)


def _foolbox_attack(model: nn.Module, x: Tensor, steps: int, random_start: bool):
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=steps, random_start=random_start)
    return foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), attack


PEERS: dict[str, Peer] = {"torchattacks": _torchattacks, "foolbox": _foolbox}


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    # What the masking checks say of the models is for evaluations, not for their timing.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
