import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import mnist_images, tiny_lenet
from torch import nn

from analysis import landscape as landscapes_module
from analysis.landscape import (
    Landscape,
    filter_directions,
    input_landscape,
    load_landscapes,
    save_landscapes,
    weight_landscape,
)
from analysis.representations import RepresentationSet
from tla_core import chunks
from tla_core.attacks import fgsm
from tla_core.checkpoint import CheckpointError

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # folded batch norm rounds in another way


def steep_lenet(seed=0):
    """An untrained network says much the same everywhere: whole statistics and large logits give it some relief."""
    model = tiny_lenet(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # an average over all batches, of which there is one
    with torch.no_grad():
        model.train()(mnist_images(64).images / 255)
        model.classifier.weight *= 5
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return steep_lenet()


@pytest.fixture(scope="module")
def data():
    return mnist_images(24)


def around(model, data, **changes):
    settings = {"radius": 0.3, "resolution": 5} | changes
    return input_landscape(model, data.images[0], data.labels[0], **settings)


def naive_input_loss(model, x, y, axis, directions):
    """One point after the other, in float64, unfolded."""
    model, x = copy.deepcopy(model).double().eval(), torch.as_tensor(x).double() / 255
    d0, d1 = (torch.as_tensor(d).double() for d in directions)
    loss = np.empty((len(axis), len(axis)))
    for i, a in enumerate(axis):
        for j, b in enumerate(axis):
            with torch.no_grad():
                loss[i, j] = F.cross_entropy(model((x + a * d0 + b * d1)[None]), torch.tensor([int(y)])).item()
    return loss


def naive_weight_loss(model, images, labels, axis, directions):
    loss = np.empty((len(axis), len(axis)))
    for i, a in enumerate(axis):
        for j, b in enumerate(axis):
            moved = copy.deepcopy(model).double().eval()
            with torch.no_grad():
                for name, parameter in moved.named_parameters():
                    d0, d1 = torch.as_tensor(directions[name]).double()
                    parameter += a * d0 + b * d1
                terms = [
                    F.cross_entropy(moved(x[None].double() / 255), y[None]).item()
                    for x, y in zip(images, labels, strict=True)
                ]
            loss[i, j] = sum(terms) / len(terms)
    return loss


def assert_same(a, b):
    assert (a.centre_loss, a.space, a.params) == (b.centre_loss, b.space, b.params)
    assert type(a.directions) is type(b.directions)
    pairs = [(a.loss, b.loss), (a.axis, b.axis)]
    if isinstance(a.directions, dict):
        assert set(a.directions) == set(b.directions)
        pairs += [(a.directions[name], b.directions[name]) for name in a.directions]
    else:
        pairs.append((a.directions, b.directions))
    for x, y in pairs:
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


# Around an image ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [None, "gradient"])
@pytest.mark.parametrize("resolution", [2, 5])
def test_the_grid_is_that_of_a_loop_over_its_points(model, data, directions, resolution):
    found = around(model, data, resolution=resolution, directions=directions)
    expected = naive_input_loss(model, data.images[0], data.labels[0], found.axis, found.directions)
    assert found.loss.shape == (resolution, resolution) and found.loss.dtype == np.float32
    assert np.ptp(expected) > 0.05  # a flat landscape would say nothing
    np.testing.assert_allclose(found.loss, expected, **TOLERANCE)


def test_the_points_leave_the_range_of_images(model, data):
    found = around(model, data, radius=3.0, resolution=3)
    expected = naive_input_loss(model, data.images[0], data.labels[0], found.axis, found.directions)
    np.testing.assert_allclose(found.loss, expected, **TOLERANCE)


def test_the_centre_is_the_image_itself(model, data):
    with torch.no_grad():
        expected = F.cross_entropy(model(data.images[:1] / 255), data.labels[:1]).item()
    for resolution in (4, 5, 21):
        found = around(model, data, resolution=resolution)
        assert found.centre_loss == pytest.approx(expected, rel=1e-4)
        if resolution % 2:
            assert found.axis[resolution // 2] == 0
            assert found.loss[resolution // 2, resolution // 2] == pytest.approx(found.centre_loss, rel=1e-5)


@pytest.mark.parametrize("resolution", [2, 7, 50])
def test_the_axis_is_symmetric_and_ends_at_the_radius(model, data, resolution):
    axis = around(model, data, radius=0.1, resolution=resolution).axis
    assert (axis[0], axis[-1]) == (-0.1, 0.1)
    np.testing.assert_array_equal(axis, -axis[::-1])
    np.testing.assert_allclose(axis, np.linspace(-0.1, 0.1, resolution), atol=1e-16)


def test_random_directions_depend_on_shape_and_random_state_alone(model, data):
    found = around(model, data)
    other = input_landscape(steep_lenet(1), data.images[3], data.labels[3], radius=1, resolution=3)
    np.testing.assert_array_equal(found.directions, other.directions)
    np.testing.assert_array_equal(np.abs(found.directions).max(axis=(1, 2, 3)), [1, 1])
    assert found.directions.shape == (2, 1, 28, 28) and found.directions.dtype == np.float32
    assert not np.array_equal(found.directions, around(model, data, random_state=1).directions)
    assert abs(np.corrcoef(found.directions.reshape(2, -1))[0, 1]) < 0.2


def test_given_directions_are_used_as_they_are(model, data):
    rng = np.random.default_rng(0)
    given = rng.normal(size=(2, 1, 28, 28)).astype(np.float32)
    found = around(model, data, directions=(given[0], torch.tensor(given[1])))
    np.testing.assert_array_equal(found.directions, given)
    assert_same(found, around(model, data, directions=given))
    swapped = around(model, data, directions=given[::-1].copy())
    np.testing.assert_allclose(swapped.loss, found.loss.T, rtol=1e-5)


def test_along_the_gradient_the_loss_rises_from_the_image(model, data):
    for index in range(5):
        found = input_landscape(
            model, data.images[index], data.labels[index], radius=0.01, resolution=5, directions="gradient"
        )
        assert (np.diff(found.loss[:, 2]) > 0).all()
        assert np.ptp(found.loss[:, 2]) > 2 * np.ptp(found.loss[2])
    x = data.images[:1].float() / 255
    stepped = fgsm(model, x, data.labels[:1], eps=0.01)
    found = around(model, data, directions="gradient")
    inside = (x > 0.01) & (x < 0.99)
    moved = x + 0.01 * torch.tensor(found.directions[0])
    np.testing.assert_allclose(moved[inside], stepped[inside], atol=1e-6)


def test_beside_the_gradient_all_models_share_random_signs(model, data):
    found, other = (around(each, data, directions="gradient").directions for each in (model, steep_lenet(1)))
    assert set(np.unique(found[1])) == {-1, 1}
    np.testing.assert_array_equal(found[1], other[1])
    assert not np.array_equal(found[0], other[0])


def test_bytes_and_floats_arrays_and_tensors_give_the_same(model, data):
    expected = around(model, data)
    byte_image = data.images[0]
    for x in (byte_image.numpy(), byte_image.float() / 255, (byte_image.float() / 255).numpy()):
        assert_same(input_landscape(model, x, int(data.labels[0]), radius=0.3, resolution=5), expected)


def test_blocks_do_not_change_the_losses(model, data, monkeypatch):
    whole = around(model, data, resolution=7)
    sizes = []
    monkeypatch.setattr(chunks, "CPU_CHUNK_PIXELS", 28 * 28)
    monkeypatch.setattr(
        landscapes_module, "folded_if_equal", lambda m, x: lambda points: sizes.append(len(points)) or m(points)
    )
    parts = around(model, data, resolution=7)
    np.testing.assert_allclose(parts.loss, whole.loss, **TOLERANCE)
    assert len(sizes) > 3 and max(sizes) <= 17


def test_images_in_colour_and_other_sizes(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, 5)).eval()
    x = np.random.default_rng(0).integers(0, 256, (3, 4, 6), dtype=np.uint8)
    found = input_landscape(model, x, 4, radius=0.5, resolution=3)
    np.testing.assert_allclose(found.loss, naive_input_loss(model, x, 4, found.axis, found.directions), **TOLERANCE)


# Around weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [256, 5])
def test_the_grid_of_weights_is_that_of_a_loop_over_its_points(model, data, batch_size):
    found = weight_landscape(model, data.images[:12], data.labels[:12], radius=0.5, resolution=3, batch_size=batch_size)
    expected = naive_weight_loss(model, data.images[:12], data.labels[:12], found.axis, found.directions)
    np.testing.assert_allclose(found.loss, expected, **TOLERANCE)
    assert found.loss[1, 1] == pytest.approx(found.centre_loss, rel=1e-6)
    assert np.ptp(expected) > 0.1


def test_filters_of_a_direction_are_as_long_as_the_models_and_biases_stay(model):
    directions = filter_directions(model, random_state=3)
    assert set(directions) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for direction in directions[name]:
            assert direction.shape == parameter.shape
            if parameter.ndim == 1:
                assert not direction.any()
            else:
                lengths = np.linalg.norm(direction.reshape(len(direction), -1), axis=1)
                np.testing.assert_allclose(lengths, parameter.detach().flatten(1).norm(dim=1), rtol=1e-5)
        assert parameter.ndim == 1 or not np.allclose(*directions[name])


def test_directions_of_weights_are_drawn_alike_for_models_of_one_architecture(model):
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.classifier.weight *= 2
    a, b = filter_directions(model), filter_directions(scaled)
    np.testing.assert_allclose(b["classifier.weight"], 2 * a["classifier.weight"], rtol=1e-5)
    np.testing.assert_array_equal(a["features.0.weight"], b["features.0.weight"])
    assert not np.array_equal(a["features.0.weight"], filter_directions(model, 1)["features.0.weight"])


def test_given_directions_of_weights_move_only_what_they_name(model, data):
    step = np.random.default_rng(0).normal(size=model.classifier.bias.shape).astype(np.float32)
    given = ({"classifier.bias": step}, {"classifier.bias": torch.tensor(2 * step)})
    found = weight_landscape(model, data.images, data.labels, resolution=3, directions=given)
    moving = {name for name, array in found.directions.items() if array.any()}
    assert moving == {"classifier.bias"}
    expected = naive_weight_loss(model, data.images, data.labels, found.axis, found.directions)
    np.testing.assert_allclose(found.loss, expected, **TOLERANCE)


def test_a_filter_of_zeros_has_a_direction_of_zeros():
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    assert not filter_directions(layer)["weight"][:, 1].any()


# What they leave alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["input", "gradient", "weights"])
def test_the_model_the_images_and_the_random_state_are_as_before(function, data):
    model = steep_lenet()
    model.features[1].eval()
    model.classifier.weight.requires_grad_(False)
    model.hidden[0].weight.grad = torch.ones_like(model.hidden[0].weight)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    images, random_state = data.images.clone(), torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    if function == "weights":
        weight_landscape(model, data.images, data.labels, resolution=2)
    else:
        around(model, data, directions=None if function == "input" else function)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert (model.hidden[0].weight.grad == 1).all() and model.features[0].weight.grad is None
    assert torch.equal(images, data.images) and torch.equal(random_state, torch.random.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_a_model_in_training_mode_is_looked_at_in_eval_mode_with_a_warning(data):
    model = steep_lenet()
    expected = around(model, data), weight_landscape(model, data.images, data.labels, resolution=2)
    before = copy.deepcopy(model.state_dict())
    model.train()
    with pytest.warns(UserWarning, match="in training mode: its losses are taken in eval mode"):
        assert_same(around(model, data), expected[0])
    with pytest.warns(UserWarning, match="in training mode"):
        assert_same(weight_landscape(model, data.images, data.labels, resolution=2), expected[1])
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# What they are --------------------------------------------------------------------------------------------------------


def test_save_and_load_round_trip(model, data, tmp_path):
    saved = {
        f"at/{k}": input_landscape(model, data.images[k], data.labels[k], radius=0.1, resolution=2) for k in range(11)
    }
    saved["weights"] = weight_landscape(model, data.images, data.labels, resolution=2)
    save_landscapes(tmp_path / "landscapes", saved, {"checkpoint_sha256": "abc"})
    loaded = load_landscapes(tmp_path / "landscapes")
    assert list(loaded) == list(saved)
    for name, found in saved.items():
        assert_same(loaded[name], found)


def test_files_of_another_kind_and_altered_ones_are_refused(model, data, tmp_path):
    path = tmp_path / "reps"
    RepresentationSet.from_arrays(np.ones((2, 3)), [0, 1]).save(path)
    with pytest.raises(CheckpointError, match=r"holds no landscapes\. Got the kind 'representations'"):
        load_landscapes(path)
    save_landscapes(path, {"at": around(model, data)}, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        load_landscapes(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_landscapes(tmp_path / "nothing")


def test_repr_range_and_rise():
    loss = np.array([[0.5, 2.0], [0.25, 1.0]], dtype=np.float32)
    found = Landscape(loss, np.array([-0.3, 0.3]), np.ones((2, 1, 4, 4)), 0.75, "input", {})
    assert found.range == (0.25, 2.0) and found.rise == 1.25
    text = "Landscape(input, 2 x 2 points, radius 0.3, loss 0.75 at the centre, 0.25 to 2 over the grid)"
    assert repr(found) == text
    broken = dataclasses.replace(found, loss=np.where(loss > 1, np.nan, loss))
    assert broken.range == (0.25, 1.0)
    assert repr(broken).endswith("0.25 to 1 over the grid, NaN or infinity at 1 of 4 points)")
    assert np.isnan(dataclasses.replace(found, loss=loss * np.nan).rise)


def test_a_model_that_breaks_down_gives_nan_and_its_repr_says_so(data):
    class Broken(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum((1, 2, 3)) * torch.nan, x.sum((1, 2, 3))], 1)

    found = input_landscape(Broken().eval(), data.images[0], 0, radius=0.1, resolution=3)
    assert np.isnan(found.loss).all() and "NaN or infinity at 9 of 9 points" in repr(found)


# What they refuse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [0, 1, -3, 2.5, True, "10"])
def test_a_resolution_must_span_a_grid(model, data, resolution):
    with pytest.raises(ValueError, match=r"points along an axis, must be a whole number of at least 2\. Got"):
        around(model, data, resolution=resolution)
    with pytest.raises(ValueError, match="resolution, the number of points along an axis, must be"):
        weight_landscape(model, data.images, data.labels, resolution=resolution)


@pytest.mark.parametrize("radius", [0, -0.1, float("nan"), float("inf"), "0.1", True])
def test_a_radius_must_be_finite_and_above_0(model, data, radius):
    with pytest.raises(ValueError, match=r"radius must be a finite number, more than 0\. Got"):
        around(model, data, radius=radius)


def test_x_must_be_one_image(model, data):
    settings = {"radius": 0.1, "resolution": 2}
    with pytest.raises(ValueError, match=r"one image \(c, h, w\)\. Got the shape \(24, 1, 28, 28\); of a batch take"):
        input_landscape(model, data.images, 0, **settings)
    with pytest.raises(ValueError, match=r"Got the shape \(28, 28\)"):
        input_landscape(model, data.images[0, 0], 0, **settings)
    with pytest.raises(TypeError, match=r"x must be a torch tensor, a numpy array or a list.* Got str"):
        input_landscape(model, "image.png", 0, **settings)
    with pytest.raises(ValueError, match=r"float images must lie in \[0, 1\]\. Got values from 0 to 255"):
        input_landscape(model, data.images[0].float(), 0, **settings)


def test_y_must_be_one_class_of_the_model(model, data):
    settings = {"radius": 0.1, "resolution": 2}
    with pytest.raises(ValueError, match=r"since the model has 10 outputs\. Got the label 10"):
        input_landscape(model, data.images[0], 10, **settings)
    with pytest.raises(ValueError, match="y must be 0 or more"):
        input_landscape(model, data.images[0], -1, **settings)
    with pytest.raises(TypeError, match=r"y must be integers\. Got torch\.float64"):
        input_landscape(model, data.images[0], 1.0, **settings)
    with pytest.raises(ValueError, match=r"y must be one class.* Got the shape \(24,\); of a batch take y\[0\]"):
        input_landscape(model, data.images[0], data.labels, **settings)


ONES = np.ones((1, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ((ONES, ONES[:, 1:]), r"direction 1 must have the shape \(1, 28, 28\)\. Got \(1, 27, 28\)"),
        ((ONES * 0, ONES), "direction 0 is zero everywhere; expected one that leads somewhere"),
        ((ONES, ONES * np.nan), "direction 1 holds NaN or infinity; expected finite numbers"),
        ((ONES,), r"directions must be None, 'gradient' or a pair of arrays\. Got 1 of them"),
        ("random", r"directions must be None, 'gradient' or a pair of arrays\. Got 'random'"),
    ],
)
def test_directions_must_lead_somewhere(model, data, directions, message):
    with pytest.raises(ValueError, match=message):
        around(model, data, directions=directions)


def test_a_gradient_of_zero_is_no_direction(data):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 10)

    class Rounded(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10].round()

    for model in (Constant(), Rounded()):
        with pytest.raises(ValueError, match=r"no gradient at x.* pass directions=None for random ones"):
            around(model.eval(), data, directions="gradient")


@pytest.mark.parametrize("random_state", [-1, 0.5, None, True])
def test_a_random_state_must_be_a_whole_number(model, data, random_state):
    with pytest.raises(ValueError, match=r"random_state must be a whole number of at least 0\. Got"):
        around(model, data, random_state=random_state)


def test_a_model_must_return_logits(data):
    class Pair(nn.Module):
        def forward(self, x):
            return x.flatten(1), -x.flatten(1)

    for function in (around, lambda m, d, **_: weight_landscape(m, d.images, d.labels, resolution=2)):
        with pytest.raises(ValueError, match=r"which of .* are the logits .* returned tuple of 0: \(\d, 784\)"):
            function(Pair().eval(), data)
        with pytest.raises(ValueError, match=r"logits of the shape \((\d), classes\)\. Got \(\1, 1, 28, 28\)"):
            function(nn.Identity().eval(), data)


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        (({"classifier.bias": np.ones(10)}, {"nothing": np.ones(1)}), "name 'nothing', which is no parameter"),
        (({"classifier.bias": np.ones(9)}, {"classifier.bias": np.ones(10)}), r"shape \(10,\)\. Got \(9,\)"),
        (({}, {"classifier.bias": np.ones(10)}), "a direction is empty; expected at least one parameter"),
        ((ONES, ONES), r"must be a pair of mappings, parameter name -> array\. Got ndarray, ndarray"),
    ],
)
def test_directions_of_weights_must_fit_the_model(model, data, directions, message):
    with pytest.raises(ValueError, match=message):
        weight_landscape(model, data.images, data.labels, resolution=2, directions=directions)


def test_images_of_a_weight_landscape_must_be_there_and_have_labels(model, data):
    with pytest.raises(ValueError, match=r"at least one image\. Got none"):
        weight_landscape(model, data.images[:0], data.labels[:0], resolution=2)
    with pytest.raises(ValueError, match=r"labels must have the shape \(24,\)"):
        weight_landscape(model, data.images, data.labels[:3], resolution=2)
    with pytest.raises(ValueError, match=r"since the model has 10 outputs\. Got the label 12"):
        weight_landscape(model, data.images, data.labels + 3, resolution=2)
    with pytest.raises(ValueError, match=r"batch_size must be a whole number of at least 1\. Got 0"):
        weight_landscape(model, data.images, data.labels, resolution=2, batch_size=0)
