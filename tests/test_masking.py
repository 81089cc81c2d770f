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
from tla_core.evaluation import describe_attack
from tla_core.masking import (
    MaskingCheck,
    MaskingWarning,
    attack_checks,
    check_batch,
    check_black_box,
    check_ensemble,
    check_gradients,
    check_outputs,
    check_perturbed_outputs,
    check_steps,
    check_stochastic,
    check_stronger,
    check_transfer,
    check_unbounded,
    compare_attacks,
    failure_lines,
    gap_lines,
    masking_checks,
    model_checks,
    of_attacks,
    search_check,
    suite,
    warn_of_masking,
)
from tla_core.masking.of_attacks import another_start, judge_ascent, judge_restarts
from tla_core.masking.of_searches import affordable_search
from tla_core.masking.verdicts import lower_bound, paired_gap

N = 96
EPS = 0.1
PGD = tla.AttackConfig(eps=EPS, step_size=EPS / 5, steps=10)
PGD_2 = tla.AttackConfig(eps=EPS, step_size=EPS / 10, steps=2)
PGD_L2 = tla.AttackConfig(norm="l2", eps=1.0, step_size=0.2, steps=10)
OF_MODELS = ["stochastic", "batch", "outputs", "gradients"]
OF_ATTACKS = ["perturbed", "ascent", "steps", "restarts", "unbounded", "black_box"]
ALL = OF_MODELS + OF_ATTACKS


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
    assert list(checks) == ALL
    assert not failed(checks), checks


def test_a_linear_model_with_a_known_margin_trips_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(1)
    attack = tla.AttackConfig(eps=0.05, step_size=0.02, steps=10)
    survived = model(run_attack(attack, model, images, labels)).argmax(1) == labels
    assert survived.any() and not failed(masking_checks(model, images, labels, attack, survived))


@pytest.mark.parametrize(
    "attack", [PGD, tla.AttackConfig(name="cw", norm="l2", eps=1.0, step_size=0.2, steps=10)], ids=str
)
def test_a_head_of_a_thousand_classes_trips_nothing(attack):
    def widen(z):  # the others far below, at different heights
        return torch.cat([z, z.mean(1, keepdim=True) - torch.linspace(5, 20, 990)], 1)

    assert not failed(checks_of(Around(after=widen, adversarial=True), attack, n_images=10))


@pytest.mark.parametrize("norm, eps", [("linf", 0.02), ("l2", 0.5)])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 20.0])
def test_linear_models_of_any_scale_trip_nothing(norm, eps, scale):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        model[1].weight.copy_(torch.randn(10, 784, generator=generator) * scale / 28)
    x, _ = some_images()
    y = model(x).argmax(1)
    attack = tla.AttackConfig(norm=norm, eps=eps, step_size=eps / 4, steps=10)
    survived = model(run_attack(attack, model, x, y)).argmax(1) == y
    assert survived.any() and not failed(masking_checks(model, x, y, attack, survived))


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


# ------------------------------------------------------------------------------------------------------------ batch


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x - x.mean() + 0.13,
        lambda x: x * (1 + 0.1 * torch.arange(len(x))[:, None, None, None] / len(x)),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: x + 0.1 * len(x) / 16,
    ],
    ids=["mean", "position", "batch norm", "size"],
)
def test_logits_that_depend_on_the_batch_are_found(before):
    checks = model_checks(Around(before), *some_images())
    assert "batch" in failed(checks) and "rest of their batch" in checks["batch"].message
    assert check_batch(Around(before), some_images()[0][:1]).passed is False, "one image is enough"


def test_a_dependence_on_more_images_than_are_looked_at_is_found():
    def only_in_large_batches(x):
        return x + (0.1 * x.mean() if len(x) > 40 else 0)

    images, labels = some_images()
    assert len(images) > 40 and "batch" in failed(model_checks(Around(only_in_large_batches), images, labels))


def test_logits_that_are_nearly_equal_are_found():
    """Cross-entropy leads nowhere there; a difference of logits does."""
    images, labels = some_images()
    model = Around(after=lambda z: z * 1e-6)
    check = model_checks(model, images, labels)["outputs"]
    assert check.passed is False and "nearly equal" in check.message and check.values["median_range"] < 1e-3
    assert model_checks(model, images, labels, loss="dlr")["outputs"].passed
    assert model_checks(Around(after=lambda z: z * 0.1), images, labels)["outputs"].passed


def test_a_model_with_batch_norm_in_eval_mode_does_not_depend_on_the_batch():
    check = check_batch(tiny_lenet().train(), some_images()[0])
    assert check.passed and check.values["largest_change"] < 1e-5
    assert check_batch(Around(after=lambda z: z.to(torch.bfloat16).float()), some_images()[0]).passed


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


def test_outputs_that_are_not_finite_are_counted_by_kind():
    def spoil(z):
        z = z.clone()
        z[0, 0], z[1, 1], z[2, 2] = torch.nan, torch.inf, torch.nan
        return z

    check = check_outputs(Around(after=spoil), *some_images())
    assert "the outputs of 3 of 96 images (3.1%) are not finite (2 NaN, 1 infinite)" in check.message
    assert check.values["not_finite"] == pytest.approx(3 / N) and check.values["nan"] == pytest.approx(2 / N)


@pytest.mark.parametrize("attack", [PGD, PGD_L2, tla.AttackConfig(name="fgsm", eps=EPS)], ids=str)
@pytest.mark.parametrize("survive", [True, False])
def test_outputs_that_are_nan_off_the_values_of_bytes_are_found(attack, survive):
    def root(x):  # NaN where a pixel is no multiple of 1/255
        return x + (1e-4 - (x * 255 - (x * 255).round()).abs()).sqrt().detach() * 0

    checks = masking_checks(Around(root), *some_images(), attack, torch.full((N,), survive))
    assert checks["outputs"].passed and "perturbed" in failed(checks)
    assert "10 of 10 images (100.0%) are not finite (NaN)" in checks["perturbed"].message
    assert check_perturbed_outputs(trained(False), some_images()[0], attack).passed


def test_outputs_that_are_nan_only_where_the_attack_leads_are_found():
    x, y = some_images()
    model = trained(True)

    def spoil(images):
        moved = ((images - x[:1]).abs() > 0.9 * EPS).float().mean((1, 2, 3)) > 0.3
        return torch.where(moved[:, None, None, None], torch.nan, images)

    alone = masking_checks(Around(spoil, adversarial=True), x[:1], y[:1], PGD, torch.ones(1, dtype=torch.bool))
    assert check_perturbed_outputs(Around(spoil, adversarial=True), x[:1], PGD).passed and model is not None
    assert "perturbed" in failed(alone)


@pytest.mark.parametrize("seed", range(8))
def test_a_model_of_one_class_has_nothing_to_attack(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 1)).eval()
    x, y = some_images()[0], torch.zeros(N, dtype=torch.long)
    checks = masking_checks(model, x, y, PGD, torch.ones(N, dtype=torch.bool))
    assert not failed(checks) and "one output class" in checks["outputs"].message
    assert checks["batch"].passed is checks["gradients"].passed is None
    assert "nothing to attack" in checks["black_box"].message


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
    checks = masking_checks(model, x, y, attack, survived, n_images=48)
    assert {"gradients", "black_box"} <= failed(checks)
    assert checks["steps"].passed is not False


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, levels):
        return (x * levels).round() / levels

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Weakened(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1e-3


@pytest.mark.parametrize(
    ("before", "slope"),
    [
        (ReversedGradient.apply, -1),
        (lambda x: StraightThrough.apply(x, 1), 0),
        (lambda x: StraightThrough.apply(x, 255), 0),
        (Weakened.apply, 1e3),
        (lambda x: x.flip(2).detach() + x - x.detach(), None),
    ],
    ids=["reversed", "round", "8-bit", "weakened", "of another function"],
)
@pytest.mark.parametrize("adversarial", [False, True])
def test_gradients_of_another_function_are_found(before, slope, adversarial):
    check = check_gradients(Around(before, adversarial=adversarial), *some_images())
    assert check.passed is False and check.values["differ"] > 0.5 and "not those of the model" in check.message
    if slope is not None:
        assert check.values["median_slope"] == pytest.approx(slope, rel=0.2, abs=0.02)


@pytest.mark.parametrize(
    "after",
    [
        lambda z: 1e6 * z, lambda z: 1e-6 * z, lambda z: z + 1e4, lambda z: z.log_softmax(1), lambda z: z.softmax(1),
        torch.sigmoid, lambda z: z.to(torch.bfloat16), lambda z: z.to(torch.bfloat16).float(),
    ],
)  # fmt: skip
def test_slopes_agree_at_any_scale_of_the_outputs(after):
    model = Around(after=after, adversarial=True)
    assert check_gradients(model, *some_images(), loss="margin").values["differ"] == 0


def test_pixels_at_the_border_of_the_range_without_a_gradient_are_found():
    """As torch's clamp to an interval leaves them; elsewhere the gradient is the model's own."""

    def clipped(x):
        return torch.where((x > 0) & (x < 1), x, x.detach())

    x, y = some_images()
    check = check_gradients(Around(clipped), x, y)
    assert check.passed is False and "at 0 or 1" in check.message and check.values["blind_border"] > 0.9
    assert check_gradients(Around(), x, y).values["blind_border"] == 0
    assert check_gradients(Around(clipped), 0.01 + 0.98 * x, y).passed  # no pixel is there


def test_slopes_of_a_random_model_are_those_of_one_draw():
    assert check_gradients(Around(lambda x: F.dropout(x, 0.2, training=True)), *some_images()).passed


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


def judged(judge, model, x, y, attack):
    """What a check says of a start that the attack has not used."""
    ascent = another_start(model, x, y, attack, None, torch.arange(len(x)), 256, True)
    return judge(model, ascent, y, attack, 1.0, 256)


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
    assert judged(judge_restarts, trained(True), *some_images(), bim).passed is None
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
    judged(judge_restarts, trained(True), *some_images(), attack)
    assert used == [4]


def test_more_steps_go_on_towards_the_target_of_the_start_that_they_follow():
    """Of 10 classes 9 can be targets: a start of index 20 would be driven to the third of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    attack = tla.AttackConfig(name="apgd", eps=0.002, steps=10, targets=20, loss="margin")
    x, _ = some_images()
    y = model(x).argmax(1)
    check = attack_checks(model, x, y, attack, survivors_of(model, attack))["steps"]
    assert check.values["gain"] < 0.1  # of a linear model ten steps reach the best there is


# --------------------------------------------------------------------------------------------- ascent and unbounded


@pytest.mark.parametrize(
    "attack", [PGD, PGD_L2, tla.AttackConfig(name="bim", eps=EPS, step_size=EPS / 5, steps=10)], ids=str
)
def test_an_attack_that_lowers_its_loss_is_found(attack):
    x, y = some_images()
    check = judged(judge_ascent, Around(ReversedGradient.apply, adversarial=True), x, y, attack)
    assert check.passed is False and check.values["not_risen"] > 0.9
    assert judged(judge_ascent, trained(True), x, y, attack).values["not_risen"] < 0.05


def test_losses_that_round_to_zero_still_rise():
    x, y = some_images()
    model = Around(after=lambda z: 3 * z)
    right = (model(x).argmax(1) == y).nonzero()[:, 0]
    attack = tla.AttackConfig(eps=0.01, step_size=0.002, steps=5)
    assert judged(judge_ascent, model, x[right], y[right], attack).values["not_risen"] == 0


def test_examples_that_an_attack_finds_and_leaves_again_are_found():
    class Ridge(nn.Module):
        """Wrong on a thin shell around each image, through which the steps go."""

        def forward(self, x):
            z = trained(True)(x)
            off = (x - x.mul(2).round() / 2).abs().amax((1, 2, 3))
            shell = (off > 0.35 * EPS) & (off < 0.85 * EPS)
            return torch.where(shell[:, None], z.roll(1, dims=1), z)

    x = (some_images()[0] > 0.5).float()
    y = trained(True)(x).argmax(1)
    attack = tla.AttackConfig(name="bim", eps=EPS, step_size=EPS / 4, steps=8)
    x_adv = run_attack(attack, Ridge().eval(), x, y)
    check = judged(judge_ascent, Ridge().eval(), x, y, attack)
    still_right = (Ridge()(x_adv).argmax(1) == y).double().mean().item()
    assert check.passed is False and 0.3 < check.values["silent"] <= still_right + 1e-9


def test_an_unbounded_attack_that_leaves_images_is_found():
    x, y = some_images()
    assert check_unbounded(trained(True), x, y, PGD).values["left"] == 0
    assert check_unbounded(trained(True), x, y, PGD_L2).values["left"] == 0
    check = check_unbounded(Around(torch.round, adversarial=True), x, y, PGD)
    assert check.passed is False and "stay correct" in check.message
    assert check_unbounded(Around(torch.round), x[y == 1], y[y == 1], PGD).passed is None


# -------------------------------------------------------------------------------------------- black box and transfer


@pytest.mark.parametrize("attack", [tla.AttackConfig(eps=0.3, step_size=0.06, steps=10), PGD_L2.scaled(6.0)], ids=str)
def test_a_reversed_gradient_is_found_by_all_that_look_at_gradients(attack):
    checks = checks_of(Around(ReversedGradient.apply), attack)
    assert failed(checks) == {"gradients", "ascent", "unbounded", "black_box"}
    assert checks["gradients"].values["median_slope"] == pytest.approx(-1, abs=0.2)
    assert checks["ascent"].values["not_risen"] > 0.8 and "does not climb" in checks["ascent"].message
    assert "without gradients" in checks["black_box"].message


@pytest.mark.parametrize("attack", [PGD, PGD_L2], ids=str)
def test_searches_stay_in_the_ball_and_keep_to_their_queries(attack):
    for check, image, queries in queries_of_a_search(attack):
        queries = queries[-8:]  # before them, one to check the labels and those that say whether folding is equal
        assert len(queries) == 7 + 1  # a last look at what was found
        assert "7 queries of Square broke" in check.message
        order = float("inf") if attack.norm == "linf" else 2
        distance = torch.linalg.vector_norm((queries - image).flatten(1), order, dim=1)
        assert queries.min() >= 0 and queries.max() <= 1 and distance.max() <= attack.eps * (1 + 1e-5)
        assert distance.max() > attack.eps / 2


def queries_of_a_search(attack):
    """What a search asks the model about images that cannot be broken."""
    x, y = some_images()
    seen = []

    def look(images):
        seen.append(images)
        return images

    for image, label in zip(x[:3, None], y[:3, None], strict=True):
        seen.clear()
        right = F.one_hot(label, 10)
        check = check_black_box(
            Around(look, after=lambda z, right=right: z * 0 + right), image, label, attack, n_queries=7
        )
        yield check, image, torch.cat(seen)


def test_square_leaves_no_trace_and_does_not_depend_on_the_batch_size():
    model, (x, y) = Around(torch.round), some_images()
    attack = tla.AttackConfig(eps=0.3)
    state = torch.get_rng_state()
    one, other = (check_black_box(model, x, y, attack, batch_size=size, n_queries=30) for size in (N, 10))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.values == other.values and one.passed is False
    assert one.values["fell"] > check_black_box(model, x, y, attack, n_queries=1).values["fell"]


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 5, 5), (3, 6, 9)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_searches_take_images_of_any_size(shape, norm):
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3)).eval()
    images = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    attack = tla.AttackConfig(norm=norm, eps=0.9)
    assert check_black_box(model, images, labels, attack, n_queries=30).passed is False


def test_a_search_counts_outputs_that_are_nan_as_broken():
    def spoil(z):
        return torch.where(torch.arange(10) == 3, torch.nan, z)

    x, y = some_images()
    check = check_black_box(Around(after=spoil), x, y, PGD, n_queries=5)
    assert check.passed is False and check.values["fell"] == 1


def test_the_search_is_of_what_survived_all_attacks_of_its_ball_and_costs_no_more_than_they_did():
    model, (x, y) = trained(True), some_images()
    survived = survivors_of(model, PGD) & survivors_of(model, PGD_2)
    both = search_check(model, x, y, {"PGD-2": PGD_2, "PGD-10": PGD}, survived)
    assert both.passed and "survived PGD-2 and PGD-10" in both.message
    assert affordable_search(1000, 20) == (100, 500) == affordable_search(10_000, 400)
    for n, steps in ((100, 10), (500, 20), (1000, 5)):
        n_searched, n_queries = affordable_search(n, steps)
        assert n_searched < 100 and n_searched * n_queries <= 3 * n * steps * 1.1
    single = search_check(model, x, y, {"FGSM": tla.AttackConfig(name="fgsm", eps=EPS)}, survived)
    assert single.passed is None and "a single step" in single.message


def outcome(n: int, wrong: range) -> torch.Tensor:
    return torch.tensor([i not in wrong for i in range(n)])


def test_an_ensemble_that_leaves_less_is_a_number_beside_pgd_and_a_failure_beside_apgd():
    white, ensemble = outcome(200, range(150, 200)), outcome(200, range(100, 200))
    check = check_ensemble({"PGD-20": white}, ensemble)
    assert check.passed is None and check.is_gap and "GAP" in repr(check)
    assert check.message == (
        "AutoAttack leaves 50.0% of 200 images, 25.0 ± 3.1 points less than PGD-20: believe the lower number."
    )
    assert check.values["gap"] == 0.25 and check.values["standard_error"] == pytest.approx((0.25 * 0.75 / 200) ** 0.5)
    strong = check_ensemble({"PGD-20": white, "APGD": outcome(200, range(149, 200))}, ensemble, strong=True)
    assert strong.passed is False and "24.5 ± 3.0 points less than all" in strong.message
    assert check_ensemble({"APGD": outcome(200, range(103, 200))}, ensemble, strong=True).passed, "3 of 200 are chance"
    assert check_ensemble(white, white).passed and check_ensemble([], ensemble).passed is None
    with pytest.raises(ValueError, match=r"correct_white must have the shape \(200,\). Got \(3,\)"):
        check_ensemble(white[:3], ensemble)


def test_a_stronger_attack_is_compared_with_the_strongest_of_the_weaker_ones():
    weaker = {"FGSM": outcome(400, range(10)), "PGD": outcome(400, range(100))}
    check = check_stronger(weaker, outcome(400, range(130)), name="APGD")
    assert check.passed is None and "7.5 ± 1.3 points less than PGD" in check.message
    weaker["CW"] = outcome(400, range(10, 135))
    assert check_stronger(weaker, outcome(400, range(130)), name="APGD").passed
    assert (
        "5.0 ± 1.1 points more than PGD"
        in check_stronger(weaker | {"CW": weaker["PGD"]}, outcome(400, range(80))).message
    )


@pytest.mark.parametrize(("gained", "lost", "n"), [(60, 20, 400), (5, 0, 50), (30, 30, 100), (2, 0, 4)])
def test_the_bound_of_a_paired_gap_holds_in_nearly_all_samples(gained, lost, n):
    shares = torch.tensor([gained, lost, n - gained - lost]) / n
    draws = torch.multinomial(shares, n * 150, replacement=True, generator=torch.Generator().manual_seed(0))
    bounds = [paired_gap(draw != 1, draw != 0)["lower_bound"] for draw in draws.view(150, n)]
    assert sum(bound > (gained - lost) / n for bound in bounds) <= 5, "1.5 are expected at most"


def settings_of(attack):
    return describe_attack(attack)


def test_attacks_are_compared_by_kind_within_their_ball_on_shared_images():
    n = 1000
    described = {
        "PGD": settings_of(PGD),
        "PGD, small": settings_of(tla.AttackConfig(eps=EPS / 4, step_size=0.01)),
        "long": settings_of(tla.AttackConfig(eps=EPS, step_size=0.01, steps=200)),
        "BB": {"name": "transfer", "attack": settings_of(PGD)},
        "AutoAttack": {"name": "autoattack", "eps": EPS, "norm": "linf"},
        "APGD": settings_of(PGD) | {"name": "apgd"},
        "L2": {"name": "autoattack", "eps": EPS, "norm": "l2"},
        "mine": {"name": "my_attack"},
    }
    correct = {
        "clean": outcome(n, range(0)),
        "PGD": outcome(n, range(200)),
        "PGD, small": outcome(n, range(10)),
        "long": outcome(n, range(250))[::2],
        "BB": outcome(n, range(100, 300)),
        "AutoAttack": outcome(n, range(500))[::4],
        "APGD": outcome(n, range(300)),
        "L2": outcome(n, range(900)),
        "mine": outcome(n, range(400)),
    }
    checks = compare_attacks(correct, described)
    assert {name: check.name for name, check in checks.items()} == {
        "BB": "transfer", "AutoAttack": "ensemble", "APGD": "stronger",
    }  # fmt: skip
    assert checks["BB"].passed and checks["BB"].values["white"] == 0.7, "APGD breaks them too"
    assert checks["AutoAttack"].passed is False and "of 250 images, 20.0 ±" in checks["AutoAttack"].message
    assert checks["APGD"].passed is None and "10.0 ± 0.9 points less than PGD" in checks["APGD"].message
    without = {name: described[name] for name in described if name not in ("APGD", "PGD, small", "L2")}
    checks = compare_attacks(correct, without)
    assert checks["BB"].passed is False and checks["BB"].values["black_alone"] == 0.1
    assert checks["AutoAttack"].passed is None and "less than long" in checks["AutoAttack"].message, (
        "long saw the images too"
    )
    assert "20.0 ± 1.3 points less than PGD" in checks["mine"].message, "there is one ball that it can be of"
    # A search in a smaller ball must not win either.
    small = {"PGD": described["PGD"], "BB": {"name": "transfer", "attack": described["PGD, small"]}}
    assert compare_attacks(correct, small)["BB"].passed is False
    assert compare_attacks(correct, {"PGD, small": described["PGD, small"], "BB": described["BB"]}) == {}


def test_what_there_is_to_say_is_one_line_each_of_checks_as_they_are_or_as_stored():
    from dataclasses import asdict

    gap = check_ensemble({"PGD": outcome(200, range(10))}, outcome(200, range(50)))
    checks = {
        "model": {"outputs": MaskingCheck("outputs", False, "saturated.")},
        "PGD": {"steps": MaskingCheck("steps", True, "fine.")},
        "AutoAttack": {"ensemble": gap, "steps": MaskingCheck("steps", None, "odd.")},
    }
    stored = {name: {key: asdict(check) for key, check in found.items()} for name, found in checks.items()}
    for each in (checks, stored):
        assert failure_lines(each) == ["model, outputs: saturated."]
        assert gap_lines(each) == [gap.message]


def test_transfer_compares_outcomes():
    white = torch.ones(200, dtype=torch.bool)
    white[150:] = False
    black = white.clone()
    assert check_transfer(white, black).passed
    black[:7] = False
    assert check_transfer(white, black).passed, "seven of 200 are not significantly more than 2 %"
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


def test_a_check_says_once_that_it_is_not_judged():
    check = MaskingCheck("steps", None, "not judged: a single step is not meant to converge.")
    assert repr(check).count("not judged") == 1


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
    assert {name: checks[name] for name in known} == known and list(checks) == ALL


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
    assert repr(bad["outputs"]) == "MaskingCheck(outputs [I1, unavailable gradients] FAILED: saturated.)"
    assert "not judged" in repr(bad["steps"]) and "[" not in repr(MaskingCheck("batch", True, "fine."))
