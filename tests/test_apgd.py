"""APGD: equal to the published code step for step, exact where the answer is known, the best iterate kept."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import linear_robust_correct
from tiny import Linear, classified_right, mnist_images, trained
from torch import nn

import tla_core as tla
from tla_core.ascent import ascend, attack_loss
from tla_core.attacks import is_correct, run_attack

SIZES = {"linf": 0.02, "l2": 0.2}


@pytest.fixture(scope="module")
def model():
    """A smooth network, in which rounding decides about no ReLU, that is right often; in eval mode."""
    torch.manual_seed(0)
    return trained(
        nn.Sequential(nn.Flatten(), nn.Linear(784, 48), nn.BatchNorm1d(48), nn.Tanh(), nn.Linear(48, 10))
    )


@pytest.fixture(scope="module")
def batch(model):
    return classified_right(model, 80)


def apgd(**changes):
    return tla.AttackConfig(**{"name": "apgd", "eps": 0.15, "steps": 100, **changes})


# equal to the published code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 50])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss, target", [("ce", None), ("dlr", None), ("dlr", 2), ("dlr", 5)])
def test_the_best_iterate_is_that_of_the_published_code(model, batch, norm, loss, target, steps):
    base = pytest.importorskip("pyautoattack.autopgd_base")
    x, y = batch
    eps = SIZES[norm]
    options = {"n_iter": steps, "norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": eps, "device": "cpu"}
    if target is None:
        peer, classes = base.APGDAttack(model, loss=loss, **options), None
    else:
        peer = base.APGDAttack_targeted(model, **options)
        classes = peer.y_target = model(x).sort(dim=1)[1][:, -target]
    peer.init_hyperparam(x)
    settings = apgd(norm=norm, eps=eps, steps=steps, loss=loss)
    start = run_attack(tla.AttackConfig(norm=norm, eps=eps, step_size=0, steps=1), model, x, y)
    best, still_correct, best_loss, _ = peer.attack_single_run(x, y, x_init=start)
    with tla.attack_mode(model):
        ours = ascend(settings, model, x, y, start, target=classes)
    logits = model(ours)
    # An image that was never misclassified has the same best iterate.
    same = ((ours - best).abs().amax((1, 2, 3)) < 1e-4)[still_correct]
    assert len(same) >= 20 and same.float().mean() >= 0.97
    agree = attack_loss(logits, y, loss, classes)[still_correct]
    torch.testing.assert_close(agree, best_loss[still_correct], rtol=1e-3, atol=1e-3)
    assert torch.equal(is_correct(logits, y), still_correct)


def test_targets_are_the_largest_wrong_logits_in_turn(model, batch):
    """As the published attack takes them; each start of the attack is one of them, restarts outermost."""
    x, y = batch
    attack = apgd(loss="dlr", steps=3, targets=3, restarts=2, eps=0.02)
    order = model(x).scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
    with tla.attack_mode(model):
        for number in (0, 2, 4):
            begin = run_attack(
                tla.AttackConfig(eps=0.02, step_size=0, steps=1, restarts=6), model, x, y, restart=number
            )
            expected = ascend(attack, model, x, y, begin, target=order[:, number % 3])
            assert torch.equal(run_attack(attack, model, x, y, restart=number), expected)


# exact where the answer is known -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, eps", [("linf", 0.015), ("l2", 0.08)])
@pytest.mark.parametrize("restarts", [1, 5])
@pytest.mark.parametrize(  # the difference of logits ratio needs three classes
    "classes, kind",
    [(2, "ce"), (2, "margin"), (2, "targeted"), (6, "ce"), (6, "margin"), (6, "dlr"), (6, "targeted")],
)
def test_the_robust_accuracy_of_a_linear_model_is_exact(norm, eps, classes, restarts, kind):
    """With a loss by which it may still find no image that arithmetic proves to be robust."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(classes, 36)).astype(np.float32)
    weight -= weight.mean(1, keepdims=True)  # so that no class owes its lead to the brightness of all
    bias = rng.normal(size=classes).astype(np.float32) * 0.1
    x = rng.uniform(0.3, 0.7, size=(200, 1, 6, 6)).astype(np.float32)
    model = Linear(weight, bias).eval()
    y = model(torch.tensor(x)).argmax(1).numpy()
    exact = linear_robust_correct(weight, bias, x, y, eps, norm)
    loss = {"targeted": {"loss": "margin" if classes == 2 else "dlr", "targets": 9}}.get(kind, {"loss": kind})
    attack = apgd(norm=norm, eps=eps, steps=30, restarts=restarts, **loss)
    measured = tla.evaluate(model, x, y, {"APGD": attack}, checks=False).correct["APGD"].numpy()
    assert 0.05 < exact.mean() < 0.95
    assert not (exact & ~measured).any()
    if kind == "targeted" or classes == 2:
        np.testing.assert_array_equal(measured, exact)
    else:
        assert (measured != exact).mean() < 0.12  # one loss does not lead to the worst class of each image


# properties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_more_steps_never_lose_what_was_reached(model, batch, loss):
    """The best iterate is kept: beside PGD, whose last iterate may be worse than one on the way."""
    x, y = batch
    losses = [attack_loss(model(run_attack(apgd(loss=loss, steps=steps), model, x, y)), y, loss) for steps in (5, 50)]
    assert (losses[1] >= losses[0] - 1e-4).float().mean() > 0.8 and losses[1].mean() > losses[0].mean()


def test_examples_stay_in_the_ball_and_in_the_pixel_range(model, batch):
    x, y = batch
    for norm, eps in SIZES.items():
        x_adv = run_attack(apgd(norm=norm, eps=eps, steps=10), model, x, y)
        sizes = torch.linalg.vector_norm((x_adv - x).flatten(1), torch.inf if norm == "linf" else 2, dim=1)
        assert sizes.max() <= eps * (1 + 1e-5) and sizes.max() > 0.9 * eps
        assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("changes", [{"loss": "ce"}, {"loss": "dlr", "targets": 4}])
def test_early_stops_queues_and_batches_change_no_outcome(model, changes, monkeypatch):
    data, attack = mnist_images(100), apgd(steps=10, eps=0.03, **changes)
    whole = tla.evaluate(model, data.images, data.labels, {"a": attack}, early_stop=False, fold=False, checks=False)
    assert 0.05 < whole.accuracy["a"] < 0.9
    for options in ({}, {"batch_size": 50}, {"fold": True}):
        options = {"fold": False, "checks": False, **options}
        other = tla.evaluate(model, data.images, data.labels, {"a": attack}, **options).correct["a"]
        assert (other != whole.correct["a"]).float().mean() <= 0.01
    monkeypatch.setattr("tla_core.chunks._LEAST_CHUNK", 1)
    monkeypatch.setattr("tla_core.chunks.CPU_CHUNK_PIXELS", 7 * 28 * 28)  # a queue that moves at each turn
    queued = tla.evaluate(model, data.images, data.labels, {"a": attack}, fold=False, checks=False).correct["a"]
    assert (queued != whole.correct["a"]).float().mean() <= 0.01


def test_restarts_go_on_from_an_attack_with_fewer(model):
    data = mnist_images(80)
    one = apgd(loss="dlr", steps=4, eps=0.03, targets=2)
    two = dataclasses.replace(one, restarts=2)
    together = tla.evaluate(model, data.images, data.labels, {"one": one, "two": two}, checks=False).correct
    alone = tla.evaluate(model, data.images, data.labels, {"two": two}, checks=False).correct["two"]
    assert torch.equal(together["two"], alone) and (together["two"] <= together["one"]).all()


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_model_of_one_class_has_no_class_to_be_driven_to(restarts):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).eval()
    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    attack = apgd(steps=2, targets=9, restarts=restarts)
    assert run_attack(attack, model, x, y).shape == x.shape
    assert tla.evaluate(model, x, y, {"a": attack}).accuracy["a"] == 1


def test_apgd_is_no_weaker_than_pgd(model):
    data = mnist_images(200)
    attacks = {
        "PGD": tla.AttackConfig(eps=0.03, step_size=0.003, steps=100),
        "APGD-T": apgd(eps=0.03, loss="dlr", targets=9, steps=30),
    }
    accuracy = tla.evaluate(model, data.images, data.labels, attacks, checks=False).accuracy
    assert accuracy["APGD-T"] <= accuracy["PGD"]


def test_extract_takes_it(model):
    import analysis

    data = mnist_images(20)
    reps = analysis.extract(model, data.images, data.labels, attack=apgd(steps=4))
    assert (reps.adv_predictions != reps.predictions).any() and reps.meta["attack"]["name"] == "apgd"


def test_a_description_says_what_runs():
    assert str(apgd(eps=8 / 255, loss="dlr", targets=9)) == "APGD 100, dlr, eps 8/255 (linf), 9 targets"
    assert apgd(eps=0.6).step_size == 1.2
    assert tla.AttackConfig(**dataclasses.asdict(apgd(loss="dlr", targets=9))) == apgd(loss="dlr", targets=9)


@pytest.mark.parametrize(
    "changes, classes, least", [({"loss": "dlr"}, 2, 3), ({"loss": "dlr", "targets": 9}, 3, 4)]
)
def test_a_loss_that_needs_more_classes_says_so(changes, classes, least):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval()
    with pytest.raises(ValueError, match=rf"needs a model of at least {least} classes. Got {classes}; .*margin"):
        run_attack(apgd(steps=2, **changes), model, torch.rand(3, 1, 4, 4), torch.zeros(3).long())
