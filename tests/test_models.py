"""The networks: what the tables say of them, normalisation inside, and that each can be trained."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import mnist_images
from torch import nn

import tla_core as tla
from tla_core.batches import BatchSource
from tla_core.config import TrainConfig
from tla_core.layers import forward_with_layer
from tla_core.methods import tla_step
from tla_core.models import NETWORKS, LeNet, Normalize, PerImageStandardization, WideResNetMadry, build_model

SMALL = {
    "lenet": (),
    "wrn-table2": (1, 1, 1),
    "wrn-madry": (1, 1, 1),
    "resnet50": (1,) * 4,
    "preact-resnet50": (1,) * 4,
}
RESIDUAL = [name for name, blocks in SMALL.items() if blocks]


def small(network, *, in_channels=3, image_size=32, n_classes=10, **changes):
    torch.manual_seed(0)
    sizes = {"in_channels": in_channels, "image_size": image_size, "n_classes": n_classes}
    return build_model(network, **{"width": 1 / 16, "blocks": SMALL[network], **sizes, **changes})


def on_meta(network, image_size, n_classes, **changes):
    """A network of full size without the memory for its weights."""
    with torch.device("meta"):
        return build_model(network, in_channels=3, image_size=image_size, n_classes=n_classes, **changes)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def output_sizes(model, x):
    sizes = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    model.eval()(x)
    return sizes


# The published sizes --------------------------------------------------------------------------------------------------


def wide_resnet_parameters(blocks, n_classes=10):
    """Two 3x3 convolutions a block, each with batch norm on its input; shortcuts have no weights."""
    total, channels_in = 3 * 9 * 16, 16
    for channels in (160, 320, 640):
        for _ in range(blocks):
            total += 2 * channels_in + 9 * channels_in * channels + 2 * channels + 9 * channels * channels
            channels_in = channels
    return total + 2 * 640 + 640 * n_classes + n_classes


def bottleneck_parameters(blocks, n_classes, *, pre_activation):
    """Three convolutions a block with batch norm after each, or before; a 1x1 convolution as the first shortcut."""
    total, channels_in = 3 * 49 * 64 + 2 * 64, 64
    for channels, repeats in zip((64, 128, 256, 512), blocks, strict=True):
        out = 4 * channels
        for block in range(repeats):
            total += channels_in * channels + 9 * channels * channels + channels * out
            total += 2 * channels + 2 * channels + 2 * (channels_in if pre_activation else out)
            if block == 0:
                total += channels_in * out + (0 if pre_activation else 2 * out)
            channels_in = out
    return total + (2 * 2048 if pre_activation else 0) + 2048 * n_classes + n_classes


def lenet_parameters():
    """Table 1 on 28 x 28 images of 3 channels."""
    channels = (3, 32, 64, 128, 256)
    convolutions = sum(9 * a * b + b + 2 * b for a, b in itertools.pairwise(channels))
    return convolutions + 7 * 7 * 256 * 1024 + 1024 + 2 * 1024 + 1024 * 10 + 10


@pytest.mark.parametrize(
    ("network", "image_size", "n_classes", "by_hand", "expected"),
    [
        ("lenet", 28, 10, lenet_parameters(), 13_247_178 + 2 * 9 * 32),
        ("wrn-table2", 32, 10, wide_resnet_parameters(6), 55_583_194),
        ("wrn-madry", 32, 10, wide_resnet_parameters(5), 45_901_914),
        ("resnet50", 64, 200, bottleneck_parameters((3, 4, 6, 3), 200, pre_activation=False), 23_917_832),
        ("resnet50", 64, 1000, bottleneck_parameters((3, 4, 6, 3), 1000, pre_activation=False), 25_557_032),
        ("preact-resnet50", 64, 200, bottleneck_parameters((2, 3, 5, 2), 200, pre_activation=True), 17_980_040),
    ],
)
def test_networks_have_the_published_parameters(network, image_size, n_classes, by_hand, expected):
    assert count(on_meta(network, image_size, n_classes)) == by_hand == expected


def test_madrys_network_has_45_9_million_parameters():
    assert round(count(on_meta("wrn-madry", 32, 10)) / 1e6, 1) == 45.9


@pytest.mark.parametrize(
    ("network", "image_size", "expected"),
    [
        ("wrn-table2", 32, {"stem": (16, 32), "group1": (160, 16), "group2": (320, 8), "group3": (640, 4)}),
        ("wrn-madry", 32, {"stem": (16, 32), "group1": (160, 32), "group2": (320, 16), "group3": (640, 8)}),
        (
            "resnet50", 64,
            {"conv1": (64, 32), "maxpool": (64, 16), "layer1": (256, 16), "layer2": (512, 8), "layer3": (1024, 4),
             "layer4": (2048, 2)},
        ),
        (
            "preact-resnet50", 64,
            {"stem": (64, 64), "group1": (256, 64), "group2": (512, 32), "group3": (1024, 16), "group4": (2048, 8)},
        ),
    ],
)  # fmt: skip
def test_feature_maps_have_the_published_sizes(network, image_size, expected):
    model = on_meta(network, image_size, 10)
    sizes = output_sizes(model, torch.zeros(2, 3, image_size, image_size, device="meta"))
    assert {name: sizes[name] for name in expected} == {name: (c, s, s) for name, (c, s) in expected.items()}
    assert sizes[""] == (10,)


@pytest.mark.parametrize(
    ("network", "blocks"),
    [
        ("wrn-table2", [6, 6, 6]),
        ("wrn-madry", [5, 5, 5]),
        ("resnet50", [3, 4, 6, 3]),
        ("preact-resnet50", [2, 3, 5, 2]),
    ],
)
def test_groups_have_the_published_number_of_blocks(network, blocks):
    model = on_meta(network, 64, 10)
    groups = [child for name, child in model.named_children() if name.startswith(("group", "layer"))]
    assert [len(group) for group in groups] == blocks
    assert count(on_meta(network, 64, 10, blocks=blocks)) == count(model)


def test_what_the_tables_do_not_print_is_madrys():
    model = on_meta("wrn-table2", 32, 10)
    assert {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}
    norms = [m for network in ("wrn-madry", "preact-resnet50") for m in on_meta(network, 64, 10).modules()]
    assert {(m.eps, m.momentum) for m in norms if isinstance(m, nn.BatchNorm2d)} == {(1e-3, 0.1)}
    assert not any(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))


def test_resnet50_is_torchvisions():
    """The same names, sizes and outputs: its weights can be loaded."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    oracle = resnet50(num_classes=20)
    model = build_model("resnet50", in_channels=3, image_size=64, n_classes=20)
    model.load_state_dict(oracle.state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), oracle.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_wide_block_is_madrys(first, stride):
    """Batch norm, leaky ReLU, convolution, twice; averaged and zero-padded shortcut, activated in the first block."""
    torch.manual_seed(0)
    model = build_model(
        "wrn-table2" if stride == 2 else "wrn-madry", width=1 / 16, in_channels=3, image_size=16, n_classes=3
    )
    block = model.group1[0] if first else (model.group2[0] if stride == 2 else model.group1[1])
    assert block.conv1.stride == (stride, stride)
    x = torch.randn(4, block.norm1.num_features, 8, 8)
    out = block.eval()(x)

    def activated(norm, z):
        z = z / torch.sqrt(torch.tensor(1 + 1e-3))  # fresh statistics: mean 0, variance 1
        return torch.where(z < 0, 0.1 * z, z)

    inner = F.conv2d(activated(block.norm1, x), block.conv1.weight, stride=stride, padding=1)
    inner = F.conv2d(activated(block.norm2, inner), block.conv2.weight, padding=1)
    shortcut = activated(block.norm1, x) if first else x
    if stride == 2:
        shortcut = shortcut.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    added = out.shape[1] - x.shape[1]
    padded = torch.zeros_like(out)
    padded[:, added // 2 : added // 2 + x.shape[1]] = shortcut
    torch.testing.assert_close(out, padded + inner, rtol=1e-4, atol=1e-5)


def test_a_pre_activation_bottleneck_is_the_released_one():
    model = small("preact-resnet50", blocks=(2, 1, 1, 1)).eval()
    scale = (1 + 1e-3) ** -0.5
    for block, x in ((model.group2[0], torch.randn(2, 16, 8, 8)), (model.group1[1], torch.randn(2, 16, 8, 8))):
        stride = block.conv1.stride
        out = F.conv2d(F.relu(x * scale), block.conv1.weight, stride=stride)
        out = F.conv2d(F.relu(out * scale), block.conv2.weight, padding=1)
        out = F.conv2d(F.relu(out * scale), block.conv3.weight)
        shortcut = x if isinstance(block.shortcut, nn.Identity) else F.conv2d(x, block.shortcut.weight, stride=stride)
        torch.testing.assert_close(block(x), out + shortcut, rtol=1e-4, atol=1e-5)
    assert [type(group[0].shortcut) for group in (model.group1, model.group4)] == [nn.Conv2d, nn.Conv2d]
    assert isinstance(model.group1[1].shortcut, nn.Identity)


# How weights start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", RESIDUAL)
def test_convolutions_start_with_the_variance_of_he(network):
    model = small(network, width=1 / 2)
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 5000):
        expected = (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_madrys_classifier_starts_uniform_with_variance_one_over_its_inputs():
    classifier = small("wrn-madry", width=1).classifier
    assert classifier.weight.std().item() == pytest.approx(640**-0.5, rel=0.03)
    assert classifier.weight.abs().max().item() <= (3 / 640) ** 0.5 + 1e-7
    assert not classifier.bias.any()


def test_lenets_weights_are_those_of_the_first_release():
    """Old runs load, and training again gives the same bits: the same names, in the same order of random numbers."""
    torch.manual_seed(0)
    model = build_model("lenet", width=1 / 8, in_channels=1, image_size=28, n_classes=10)
    torch.manual_seed(0)
    c1, c2, c3, c4, hidden = 4, 8, 16, 32, 128
    expected = nn.ModuleDict({
        "features": nn.ModuleDict({
            "0": nn.Conv2d(1, c1, 3), "1": nn.BatchNorm2d(c1), "3": nn.Conv2d(c1, c2, 3), "4": nn.BatchNorm2d(c2),
            "7": nn.Conv2d(c2, c3, 3), "8": nn.BatchNorm2d(c3), "10": nn.Conv2d(c3, c4, 3), "11": nn.BatchNorm2d(c4),
        }),
        "hidden": nn.ModuleDict({"0": nn.Linear(49 * c4, hidden), "1": nn.BatchNorm1d(hidden)}),
        "classifier": nn.Linear(hidden, 10),
    })  # fmt: skip
    assert list(model.state_dict()) == list(expected.state_dict())
    assert digest(model) == digest(expected)


def digest(model):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())).hexdigest()


# Narrow and shallow members -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 28), (3, 32), (3, 64), (1, 37)])
@pytest.mark.parametrize("normalization", ["none", "per-image"])
def test_every_network_learns(network, in_channels, image_size, normalization):
    model = small(network, in_channels=in_channels, image_size=image_size, normalization=normalization)
    x, y = torch.rand(8, in_channels, image_size, image_size), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("layer", ["lower", "middle", "higher", "logits"])
def test_tla_trains_on_every_layer_of_table_6(network, layer):
    data = mnist_images(60)
    source = BatchSource(data.images, data.labels, batch_size=8, seed=0, device=torch.device("cpu"))
    config = TrainConfig(layer=layer, pool_size=20, attack=tla.AttackConfig(eps=0.3, step_size=0.1, steps=1))
    model = small(network, in_channels=1, image_size=28).train()
    loss = tla_step(model, source, 0, config, config.attack)
    loss.total.backward()
    assert loss.total.isfinite() and loss.terms["triplet"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_by_name_are_the_modules_outputs(network):
    model = small(network).eval()
    x = torch.rand(3, 3, 32, 32)
    paths = {"lenet": ("features.4", "features.11"), "resnet50": ("layer1", "layer2")}.get(
        network, ("group1", "group2")
    )
    sizes = output_sizes(model, x)
    for name, path in zip(("lower", "middle"), paths, strict=True):
        logits, features = forward_with_layer(model, x, name)
        assert features.shape == (3, np.prod(sizes[path]))
        torch.testing.assert_close(features, forward_with_layer(model, x, path)[1], rtol=0, atol=0)
    classifier = model.fc if network == "resnet50" else model.classifier
    logits, features = forward_with_layer(model, x, "higher")
    torch.testing.assert_close(classifier(features), logits, rtol=0, atol=0)
    torch.testing.assert_close(forward_with_layer(model, x, "logits")[1], logits, rtol=0, atol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_state_survives_a_round_trip(network):
    first, second = small(network), small(network)
    x = torch.rand(4, 3, 32, 32)
    first(x)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(second.eval()(x), first.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_last_changes_nothing_but_rounding(network):
    model = small(network, normalization="per-image").eval()
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        plain = model(x)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_overwritten_in_place(network):
    """What any module gave is the same after the forward pass as when it gave it."""
    model = small(network)
    outputs = []
    for module in model.modules():
        module.register_forward_hook(lambda m, args, output: outputs.append((output, output.detach().clone())))
    x = torch.rand(4, 3, 32, 32)
    before = x.clone()
    model(x)
    assert torch.equal(x, before)
    assert all(torch.equal(output, then) for output, then in outputs)


@pytest.mark.parametrize("network", RESIDUAL)
def test_width_scales_the_channels(network):
    whole, half = on_meta(network, 64, 10), on_meta(network, 64, 10, width=0.5)
    assert 0.2 < count(half) / count(whole) < 0.3
    tiny = small(network, width=1e-4)
    assert {m.out_channels for m in tiny.modules() if isinstance(m, nn.Conv2d)} <= {1, 4}
    assert tiny(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_wide_network_that_is_not_wide_has_16_to_64_channels():
    model = build_model("wrn-madry", width=0.1, in_channels=3, image_size=32, n_classes=10)
    groups = (model.group1, model.group2, model.group3)
    assert model.stem.out_channels == 16
    assert [group[0].conv1.out_channels for group in groups] == [16, 32, 64]


# Normalisation inside the model ---------------------------------------------------------------------------------------


def test_per_image_standardisation_against_numpy():
    x = torch.rand(5, 3, 9, 7)
    x[1] = 0.25  # a uniform image
    x[2] = 0.5 + 1e-4 * x[2]  # an almost uniform one, for which the bound acts
    expected = [
        (image - image.mean()) / max(image.std(), 1 / np.sqrt(image.size)) for image in x.double().numpy()
    ]  # fmt: skip
    np.testing.assert_allclose(PerImageStandardization()(x).numpy(), expected, atol=1e-5)


def test_the_gradient_of_a_uniform_image_is_finite():
    x = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
    (PerImageStandardization()(x) * torch.randn(2, 3, 8, 8)).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize("network", NETWORKS)
def test_per_image_networks_see_no_brightness_or_contrast(network):
    model = small(network, normalization="per-image").eval()
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(0.2 + 0.5 * x), model(x), rtol=1e-3, atol=1e-4)
        plain = small(network).eval()
        torch.testing.assert_close(plain(PerImageStandardization()(x)), model(x), rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_normalize_is_per_channel():
    x = torch.rand(4, 3, 5, 6)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 1.0, 2.0])
    normalize = Normalize(mean.tolist(), torch.tensor(std))
    expected = (x.numpy() - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(normalize(x).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert set(normalize.state_dict()) == {"mean", "std"} and not list(normalize.parameters())
    assert "mean=[0.1" in repr(normalize)


def test_normalize_in_front_of_a_network_keeps_eps_in_pixel_units():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    model, x = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), net).eval(), torch.rand(6, 3, 4, 4)
    x_adv = tla.fgsm(model, x, torch.zeros(6, dtype=torch.int64), eps=0.1)
    assert (x_adv - x).abs().max().item() == pytest.approx(0.1, abs=1e-6)
    assert x_adv.min() >= 0 and x_adv.max() <= 1


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5], [1.0], r"one number for each channel\. Got the shapes \(2,\) and \(1,\)"),
        ([], [], "one number for each channel"),
        (0.5, 0.5, r"Got the shapes \(\) and \(\)"),
        ([0.5], [0.0], r"std finite and positive\. Got \[0\.5\] and \[0\.0\]"),
        ([0.5], [-1.0], "std finite and positive"),
        ([float("nan")], [1.0], "mean must be finite"),
        ([0.0], [float("inf")], "std finite and positive"),
    ],
)
def test_normalize_refuses(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalize(mean, std)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8)])
def test_normalize_refuses_images_with_other_channels(shape):
    with pytest.raises(ValueError, match=r"made for images \(n, 3, h, w\)\. Got the shape"):
        Normalize([0.5] * 3, [0.5] * 3)(torch.rand(shape))


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        ("wrn-medry", {}, r"unknown network 'wrn-medry'\. There are: lenet, wrn-table2, wrn-madry, resnet50, preact"),
        ("lenet", {"blocks": (1, 1)}, r"LeNet has no groups of residual blocks: blocks must be empty\. Got \(1, 1\)"),
        ("lenet", {"normalization": "mean"}, r"unknown normalization 'mean'\. There are: none, per-image"),
        ("lenet", {"image_size": 3}, r"at least 4 x 4 pixels\. Got 3"),
        ("wrn-table2", {"blocks": (1, 1)}, r"WideResNetTable2 must be 3 positive .* \(6, 6, 6\)\. Got \(1, 1\)"),
        ("wrn-madry", {"blocks": (1, 0, 1)}, r"3 positive whole numbers.*Got \(1, 0, 1\)"),
        ("wrn-madry", {"blocks": (1, 1.5, 1)}, r"3 positive whole numbers.*Got \(1, 1\.5, 1\)"),
        ("resnet50", {"blocks": (3, 4, 6)}, r"ResNet50 must be 4 positive .* \(3, 4, 6, 3\)\. Got \(3, 4, 6\)"),
        ("preact-resnet50", {"blocks": (2,) * 5}, r"4 positive whole numbers, .* \(2, 3, 5, 2\)"),
        ("wrn-madry", {"image_size": 2}, r"halves its images 2 times and needs at least 3 x 3 pixels\. Got 2"),
        ("wrn-table2", {"image_size": 4}, r"at least 5 x 5 pixels\. Got 4"),
        ("preact-resnet50", {"image_size": 4}, r"at least 5 x 5 pixels\. Got 4"),
        ("resnet50", {"image_size": 16}, r"at least 17 x 17 pixels\. Got 16"),
        *[(network, {"width": width}, r"width must be a positive number; 1 is the published network\. Got")
          for network in NETWORKS for width in (0, -1.0, float("nan"), float("inf"))],
    ],
)  # fmt: skip
def test_networks_refuse(network, changes, message):
    sizes = {"in_channels": 3, "image_size": 32, "n_classes": 10}
    with pytest.raises(ValueError, match=message):
        build_model(network, **(sizes | changes))


@pytest.mark.parametrize(
    ("network", "image_size"), [("wrn-madry", 3), ("wrn-table2", 5), ("resnet50", 17), ("lenet", 4)]
)
def test_the_smallest_images_pass(network, image_size):
    model = small(network, image_size=image_size)
    assert model(torch.rand(4, 3, image_size, image_size)).shape == (4, 10)


def test_networks_have_defaults_of_their_dataset():
    assert LeNet(width=1 / 32)(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert WideResNetMadry(width=1 / 32, blocks=(1, 1, 1))(torch.rand(2, 3, 32, 32)).shape == (2, 10)
