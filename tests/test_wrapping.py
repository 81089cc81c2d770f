"""Any classifier through the one door: what it returns, what it is wrapped in, and that nothing of it is changed."""

import copy
import warnings
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from tiny import mnist_images, tiny_lenet
from torch import nn

import analysis
import tla_core as tla
from tla_core.wrapping import as_classifier, see_through

ATTACK = tla.AttackConfig(eps=0.1, step_size=0.05, steps=2)
Pair = namedtuple("Pair", ["logits", "aux_logits"])


class LeNetOfTutorials(nn.Module):
    """Flattens with .view, as most networks that people write."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 5, stride=2)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.bn(self.conv1(x))), 2)
        x = torch.relu(self.conv2(x))
        x = x.view(-1, 8 * 16)
        return self.fc2(torch.relu(self.fc1(x)))


class Returns(nn.Module):
    """A network whose output is put into something."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = lenet(), make

    def forward(self, x):
        return self.make(self.net(x))


def lenet(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LeNetOfTutorials()
        with torch.no_grad():
            for _ in range(20):
                model(mnist_images(64).images / 255)
    return model.eval()


@pytest.fixture(scope="module")
def data():
    return mnist_images(12)


@pytest.fixture(scope="module")
def expected(data):
    return measured(lenet(), data)


def measured(model, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reps = analysis.extract(model, data.images, data.labels, attack=ATTACK, **options)
        outcome = tla.evaluate(model, data.images, data.labels, {"PGD": ATTACK}, checks=False)
        plane = analysis.input_landscape(model, data.images[0], data.labels[0], radius=0.1, resolution=2)
        x_adv = tla.pgd(model, data.images, data.labels, eps=0.1, step_size=0.05, steps=2)
    return reps, outcome.correct["PGD"], plane.loss, x_adv


def assert_same(found, expected, atol=1e-5):
    for name in ("logits", "features", "adv_predictions"):
        np.testing.assert_allclose(getattr(found[0], name), getattr(expected[0], name), rtol=0, atol=atol, err_msg=name)
    assert torch.equal(found[1], expected[1])
    np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=atol)
    assert ((found[3] - expected[3]).abs() > 1e-5).double().mean() < 1e-2


# What comes out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda z: {"logits": z, "features": z.relu()},
        lambda z: OrderedDict(scores=z),
        lambda z: Pair(z, -z),
        lambda z: (z,),
        lambda z: [z, None],
        lambda z: (z, z[:, :, None, None].expand(-1, -1, 3, 3)),
        lambda z: z[:, :, None, None],
        lambda z: z.double(),
    ],
    ids=["logits of a dict", "only entry", "named tuple", "tuple", "list", "tuple with maps", "1x1 map", "float64"],
)
def test_an_output_that_is_clear_needs_no_word(make, data, expected):
    assert_same(measured(Returns(make).eval(), data), expected)


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda z: (-z, z), 1),
        (lambda z: [-z, z], -1),
        (lambda z: {"a": -z, "b": z}, "b"),
        (lambda z: Pair(-z, z), "aux_logits"),
        (lambda z: (z / 2, z / 2), sum),
    ],
)
def test_an_output_that_is_not_clear_is_said(make, output, data, expected):
    model = Returns(make).eval()
    if output not in ("aux_logits",):
        for function in (tla.evaluate, analysis.extract):
            with pytest.raises(ValueError, match=r"which of the model's outputs .* \(2, 10\).* Pass tla.wrap\(model,"):
                function(model, data.images, data.labels)
    assert_same(measured(tla.wrap(model, output=output), data), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda z: z[:, 0], r"shape \(2, classes\)\. Got \(2,\)\. For one output of two classes: tla.wrap"),
        (lambda z: z.argmax(1, keepdim=True), "logits, floating numbers. Got .* int64"),
        (lambda z: None, "Got NoneType"),
        (lambda z: {"loss": z.mean()}, r"which of the model's outputs .* returned dict of 'loss': \(\)"),
        (lambda z: z[:, :, None].expand(-1, -1, 4), r"shape \(2, classes\)\. Got \(2, 10, 4\)"),
        (lambda z: z[:1], r"shape \(2, classes\)\. Got \(1, 10\)"),
    ],
)
def test_what_is_no_output_of_a_classifier_is_refused(make, message, data):
    with pytest.raises(ValueError, match=message):
        tla.evaluate(Returns(make).eval(), data.images, data.labels)


def test_what_is_no_model_is_refused(data):
    for model, got in ((lenet().state_dict(), "OrderedDict"), (LeNetOfTutorials, "the class LeNetOfTutorials")):
        with pytest.raises(TypeError, match=f"must be a torch.nn.Module, or a function of images. Got {got}"):
            tla.evaluate(model, data.images, data.labels)


def test_an_error_of_the_model_says_when_it_came(data):
    with pytest.raises(RuntimeError) as error:
        tla.evaluate(lenet(), data.images[:, :, :9], data.labels)
    assert "the first images, (2, 1, 9, 28), were put through the model" in error.value.__notes__[0]


# What it is wrapped in ------------------------------------------------------------------------------------------------


class Lit(nn.Module):
    """As a Lightning module without a forward of its own."""

    def __init__(self):
        super().__init__()
        self.network, self.loss = lenet(), nn.CrossEntropyLoss()


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda: torch.compile(lenet(), backend="eager"),
        lambda: nn.DataParallel(lenet()),
        lambda: torch.compile(nn.DataParallel(lenet()), backend="eager"),
        lambda: torch.optim.swa_utils.AveragedModel(lenet()).eval(),
        lambda: Lit().eval(),
        lambda: tla.wrap(lenet()),
        lambda: nn.Sequential(torch.compile(lenet(), backend="eager"), nn.Identity()).eval(),
    ],
)
def test_wrappers_are_seen_through(wrapper, data, expected):
    model = wrapper()
    assert_same(measured(model, data), expected)
    name = next(name for name, _ in model.named_modules() if name.endswith("fc1"))
    layer = analysis.extract(model, data.images, data.labels, layer=name)
    np.testing.assert_allclose(np.maximum(layer.features, 0), expected[0].features, rtol=0, atol=1e-5)


def test_a_compiled_model_works_afterwards(data):
    model = torch.compile(tiny_lenet(), backend="eager")
    x = data.images / 255
    before = model(x)
    analysis.extract(model, data.images, data.labels, attack=ATTACK)
    tla.evaluate(model, data.images, data.labels, {"PGD": ATTACK}, checks=False)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    compiled_inside = tiny_lenet()
    compiled_inside.features.compile(backend="eager")
    compiled_inside(x)  # what was compiled does not hear hooks that come later
    layer = analysis.extract(compiled_inside, data.images, data.labels, layer="features.4")
    expected = analysis.extract(tiny_lenet(), data.images, data.labels, layer="features.4")
    np.testing.assert_array_equal(layer.features, expected.features)


def test_a_lightning_module_with_two_networks_asks_which():
    model = Lit()
    model.teacher = lenet()
    with pytest.raises(ValueError, match=r"Lit has no forward, and 2 networks in it \(network, teacher\): .*\.network"):
        see_through(model)


def test_a_function_is_a_model(data, expected):
    model = lenet()
    wrapped = tla.wrap(lambda x: {"out": model(x)})
    found = tla.evaluate(wrapped, data.images, data.labels, {"PGD": ATTACK}, checks=False)
    assert torch.equal(found.correct["PGD"], expected[1])


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_parameters_of_another_type(kind, data, expected):
    model = lenet().to(kind)
    found = measured(model, data)
    if kind == torch.float64:
        assert_same(found, expected)
    assert found[0].features.dtype == np.float32 and np.abs(found[0].logits - expected[0].logits).max() < 0.1
    assert all(parameter.dtype == kind for parameter in model.parameters())
    weights = analysis.weight_landscape(model, data.images, data.labels, resolution=3, radius=0.1)
    assert np.isfinite(weights.loss).all() and abs(weights.loss[1, 1] - weights.centre_loss) < 1e-2


# Normalisation and classes --------------------------------------------------------------------------------------------


def test_normalisation_is_inside(data):
    inside = tla.wrap(lenet(), mean=[0.1], std=[0.3])
    outside = nn.Sequential(tla.Normalize([0.1], [0.3]), lenet()).eval()
    assert_same(measured(inside, data), measured(outside, data))
    with pytest.raises(ValueError, match="mean and std belong together"):
        tla.wrap(lenet(), mean=[0.1])


def test_classes_are_outputs_of_the_model(data, expected):
    model = lenet()
    rows = torch.isin(data.labels, torch.tensor([7, 2, 4]))
    labels = torch.tensor([[7, 2, 4].index(label) for label in data.labels[rows].tolist()])
    chosen = tla.wrap(model, classes=[7, 2, 4])
    reps = analysis.extract(chosen, data.images[rows], labels, class_names=["seven", "two", "four"], attack=ATTACK)
    np.testing.assert_allclose(reps.logits, expected[0].logits[rows.numpy()][:, [7, 2, 4]], rtol=0, atol=1e-5)
    model.class_names = [f"digit {k}" for k in range(10)]
    assert tla.wrap(model, classes=["digit 7", "digit 2", "digit 4"]).classes == [7, 2, 4]
    for classes, message in (
        (["digit 11"], "no class 'digit 11'. It knows digit 0, .*; give the numbers"),
        ([1, 1], "classes must be different outputs"),
        ([-1], "numbers of the model's outputs, or their names. Got -1"),
        ([], "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            tla.wrap(model, classes=classes)
    with pytest.raises(ValueError, match=r"classes must be outputs of the model, 0..9. Got 10"):
        tla.evaluate(tla.wrap(model, classes=[0, 10]), data.images, data.labels)


def test_more_outputs_than_names_are_told_before_the_attack(data):
    def attack(model, x, y):
        raise AssertionError("too late")

    with pytest.raises(ValueError, match=r"10 outputs, and there are 3 names .* tla.wrap\(model, classes=\[...\]\)"):
        analysis.extract(lenet(), data.images[:3], data.labels[:3] % 3, class_names=["a", "b", "c"], attack=attack)


def test_a_wrapped_models_state_is_that_of_the_model(data):
    model = lenet()
    wrapped = tla.wrap(model, mean=[0.1], std=[0.3])
    assert list(wrapped.state_dict()) == list(model.state_dict())
    assert [name for name, _ in wrapped.named_parameters()] == [name for name, _ in model.named_parameters()]
    other = tla.wrap(lenet(seed=1), mean=[0.1], std=[0.3])
    other.load_state_dict(wrapped.state_dict())
    holder, holding = nn.ModuleDict({"a": wrapped}), nn.ModuleDict({"a": other})
    assert list(holder.state_dict()) == [f"a.{name}" for name in model.state_dict()]
    holding.load_state_dict(holder.state_dict())
    torch.testing.assert_close(other(data.images / 255), wrapped(data.images / 255), rtol=0, atol=0)
    with pytest.raises(ValueError, match="wrapped already"):
        tla.wrap(wrapped, output=0)


# Nothing is changed ---------------------------------------------------------------------------------------------------


class Careful(nn.Module):
    """Does something in train() and eval(), keeps count, and writes into its input."""

    def __init__(self):
        super().__init__()
        self.net, self.log = lenet(), []
        self.register_buffer("calls", torch.zeros(()))

    def train(self, mode=True):
        if hasattr(self, "log") and mode != self.training:
            self.log.append(mode)
        return super().train(mode)

    def forward(self, x):
        self.calls = self.calls + 1
        return self.net(x.sub_(0.1).div_(0.3))


def test_a_model_that_writes_into_its_input_gets_copies(data):
    images = (data.images / 255).contiguous()
    before, as_array = images.clone(), images.numpy().copy()
    expected = measured(tla.wrap(lenet(), mean=[0.1], std=[0.3]), data)
    model = Careful().eval()
    reps = analysis.extract(model, images, data.labels, attack=ATTACK)
    assert torch.equal(images, before)
    np.testing.assert_allclose(reps.logits, expected[0].logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(reps.adv_predictions, expected[0].adv_predictions)
    array = as_array.copy()
    tla.evaluate(model, array, data.labels, {"PGD": ATTACK}, checks=False)
    np.testing.assert_array_equal(array, as_array)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_is_left_changed_also_after_an_error(fails, context, data):
    def attack(model, x, y):
        if fails:
            raise ZeroDivisionError
        return (x + torch.autograd.grad(model(x.requires_grad_()).sum(), x)[0].sign() * 0.1).detach().clamp(0, 1)

    model = Careful().train()
    model.net.bn.eval()
    model.log.clear()
    model.net.fc1.bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    with context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in (
            lambda: analysis.extract(model, data.images, data.labels, attack=attack),
            lambda: tla.evaluate(model, data.images, data.labels, {"own": attack}, checks=False),
            lambda: tla.run_attack(attack, model, data.images, data.labels),
        ):
            if fails:
                with pytest.raises(ZeroDivisionError):
                    call()
            else:
                call()
    assert [module.training for module in model.modules()] == modes
    assert model.log[-1] is True and model.log[:2] == [False, True]  # put back by calling train
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(bool((gradient == 1).all()) for gradient in gradients)
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("floats", [False, True])
def test_attacks_are_the_same_under_no_grad_and_inference_mode(context, floats, data, expected):
    with context():
        images = data.images / 255 if floats else data.images.clone()
        inside = type(data)(images, data.labels.clone(), data.class_names, data.name, data.split, data.source) \
            if not floats else None  # fmt: skip
        if floats:
            reps = analysis.extract(lenet(), images, data.labels.clone(), attack=ATTACK)
            np.testing.assert_array_equal(reps.adv_predictions, expected[0].adv_predictions)
        else:
            assert_same(measured(lenet(), inside), expected)


def test_a_model_made_in_inference_mode(data, expected):
    with torch.inference_mode():
        model = LeNetOfTutorials()
        model.load_state_dict(lenet().state_dict())
        model.eval()
        assert_same(measured(model, data), expected)
    assert_same(measured(model, data), expected)


# Memory layout --------------------------------------------------------------------------------------------------------


def test_a_network_that_flattens_with_view_is_folded_and_agrees(data, expected):
    reps = analysis.extract(lenet(), data.images, data.labels, attack=ATTACK, fold=False)
    np.testing.assert_array_equal(reps.adv_predictions, expected[0].adv_predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        analysis.extract(lenet(), data.images, data.labels, attack=ATTACK)
    last = (data.images / 255).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    rgb = (data.images / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    network = nn.Sequential(nn.Conv2d(3, 1, 1), lenet()).eval()
    for images, model in ((last, lenet()), (rgb, network)):
        tla.evaluate(model, images, data.labels, {"PGD": ATTACK}, checks=False)


@pytest.mark.parametrize("method", ["at", "tla"])
def test_a_network_that_flattens_with_view_trains(method, tmp_path):
    data = mnist_images(60, "train")
    config = tla.TrainConfig.preset(
        f"mini/mnist/{method}", epochs=1, batch_size=20, holdout=10, pool_size=20, attack=ATTACK,
        selection_attack=ATTACK, layer="penultimate", averaging=0.0,
    )  # fmt: skip
    model = lenet()
    tla.train(config, tmp_path / "run", model=model, dataset=data, progress=False)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    loaded = tla.load_model(tmp_path / "run", model=lenet(seed=3))
    torch.testing.assert_close(loaded(data.images[:3] / 255), model.eval()(data.images[:3] / 255))


def test_a_network_keeps_its_layout_and_is_fast_in_between(tmp_path, monkeypatch):
    layouts = []
    import tla_core.training_loop as training

    um_step = training.STEPS["um"]
    monkeypatch.setitem(
        training.STEPS, "um",
        lambda *arguments: layouts.append(model.features[3].weight.is_contiguous()) or um_step(*arguments),
    )  # fmt: skip
    model = tiny_lenet()
    config = tla.TrainConfig.preset("mini/mnist/um", epochs=1, batch_size=20, holdout=10)
    tla.train(config, tmp_path / "run", model=model, dataset=mnist_images(60, "train"), progress=False)
    assert layouts and not any(layouts)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("make", [lambda z: {"logits": z}, lambda z: (z,)])
def test_a_model_with_another_kind_of_output_trains(make, tmp_path):
    data = mnist_images(40, "train")
    config = tla.TrainConfig.preset(
        "mini/mnist/tla", epochs=1, batch_size=20, holdout=0, pool_size=20, attack=ATTACK, layer="penultimate"
    )
    model = Returns(make)
    result = tla.train(config, tmp_path / "run", model=model, dataset=data, progress=False)
    loaded = tla.load_model(result.run_dir, model=Returns(make))
    assert list(loaded.state_dict()) == list(model.state_dict())


def test_an_auxiliary_output_in_training_mode_alone(tmp_path):
    class Auxiliary(Returns):
        def forward(self, x):
            z = self.net(x)
            return Pair(z, z) if self.training else z

    config = tla.TrainConfig.preset("mini/mnist/um", epochs=1, batch_size=20, holdout=0)
    tla.train(config, tmp_path / "run", model=Auxiliary(None), dataset=mnist_images(40, "train"), progress=False)


# Other things of the kind ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("normed", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm,
                                    nn.utils.parametrizations.spectral_norm])  # fmt: skip
def test_computed_weights(normed, data):
    model = lenet()
    model.conv1, model.fc1 = normed(model.conv1), normed(model.fc1)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plane = analysis.weight_landscape(model, data.images, data.labels, resolution=3, radius=0.5)
    assert plane.loss[1, 1] == pytest.approx(plane.centre_loss, rel=1e-5) and plane.rise > 0
    measured(model, data)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_extract_says_where_gradients_vanish(data):
    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = lenet()

        def forward(self, x):
            return 1e5 * self.net(x)

    with pytest.warns(tla.MaskingWarning, match="outputs of .* images are saturated") as caught:
        analysis.extract(Loud().eval(), data.images, data.labels, attack=ATTACK)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        analysis.extract(Loud().eval(), data.images, data.labels)
        margin = tla.AttackConfig(eps=0.1, step_size=0.05, steps=2, loss="margin")
        analysis.extract(Loud().eval(), data.images, data.labels, attack=margin)


def test_features_of_eight_bits():
    features = torch.randn(6, 4).bfloat16()
    reps = analysis.RepresentationSet.from_arrays(features, torch.arange(6) % 2)
    np.testing.assert_array_equal(reps.features, features.float().numpy())


def test_a_plain_model_stays_itself(data):
    model = lenet()
    assert as_classifier(model, data.images) is model
