"""Clean and robust accuracy."""

import functools
import logging

import pytest
import torch
import torch.nn.functional as F
from tiny import mnist_images, tiny_lenet
from torch import nn

import tla_core as tla
from tla_core import chunks, evaluation_run
from tla_core.ascent import attack_loss, clearly_broken
from tla_core.attacks import TransferAttack, run_attack
from tla_core.autoattack import AutoAttack
from tla_core.masking import MaskingWarning
from tla_core.models import LeNet


class Threshold(nn.Module):
    """Class 1 where the mean pixel exceeds one half: its robust accuracy is known by arithmetic."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        score = self.scale * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-score, score], 1)


IMAGES = torch.tensor([0.1, 0.45, 0.55, 0.9, 0.6])[:, None, None, None].expand(5, 1, 4, 4).contiguous()
LABELS = torch.tensor([0, 0, 1, 1, 0])  # the last one is wrong already when clean
ATTACK = tla.AttackConfig(eps=0.1, step_size=0.05, steps=5)
# At this eps about half of the images of the briefly trained network fall.
PGD = tla.AttackConfig(eps=0.03, step_size=0.0075, steps=10)


@functools.cache
def trained_lenet(seed=0):
    """A network that three seconds of clean training have taught the digits."""
    data = mnist_images(2500, "train")
    batches = list(zip((data.images / 255).split(100), data.labels.split(100), strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tiny_lenet(seed).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for x, y in 3 * batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def some_images(n=200):
    data = mnist_images(n)
    return data.images, data.labels


def test_accuracies_and_outcomes_are_those_of_arithmetic():
    result = tla.evaluate(Threshold().eval(), IMAGES, LABELS, {"PGD": ATTACK})
    assert result.correct["clean"].tolist() == [True, True, True, True, False]
    assert result.correct["PGD"].tolist() == [True, False, False, True, False]
    assert result.accuracy == {"clean": pytest.approx(0.8), "PGD": pytest.approx(0.4)}
    assert result.standard_error["PGD"] == pytest.approx((0.4 * 0.6 / 5) ** 0.5)
    assert "PGD 0.4000" in repr(result)


def test_an_attack_can_be_a_callable_and_sees_only_correct_images():
    seen = []

    def darken(model, x, y):
        seen.append(len(x))
        return (x - 0.2).clamp(0, 1)

    result = tla.evaluate(Threshold().eval(), IMAGES, LABELS, {"dark": darken})
    assert result.correct["dark"].tolist() == [True, True, False, True, False] and seen == [4]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_changes_no_outcome(batch_size):
    torch.manual_seed(0)
    images = torch.rand(50, 1, 28, 28)
    model = LeNet(width=1 / 16).eval()
    attack = {"PGD": tla.AttackConfig(eps=0.001, step_size=0.0005, steps=3, restarts=2)}
    with torch.no_grad():
        model.classifier.bias -= model(images).mean(0)  # an untrained model has a favourite class
        labels = model(images).argmax(1)
    whole = tla.evaluate(model, images, labels, attack, batch_size=50)
    split = tla.evaluate(model, images, labels, attack, batch_size=batch_size)
    assert 0 < whole.accuracy["PGD"] < 1
    assert all(torch.equal(whole.correct[name], split.correct[name]) for name in whole.correct)


def test_the_model_is_left_as_it_was():
    model = LeNet(width=1 / 32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tla.evaluate(model, torch.rand(6, 1, 28, 28), torch.arange(6), {"PGD": ATTACK})
    assert model.training and all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


# Early stops, restarts and folding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_early_stops_give_the_outcomes_of_the_whole_attack(loss, momentum):
    attack = tla.AttackConfig(**{**PGD.__dict__, "loss": loss, "momentum": momentum})
    images, labels = some_images()
    outcomes = [
        tla.evaluate(trained_lenet(), images, labels, {"PGD": attack}, early_stop=stop, fold=False, checks=False)
        for stop in (False, True)
    ]
    assert 0.1 < outcomes[0].accuracy["PGD"] < 0.9
    assert torch.equal(outcomes[0].correct["PGD"], outcomes[1].correct["PGD"])


def test_the_outcome_of_an_evaluation_is_that_of_pgd():
    images, labels = some_images()
    model = trained_lenet()
    x_adv = tla.pgd(model, images, labels, eps=PGD.eps, step_size=PGD.step_size, steps=PGD.steps)
    with torch.no_grad():
        expected = (model(images / 255).argmax(1) == labels) & (model(x_adv).argmax(1) == labels)
    result = tla.evaluate(model, images, labels, {"PGD": PGD}, fold=False, checks=False)
    assert torch.equal(result.correct["PGD"], expected)


def test_an_image_that_is_clearly_broken_keeps_the_iterate_that_shows_it():
    images, labels = some_images(70)
    model = trained_lenet()
    attack = tla.AttackConfig(eps=0.3, step_size=0.05, steps=8)
    gradients = []
    hook = model.register_forward_hook(lambda module, args, output: gradients.append(len(output)))
    x_adv = run_attack(attack, model, images, labels, stop_when_broken=True)
    hook.remove()
    with torch.no_grad():
        assert clearly_broken(model(x_adv), labels).float().mean() > 0.9
    assert ((x_adv - images / 255).abs() <= 0.3 + 1e-6).all()
    assert sum(gradients) < 0.7 * attack.steps * len(images)  # which is where the time goes


def test_places_of_broken_images_are_taken_by_the_next(monkeypatch):
    """With few places the queue moves at each step; with many it never does."""
    images, labels = some_images(90)
    found = []
    monkeypatch.setattr(chunks, "_LEAST_CHUNK", 1)
    for places in (5, 45, 200):
        monkeypatch.setattr(chunks, "CPU_CHUNK_PIXELS", places * 28 * 28)
        found.append(run_attack(PGD, trained_lenet(), images, labels, stop_when_broken=True))
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=PGD.step_size * 2.1)
    assert all(((other - found[0]).abs() > 1e-6).float().mean() < 0.01 for other in found[1:])


def test_clearly_broken_is_a_lead_of_one_and_of_a_tenth_of_the_range():
    logits = torch.tensor([[0.0, 0.9, 0.0], [0.0, 1.1, 0.0], [0.0, 1.1, -20.0], [0.0, 30.0, -20.0], [2.0, 0.0, 0.0]])
    assert clearly_broken(logits, torch.zeros(5, dtype=torch.int64)).tolist() == [False, True, False, True, False]
    assert torch.equal(
        clearly_broken(logits * 1000, torch.zeros(5, dtype=torch.int64)).long()[2:], torch.tensor([0, 1, 0])
    )


def test_more_restarts_never_raise_the_accuracy_and_nest():
    images, labels = some_images(400)
    # Mostly chance, so that restarts break more whatever the network has become on this processor.
    found = {f"x{n}": tla.AttackConfig(eps=0.1, step_size=0.03, steps=1, restarts=n) for n in (1, 2, 5)}
    correct = tla.evaluate(trained_lenet(), images, labels, found, checks=False).correct
    assert (correct["x5"] <= correct["x2"]).all() and (correct["x2"] <= correct["x1"]).all()
    assert correct["x5"].sum() < correct["x1"].sum()


def test_restarts_that_an_earlier_attack_has_tried_are_not_tried_again(monkeypatch):
    images, labels = some_images(80)
    one, five = (tla.AttackConfig(eps=0.06, step_size=0.03, steps=3, restarts=n) for n in (1, 5))
    other = tla.AttackConfig(eps=0.06, step_size=0.03, steps=2, restarts=1)
    model, tried = trained_lenet(), []

    def spy(*args, restart, **settings):
        tried.append(restart)
        return run_attack(*args, restart=restart, **settings)

    monkeypatch.setattr(evaluation_run, "run_attack", spy)
    alone = tla.evaluate(model, images, labels, {"five": five}, checks=False).correct["five"]
    assert tried == [0, 1, 2, 3, 4]
    tried.clear()
    both = tla.evaluate(model, images, labels, {"other": other, "one": one, "five": five}, checks=False).correct
    assert tried == [0, 0, 1, 2, 3, 4] and torch.equal(both["five"], alone)
    tried.clear()
    again = tla.evaluate(model, images, labels, {"one": one, "five": five}, known={"one": both["one"]}, checks=False)
    assert tried == [1, 2, 3, 4] and torch.equal(again.correct["five"], alone)


@pytest.mark.parametrize("name", ["fgsm", "bim", "apgd"])
def test_an_attack_without_a_random_start_stands_beside_one_with_restarts(name):
    attacks = {"one": tla.AttackConfig(name=name, random_start=False, steps=2), "three": tla.AttackConfig(restarts=3)}
    together = tla.evaluate(Threshold().eval(), IMAGES, LABELS, attacks, checks=False).correct["three"]
    alone = tla.evaluate(Threshold().eval(), IMAGES, LABELS, {"three": attacks["three"]}, checks=False).correct["three"]
    assert torch.equal(together, alone)


def test_saturated_outputs_are_a_failure_only_where_an_attack_ascends_the_cross_entropy():
    model, (images, labels) = trained_lenet(), some_images(60)
    model = nn.Sequential(model, nn.Linear(10, 10, bias=False)).eval()
    model[1].weight.data = 1e4 * torch.eye(10)
    margin = {"margin": tla.AttackConfig(name="apgd", eps=0.03, steps=5, loss="margin")}
    result = tla.evaluate(model, images, labels, margin, search=False)
    assert result.checks["model"]["outputs"].passed and result.checks["model"]["gradients"].passed
    with pytest.warns(MaskingWarning, match="saturated"):
        tla.evaluate(model, images, labels, {**margin, "ce": tla.AttackConfig(eps=0.03, steps=5)}, search=False)


def test_a_folded_attack_has_nearly_the_same_outcomes():
    images, labels = some_images(400)
    plain, folded = (
        tla.evaluate(trained_lenet(), images, labels, {"PGD": PGD}, fold=fold, checks=False).correct["PGD"]
        for fold in (False, True)
    )
    assert (plain != folded).float().mean() <= 0.005  # 2 of 400; `make bench` holds 0.1 % on thousands


# Transfer and AutoAttack ----------------------------------------------------------------------------------------------


def test_a_transfer_attack_takes_its_gradients_from_the_other_model():
    images, labels = some_images(100)
    model, copy = trained_lenet(0), trained_lenet(1)
    result = tla.evaluate(model, images, labels, {"PGD": PGD, "BB": TransferAttack(copy, PGD)}, checks=False)
    x_adv = run_attack(PGD, copy, images, labels)
    with torch.no_grad():
        fooled = model(x_adv).argmax(1) != labels
    assert torch.equal(result.correct["BB"], result.correct["clean"] & ~fooled)
    assert result.accuracy["PGD"] < result.accuracy["BB"] <= result.accuracy["clean"]
    assert result.attacks["BB"]["name"] == "transfer" and result.attacks["BB"]["attack"]["steps"] == PGD.steps


def test_autoattack_finds_what_arithmetic_says_and_leaves_no_trace(monkeypatch):
    pytest.importorskip("pyautoattack")
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    state = torch.random.get_rng_state()
    result = tla.evaluate(Threshold().eval(), IMAGES, LABELS, {"AA": AutoAttack(eps=0.1)}, checks=False)
    assert result.correct["AA"].tolist() == [True, False, False, True, False]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert result.attacks["AA"] == {
        "name": "autoattack", "eps": 0.1, "norm": "linf", "version": "standard", "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings, message",
    [({"eps": 8}, "did you mean 8/255"), ({"norm": "l1"}, "norm must be one of linf, l2"), ({"version": "x"}, "rand")],
)
def test_autoattack_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(**settings)


# Storing and going on -------------------------------------------------------------------------------------------------


def test_known_outcomes_are_not_measured_again_and_new_ones_are_handed_out():
    images, labels = some_images(60)
    attacks = {"one": PGD, "two": tla.AttackConfig(name="fgsm", eps=0.05)}
    whole = tla.evaluate(trained_lenet(), images, labels, attacks)
    seen = {}

    def store(name, outcome, checks):
        seen[name] = (outcome, set(checks))

    part = tla.evaluate(
        trained_lenet(),
        images,
        labels,
        attacks,
        known={k: whole.correct[k] for k in ("clean", "one")},
        on_outcome=store,
    )
    assert {k: v.tolist() for k, v in part.correct.items()} == {k: v.tolist() for k, v in whole.correct.items()}
    of_attack = {"perturbed", "ascent", "steps", "restarts", "unbounded", "black_box"}
    assert set(seen) == {"two"} and seen["two"][1] == of_attack
    assert set(part.checks) == {"model", "two"}


# Masking --------------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Logits so large that the cross-entropy has no gradient in float32."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) * 1e4


def test_every_robust_accuracy_comes_with_its_checks():
    images, labels = some_images(100)
    with pytest.warns(MaskingWarning, match="may be an illusion"):
        masked = tla.evaluate(Scaled(trained_lenet()), images, labels, {"PGD": PGD})
    assert "FAILED" in repr(masked) and masked.checks["model"]["outputs"].passed is False
    honest = tla.evaluate(trained_lenet(), images, labels, {"PGD": PGD})
    assert set(honest.checks) == {"model", "PGD"} and "FAILED" not in repr(honest)
    assert all(check.passed is not False for checks in honest.checks.values() for check in checks.values())


def test_a_black_box_that_beats_the_white_box_is_reported():
    images, labels = some_images(100)
    weak = tla.AttackConfig(eps=0.06, step_size=1e-4, steps=1, random_start=False)
    strong = TransferAttack(trained_lenet(0), PGD)
    with pytest.warns(MaskingWarning):
        result = tla.evaluate(trained_lenet(0), images, labels, {"weak": weak, "BB": strong})
    assert result.checks["BB"]["transfer"].passed is False


class LeavesTorch(nn.Module):
    """A model without gradients, in one of the ways in which users make them."""

    def __init__(self, how):
        super().__init__()
        self.how, self.model = how, trained_lenet()

    def forward(self, x):
        if self.how == "numpy":
            x = torch.from_numpy(x.numpy().copy())
        return self.model(x.detach() if self.how == "detach" else x)


@pytest.mark.parametrize("how", ["numpy", "detach"])
@pytest.mark.filterwarnings("ignore:no gradient leads")
def test_a_model_without_gradients_is_evaluated_and_reported(how):
    images, labels = some_images(60)
    with pytest.warns(MaskingWarning, match="gradients"):
        result = tla.evaluate(LeavesTorch(how).eval(), images, labels, {"PGD": PGD}, fold=False)
    with_gradients = tla.evaluate(trained_lenet(), images, labels, {"PGD": PGD}, fold=False, checks=False)
    assert result.checks["model"]["gradients"].passed is False
    assert result.accuracy["PGD"] > with_gradients.accuracy["PGD"] + 0.1


def test_pixels_without_a_gradient_stay_where_they_are():
    class Partly(nn.Module):
        def forward(self, x):
            return torch.stack([-x.sum((1, 2, 3)), (x[:, :, 0] - 0.5).abs().sqrt().sum((1, 2))], 1)

    x = torch.full((2, 1, 4, 4), 0.5)
    x_adv = tla.pgd(Partly().eval(), x, torch.tensor([1, 1]), eps=0.1, step_size=0.1, steps=1, random_start=False)
    assert torch.isfinite(x_adv).all()


def test_out_of_memory_says_which_batch_size_to_try(monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("tla_core.evaluation_run.run_attack", exhausted)
    with pytest.raises(torch.OutOfMemoryError, match=r"batch_size=32; it changes no outcome"):
        tla.evaluate(trained_lenet(), *some_images(80), {"PGD": PGD}, batch_size=64, checks=False)


def test_the_margin_is_that_of_the_logits():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert attack_loss(logits, torch.tensor([0]), "margin").item() == 2.0


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"attacks": {"clean": ATTACK}}, ValueError, "cannot be called 'clean'"),
        ({"attacks": {"model": ATTACK}}, ValueError, "cannot be called 'model'"),
        ({"known": {"clean": torch.ones(3, dtype=torch.bool)}}, ValueError, r"known\['clean'\] must be bool, \(5,\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ValueError, "at least one image"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1. Got 0"),
        ({"labels": torch.tensor([0, 1, 2, 0, 0])}, ValueError, "model has 2 outputs. Got the label 2"),
        ({"images": IMAGES * 2}, ValueError, r"must lie in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(changes, error, message):
    arguments = {"images": IMAGES, "labels": LABELS, "attacks": {"PGD": ATTACK}, **changes}
    with pytest.raises(error, match=message):
        tla.evaluate(Threshold().eval(), arguments.pop("images"), arguments.pop("labels"), **arguments)


# Outputs that cannot be relied on -------------------------------------------------------------------------------------


class NormalisesOverTheBatch(nn.Module):
    """Logits less their mean over the batch: an image's class depends on which others are forwarded beside it."""

    def forward(self, x):
        level = x.mean((1, 2, 3))
        return torch.stack([level, torch.zeros_like(level)], 1) - torch.stack([level.mean(), torch.zeros(())])


def test_an_image_whose_class_depends_on_its_batch_counts_as_wrong():
    torch.manual_seed(0)
    images = torch.rand(40, 1, 1, 1)
    labels = (images.flatten() < images.mean()).long()  # right, when all are forwarded at once
    with pytest.warns(MaskingWarning, match="predictions: of 40 images that were forwarded .* among others"):
        result = tla.evaluate(NormalisesOverTheBatch().eval(), images, labels, batch_size=40)
    changed = result.checks["model"]["predictions"].values["changed_share"]
    assert changed > 0 and result.accuracy["clean"] == pytest.approx(1 - changed)


class OverflowsOffTheBytes(nn.Module):
    """Right on the images that are bytes, NaN wherever a pixel lies between two."""

    def forward(self, x):
        off = ((255 * x - (255 * x).round()).abs() > 1e-3).flatten(1).any(1)
        logits = torch.stack([0 * x.sum((1, 2, 3)) + 1, x.sum((1, 2, 3)) * 0], 1)
        return torch.where(off[:, None], torch.nan, logits)


def test_an_output_that_is_not_finite_counts_as_wrong():
    images, labels = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8), torch.zeros(12).long()
    with pytest.warns(MaskingWarning, match="of 12 images that were forwarded 12 have outputs that are NaN"):
        result = tla.evaluate(OverflowsOffTheBytes().eval(), images, labels, {"PGD": ATTACK}, checks=False)
    assert result.accuracy == {"clean": 1.0, "PGD": 0.0}  # NaN in each logit has the argmax 0, which is the label


def test_a_stochastic_model_has_to_be_right_both_times():
    class Coin(nn.Module):
        def forward(self, x):
            return torch.rand(len(x), 2, device=x.device) + 0 * x.sum()

    torch.manual_seed(0)
    images = torch.rand(400, 1, 2, 2)
    with pytest.warns(MaskingWarning, match="change their predicted class"):
        result = tla.evaluate(Coin().eval(), images, torch.zeros(400).long(), checks=False)
    assert abs(result.accuracy["clean"] - 0.25) < 0.08
