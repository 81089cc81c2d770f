"""Attacks: equal to their peers step for step, exact where the answer is known, and without a trace."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from oracles import linear_robust_correct
from tiny import Linear
from torch import nn

import tla_core as tla
from tla_core.ascent import attack_loss
from tla_core.attacks import run_attack
from tla_core.chunks import images_at_once
from tla_core.models import LeNet
from tla_core.random_numbers import counter_uniform

EPS, STEP = 0.3, 0.05


@pytest.fixture(scope="module")
def trained():
    """A small network that has seen enough to have gradients worth following, in eval mode."""
    data = tla.load_dataset("mnist-mini", "train").subset(torch.arange(0, 5000, 10))
    torch.manual_seed(0)
    model = LeNet(width=1 / 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(3):
        for rows in torch.randperm(500).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.images[rows] / 255), data.labels[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def batch():
    data = tla.load_dataset("mnist-mini", "test").subset(torch.arange(0, 5000, 125))
    return data.images.float() / 255, data.labels


# equal to peers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_pgd_equals_torchattacks_step_for_step(trained, batch, steps):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = batch
    peer = torchattacks.PGD(trained, eps=EPS, alpha=STEP, steps=steps, random_start=False)
    ours = tla.pgd(trained, x, y, eps=EPS, step_size=STEP, steps=steps, random_start=False)
    torch.testing.assert_close(ours, peer(x, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_pgd_equals_foolbox_step_for_step(trained, batch, steps):
    foolbox = pytest.importorskip("foolbox")
    x, y = batch
    peer = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=False)
    theirs = peer.run(foolbox.PyTorchModel(trained, bounds=(0, 1), device="cpu"), x, y, epsilon=EPS)
    ours = tla.pgd(trained, x, y, eps=EPS, step_size=STEP, steps=steps, random_start=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_pgd_l2_equals_foolbox(trained, batch):
    foolbox = pytest.importorskip("foolbox")
    x, y = batch
    peer = foolbox.attacks.L2PGD(abs_stepsize=0.3, steps=5, random_start=False)
    theirs = peer.run(foolbox.PyTorchModel(trained, bounds=(0, 1), device="cpu"), x, y, epsilon=1.5)
    ours = tla.pgd(trained, x, y, eps=1.5, step_size=0.3, steps=5, norm="l2", random_start=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_momentum_equals_torchattacks_mifgsm(trained, batch):
    """Their normalisation is the mean of |gradient|, ours the sum: the sign of the sum is the same."""
    torchattacks = pytest.importorskip("torchattacks")
    x, y = batch
    peer = torchattacks.MIFGSM(trained, eps=EPS, alpha=STEP, steps=5, decay=0.9)
    ours = tla.pgd(trained, x, y, eps=EPS, step_size=STEP, steps=5, momentum=0.9, random_start=False)
    torch.testing.assert_close(ours, peer(x, y), rtol=0, atol=1e-6)


def test_fgsm_equals_torchattacks(trained, batch):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = batch
    torch.testing.assert_close(tla.fgsm(trained, x, y, eps=0.1), torchattacks.FGSM(trained, eps=0.1)(x, y))


# exact where the answer is known -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_pgd_reaches_the_exact_robust_accuracy_of_a_linear_model(eps, loss):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(2, 36)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    x = rng.uniform(size=(400, 1, 6, 6)).astype(np.float32)
    model = Linear(weight, bias).eval()
    y = model(torch.tensor(x)).argmax(1).numpy()
    exact = linear_robust_correct(weight, bias, x, y, eps)
    attack = tla.AttackConfig(eps=eps, step_size=eps / 4, steps=20, loss=loss)
    found = tla.evaluate(model, x, y, {"PGD": attack}).correct["PGD"].numpy()
    assert 0 < exact.mean() < 1
    np.testing.assert_array_equal(found, exact)


def test_margin_loss_is_the_best_other_logit_minus_the_true_one():
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 3.0, -1.0]])
    assert attack_loss(logits, torch.tensor([0, 0]), "margin").tolist() == [4.0, -1.0]


# properties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm, eps, step", [("linf", 0.3, 0.1), ("l2", 1.5, 0.5)])
def test_adversarial_images_stay_in_the_ball_and_in_the_pixel_range(trained, batch, norm, eps, step):
    x, y = batch
    x_adv = tla.pgd(trained, x, y, eps=eps, step_size=step, steps=5, norm=norm)
    sizes = torch.linalg.vector_norm((x_adv - x).flatten(1), torch.inf if norm == "linf" else 2, dim=1)
    assert sizes.max() <= eps * (1 + 1e-5) and sizes.max() > 0.9 * eps
    assert x_adv.min() >= 0 and x_adv.max() <= 1


def test_loss_grows_with_eps_and_steps_and_beats_fgsm(trained, batch):
    x, y = batch

    def loss(x_adv):
        return attack_loss(trained(x_adv), y, "ce").mean().item()

    fgsm = loss(tla.fgsm(trained, x, y, eps=EPS))
    by_steps = [loss(tla.pgd(trained, x, y, eps=EPS, step_size=0.06, steps=k)) for k in (2, 10, 40)]
    by_eps = [loss(tla.pgd(trained, x, y, eps=e, step_size=e / 5, steps=10)) for e in (0.02, 0.1, 0.3)]
    assert by_steps == sorted(by_steps) and by_steps[-1] >= fgsm
    assert by_eps == sorted(by_eps)


def test_the_random_start_depends_on_seed_index_and_restart_alone(trained, batch):
    x, y = batch
    settings = {"eps": EPS, "step_size": STEP, "steps": 2}
    whole = tla.pgd(trained, x, y, **settings)
    torch.testing.assert_close(tla.pgd(trained, x[:7], y[:7], **settings), whole[:7], rtol=0, atol=1e-6)
    rows = torch.tensor([30, 3, 11])
    torch.testing.assert_close(
        tla.pgd(trained, x[rows], y[rows], **settings, indices=rows), whole[rows], rtol=0, atol=1e-6
    )
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(tla.pgd(trained, x, y, **settings, generator=generator), whole, rtol=0, atol=0)
    other = tla.pgd(trained, x, y, **settings, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other, whole)


def test_the_random_start_is_uniform():
    draws = counter_uniform(3, torch.arange(200), 0, 784).double()
    assert abs(draws.mean() - 0.5) < 0.003 and abs(draws.std() - 12**-0.5) < 0.003
    counts = torch.histc(draws.float(), bins=20, min=0, max=1)
    expected = draws.numel() / 20
    assert (((counts - expected) ** 2) / expected).sum() < 45  # chi-squared, 19 degrees of freedom: p = 0.0007
    # Neighbouring images, positions, seeds and restarts are uncorrelated.
    for other in (counter_uniform(3, torch.arange(1, 201), 0, 784), counter_uniform(4, torch.arange(200), 0, 784),
                  counter_uniform(3, torch.arange(200), 1, 784), draws.roll(1, dims=1)):  # fmt: skip
        pair = torch.stack([draws.flatten(), other.double().flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.01
    first = counter_uniform(0, torch.arange(500), 0, 1)
    assert abs(first.mean() - 0.5) < 0.05 and len(first.unique()) > 490


def test_restarts_keep_the_worst_case_of_each_image(trained, batch):
    x, y = batch
    attack = tla.AttackConfig(eps=0.1, step_size=0.05, steps=2, restarts=4)
    worst = run_attack(attack, trained, x, y)
    singles = [run_attack(attack, trained, x, y, restart=r) for r in range(4)]
    broken = torch.stack([trained(s).argmax(1) != y for s in singles])
    losses = torch.stack([attack_loss(trained(s), y, "ce") for s in singles])
    assert torch.equal(trained(worst).argmax(1) != y, broken.any(0))
    among_worst = losses.masked_fill(broken != broken.any(0), -torch.inf)
    torch.testing.assert_close(attack_loss(trained(worst), y, "ce"), among_worst.amax(0))
    accuracies = [
        tla.evaluate(trained, x, y, {"a": dataclasses.replace(attack, restarts=r)}).accuracy["a"] for r in (1, 2, 4)
    ]
    assert accuracies == sorted(accuracies, reverse=True)


def test_early_drop_gives_the_outcome_of_the_full_attack(trained, batch):
    x, y = batch
    attack = tla.AttackConfig(eps=0.1, step_size=0.05, steps=2, restarts=3)
    full = (trained(run_attack(attack, trained, x, y)).argmax(1) == y) & (trained(x).argmax(1) == y)
    assert torch.equal(tla.evaluate(trained, x, y, {"a": attack}, fold=False).correct["a"], full)


def test_a_folded_attack_breaks_the_same_images(trained):
    data = tla.load_dataset("mnist-mini", "test").subset(torch.arange(0, 5000, 5))
    attack = {"PGD": tla.AttackConfig(eps=0.1, step_size=0.02, steps=10)}
    folded = tla.evaluate(trained, data.images, data.labels, attack).correct["PGD"]
    plain = tla.evaluate(trained, data.images, data.labels, attack, fold=False).correct["PGD"]
    assert (folded != plain).float().mean() <= 0.001


def test_a_network_that_reads_before_its_batch_norm_is_not_folded(batch):
    class ReadsBefore(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
            self.classifier = nn.Linear(8, 10)
            self.layers[1].running_mean.fill_(0.5)

        def forward(self, x):
            before = self.layers[0](x)
            return self.classifier(torch.cat([before.mean((2, 3)), self.layers[1](before).amax((2, 3))], 1))

    torch.manual_seed(0)
    model, attack = ReadsBefore().eval(), tla.AttackConfig(eps=0.1, step_size=0.05, steps=3)
    assert torch.equal(run_attack(attack, model, *batch, fold=True), run_attack(attack, model, *batch))


# no trace ------------------------------------------------------------------------------------------------------------


def test_attack_mode_restores_modes_gradients_and_buffers():
    class CountsEvenInEval(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    model = nn.Sequential(CountsEvenInEval(), LeNet(width=1 / 32))
    model.train()
    model[1].features[1].eval()
    model[1].classifier.bias.requires_grad_(False)
    model[1].classifier.weight.grad = torch.ones_like(model[1].classifier.weight)
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])
    with tla.attack_mode(model):
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
        tla.pgd(model, x, y, eps=0.1, step_size=0.1, steps=2)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert torch.equal(model[1].classifier.weight.grad, torch.ones_like(model[1].classifier.weight))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_attack_mode_restores_after_an_error():
    model = LeNet(width=1 / 32).train()
    with pytest.raises(RuntimeError, match="boom"), tla.attack_mode(model):
        raise RuntimeError("boom")
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_in_training_mode_draws_a_warning_and_is_put_back(batch):
    model = LeNet(width=1 / 32).train()
    x, y = batch
    with pytest.warns(UserWarning, match="training mode.*put back"):
        tla.pgd(model, x, y, eps=0.1, step_size=0.1, steps=1)
    assert model.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tla.pgd(model.eval(), x, y, eps=0.1, step_size=0.1, steps=1)


def test_inputs_are_untouched_and_of_any_kind(trained, batch):
    x, y = batch
    as_bytes = (x * 255).round().to(torch.uint8)
    before = as_bytes.clone()
    settings = {"eps": EPS, "step_size": STEP, "steps": 2}
    results = [
        tla.pgd(trained, as_bytes, y, **settings),
        tla.pgd(trained, as_bytes.numpy(), y.numpy(), **settings),
        tla.pgd(trained, as_bytes.float() / 255, y.int(), **settings),
        tla.pgd(trained, (as_bytes.float() / 255).numpy(), y, **settings),
    ]
    assert torch.equal(as_bytes, before)
    for result in results:
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-6)


def test_attacks_work_under_no_grad_and_inference_mode(trained, batch):
    x, y = batch
    settings = {"eps": EPS, "step_size": STEP, "steps": 2}
    expected = tla.pgd(trained, x, y, **settings)
    with torch.no_grad():
        assert torch.equal(tla.pgd(trained, x, y, **settings), expected)


def test_an_empty_batch_gives_an_empty_batch(trained):
    empty = tla.pgd(trained, torch.zeros(0, 1, 28, 28), torch.zeros(0).long(), eps=0.1, step_size=0.1, steps=1)
    assert empty.shape == (0, 1, 28, 28)


# bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"eps": -0.1}, ValueError, "eps must be a finite number, at least 0. Got -0.1"),
        ({"eps": float("nan")}, ValueError, "eps must be a finite number.*Got nan"),
        ({"eps": 8}, ValueError, "eps must be at most 1 for linf.*Got 8; did you mean 8/255?"),
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1. Got 0"),
        ({"norm": "l1"}, ValueError, "norm must be one of linf, l2. Got 'l1'"),
        ({"loss": "hinge"}, ValueError, "loss must be one of ce, margin, dlr. Got 'hinge'"),
        ({"x": torch.rand(40, 28, 28)}, ValueError, r"shape \(n, c, h, w\). Got \(40, 28, 28\)"),
        ({"x": torch.rand(40, 1, 28, 28) * 255}, ValueError, r"must lie in \[0, 1\]. Got values from .* divide by 255"),
        ({"x": torch.full((40, 1, 28, 28), torch.nan)}, ValueError, r"must lie in \[0, 1\]. Got values from nan"),
        ({"x": torch.zeros(40, 1, 28, 28).long()}, TypeError, "uint8 .* or float32 .* Got torch.int64"),
        ({"x": [[1.0]]}, ValueError, r"shape \(n, c, h, w\). Got \(1, 1\)"),
        ({"x": "images"}, TypeError, "a numpy array, or a list of them. Got str"),
        ({"y": torch.zeros(3).long()}, ValueError, r"labels must have the shape \(40,\).*Got \(3,\)"),
        ({"y": torch.full((40,), 10)}, ValueError, r"labels must be in 0..9, since the model has 10 outputs.*label 10"),
        ({"y": torch.full((40,), -1)}, ValueError, "labels must be 0 or more.*-1"),
        ({"y": torch.zeros(40)}, TypeError, "labels must be integers. Got torch.float32"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(trained, batch, changes, error, message):
    x, y = batch
    arguments = {"x": x, "y": y, "eps": 0.1, "step_size": 0.05, "steps": 2, **changes}
    with pytest.raises(error, match=message):
        tla.pgd(trained, arguments.pop("x"), arguments.pop("y"), **arguments)


def test_a_callable_that_returns_something_else_is_refused(trained, batch):
    with pytest.raises(ValueError, match=r"attack must return images of the shape \(40, 1, 28, 28\). Got NoneType"):
        run_attack(lambda model, x, y: None, trained, *batch)


@pytest.mark.parametrize(
    ("threads", "n", "size", "at_once"),
    [
        (1, 1000, 32, 100), (1, 100, 28, 100), (1, 256, 28, 128), (1, 256, 64, 24), (1, 40, 224, 20), (1, 0, 28, 1),
        (2, 1000, 32, 200), (2, 256, 28, 256), (2, 256, 64, 52), (16, 1000, 28, 1000),
    ],
)  # fmt: skip
def test_a_batch_is_split_into_equal_parts_that_fit_the_caches(threads, n, size, at_once, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert images_at_once(torch.empty(n, 3, size, size)) == at_once


def test_a_gpu_gets_the_whole_batch():
    assert images_at_once(torch.empty(5000, 3, 32, 32, device="meta")) == 5000


class SumOfPixels(nn.Module):
    """Class 1 where the pixels add up to more than half of their number."""

    def forward(self, x):
        score = x.sum((1, 2, 3)) - x[0].numel() / 2
        return torch.stack([-score, score], 1)


@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_that_is_one_value_for_all_pixels_is_followed(name, norm):
    x, y = torch.full((3, 1, 4, 4), 0.55), torch.ones(3, dtype=torch.long)
    attack = tla.AttackConfig(name=name, norm=norm, eps=0.1, step_size=0.05, steps=20, random_start=False)
    expected = 0.55 - (0.1 if norm == "linf" else 0.1 / 4)
    torch.testing.assert_close(run_attack(attack, SumOfPixels().eval(), x, y), torch.full_like(x, expected))


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_a_start_must_be_images_in_the_ball(name):
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.ones(3, dtype=torch.long)
    attack = tla.AttackConfig(name=name, eps=0.1, steps=2)
    model = SumOfPixels().eval()
    moved = run_attack(attack, model, x, y, start=(x + 0.1).numpy())
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    with pytest.raises(ValueError, match=r"within eps of the images, 0\.1 in linf\. Got a distance of 0\.2"):
        run_attack(attack, model, x, y, start=x + 0.2)
    with pytest.raises(ValueError, match="shape of the images"):
        run_attack(attack, model, x, y, start=x[:1])
