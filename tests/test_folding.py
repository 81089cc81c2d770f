"""Folding: which pairs are found in which networks, that outputs stay, and that tracing leaves no trace."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tla_core as tla
from tla_core import folding
from tla_core.attacks import attack_mode, run_attack
from tla_core.folding import fold_batch_norm, folded_if_equal, says_the_same
from tla_core.layers import forward_with_layer
from tla_core.models import build_model

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def with_statistics(model, *shape):
    """In eval mode, with random affine weights and the statistics of random images."""
    torch.manual_seed(1)
    x = torch.rand(shape or (8, 3, 16, 16))
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, NORMS) and m.affine):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        model.train()
        for _ in range(3):
            model(x)
    return model.eval(), x


def norms(model):
    return sum(isinstance(module, NORMS) for module in model.modules())


def check(model, x, *, left, tolerance=1e-4, **options):
    """Fold, and compare outputs and input gradients with the model's; `left` batch norms remain in it."""
    state = copy.deepcopy(model.state_dict())
    before = model(x)
    folded = fold_batch_norm(model, **options)
    assert norms(folded) == left
    torch.testing.assert_close(folded(x), before, rtol=tolerance, atol=tolerance)
    model.double()  # in float32 a value near the kink of a ReLU can change sides, and the gradient with it
    first, second = (_input_gradient(network, x.double()) for network in (model, fold_batch_norm(model, **options)))
    torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-9 * first.abs().max().item())
    model.float()
    assert torch.equal(model(x), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return folded


def _input_gradient(model, x):
    images = x.clone().requires_grad_()
    return torch.autograd.grad(model(images).square().sum(), images)[0]


@pytest.fixture
def traces(monkeypatch):
    """The models that are traced, one entry for each time."""
    seen, real = [], folding._traced
    monkeypatch.setattr(folding, "_traced", lambda model: seen.append(model) or real(model))
    return seen


class Plain(nn.Module):
    """Convolution and batch norm, called by name, then a linear layer."""

    def __init__(self, channels=4, **norm):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels, **norm)
        self.classifier = nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(F.relu(self.bn(self.conv(x))))

    def head(self, x):
        return self.classifier(x.mean((2, 3)))


# Which pairs ----------------------------------------------------------------------------------------------------------


def test_every_batch_norm_of_torchvisions_resnet_folds():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model, x = with_statistics(resnet18(num_classes=7), 4, 3, 32, 32)
    check(model, x, left=0)


@pytest.mark.parametrize(
    ("network", "blocks", "found", "left"),
    [
        ("lenet", (), 5, 0),
        # Of each block the first batch norm reads a sum; that of the very first block, the stem's convolution.
        ("wrn-table2", (2, 2, 2), 6 + 1, 6),
        ("wrn-madry", (2, 1, 1), 4 + 1, 4),
        ("resnet50", (1, 2, 1, 1), 1 + 3 * 5 + 4, 0),
        ("preact-resnet50", (1, 2, 1, 1), 1 + 2 * 5, 5 + 1),
    ],
)
@pytest.mark.parametrize("normalization", ["none", "per-image"])
def test_our_networks_fold(network, blocks, found, left, normalization):
    torch.manual_seed(0)
    model = build_model(
        network, width=1 / 16, blocks=blocks, normalization=normalization, in_channels=3, image_size=32, n_classes=10
    )
    model, x = with_statistics(model, 8, 3, 32, 32)
    assert norms(model) == found + left
    folded = check(model, x, left=left)
    assert {type(m) for m in folded.modules() if isinstance(m, NORMS)} <= {nn.BatchNorm2d}


@pytest.mark.parametrize("norm", [{"momentum": None}, {"affine": False}, {"eps": 0.1}])
def test_settings_of_batch_norm_are_respected(norm):
    check(*with_statistics(Plain(**norm)), left=0)


def test_linear_layers_fold_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn, self.out = nn.Linear(12, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(torch.tanh(self.bn(self.fc(x.flatten(1)))))

    check(*with_statistics(Net(), 8, 3, 2, 2), left=0)


def test_batch_norm_over_the_length_of_a_sequence_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = nn.Linear(16, 6), nn.BatchNorm1d(48)

        def forward(self, x):
            return self.bn(self.fc(x.flatten(1, 2))).mean(2)

    check(*with_statistics(Net()), left=1)


def test_a_convolution_that_is_read_twice_stays():
    class ReadsBefore(Plain):
        def forward(self, x):
            before = self.conv(x)
            return self.head(self.bn(before) * before.sigmoid())

    check(*with_statistics(ReadsBefore()), left=1)


def test_a_convolution_changed_in_place_stays():
    class Adds(Plain):
        def forward(self, x):
            x = self.conv(x)
            x.add_(1)
            return self.head(self.bn(x))

    check(*with_statistics(Adds()), left=1)


def test_modules_called_twice_stay():
    class OneNormForTwo(Plain):
        def __init__(self):
            super().__init__()
            self.second = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.head(self.bn(self.conv(x)).relu() + self.bn(self.second(x)))

    class OneConvForTwo(Plain):
        def __init__(self):
            super().__init__()
            self.second = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.head(self.bn(self.conv(x)).relu() + self.second(self.conv(1 - x)))

    check(*with_statistics(OneNormForTwo()), left=1)
    check(*with_statistics(OneConvForTwo()), left=2)


def test_modules_registered_at_two_places_stay():
    class TwoNames(Plain):
        def __init__(self):
            super().__init__()
            self.alias, self.blocks = self.conv, nn.ModuleList([nn.Sequential(self.bn)])

        def forward(self, x):
            return self.head(self.bn(self.conv(x)))

    class SharedBlock(Plain):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x):
            return self.head(self.block(self.block(self.bn(self.conv(x)))))

    check(*with_statistics(TwoNames()), left=1)
    check(*with_statistics(SharedBlock()), left=1)


def test_tied_weights_stay():
    class Tied(Plain):
        def forward(self, x):
            return self.head(self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1))

    class ReadsStatistics(Plain):
        def forward(self, x):
            return self.head(self.bn(self.conv(x)) - self.bn.running_mean[:, None, None])

    check(*with_statistics(Tied()), left=1)
    check(*with_statistics(ReadsStatistics()), left=1)


def test_computed_weights_stay():
    model = Plain()
    model.conv = nn.utils.spectral_norm(model.conv)
    check(*with_statistics(model), left=1)
    model = Plain()
    model.conv = nn.utils.parametrizations.weight_norm(model.conv)
    check(*with_statistics(model), left=1)


@pytest.mark.parametrize("case", ["training", "no statistics"])
def test_batch_norm_by_the_batch_stays(case):
    model, _ = with_statistics(Plain(track_running_stats=case != "no statistics"))
    model.bn.train(case == "training")
    assert fold_batch_norm(model) is model
    assert norms(fold_batch_norm(model.eval())) == (case == "no statistics")


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"only a model in eval mode can be folded: call model\.eval\(\) first"):
        fold_batch_norm(Plain())


def test_a_network_without_pairs_is_returned_as_it_is(traces):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    assert fold_batch_norm(model) is model
    assert not traces
    alone = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)).eval()
    assert fold_batch_norm(alone) is alone


# Who reads between the two --------------------------------------------------------------------------------------------


class Inner(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


class Apart(Plain):
    """Convolution and batch norm in two modules."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = Inner(self.conv), Inner(self.bn)


def test_pairs_across_modules_fold():
    check(*with_statistics(Apart()), left=0)


@pytest.mark.parametrize("path", ["conv", "conv.part"])
def test_what_is_kept_keeps_its_output(path):
    model, x = with_statistics(Apart())
    kept = check(model, x, left=1, keep=model.get_submodule(path))
    torch.testing.assert_close(forward_with_layer(kept, x, path)[1], forward_with_layer(model, x, path)[1])


@pytest.mark.parametrize("path", ["bn", "bn.part", "classifier", ""])
def test_keeping_what_lies_after_the_batch_norm_costs_nothing(path):
    model, x = with_statistics(Apart())
    folded = check(model, x, left=0, keep=model.get_submodule(path))
    layer = path or "logits"
    torch.testing.assert_close(
        forward_with_layer(folded, x, layer)[1], forward_with_layer(model, x, layer)[1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("path", "register", "left"),
    [
        ("conv", "register_forward_hook", 1),
        ("conv.part", "register_forward_hook", 1),
        ("conv.part", "register_full_backward_hook", 1),
        ("conv.part", "register_forward_pre_hook", 0),
        ("bn", "register_forward_pre_hook", 1),
        ("bn.part", "register_forward_pre_hook", 1),
        ("bn.part", "register_forward_hook", 1),
        ("bn.part", "register_full_backward_hook", 1),
        ("bn", "register_forward_hook", 0),
        ("classifier", "register_forward_hook", 0),
        ("", "register_forward_hook", 0),
    ],
)
def test_hooks_see_what_they_saw_before(path, register, left):
    model, x = with_statistics(Apart())
    seen = []

    def hook(module, *arguments):
        seen.append([a[0] if isinstance(a, tuple) else a for a in arguments][-1].detach().clone())

    getattr(model.get_submodule(path), register)(hook)
    folded = fold_batch_norm(model)
    assert norms(folded) == left and not seen
    for network in (model, folded):
        network(x.clone().requires_grad_()).sum().backward()
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-5)


def test_a_hook_that_is_removed_no_longer_counts():
    model, _ = with_statistics(Plain())
    handle = model.conv.register_forward_hook(lambda *_: None)
    assert norms(fold_batch_norm(model)) == 1
    handle.remove()
    assert norms(fold_batch_norm(model)) == 0


# Networks that cannot be traced ---------------------------------------------------------------------------------------


class Untraceable(Plain):
    """Control flow on data; besides, neighbours in a Sequential."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.inner = Inner(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))

    def forward(self, x):
        if x.sum() < 0:
            x = -x
        return self.head(self.inner(self.body(self.bn(self.conv(x)))))


def test_control_flow_on_data_falls_back_to_neighbours(traces):
    model, x = with_statistics(Untraceable())
    check(model, x, left=1)
    fold_batch_norm(model)
    assert len(traces) == 1
    assert norms(fold_batch_norm(model, keep=model.body[0])) == 2


def test_a_forward_of_the_instance_falls_back():
    model, x = with_statistics(Untraceable())
    model.forward = lambda x: model.head(model.conv(x) + model.bn(model.conv(x)))
    check(model, x, left=3 - 2)


def test_arguments_have_their_defaults():
    class Optional(Plain):
        def forward(self, x, mask=None, features=False, scale=1.0):
            x = self.conv(x)
            if mask is not None:
                return self.head(self.bn(x) + x)
            x = self.bn(x) * scale
            return x if features else self.head(x)

    check(*with_statistics(Optional()), left=0)


def test_a_part_with_nothing_to_fold_may_do_what_it_likes():
    class Checks(nn.Module):
        def forward(self, x):
            if x.ndim != 4 or x.min() < 0:
                raise ValueError("no images")
            return x

    class Net(Plain):
        def __init__(self):
            super().__init__()
            self.check = Checks()

        def forward(self, x):
            return super().forward(self.check(x))

    check(*with_statistics(Net()), left=0)


# Tracing: once, and without a trace -----------------------------------------------------------------------------------


def test_a_network_is_traced_once_although_it_trains_in_between(traces):
    model, x = with_statistics(Plain())
    for _ in range(3):
        model.train()(x).sum().backward()
        with torch.no_grad():
            model.conv.weight += 0.1
        with attack_mode(model):
            torch.testing.assert_close(fold_batch_norm(model)(x), model(x), rtol=1e-4, atol=1e-5)
            fold_batch_norm(model, keep=model.conv)
    assert traces == [model]
    fold_batch_norm(copy.deepcopy(model.eval()))
    assert len(traces) == 2


def test_another_structure_is_traced_again(traces):
    class Switched(Plain):
        def __init__(self):
            super().__init__()
            self.before = False

        def forward(self, x):
            x = self.conv(x)
            return self.head(self.bn(x) + x if self.before else self.bn(x))

    model, x = with_statistics(Switched())
    check(model, x, left=0)
    model.before = True
    check(model, x, left=1)
    model.before = False
    model.bn = nn.Identity()
    check(model, x, left=0)
    model.bn = nn.BatchNorm2d(4).eval()
    check(model, x, left=0)
    model.conv = nn.Sequential(model.conv, nn.ReLU())
    check(model, x, left=1)
    assert len(traces) == 4  # not without a batch norm


def test_tracing_changes_nothing_that_the_model_holds():
    class Busy(Plain):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout()
            self.calls, self.seen, self.last = 0, [], None
            self.register_buffer("counter", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.seen.append(x)
            self.last = x
            self.counter.add_(1)
            self.drop.inplace = True
            return super().forward(x + 0 * torch.rand(1))

    model, _ = with_statistics(Busy())
    model.bn.register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    calls = []
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    seen, counter, random = list(model.seen), model.counter.clone(), torch.get_rng_state()
    assert fold_batch_norm(model) is model  # the hook
    for path, module in model.named_modules():
        assert {name: id(value) for name, value in vars(module).items()} == {
            name: id(value) for name, value in before[path].items()
        }
    assert torch.equal(model.counter, counter) and torch.equal(torch.get_rng_state(), random)
    assert model.calls == 3 and len(model.seen) == len(seen) and not calls
    assert len(model.bn._forward_hooks) == len(model._forward_pre_hooks) == 1


def test_side_effects_outside_the_model_happen_once():
    outside = []

    class Reports(Plain):
        def forward(self, x):
            outside.append(1)
            return super().forward(x)

    model, _ = with_statistics(Reports())
    outside.clear()
    for _ in range(4):
        assert norms(fold_batch_norm(model)) == 0
    assert len(outside) == 1


def test_what_is_remembered_of_a_network_does_not_keep_it_alive():
    model, _ = with_statistics(Plain())
    fold_batch_norm(model)
    gone = weakref.ref(model)
    assert model in folding._known_pairs
    del model
    gc.collect()
    assert gone() is None


def test_folding_under_inference_mode():
    model, x = with_statistics(Plain())
    with torch.inference_mode():
        torch.testing.assert_close(fold_batch_norm(model)(x), model(x), rtol=1e-4, atol=1e-5)
    check(model, x, left=0)


def test_the_folded_weights_are_frozen_and_the_models_are_not():
    model, _ = with_statistics(Plain())
    folded = fold_batch_norm(model)
    assert not folded.conv.weight.requires_grad and model.conv.weight.requires_grad
    assert folded.classifier is model.classifier
    assert isinstance(model.bn, nn.BatchNorm2d) and isinstance(folded.bn, nn.Identity)


# Pooling before the ReLU ----------------------------------------------------------------------------------------------


def test_a_pool_changes_places_with_the_relu_before_it_and_gradients_stay_the_same():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).eval()
    folded = fold_batch_norm(plain)
    assert [type(module) for module in folded] == [nn.Conv2d, nn.Identity, nn.MaxPool2d, nn.ReLU, nn.Flatten]
    unswapped = nn.Sequential(folded[0], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    found = []
    for model in (folded, unswapped):
        x = torch.randn(4, 1, 10, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = model(x)
        (gradient,) = torch.autograd.grad(output.square().sum(), x)
        found.append((output, gradient))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("who", ["keep relu", "keep pool", "hook on relu", "hook on pool", "indices"])
def test_a_pool_stays_where_somebody_reads_in_between(who):
    pool = nn.MaxPool2d(2, return_indices=who == "indices")
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), pool).eval()
    keep = {"keep relu": model[2], "keep pool": model[3]}.get(who)
    if who.startswith("hook"):
        model[2 if who.endswith("relu") else 3].register_forward_hook(lambda *_: None)
    folded = fold_batch_norm(model, keep=keep)
    assert folded is not model and type(folded[2]) is nn.ReLU and type(folded[3]) is nn.MaxPool2d


# Evidence -------------------------------------------------------------------------------------------------------------


class DarkImagesGoAnotherWay(nn.Module):
    """Reads before the batch norm for dark images alone, which tracing with one image cannot see."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.classifier = nn.Linear(4, 10)
        self.layers[1].running_mean.fill_(0.5)
        self.layers[1].running_var.fill_(0.1)

    def forward(self, x):
        ways = []
        for image in x.split(1):
            if image.mean() < 0.3:
                ways.append(self.layers[0](image))
            else:
                ways.append(self.layers(image))
        return self.classifier(torch.cat(ways).amax((2, 3)))


@pytest.fixture
def two_ways():
    torch.manual_seed(0)
    return DarkImagesGoAnotherWay().eval()


def test_an_image_behind_the_first_shows_that_folding_changes_the_network(two_ways):
    bright, dark = torch.rand(40, 1, 6, 6) * 0.2 + 0.7, torch.rand(40, 1, 6, 6) * 0.2
    assert folded_if_equal(two_ways, bright) is not two_ways, "which of bright images alone is true"
    with pytest.warns(UserWarning, match=r"outputs of \d+ of 32 images differ, so the model is attacked as it is"):
        assert folded_if_equal(two_ways, torch.cat([bright[:30], dark[:10]])) is two_ways


def test_adversarial_examples_that_go_another_way_are_made_again(two_ways):
    x, y = torch.rand(20, 1, 6, 6) * 0.05 + 0.31, torch.zeros(20).long()
    attack = tla.AttackConfig(eps=0.2, step_size=0.1, steps=3, random_start=False)
    expected = run_attack(attack, two_ways, x, y)
    assert (expected.mean((1, 2, 3)) < 0.3).any(), "some are dark then"
    with pytest.warns(UserWarning, match="folded the outputs of .* differ"):
        assert torch.equal(run_attack(attack, two_ways, x, y, fold=True), expected)


def test_input_gradients_are_compared_as_well():
    class OtherSlope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.factor, None

    class Model(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor
            self.classifier = nn.Linear(16, 3)

        def forward(self, x):
            return self.classifier(OtherSlope.apply(x.flatten(1), self.factor))

    torch.manual_seed(0)
    model, x = Model(1.0), torch.rand(8, 1, 4, 4)
    other = Model(0.5)
    other.load_state_dict(model.state_dict())
    assert says_the_same(other, model, x) and says_the_same(model, model, x, gradients=True)
    with pytest.warns(UserWarning, match="input gradients of 8 of 8 images differ"):
        assert not says_the_same(other, model, x, gradients=True)
