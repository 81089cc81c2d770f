"""The Square attack: as strong as the authors' code in `pyautoattack`, in its ball, the same for each image alone."""

import pytest
import torch
from tiny import classified_right, trained
from torch import nn

import tla_core as tla
from tla_core.attacks import run_attack
from tla_core.random_search import _patterns

# Sizes at which half of the images or so hold out to the end.
SIZES = {"linf": 0.06, "l2": 1.2}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return trained(nn.Sequential(nn.Flatten(), nn.Linear(784, 48), nn.Tanh(), nn.Linear(48, 10)))


@pytest.fixture(scope="module")
def batch(model):
    return classified_right(model, 300)


def square(norm="linf", **changes):
    return tla.AttackConfig(**{"name": "square", "norm": norm, "eps": SIZES[norm], "steps": 300, **changes})


def holds(model, x_adv, y):
    return model(x_adv).argmax(1) == y


@pytest.mark.parametrize("norm", SIZES)
def test_it_breaks_as_many_as_the_published_code(model, batch, norm):
    published = pytest.importorskip("pyautoattack.square").SquareAttack
    x, y = batch
    with torch.no_grad(), torch.random.fork_rng():
        peers = [
            published(
                model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=SIZES[norm], n_queries=300, seed=seed, device="cpu"
            ).perturb(x, y)
            for seed in range(3)
        ]
    theirs = torch.stack([holds(model, each, y) for each in peers]).double().mean(1)
    ours = torch.stack([
        holds(model, run_attack(square(norm), model, x, y, generator=torch.Generator().manual_seed(seed)), y)
        for seed in range(3)
    ]).double().mean(1)  # fmt: skip
    assert 0.2 < theirs.mean() < 0.8
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.025)  # seeds differ by about 0.01


@pytest.mark.parametrize("norm", SIZES)
def test_more_queries_never_undo_and_break_more(model, batch, norm):
    x, y = batch
    left = [holds(model, run_attack(square(norm, steps=steps), model, x, y), y).sum() for steps in (1, 20, 300)]
    assert left[0] > left[1] > left[2]
    apgd = run_attack(tla.AttackConfig(name="apgd", norm=norm, eps=SIZES[norm]), model, x, y)
    assert left[2] >= holds(model, apgd, y).sum()


@pytest.mark.parametrize("norm", SIZES)
def test_an_image_has_the_same_search_in_any_company_and_another_by_another_seed(model, batch, norm):
    x, y = batch
    rows = torch.arange(len(x))
    whole = run_attack(square(norm, steps=40), model, x, y, indices=rows)
    part = run_attack(square(norm, steps=40), model, x[50:60], y[50:60], indices=rows[50:60])
    torch.testing.assert_close(whole[50:60], part, rtol=0, atol=1e-6)
    other = run_attack(square(norm, steps=40), model, x, y, generator=torch.Generator().manual_seed(1))
    assert (other != whole).flatten(1).any(1).float().mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 4, 9), (3, 6, 5), (1, 28, 28)])
@pytest.mark.parametrize("norm", SIZES)
def test_it_stays_in_the_ball_on_images_of_any_size(norm, shape):
    images = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 3))
    # A constant says that every image is right, so that no search ends early.
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0, 0]))
    attack = square(norm, eps=0.4, steps=30)
    x_adv = run_attack(attack, model.eval(), images, torch.zeros(8, dtype=torch.long))
    order = float("inf") if norm == "linf" else 2
    distance = torch.linalg.vector_norm((x_adv - images).flatten(1), order, dim=1)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert distance.max() <= 0.4 * (1 + 1e-5) and distance.min() > 0.1


def test_a_pattern_is_two_opposite_hills_of_norm_one():
    upright, turned = _patterns(7, torch.tensor([0.2, 0.7]))
    assert torch.equal(turned, upright.T) and upright.norm().item() == pytest.approx(1)
    assert (upright[:3] > 0).any() and (upright[:3] >= 0).all() and (upright[3:] <= 0).all()


def test_outputs_that_are_not_finite_end_the_search(batch):
    x, y = batch
    seen = []

    class Spoilt(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            return torch.full((len(images), 10), torch.nan)

    run_attack(square(), Spoilt().eval(), x, y)
    assert sum(seen) <= len(x) + 2  # the first candidates, and two images that show what the model returns


@pytest.mark.parametrize("changes", [{"momentum": 0.5}, {"targets": 2}], ids=str)
def test_settings_that_a_random_search_has_not_are_refused(changes):
    with pytest.raises(ValueError, match="momentum and targets must be 0 for square"):
        square(**changes)


def test_a_start_is_refused(model, batch):
    with pytest.raises(ValueError, match="start must be None for a random search"):
        run_attack(square(), model, *batch, start=batch[0])


def test_an_evaluation_has_it_beside_gradient_attacks(model, batch):
    x, y = batch
    attacks = {"PGD": tla.AttackConfig(eps=0.06, step_size=0.01, steps=10), "Square": square(steps=100)}
    found = tla.evaluate(model, x, y, attacks)
    assert found.accuracy["PGD"] < found.accuracy["Square"] < 1
    ascent = found.checks["Square"]["ascent"]
    assert ascent.passed is None and "no gradients" in ascent.message
    assert found.checks["Square"]["transfer"].passed and "black_box" not in found.checks["Square"]
    assert "Square, 100 queries, eps 0.06 (linf)" == str(attacks["Square"])
