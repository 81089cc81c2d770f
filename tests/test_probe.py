"""Models of the same weights that are not the same function."""

import numpy as np
import pytest
import torch
from torch import nn

from tla_core.probe import agrees_with_stored, function_identity, is_same, probe

IMAGES = torch.randint(0, 256, (12, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Net(nn.Module):
    def __init__(self, first=lambda x: x, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.first, self.scale = nn.Linear(36, 3), first, scale

    def forward(self, x):
        return self.scale * self.layer(self.first(x).flatten(1))


def rounded(x):
    return torch.round(x * 8) / 8


def passed_through(x):
    return x + (rounded(x) - x).detach()


def test_a_function_is_recognised_also_under_no_grad_and_in_training_mode():
    first, net = probe(Net().train(), IMAGES), Net()
    with torch.no_grad():
        assert is_same(first, probe(net, IMAGES))
    with torch.inference_mode():
        assert is_same(first, probe(net, IMAGES))
    assert first["logits"].shape == (8, 3) and first["gradients"].shape == (8, 1, 6, 6)


@pytest.mark.parametrize(
    ("one", "other"),
    [(Net(), Net(scale=1.1)), (Net(), Net(scale=-1.0)), (Net(), Net(rounded)), (Net(rounded), Net(passed_through))],
)
def test_another_function_of_the_same_weights_is_told_apart(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    assert not is_same(probe(one, IMAGES), probe(other, IMAGES))


def test_a_random_model_is_told_apart_by_what_it_does_from_one_seed():
    weak, strong = (Net(lambda x, size=size: x + size * torch.rand_like(x)) for size in (0.1, 1.0))
    state = torch.get_rng_state()
    assert is_same(probe(weak, IMAGES), probe(weak, IMAGES)) and not is_same(probe(weak, IMAGES), probe(strong, IMAGES))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_is_random_by_other_numbers_is_not_judged():
    rng = np.random.default_rng(0)
    noisy = Net(lambda x: x + torch.from_numpy(rng.random(x.shape, np.float32)))
    assert probe(noisy, IMAGES) == {} and is_same(probe(Net(), IMAGES), {})


def test_the_first_one_is_stored_where_that_is_asked_for(tmp_path):
    path = tmp_path / "probe.safetensors"
    assert agrees_with_stored(path, probe(Net(), IMAGES)) and not path.exists()
    assert agrees_with_stored(path, probe(Net(), IMAGES), keep=True) and path.exists()
    assert not agrees_with_stored(path, probe(Net(scale=2.0), IMAGES), keep=True)
    assert agrees_with_stored(path, probe(Net(), IMAGES))


def test_an_identity_is_that_of_one_function_of_the_same_parts(tmp_path):
    path = tmp_path / "identity.safetensors"
    first = function_identity(path, ["weights"], probe(Net(), IMAGES))
    rounding = {name: tensor + 1e-6 for name, tensor in probe(Net(), IMAGES).items()}
    assert function_identity(path, ["weights"], rounding) == first
    assert function_identity(path, ["others"], probe(Net(), IMAGES)) != first
    assert function_identity(path, ["weights"], probe(Net(scale=2.0), IMAGES)) != first
    path.write_bytes(b"damaged")
    assert function_identity(path, ["weights"], probe(Net(), IMAGES)) == first
