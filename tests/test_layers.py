import pytest
import torch
import torch.nn.functional as F
from tiny import mnist_images, tiny_lenet
from torch import nn

from tla_core.attack_config import AttackConfig
from tla_core.batches import BatchSource
from tla_core.config import TrainConfig
from tla_core.layers import forward_with_layer, list_layers, model_device, resolve_layer, statistics_kept
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


# What enters the head -------------------------------------------------------------------------------------------------


def body():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 16))


class Head(nn.Module):
    """Logits of the 16 numbers of `body`, in one of the ways in which people compute them."""

    def __init__(self, function, *shape, inside=True):
        super().__init__()
        self.weight, self.function, self.inside = nn.Parameter(torch.randn(*shape)), function, inside

    def forward(self, x):
        return self.function(x, self.weight)


class Model(nn.Module):
    """Body and head in one: no module stands between them."""

    def __init__(self, head):
        super().__init__()
        self.body, self.weight, self.function = body(), head.weight, head.function

    def forward(self, x):
        return self.function(self.body(x), self.weight)


HEADS = {
    "F.linear": (F.linear, (5, 16)),
    "matmul": (lambda x, w: x @ w + 1, (16, 5)),
    "einsum": (lambda x, w: torch.einsum("nd,kd->nk", x, w), (5, 16)),
    "cosine": (lambda x, w: 10 * F.linear(F.normalize(x), F.normalize(w)), (5, 16)),
    "cosine_similarity": (lambda x, w: F.cosine_similarity(x[:, None], w[None], dim=-1) / 0.1, (5, 16)),
    "cdist": (lambda x, w: -torch.cdist(x, w), (5, 16)),
    "prototypes": (lambda x, w: -(x[:, None] - w).square().sum(-1), (5, 16)),
    "convolution": (lambda x, w: F.conv2d(x[:, :, None, None], w).flatten(1), (5, 16, 1, 1)),
    "bias, scale and softmax": (lambda x, w: (3 * F.linear(x, w, torch.arange(5.0))).log_softmax(1), (5, 16)),
    "in place": (lambda x, w: F.linear(x, w).mul_(2).add_(torch.ones(5)), (5, 16)),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("as_module", [True, False])
def test_penultimate_is_what_enters_the_head_whatever_it_is(x, head, as_module):
    torch.manual_seed(0)
    part = Head(HEADS[head][0], *HEADS[head][1])
    model = (nn.Sequential(body(), part) if as_module else Model(part)).eval()
    features = forward_with_layer(model, x)[1]
    embedding = (model[0] if as_module else model.body)(x)
    assert features.shape == (5, 16)
    # The head of a module without a name may begin with a normalisation.
    torch.testing.assert_close(F.normalize(features), F.normalize(embedding), rtol=0, atol=1e-5)
    if as_module:
        torch.testing.assert_close(part(features), model(x), rtol=0, atol=1e-5)
    images = x.clone().requires_grad_()
    assert torch.autograd.grad(forward_with_layer(model, images)[1].square().sum(), images)[0].any() or "cos" in head


def test_a_head_on_every_place_of_a_map_reads_their_mean(x):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    features = forward_with_layer(model, x)[1]
    torch.testing.assert_close(features, model[:2](x).mean((2, 3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(model[2](features[:, :, None, None]).flatten(1), model(x), rtol=0, atol=1e-5)
    flat = forward_with_layer(model, x, "penultimate:flatten")[1]
    torch.testing.assert_close(flat, model[:2](x).flatten(1), rtol=0, atol=0)


def test_scripted_models_have_a_penultimate_layer_too(x):
    model = nn.Sequential(*body(), nn.ReLU(), nn.Linear(16, 5)).eval()
    for kind in (torch.jit.script, lambda m: torch.jit.trace(m, x)):
        scripted = kind(model)
        for _ in range(3):  # optimised after the first
            with torch.no_grad():
                features = forward_with_layer(scripted, x)[1]
            torch.testing.assert_close(features, model[:5](x), rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="of a scripted or traced model is not called as a module"):
            forward_with_layer(scripted, x, "1")


def test_what_is_known_of_a_model_is_forgotten_with_its_modules(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 7), nn.Linear(7, 3))
    assert forward_with_layer(model, x)[1].shape == (5, 7)
    model[2] = nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 3))
    assert forward_with_layer(model, x)[1].shape == (5, 6)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(784, 4), nn.Linear(784, 4)

    def forward(self, x):
        return self.one(x.flatten(1)) + self.other(-x.flatten(1))


def test_where_there_is_no_one_head_the_candidates_are_listed(x):
    with pytest.raises(ValueError, match=r"come from 2 heads \(linear\).* of their outputs: other \(4,\), one \(4,\)"):
        forward_with_layer(TwoHeads(), x)
    assert forward_with_layer(TwoHeads(), x, "one")[1].shape == (5, 4)
    with pytest.raises(ValueError, match="by a way without weights"):
        forward_with_layer(nn.Flatten(), x)


# Tokens, maps, calls --------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Tokens (n, 28, 28) of the rows of an image, and one ReLU for all."""

    def __init__(self):
        super().__init__()
        self.rows, self.relu, self.head = nn.Linear(28, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.relu(self.rows(x[:, 0]))
        return self.head(self.relu(tokens.mean(1) - 0.1))


@pytest.mark.parametrize("reduction", ["cls", "mean", "max", "flatten", ""])
def test_tokens_become_one_vector(x, reduction):
    model = Tokens()
    tokens = model.rows(x[:, 0])
    expected = {
        "cls": tokens[:, 0], "mean": tokens.mean(1), "max": tokens.amax(1), "flatten": tokens.flatten(1),
        "": tokens.flatten(1),
    }  # fmt: skip
    features = forward_with_layer(model, x, "rows" + (f":{reduction}" if reduction else ""))[1]
    torch.testing.assert_close(features, expected[reduction], rtol=0, atol=0)


def test_maps_become_one_vector_by_their_places(x):
    last = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Identity())
    for model, places in (
        (nn.Sequential(last, nn.Flatten(), nn.Linear(6 * 676, 3)), (2, 3)),
        (nn.Sequential(nn.Sequential(last, Permute()), nn.Flatten(), nn.Linear(6 * 676, 3)), (1, 2)),
    ):
        features = forward_with_layer(model, x, "0:mean")[1]
        torch.testing.assert_close(features, model[0](x).mean(places), rtol=0, atol=1e-6)
        assert features.shape == (5, 6)
        torch.testing.assert_close(forward_with_layer(model, x, "0:max")[1], model[0](x).amax(places), rtol=0, atol=0)


class Permute(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_each_call_of_a_layer_can_be_named(x):
    model = Tokens()
    tokens = model.rows(x[:, 0]).relu()
    torch.testing.assert_close(forward_with_layer(model, x, "relu#1:mean")[1], tokens.mean(1))
    second = (tokens.mean(1) - 0.1).relu()
    for name in ("relu#2", "relu"):
        torch.testing.assert_close(forward_with_layer(model, x, name)[1], second)
    with pytest.raises(ValueError, match=r"layer 'relu' ran 2 times: there is no call 3"):
        forward_with_layer(model, x, "relu#3")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("rows:avg", r"ends in :avg. Expected one of :cls, :mean, :max, :flatten"),
        ("rows#two", "must name a call by its number from 1"),
        ("rows#0", "must name a call by its number from 1"),
        ("head:cls", r"gives one vector for each image, \(3,\): leave out :cls"),
        ("logits:mean", "leave out :mean"),
        ("penultimate#2", "leave out #2"),
    ],
)
def test_names_that_mean_nothing_are_refused(x, layer, message):
    with pytest.raises(ValueError, match=message):
        forward_with_layer(Tokens(), x, layer)


def test_a_table_of_all_layers(x):
    layers = list_layers(Tokens(), x[0])
    assert [(each.path, each.kind, each.calls, each.shape) for each in layers] == [
        ("rows", "Linear", 1, (28, 8)), ("relu", "ReLU", 2, (8,)), ("head", "Linear", 1, (3,)),
    ]  # fmt: skip
    assert layers.penultimate == "the input of head: 8 numbers"
    assert str(layers).splitlines()[3].split() == ["relu", "ReLU", "2", "(8,)"]
    assert "cannot be told" in list_layers(TwoHeads(), x[0]).penultimate


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
