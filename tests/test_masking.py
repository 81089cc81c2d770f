"""Checks for masked gradients: each with a model that is built to trip it, and honest models that trip none."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from tiny import mnist_images, tiny_lenet
from torch import nn

import tla_core as tla
from tla_core.ascent import attack_loss
from tla_core.attacks import attack_mode, run_attack
from tla_core.masking import (
    MaskingCheck,
    MaskingWarning,
    attack_checks,
    check_black_box,
    check_ensemble,
    check_gradients,
    check_outputs,
    check_restarts,
    check_steps,
    check_stochastic,
    check_transfer,
    masking_checks,
    model_checks,
    of_attacks,
    suite,
    warn_of_masking,
)
from tla_core.masking.verdicts import lower_bound
from tla_core.random_search import random_search

N = 96
EPS = 0.1
PGD = tla.AttackConfig(eps=EPS, step_size=EPS / 5, steps=10)
PGD_2 = tla.AttackConfig(eps=EPS, step_size=EPS / 10, steps=2)
PGD_L2 = tla.AttackConfig(norm="l2", eps=1.0, step_size=0.2, steps=10)


@functools.cache
def trained(adversarial: bool) -> nn.Module:
    """A small network after a second of training, undefended or with PGD-3; in eval mode."""
    data = mnist_images(1500, "train")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(),
            nn.Linear(64, 10),
        ).eval()  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for step in range(200 if adversarial else 120):
        rows = torch.arange(step * 50, (step + 1) * 50) % len(data.labels)
        x, y = data.images[rows] / 255, data.labels[rows]
        if adversarial:
            x = tla.pgd(model, x, y, eps=EPS, step_size=EPS / 2, steps=3)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


class Around(nn.Module):
    """The trained model, with something done to what goes in or what comes out."""

    def __init__(self, before=None, after=None, adversarial=False):
        super().__init__()
        self.inner = trained(adversarial)
        self.before, self.after = before or (lambda x: x), after or (lambda z: z)
        self.eval()

    def forward(self, x):
        return self.after(self.inner(self.before(x)))


class ReversedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def through_numpy(x):
    return torch.from_numpy(x.numpy().copy())


def some_images() -> tuple[torch.Tensor, torch.Tensor]:
    data = mnist_images(N)
    return data.images / 255, data.labels


def survivors_of(model: nn.Module, attack) -> torch.Tensor:
    x, y = some_images()
    with torch.no_grad(), attack_mode(model):
        right = model(x).argmax(1) == y
        for restart in range(attack.restarts):
            right &= model(run_attack(attack, model, x, y, restart=restart)).argmax(1) == y
    return right


def checks_of(model: nn.Module, attack=PGD, n_images=24) -> dict[str, MaskingCheck]:
    return masking_checks(model, *some_images(), attack, survivors_of(model, attack), n_images=n_images)


def failed(checks: dict[str, MaskingCheck]) -> set[str]:
    return {name for name, check in checks.items() if check.passed is False}


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize(
    "attack",
    [
        PGD,
        PGD_L2,
        tla.AttackConfig(eps=0.03, step_size=0.003, steps=20),
        tla.AttackConfig(eps=EPS, step_size=EPS / 4, steps=7),
        tla.AttackConfig(name="bim", eps=EPS, step_size=EPS / 5, steps=10),
        tla.AttackConfig(name="cw", eps=EPS, step_size=EPS / 10, steps=20, restarts=2),
        tla.AttackConfig(name="fgsm", eps=EPS),
        tla.AttackConfig(eps=0.0, step_size=0.0, steps=5),
    ],
    ids=str,
)
def test_an_honest_model_trips_nothing(adversarial, attack):
    checks = checks_of(trained(adversarial), attack, n_images=48)
    assert list(checks) == ["stochastic", "outputs", "gradients", "steps", "restarts", "black_box"]
    assert not failed(checks), checks


def test_a_linear_model_with_a_known_margin_trips_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(1)
    attack = tla.AttackConfig(eps=0.05, step_size=0.02, steps=10)
    survived = model(run_attack(attack, model, images, labels)).argmax(1) == labels
    assert survived.any() and not failed(masking_checks(model, images, labels, attack, survived))


# ------------------------------------------------------------------------------------------------------- stochastic


def one_of_two(x):
    return x if torch.rand(()) < 0.5 else x * 0.9


@pytest.mark.parametrize(
    "before",
    [
        lambda x: F.dropout(x, 0.2, training=True),
        lambda x: x + 0.01 * torch.randn_like(x),
        lambda x: x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(int(torch.rand(()) * 1e6))),
        one_of_two,
    ],
)
def test_a_random_model_is_found_and_its_outcomes_are_not_judged(before):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    checks = masking_checks(Around(before), *some_images(), PGD, torch.ones(N, dtype=torch.bool))
    assert torch.equal(torch.get_rng_state(), state), "the checks must not change torch's random state"
    assert failed(checks) == {"stochastic"} and "random" in checks["stochastic"].message
    assert all(checks[name].passed is None and "random" in checks[name].message for name in ("steps", "black_box"))


def test_dropout_that_is_off_in_eval_mode_is_not_random():
    model = nn.Sequential(nn.Dropout(0.5), tiny_lenet()).train()
    assert check_stochastic(model, some_images()[0]).passed
    assert model.training and model[0].training


def test_noise_that_is_always_the_same_is_not_random():
    def same_noise(x):
        return x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    assert check_stochastic(Around(same_noise), some_images()[0]).passed


# ---------------------------------------------------------------------------------------------------------- outputs


def test_softmax_at_the_end_is_found():
    check = checks_of(Around(after=lambda z: z.softmax(1)))["outputs"]
    assert check.passed is False and "probabilities" in check.message and check.values["probabilities"] == 1
    two_classes = nn.Sequential(nn.Flatten(), nn.Linear(784, 2), nn.Softmax(1))
    assert check_outputs(two_classes, *only_two_classes()).passed is False


def only_two_classes():
    x, y = some_images()
    return x[y < 2], y[y < 2]


@pytest.mark.parametrize("after", [lambda z: z.log_softmax(1), lambda z: z - 5, lambda z: 3 * z, torch.sigmoid])
def test_log_softmax_and_other_outputs_are_not_taken_for_probabilities(after):
    assert check_outputs(Around(after=after), *some_images()).passed


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e6])
def test_saturated_logits_are_found_unless_the_margin_is_attacked(scale):
    model = Around(after=lambda z: scale * z)
    assert {"outputs", "gradients"} <= failed(checks_of(model))
    assert check_outputs(model, *some_images()).values["saturated"] > 0.8
    margin = tla.AttackConfig(name="cw", eps=EPS, step_size=EPS / 5, steps=10)
    assert not failed(checks_of(model, margin))


def test_a_gradient_attack_that_saturation_stopped_loses_to_the_random_search():
    attack = tla.AttackConfig(eps=0.3, step_size=0.06, steps=10)
    assert "black_box" in failed(checks_of(Around(after=lambda z: 1e5 * z), attack))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("whole", [True, False])
def test_outputs_that_are_not_finite_are_found(value, whole):
    def spoil(z):
        bad = torch.ones_like(z) if whole else (z == z.amax(1, keepdim=True)) & (z[:, :1] > z[:, 1:2])
        return torch.where(bad.bool(), torch.tensor(value), z)

    model = Around(after=spoil)
    checks = masking_checks(model, *some_images(), PGD, torch.ones(N, dtype=torch.bool))
    assert "outputs" in failed(checks) and "not finite" in checks["outputs"].message
    assert checks["stochastic"].passed


# -------------------------------------------------------------------------------------------------------- gradients


def no_grad(x):
    with torch.no_grad():
        return x * 1


@pytest.mark.parametrize(
    ("before", "kind"),
    [
        (torch.round, "zero"),
        (lambda x: (x * 255).round() / 255, "zero"),
        (lambda x: (x - 0.5).sign() * 0.5 + 0.5, "zero"),
        (lambda x: (x > 0.5).float(), "no_graph"),
        (lambda x: x.detach(), "no_graph"),
        (through_numpy, "no_graph"),
        (no_grad, "no_graph"),
        (lambda x: x.clamp(0, 1).masked_fill(x == 0, 0.0) + 0 * (x * 0).sqrt(), "not_finite"),
    ],
    ids=["round", "8-bit", "sign", "threshold", "detach", "numpy", "no_grad", "nan"],
)
def test_missing_zero_and_infinite_gradients_are_found(before, kind):
    check = check_gradients(Around(before), *some_images())
    assert check.passed is False and check.values[kind] == 1 and f"{N} are" in check.message


@pytest.mark.parametrize("before", [torch.round, lambda x: x.detach(), through_numpy])
def test_a_model_without_gradients_is_judged_by_what_needs_none(before):
    attack = tla.AttackConfig(eps=0.3, step_size=0.06, steps=5)
    model = Around(before)
    x, y = some_images()
    survived = model(x).argmax(1) == y
    checks = masking_checks(model, x, y, attack, survived, n_images=24)
    assert {"gradients", "black_box"} <= failed(checks)
    assert checks["steps"].passed is not False


def test_a_graph_that_does_not_reach_the_image_is_found():
    weight = torch.ones(1, requires_grad=True)  # not registered: attack_mode does not freeze it
    assert check_gradients(Around(lambda x: x.detach() * weight), *some_images()).values["no_graph"] == 1


def test_an_error_of_the_model_is_raised_and_not_taken_for_a_missing_gradient():
    def fail(x):
        raise RuntimeError("a bug of the user's")

    with pytest.raises(RuntimeError, match="a bug of the user's"):
        check_gradients(Around(fail), *some_images())


def test_a_few_images_without_gradient_are_no_alarm_and_many_are():
    def drop(k):
        return Around(lambda x: torch.cat([x[:k].detach(), x[k:]]))

    assert check_gradients(drop(1), *some_images()).passed
    assert check_gradients(drop(10), *some_images()).passed is False


# ------------------------------------------------------------------------------------------------ steps and restarts


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize(
    "attack",
    [
        PGD_2,
        tla.AttackConfig(eps=EPS, step_size=EPS / 100, steps=10),
        tla.AttackConfig(name="bim", eps=EPS, step_size=EPS / 10, steps=2),
        tla.AttackConfig(norm="l2", eps=1.0, step_size=0.1, steps=2),
    ],
    ids=str,
)
def test_an_attack_that_stops_too_early_is_found(adversarial, attack):
    check = checks_of(trained(adversarial), attack)["steps"]
    assert check.passed is False and check.values["gain"] > 0.5
    assert "not converged" in check.message and "do not even reach" in check.message


def test_steps_go_on_from_the_last_iterate_and_leave_out_what_has_fallen():
    model, (x, y) = trained(False), some_images()
    x_adv = run_attack(PGD, model, x, y)
    check = check_steps(model, x, x_adv, y, PGD)
    alive = (model(x_adv).argmax(1) == y).nonzero()[:, 0]
    margin = attack_loss(model(x_adv[alive]), y[alive], "margin")
    assert check.values["margin"] == pytest.approx(margin.mean().item(), rel=1e-4)
    assert check.values["continued_margin"] >= check.values["margin"]


@pytest.mark.parametrize("attack", [tla.AttackConfig(name="fgsm", eps=EPS), tla.AttackConfig(eps=EPS, steps=1)])
def test_a_single_step_is_not_judged_by_convergence(attack):
    x, y = some_images()
    assert check_steps(trained(True), x, x, y, attack).passed is None
    assert checks_of(trained(True), attack)["steps"].passed is None


def test_restarts_are_judged_where_there_are_any():
    bim = tla.AttackConfig(name="bim", eps=EPS, step_size=EPS / 5, steps=10)
    assert check_restarts(trained(True), *some_images(), bim).passed is None
    assert checks_of(trained(True), tla.AttackConfig(eps=EPS, step_size=EPS, steps=1))["restarts"].passed


def test_a_rugged_model_falls_to_another_start():
    class Mines(nn.Module):
        """Wrong at three points in ten, as close to each other as one likes."""

        def forward(self, x):
            z = trained(True)(x)
            mine = (x.double().sum((1, 2, 3)) * 1e4) % 1 < 0.3
            return torch.where(mine[:, None], z.roll(1, dims=1), z)

    checks = checks_of(Mines().eval(), n_images=48)
    assert "restarts" in failed(checks) and "depend on the start" in checks["restarts"].message


def test_the_restart_is_one_that_the_attack_has_not_used(monkeypatch):
    used = []

    def spy(*args, restart=None, **settings):
        used.append(restart)
        return run_attack(*args, restart=restart, **settings)

    monkeypatch.setattr(of_attacks, "run_attack", spy)
    attack = tla.AttackConfig(eps=EPS, step_size=EPS / 5, steps=3, restarts=4)
    check_restarts(trained(True), *some_images(), attack)
    assert used == [4]


# -------------------------------------------------------------------------------------------- black box and transfer


@pytest.mark.parametrize("attack", [tla.AttackConfig(eps=0.3, step_size=0.06, steps=10), PGD_L2.scaled(6.0)], ids=str)
def test_gradients_that_mislead_lose_to_the_random_search(attack):
    checks = checks_of(Around(ReversedGradient.apply), attack)
    assert "black_box" in failed(checks) and checks["gradients"].passed
    assert "without gradients" in checks["black_box"].message


@pytest.mark.parametrize("attack", [PGD, PGD_L2], ids=str)
def test_the_random_search_stays_in_the_ball_and_keeps_to_its_queries(attack):
    x, y = some_images()
    seen = []

    def look(images):
        seen.append(images)
        return images

    for image, label in zip(x[:3, None], y[:3, None], strict=True):
        seen.clear()
        right = F.one_hot(label, 10)
        check_black_box(Around(look, after=lambda z, right=right: z * 0 + right), image, label, attack, n_queries=7)
        queries = torch.cat(seen)[:-1]  # the last pass says whether the image fell
        assert len(queries) == 7
        order = float("inf") if attack.norm == "linf" else 2
        distance = torch.linalg.vector_norm((queries - image).flatten(1), order, dim=1)
        assert queries.min() >= 0 and queries.max() <= 1 and distance.max() <= attack.eps * (1 + 1e-5)
        assert distance.max() > attack.eps / 2


def test_the_random_search_depends_on_seed_and_index_alone():
    model, (x, y) = Around(torch.round), some_images()
    attack = tla.AttackConfig(eps=0.3)

    def fallen(rows, **settings):
        with attack_mode(model), torch.no_grad():
            found = random_search(model, x[rows], y[rows], rows, attack, seed=settings.get("seed", 0), n_queries=10)
            return model(found).argmax(1) != y[rows]

    rows = torch.arange(N)
    whole = fallen(rows)
    assert whole.any() and torch.equal(whole[40:60], fallen(rows[40:60]))
    assert not torch.equal(whole, fallen(rows, seed=1))
    one, other = (check_black_box(model, x, y, attack, batch_size=size) for size in (N, 10))
    assert one.values == other.values


def test_an_ensemble_may_break_some_more_and_not_far_more():
    white = torch.ones(200, dtype=torch.bool)
    white[150:] = False
    ensemble = white.clone()
    ensemble[:20] = False
    assert check_ensemble(white, ensemble).passed, "a tenth is what stronger attacks break too"
    ensemble[:50] = False
    check = check_ensemble([white], ensemble)
    assert check.passed is False and "AutoAttack breaks 50 of 200 images" in check.message
    assert check.values["white"] == 0.75 and check.values["ensemble"] == 0.5
    assert check_ensemble([], ensemble).passed is None
    with pytest.raises(ValueError, match=r"correct_white must have the shape \(200,\). Got \(3,\)"):
        check_ensemble(white[:3], ensemble)


def test_transfer_compares_outcomes():
    white = torch.ones(200, dtype=torch.bool)
    white[150:] = False
    black = white.clone()
    assert check_transfer(white, black).passed
    black[:3] = False
    assert check_transfer(white, black).passed, "three of 200 are not significantly more than 1 %"
    black[:12] = False
    check = check_transfer(white, black)
    assert check.passed is False and "12 of 200" in check.message
    assert check_transfer([white, torch.arange(200) >= 12], black).passed, "another white-box attack breaks them too"
    assert check_transfer([], black).passed is None
    with pytest.raises(ValueError, match=r"correct_white must have the shape \(200,\). Got \(3,\)"):
        check_transfer(white[:3], black)
    with pytest.raises(TypeError, match="must be bool"):
        check_transfer(white.float(), black)


# -------------------------------------------------------------------------------------------------------- edge cases


def test_without_survivors_there_is_nothing_to_judge():
    checks = masking_checks(trained(False), *some_images(), PGD, torch.zeros(N, dtype=torch.bool))
    assert not failed(checks)
    assert all(checks[name].passed and "no image survived" in checks[name].message for name in ("steps", "black_box"))


@pytest.mark.parametrize("attack", [PGD, PGD_L2], ids=str)
def test_one_image_is_enough(attack):
    x, y = some_images()
    checks = masking_checks(trained(True), x[:1], y[:1], attack, torch.ones(1, dtype=torch.bool))
    assert not failed(checks)
    assert "outputs" in failed(model_checks(Around(after=lambda z: z.softmax(1)), x[:1], y[:1]))
    assert "gradients" in failed(model_checks(Around(torch.round), x[:1], y[:1]))


def test_bytes_and_floats_give_the_same_checks():
    data, survived = mnist_images(N), survivors_of(trained(True), PGD)
    by_bytes = masking_checks(trained(True), data.images, data.labels, PGD, survived)
    by_floats = masking_checks(trained(True), (data.images / 255).numpy(), data.labels.numpy(), PGD, survived.numpy())
    assert by_bytes == by_floats


def test_a_model_without_parameters():
    class Halves(nn.Module):
        def forward(self, x):
            score = x.mean((1, 2, 3)) - 0.5
            return torch.stack([-score, score], 1)

    images = torch.linspace(0, 1, 30)[:, None, None, None].expand(30, 1, 4, 4).contiguous()
    labels = (images[:, 0, 0, 0] > 0.5).long()
    attack = tla.AttackConfig(eps=0.1, step_size=0.05, steps=5)
    checks = masking_checks(Halves(), images, labels, attack, (images[:, 0, 0, 0] - 0.5).abs() > 0.1)
    assert not failed(checks), checks


def test_an_attack_that_is_a_function_is_not_judged():
    checks = attack_checks(trained(True), *some_images(), lambda m, x, y: x, torch.ones(N, dtype=torch.bool))
    assert all(check.passed is None and "AttackConfig" in check.message for check in checks.values())


def test_gradients_that_are_nan_do_not_stop_the_checks():
    model = Around(lambda x: x + 0 * (x * 0).sqrt())
    checks = masking_checks(model, *some_images(), PGD, torch.ones(N, dtype=torch.bool))
    assert "gradients" in failed(checks)


def test_the_model_is_left_as_it_was_found():
    model = tiny_lenet().train()
    model.classifier.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = some_images()
    images = x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masking_checks(model, x, y, PGD, torch.ones(N, dtype=torch.bool))
    assert all(module.training for module in model.modules()) and torch.equal(x, images)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["classifier.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_known_of_the_model_is_not_checked_again(monkeypatch):
    known = model_checks(trained(True), *some_images())
    monkeypatch.setattr(suite, "model_checks", None)
    checks = masking_checks(trained(True), *some_images(), PGD, survivors_of(trained(True), PGD), known=known)
    assert {name: checks[name] for name in known} == known and len(checks) == 6


def test_the_same_images_are_sampled_each_time_spread_over_the_set():
    rows = torch.arange(0, 5000, 2)
    sample = suite._sample(rows, None, 5000)
    assert len(sample) == 50 and torch.equal(sample, suite._sample(rows, None, 5000))
    assert (sample // 2 * 50 // 2500).unique().numel() > 45 and set(sample.tolist()) <= set(rows.tolist())
    assert (sample % 10).unique().numel() == 5, "not all of one place in a dataset whose classes alternate"
    assert torch.equal(suite._sample(rows[:7], None, 5000), rows[:7])
    assert len(suite._sample(rows, 20, 5000)) == 20 and len(suite._sample(torch.arange(10**5), None, 10**5)) == 256


@pytest.mark.parametrize("n_images", [0, 1.5, True])
def test_a_bad_number_of_images_is_refused(n_images):
    with pytest.raises(ValueError, match="n_images must be a whole number of at least 1"):
        model_checks(trained(True), *some_images(), n_images=n_images)


def test_bad_survivors_are_refused():
    with pytest.raises(ValueError, match=r"survived must have the shape \(n,\)|\(96,\)"):
        attack_checks(trained(True), *some_images(), PGD, torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="survived must be bool"):
        attack_checks(trained(True), *some_images(), PGD, torch.ones(N))


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 100), (3, 16), (16, 16), (40, 1000)])
def test_the_lower_bound_is_that_of_the_binomial_distribution(k, n):
    from math import comb

    bound = lower_bound(k, n)
    at_least_k = sum(comb(n, i) * bound**i * (1 - bound) ** (n - i) for i in range(k, n + 1))
    assert at_least_k == pytest.approx(0.01, rel=1e-5) and 0 < bound < k / n
    assert lower_bound(0, n) == 0


def test_warnings_name_the_attack_and_what_failed():
    bad = {"outputs": MaskingCheck("outputs", False, "saturated."), "steps": MaskingCheck("steps", None, "odd.")}
    with pytest.warns(MaskingWarning, match=r"accuracy under PGD-20 may be an illusion. outputs: saturated\.$"):
        warn_of_masking("PGD-20", bad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_masking("PGD-20", {"steps": bad["steps"]})
    assert repr(bad["outputs"]) == "MaskingCheck(outputs FAILED: saturated.)" and "not judged" in repr(bad["steps"])
