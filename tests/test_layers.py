import pytest
import torch
from tiny import mnist_images, tiny_lenet
from torch import nn

from tla_core.attack_config import AttackConfig
from tla_core.batches import BatchSource
from tla_core.config import TrainConfig
from tla_core.layers import forward_with_layer, model_device, resolve_layer, statistics_kept
from tla_core.methods import tla_step
from tla_core.models import LeNet, build_model


@pytest.fixture(scope="module")
def x():
    return mnist_images(5).images / 255


class LastIsDefinedFirst(nn.Module):
    """Its classifier is the first module, but the last one executed; the hidden layer runs twice."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(6, 3)
        self.hidden = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 7)

    def forward(self, x):
        x = self.hidden(x.flatten(1)[:, :6])
        return self.classifier(torch.tanh(self.hidden(x)))


class ReturnsTuple(nn.Module):
    def forward(self, x):
        return x, x


class Wrapped(nn.Module):
    """A part whose output is not one vector for each image, then a classifier."""

    def __init__(self, part):
        super().__init__()
        self.part, self.classifier = part, nn.Linear(2, 3)

    def forward(self, x):
        self.part(x)
        return self.classifier(x.flatten(1)[:, :2])


# Which layer ----------------------------------------------------------------------------------------------------------


def test_penultimate_is_what_the_last_linear_layer_reads(x):
    model = tiny_lenet()
    logits, features = forward_with_layer(model, x)
    torch.testing.assert_close(features, model.hidden(model.features(x)), rtol=0, atol=0)
    torch.testing.assert_close(logits, model(x), rtol=0, atol=0)
    torch.testing.assert_close(model.classifier(features), logits, rtol=0, atol=0)


def test_the_last_linear_layer_is_the_last_one_executed_not_defined(x):
    model = LastIsDefinedFirst()
    logits, features = forward_with_layer(model, x)
    torch.testing.assert_close(model.classifier(features), logits, rtol=0, atol=0)
    assert features.shape == (5, 6)


def test_of_a_layer_that_runs_twice_the_last_output_counts(x):
    model = LastIsDefinedFirst()
    _, features = forward_with_layer(model, x, "hidden")
    flat = x.flatten(1)[:, :6]
    torch.testing.assert_close(features, model.hidden(model.hidden(flat)), rtol=0, atol=0)


def test_logits_are_the_models_output(x):
    model = tiny_lenet()
    logits, features = forward_with_layer(model, x, "logits")
    assert features.shape == (5, 10)
    torch.testing.assert_close(features, logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("lower", "features.4", (64 // 16) * 28 * 28),
        ("middle", "features.11", (256 // 16) * 14 * 14),
        ("higher", "penultimate", 1024 // 16),
        ("logits", "classifier", 10),
    ],
)
def test_named_layers_of_lenet(x, name, layer, shape):
    model = tiny_lenet()
    named, path = forward_with_layer(model, x, name)[1], forward_with_layer(model, x, layer)[1]
    assert named.shape == (5, shape)
    torch.testing.assert_close(named, path, rtol=0, atol=0)


@pytest.mark.parametrize("path", ["features", "features.0", "features.1", "hidden.0", "hidden"])
def test_module_paths_give_that_modules_output(x, path):
    model = tiny_lenet()
    outputs = []
    handle = model.get_submodule(path).register_forward_hook(lambda m, args, output: outputs.append(output.clone()))
    model(x)
    handle.remove()
    torch.testing.assert_close(forward_with_layer(model, x, path)[1], outputs[0].flatten(1), rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_an_in_place_relu_after_the_layer_does_not_overwrite_it(x, inplace):
    conv = nn.Conv2d(1, 3, 3)
    model = nn.Sequential(conv, nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(3 * 26 * 26, 4))
    features = forward_with_layer(model, x, "0")[1]
    assert (features < 0).any()
    torch.testing.assert_close(features, conv(x).flatten(1), rtol=0, atol=0)


def test_spatial_output_is_flattened_channels_first(x):
    conv = nn.Conv2d(1, 3, 3)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    features = forward_with_layer(model, x, "0")[1]
    assert features.shape == (5, 3 * 26 * 26)
    torch.testing.assert_close(features.view(5, 3, 26, 26), conv(x), rtol=0, atol=0)


def test_gradients_flow_through_the_representation(x):
    model = tiny_lenet()
    for layer in ("penultimate", "lower", "logits"):
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(forward_with_layer(model, images, layer)[1].square().sum(), images)
        assert gradient.abs().sum() > 0
    weight = model.features[0].weight
    assert torch.autograd.grad(forward_with_layer(model, x)[1].sum(), weight)[0].abs().sum() > 0


def test_no_hook_stays_behind_even_after_an_error(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    forward_with_layer(model, x)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        forward_with_layer(model, x[:, :, :5])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        forward_with_layer(model, x[:, :, :5], "1")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_tla_mines_by_the_layer_that_it_trains(monkeypatch):
    """Mining folds batch norm; a convolution that is the layer itself must still give its own output."""
    mined = {}

    def mine(anchors, anchor_labels, pool, pool_labels, *, metric):
        mined.update(pool=pool)
        return anchor_labels * 0

    monkeypatch.setattr("tla_core.methods.hardest_negatives", mine)
    data = mnist_images(60)
    source = BatchSource(data.images, data.labels, batch_size=10, seed=0, device=torch.device("cpu"))
    config = TrainConfig(layer="features.3", pool_size=20, attack=AttackConfig(eps=0.3, steps=1))
    model = tiny_lenet().train()
    tla_step(model, source, 0, config, config.attack)
    model.eval()
    expected = forward_with_layer(tiny_lenet(), source.pool(20, 0).images, "features.3")[1]
    torch.testing.assert_close(mined["pool"], expected, rtol=1e-4, atol=1e-4)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [("penultimat", "penultimate"), ("features.44", "features.4"), ("lowr", "lower"), ("classifer", "classifier")],
)
def test_an_unknown_layer_lists_the_nearest_names(x, layer, nearest):
    with pytest.raises(ValueError, match=rf"no layer '{layer}'\. The nearest names are: .*\b{nearest}\b"):
        forward_with_layer(tiny_lenet(), x, layer)


def test_a_name_near_to_nothing_lists_what_there_is():
    with pytest.raises(
        ValueError, match=r"no layer 'zzzzzz'\. The nearest names are: penultimate, logits, lower, middle"
    ):
        resolve_layer(tiny_lenet(), "zzzzzz")


def test_a_layer_that_is_not_executed_is_refused(x):
    with pytest.raises(ValueError, match=r"layer 'unused' was not executed in the forward pass\."):
        forward_with_layer(LastIsDefinedFirst(), x, "unused")


def test_of_a_convolution_over_the_whole_map_all_of_the_map_enters(x):
    model = nn.Sequential(nn.Conv2d(1, 3, 28), nn.Flatten())
    torch.testing.assert_close(forward_with_layer(model, x)[1], x.flatten(1), rtol=0, atol=0)
    assert forward_with_layer(model, x, "0")[1].shape == (5, 3)


@pytest.mark.parametrize(
    ("part", "got"),
    [
        (ReturnsTuple(), "Got tuple"),
        (nn.Flatten(0), r"Got \(3920,\)"),
        (nn.Flatten(0, 2), r"Got \(140, 28\)"),
    ],
)
def test_an_output_that_is_not_one_vector_for_each_image_is_refused(x, part, got):
    with pytest.raises(ValueError, match=rf"output of the layer 'part' must be .* for each of the 5 images\. {got}"):
        forward_with_layer(Wrapped(part), x, "part")


# The network of Table 1 -----------------------------------------------------------------------------------------------


def test_lenet_has_the_parameters_of_table_1():
    """Weights and biases of each convolution and linear layer, two per channel of each batch norm."""
    expected = (
        (1 * 9 * 32 + 32 + 2 * 32)
        + (32 * 9 * 64 + 64 + 2 * 64)
        + (64 * 9 * 128 + 128 + 2 * 128)
        + (128 * 9 * 256 + 256 + 2 * 256)
        + (7 * 7 * 256 * 1024 + 1024 + 2 * 1024)
        + (1024 * 10 + 10)
    )
    model = LeNet()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 13_247_178


def test_lenets_layers_have_the_sizes_of_table_1(x):
    model = LeNet().eval()
    sizes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    with torch.no_grad():
        model(x[:1])
    assert [sizes[f"features.{i}"] for i in (0, 3, 6, 7, 10, 13)] == [
        (32, 28, 28), (64, 28, 28), (64, 14, 14), (128, 14, 14), (256, 14, 14), (256, 7, 7),
    ]  # fmt: skip
    assert (sizes["features"], sizes["hidden"], sizes["classifier"]) == ((12544,), (1024,), (10,))
    assert [type(m).__name__ for m in model.features[:7]] == [
        "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d",
    ]  # fmt: skip


def test_networks_are_built_by_name_and_size():
    model = build_model("lenet", width=1 / 16, in_channels=3, image_size=32, n_classes=7)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"unknown network 'alexnet'\. There are: lenet"):
        build_model("alexnet", width=1, in_channels=1, image_size=28, n_classes=10)
    with pytest.raises(ValueError, match=r"at least 4 x 4 pixels\. Got 3"):
        build_model("lenet", width=1, in_channels=1, image_size=3, n_classes=10)


def test_the_device_of_a_model_is_that_of_its_parameters():
    assert model_device(nn.ReLU()) == torch.device("cpu")
    assert model_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")


@pytest.mark.parametrize("training", [True, False])
def test_statistics_that_are_kept_are_those_from_before_also_after_an_error(x, training):
    average = nn.BatchNorm2d(4, momentum=None)  # the plain average of all batches
    instance = nn.InstanceNorm2d(4, track_running_stats=True)
    kinds = [nn.BatchNorm2d(4), average, instance, nn.BatchNorm2d(4, affine=False)]
    without = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), *kinds, without)
    model(x)  # some statistics
    model.train(training)
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    with pytest.raises(KeyError), statistics_kept(model):
        inside = model(x)
        raise KeyError
    assert len(before) == 4 * 3 and {name for name, _ in model.named_buffers()} == set(before)
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0] and torch.equal(buffer, before[name][1]), name
    assert torch.equal(inside, model(x))  # normalised as it is without the block
    moved = any(not torch.equal(buffer, before[name][1]) for name, buffer in model.named_buffers())
    assert moved == training
    inside.sum().backward()
