import copy
import json
import warnings

import numpy as np
import pytest
import torch
from tiny import mnist_images, tiny_lenet
from torch import nn
from torchvision.models import resnet18

from analysis.extraction import extract
from tla_core.attack_config import AttackConfig
from tla_core.attacks import pgd
from tla_core.folding import fold_batch_norm

ATTACK = AttackConfig(eps=0.3, step_size=0.1, steps=3)
ARRAYS = ("features", "logits", "predictions", "adv_features", "adv_logits", "adv_predictions", "adv_images", "labels",
          "indices")  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return mnist_images(40)


@pytest.fixture(scope="module")
def model():
    return tiny_lenet()


@pytest.fixture(scope="module")
def whole(model, data):
    return extract(model, data.images, data.labels, attack=ATTACK, class_names=data.class_names)


def assert_same(a, b, names=ARRAYS, atol=0.0):
    for name in names:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol, err_msg=name)
        assert getattr(a, name).dtype == getattr(b, name).dtype


def test_equals_a_hand_written_loop(model, data):
    reps = extract(model, data.images, data.labels, attack=ATTACK, batch_size=40, fold=False)
    x, y = data.images.float() / 255, data.labels
    x_adv = pgd(model, x, y, eps=0.3, step_size=0.1, steps=3)
    for kind, images in (("", x), ("adv_", x_adv)):
        with torch.no_grad():
            hidden = model.hidden(model.features(images))
            logits = model.classifier(hidden)
        np.testing.assert_array_equal(getattr(reps, f"{kind}features"), hidden)
        np.testing.assert_array_equal(getattr(reps, f"{kind}logits"), logits)
        np.testing.assert_array_equal(getattr(reps, f"{kind}predictions"), logits.argmax(1))
    np.testing.assert_array_equal(reps.adv_images, x_adv)
    np.testing.assert_array_equal(reps.labels, y)
    np.testing.assert_array_equal(reps.indices, np.arange(40))
    assert reps.features.dtype == reps.adv_images.dtype == np.float32 and reps.features.shape == (40, 64)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_batch_size_changes_nothing(model, data, whole, batch_size):
    reps = extract(model, data.images, data.labels, attack=ATTACK, class_names=data.class_names, batch_size=batch_size)
    # Convolutions of another batch size may add up in another order: rounding, and a sign of a gradient in a thousand.
    assert_same(reps, whole, ("features", "logits", "predictions"), atol=1e-5)
    assert_same(reps, whole, ("adv_predictions", "labels", "indices"))
    assert (np.abs(reps.adv_images - whole.adv_images) > 1e-6).mean() < 1e-3


def test_indices_steer_the_random_start(model, data, whole):
    rows = np.array([3, 17, 18, 39])
    part = extract(model, data.images[rows], data.labels[rows], attack=ATTACK, indices=rows)
    elsewhere = extract(model, data.images[rows], data.labels[rows], attack=ATTACK)
    expected = whole.subset(rows)
    np.testing.assert_array_equal(part.indices, rows)
    np.testing.assert_array_equal(part.adv_predictions, expected.adv_predictions)
    assert (np.abs(part.adv_images - expected.adv_images) > 1e-6).mean() < 1e-3
    assert (np.abs(elsewhere.adv_images - expected.adv_images) > 1e-6).mean() > 0.1


def test_the_generators_seed_steers_the_random_start(model, data, whole):
    def with_seed(seed):
        generator = torch.Generator().manual_seed(seed)
        return extract(model, data.images, data.labels, attack=ATTACK, generator=generator).adv_images

    np.testing.assert_array_equal(with_seed(0), whole.adv_images)
    assert (with_seed(1) != whole.adv_images).mean() > 0.1


def test_an_attack_may_be_a_callable(model, data):
    seen = []

    def brighter(model, x, y):
        seen.append((model.training, x.dtype, len(x), len(y)))
        return (x + 0.1).clamp(0, 1)

    reps = extract(model, data.images, data.labels, attack=brighter, batch_size=16)
    np.testing.assert_array_equal(reps.adv_images, (data.images / 255 + 0.1).clamp(0, 1))
    assert seen == [(False, torch.float32, 16, 16)] * 2 + [(False, torch.float32, 8, 8)]
    assert reps.meta["attack"]["name"].endswith("brighter")
    without_start = AttackConfig(name="bim", eps=0.3, step_size=0.1, steps=3)
    wrapped = extract(
        model, data.images, data.labels, fold=False,
        attack=lambda m, x, y: pgd(m, x, y, eps=0.3, step_size=0.1, steps=3, random_start=False),
    )  # fmt: skip
    assert_same(wrapped, extract(model, data.images, data.labels, attack=without_start, fold=False))


@pytest.mark.parametrize("kind", ["uint8 numpy", "float32 numpy", "float32 torch", "read-only numpy", "int32 labels"])
def test_every_kind_of_image_gives_the_same(model, data, whole, kind):
    images, labels = data.images, data.labels
    if kind == "uint8 numpy":
        images, labels = images.numpy(), labels.numpy()
    elif kind == "float32 numpy":
        images = images.numpy().astype(np.float32) / 255
    elif kind == "float32 torch":
        images = images.float() / 255
    elif kind == "read-only numpy":
        images = images.numpy().copy()
        images.flags.writeable = False
    else:
        labels = labels.int()
    before = copy.deepcopy(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reps = extract(model, images, labels, attack=ATTACK)
    assert_same(reps, whole)
    np.testing.assert_array_equal(images, before)


def test_any_module_works():
    torch.manual_seed(0)
    model = resnet18(num_classes=4).eval()
    images = np.random.default_rng(0).integers(0, 256, size=(3, 3, 32, 32), dtype=np.uint8)
    attack = AttackConfig(steps=1)
    reps = extract(model, images, np.array([0, 1, 3]), attack=attack)
    assert reps.features.shape == reps.adv_features.shape == (3, 512) and reps.logits.shape == (3, 4)
    assert reps.class_names == ("0", "1", "2", "3")
    spatial = extract(model, images, np.array([0, 1, 3]), layer="layer1.0.conv1")
    assert spatial.features.shape == (3, 64 * 8 * 8)


def test_no_adversarial_part_without_an_attack(model, data):
    reps = extract(model, data.images, data.labels)
    assert all(getattr(reps, name) is None for name in ARRAYS if name.startswith("adv_"))
    assert reps.robust_accuracy is None and reps.accuracy is not None and reps.meta["attack"] is None


def test_a_model_in_training_mode_draws_a_warning_and_is_left_as_it_was(data):
    model = tiny_lenet()
    model.train()
    model.features[1].eval()
    model.classifier.bias.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with pytest.warns(
        UserWarning, match="the model is in training mode: its representations are taken in eval mode"
    ) as r:
        reps = extract(model, data.images, data.labels, attack=ATTACK)
    assert len(r) == 1 and r[0].filename == __file__
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [p is not model.classifier.bias for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
    assert_same(reps, extract(model.eval(), data.images, data.labels, attack=ATTACK))


def test_a_model_is_left_as_it_was_after_an_error(data):
    model = tiny_lenet()
    with pytest.raises(ZeroDivisionError):
        extract(model, data.images, data.labels, attack=lambda m, x, y: x / 0 if m.training else 1 // 0)
    assert all(p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_folding_changes_hardly_anything(model, data, whole):
    unfolded = extract(model, data.images, data.labels, attack=ATTACK, class_names=data.class_names, fold=False)
    assert_same(unfolded, whole, ("features", "logits", "predictions", "labels"))
    assert (unfolded.adv_predictions == whole.adv_predictions).mean() >= 0.95
    assert np.abs(unfolded.adv_images - whole.adv_images).max() <= 2 * 0.3 + 1e-6


class OptionalPart(nn.Module):
    """As many networks are written: a submodule that may be None."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.register_module("shortcut", None)

    def forward(self, x):
        return self.body(x) if self.shortcut is None else self.body(x) + self.shortcut(x)


class OwnForward(nn.Sequential):
    """A Sequential that does not run its children one after the other."""

    def forward(self, x):
        return self[0](x) + self[1](x[:, :1].repeat(1, 4, 1, 1))[:, :, 1:-1, 1:-1]


def one_relu_for_all():
    relu = nn.ReLU()
    first, second = (nn.Sequential(nn.Conv2d(c, 4, 3), nn.BatchNorm2d(4)) for c in (1, 4))
    return nn.Sequential(*first, relu, *second, relu)


@pytest.mark.parametrize(
    "make", [one_relu_for_all, OptionalPart, lambda: OwnForward(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))]
)
def test_folding_keeps_every_network_what_it_is(make, data):
    """A layer lost in folding would make the attack weaker and the model seem robust, silently."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        model(data.images / 255)
    model.eval()
    torch.testing.assert_close(
        fold_batch_norm(model)(data.images / 255), model(data.images / 255), rtol=1e-4, atol=1e-5
    )


def test_layer_and_attack_are_recorded(model, data, whole):
    assert whole.meta == {"layer": "penultimate", "read_from": "the input of classifier", "attack": {
        "name": "pgd", "norm": "linf", "eps": 0.3, "step_size": 0.1, "steps": 3, "restarts": 1, "random_start": True,
        "loss": "ce", "momentum": 0.0,
    }}  # fmt: skip
    reps = extract(model, data.images, data.labels, layer="lower", meta={"model": "mine"})
    read_from = "the output of features.4, (4, 28, 28) flattened"
    assert reps.meta == {"layer": "lower", "read_from": read_from, "attack": None, "model": "mine"}
    assert reps.class_names == tuple("0123456789") == whole.class_names
    json.dumps(whole.meta)


def test_the_layer_is_the_one_asked_for(model, data):
    by_name = {layer: extract(model, data.images, data.labels, layer=layer) for layer in ("logits", "middle")}
    np.testing.assert_array_equal(by_name["logits"].features, by_name["logits"].logits)
    assert by_name["middle"].features.shape == (40, 16 * 14 * 14)


def test_several_layers_take_one_pass(model, data, whole):
    calls = []

    def attack(m, x, y):
        calls.append(len(x))
        return pgd(m, x, y, eps=0.3, step_size=0.1, steps=3)

    layers = ["middle", "penultimate", "logits", "features.4:mean"]
    sets = extract(model, data.images, data.labels, layer=layers, attack=attack, batch_size=20)
    assert list(sets) == layers and calls == [20, 20]
    for layer, reps in sets.items():
        alone = extract(model, data.images, data.labels, layer=layer, attack=attack, batch_size=20)
        assert_same(reps, alone)
        assert reps.meta == alone.meta and reps.meta["layer"] == layer
    assert sets["features.4:mean"].meta["read_from"] == "the output of features.4, mean over 28 x 28 of (4, 28, 28)"
    with pytest.raises(ValueError, match="layer must name at least one layer"):
        extract(model, data.images, data.labels, layer=[])


def test_what_a_name_leaves_open_is_said(data):
    relu = nn.ReLU()
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 10)).eval()
    with pytest.warns(UserWarning, match=r"layer '2' runs 2 times .* the names of its calls are 2#1 to 2#2") as caught:
        extract(model, data.images, data.labels, layer="2")
    assert caught[0].filename == __file__
    rows = nn.Sequential(nn.Flatten(1, 2), nn.Linear(28, 4), nn.Flatten(), nn.Linear(112, 10)).eval()
    with pytest.warns(UserWarning, match="layer '1' gives 28 tokens for each image, flattened to 112 numbers: 1:cls"):
        extract(rows, data.images, data.labels, layer="1")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"images": np.zeros((2, 1, 28, 28), np.int32)},
            TypeError,
            r"uint8 in 0\.\.255 or float32 in \[0, 1\]\. Got torch\.int32",
        ),
        (
            {"images": np.full((2, 1, 28, 28), 7, np.float32)},
            ValueError,
            r"must lie in \[0, 1\]\. Got values from 7 to 7",
        ),
        (
            {"images": np.full((2, 1, 28, 28), np.nan, np.float32)},
            ValueError,
            r"must lie in \[0, 1\]\. Got values from nan",
        ),
        ({"images": np.zeros((1, 28, 28), np.uint8)}, ValueError, r"shape \(n, c, h, w\)\. Got \(1, 28, 28\)"),
        ({"images": [[0.0]]}, ValueError, r"shape \(n, c, h, w\)\. Got \(1, 1\)"),
        ({"images": np.zeros((0, 1, 28, 28), np.uint8), "labels": np.zeros(0, int)}, ValueError, "at least one image"),
        ({"labels": np.array([0, 1, 2])}, ValueError, r"labels must have the shape \(2,\).* Got \(3,\)"),
        ({"labels": np.array([0.0, 1.0])}, TypeError, "labels must be integers. Got torch.float64"),
        ({"labels": np.array([0, -1])}, ValueError, "labels must be 0 or more. Got labels from -1 to 0"),
        (
            {"labels": np.array([0, 10])},
            ValueError,
            r"labels must be in 0\.\.9, since the model has 10 outputs.* label 10",
        ),
        ({"class_names": ("a",)}, ValueError, r"labels must be in 0\.\.0, since there are 1 classes"),
        ({"layer": "lowest"}, ValueError, "no layer 'lowest'. The nearest names are: .*lower"),
        ({"indices": np.array([0, 1, 2])}, ValueError, r"indices must have the shape \(2,\).* Got \(3,\)"),
        ({"indices": np.array([0.0, 1.0])}, TypeError, "indices must be integers. Got torch.float64"),
        ({"batch_size": 0}, ValueError, r"batch_size must be a whole number of at least 1\. Got 0"),
        ({"batch_size": -5}, ValueError, r"batch_size must be a whole number of at least 1\. Got -5"),
        ({"batch_size": 2.5}, ValueError, r"batch_size must be a whole number of at least 1\. Got 2\.5"),
        ({"attack": lambda m, x, y: x[:1]}, ValueError, r"must return images of the shape \(2, 1, 28, 28\)\. Got \(1,"),
        ({"attack": lambda m, x, y: x + 1}, ValueError, r"float images must lie in \[0, 1\]"),
        ({"attack": lambda m, x, y: x.long()}, TypeError, r"Got torch\.int64"),
        ({"attack": lambda m, x, y: None}, ValueError, "Got NoneType"),
    ],
)
def test_refuses(model, changes, error, message):
    arguments = {"images": np.full((2, 1, 28, 28), 9, np.uint8), "labels": np.array([0, 1])} | changes
    with pytest.raises(error, match=message):
        extract(model, arguments.pop("images"), arguments.pop("labels"), **arguments)


def test_nan_features_are_refused(data):
    model = tiny_lenet()
    with torch.no_grad():
        model.hidden[0].weight[3, 5] = torch.nan
    with pytest.raises(
        ValueError, match=r"features must be finite\. Got NaN or infinity in 40 of 40 rows, the first is row 0"
    ):
        extract(model, data.images, data.labels)


def test_a_model_that_returns_no_logits_is_refused(data):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"must return logits of the shape \(2, classes\)\. Got \(2, 2, 26, 26\)"):
        extract(model.eval(), data.images, data.labels, layer="0")
