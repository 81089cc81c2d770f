"""Clean and robust accuracy."""

import pytest
import torch
from torch import nn

import tla_core as tla
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


def test_autoattack_runs_as_a_callable():
    """The `robustness` extra: a callable wraps any other library's attack."""
    pyautoattack = pytest.importorskip("pyautoattack")

    def autoattack(model, x, y):
        adversary = pyautoattack.AutoAttack(model, eps=0.1, version="custom", attacks=["square"], seed=0)
        adversary.square.n_queries = 50
        return adversary.run_standard_evaluation(x, y, batch_size=16)[0]

    result = tla.evaluate(Threshold().eval(), IMAGES, LABELS, {"AA": autoattack})
    assert result.correct["AA"].tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"attacks": {"clean": ATTACK}}, ValueError, "cannot be called 'clean'"),
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
