"""The steps against plain re-statements of their algorithm boxes, on the same batches and the same attack."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from oracles import plain_tla_step

import tla_core as tla
from tla_core.ascent import starting_points
from tla_core.batches import BatchSource
from tla_core.methods import STEPS
from tla_core.models import LeNet
from tla_core.runtime import derive_seed


@pytest.fixture
def setting():
    data = tla.load_dataset("mnist-mini", "train").subset(torch.arange(0, 5000, 25))
    source = BatchSource(data.images, data.labels, batch_size=20, seed=0, device=torch.device("cpu"))
    torch.manual_seed(1)
    model = LeNet(width=1 / 16).train()
    attack = tla.AttackConfig(eps=0.2, step_size=0.1, steps=2)
    config = tla.TrainConfig(label_smoothing=0.1, lambda_triplet=0.5, lambda_norm=0.01, margin=0.3, pool_size=30)
    return model, source, config, attack


def adversarial(model, batch, config, attack, step):
    """The attack of a step, made by the public function on a copy in eval mode."""
    frozen = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "attack", step))
    return tla.pgd(
        frozen, batch.images, batch.labels, eps=attack.eps, step_size=attack.step_size, steps=attack.steps,
        generator=generator, indices=batch.indices,
    )  # fmt: skip


def plain_loss(method, model, source, config, attack, step):
    batch = source.batch(step)
    if method == "um":
        return F.cross_entropy(model(batch.images), batch.labels, label_smoothing=0.1)
    x_adv = adversarial(model, batch, config, attack, step)
    if method == "at":
        return F.cross_entropy(model(x_adv), batch.labels, label_smoothing=0.1)
    if method == "alp":
        adv, clean = model(x_adv), model(batch.images)
        pairing = sum(((clean[i] - adv[i]) ** 2).sum() for i in range(len(clean))) / len(clean)
        return F.cross_entropy(adv, batch.labels, label_smoothing=0.1) + 0.5 * pairing
    frozen = copy.deepcopy(model).eval()
    pool, positive = source.pool(30, step), source.positives(batch.labels, step)

    def h(net, images):
        return net.hidden(net.features(images))

    with torch.no_grad():
        anchors, candidates = h(frozen, x_adv), h(frozen, pool.images)
    chosen = []
    for i in range(len(anchors)):
        distances = [
            1 - abs(F.cosine_similarity(anchors[i], c, dim=0)) if pool.labels[j] != batch.labels[i] else 9
            for j, c in enumerate(candidates)
        ]
        chosen.append(min(range(len(distances)), key=lambda j: distances[j]))
    # In the order of the algorithm: anchor, positive, negative, each a pass of its own, the clean ones with noise.
    a = h(model, x_adv)
    noise_p = (2 * torch.rand_like(positive.images) - 1) * attack.eps
    p = h(model, (positive.images + noise_p).clamp(0, 1))
    noise_n = (2 * torch.rand_like(positive.images) - 1) * attack.eps
    n = h(model, (pool.images[chosen] + noise_n).clamp(0, 1))
    triplets = [
        (abs_cos(a[i], n[i]) - abs_cos(a[i], p[i]) + 0.3).clamp(min=0) for i in range(len(a))
    ]  # D(a, p) - D(a, n) = |cos(a, n)| - |cos(a, p)|
    norms = [a[i].norm() + p[i].norm() + n[i].norm() for i in range(len(a))]
    cross_entropy = F.cross_entropy(model.classifier(a), batch.labels, label_smoothing=0.1)
    return cross_entropy + 0.5 * sum(triplets) / len(a) + 0.01 * sum(norms) / len(a)


def abs_cos(u, v):
    return (u @ v / (u.norm() * v.norm())).abs()


@pytest.mark.parametrize("method", ["um", "at", "alp", "tla"])
@pytest.mark.parametrize("step", [0, 13])
def test_a_step_has_the_loss_and_gradients_of_its_algorithm_box(setting, method, step):
    model, source, config, attack = setting
    reference = copy.deepcopy(model)
    torch.manual_seed(5)
    ours = STEPS[method](model, source, step, config, attack)
    ours.total.backward()
    torch.manual_seed(5)
    expected = plain_loss(method, reference, source, config, attack, step)
    expected.backward()
    torch.testing.assert_close(ours.total, expected, rtol=2e-4, atol=2e-5)
    assert sum(ours.terms.values()).item() == pytest.approx(ours.total.item(), rel=1e-6)
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=5e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")
    for p, q in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_the_attack_of_a_step_leaves_batch_norm_alone(setting):
    """AT forwards the model once in training mode; the attack's forwards must not count."""
    model, source, config, attack = setting
    STEPS["at"](model, source, 0, config, attack)
    assert model.features[1].num_batches_tracked.item() == 1
    assert model.training


# Batch norm -----------------------------------------------------------------------------------------------------------


def moved_statistics(model, passes):
    """Running mean and variance of every batch norm after these passes in training mode, one layer after the other."""
    layers = [layer for layer in (*model.features, *model.hidden)]
    statistics = {
        i: (layer.running_mean.double(), layer.running_var.double())
        for i, layer in enumerate(layers)
        if hasattr(layer, "running_mean")
    }
    for images in passes:
        h = images.double()
        for i, layer in enumerate(layers):
            if i not in statistics:
                h = copy.deepcopy(layer).double()(h)
                continue
            columns = h.transpose(0, 1).flatten(1)
            mean, var = columns.mean(1), columns.var(1, unbiased=True)
            statistics[i] = tuple(0.9 * old + 0.1 * new for old, new in zip(statistics[i], (mean, var), strict=True))
            shape = (1, -1) + (1,) * (h.ndim - 2)
            spread = (columns.var(1, unbiased=False) + layer.eps).sqrt()
            h = (h - mean.view(shape)) / spread.view(shape)
            h = h * layer.weight.double().view(shape) + layer.bias.double().view(shape)
    return [tensor for pair in statistics.values() for tensor in pair]


def running(model):
    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    return [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)], norms


@pytest.mark.parametrize("statistics", ["all", "adversarial"])
@pytest.mark.parametrize("positives", ["class", "own", "own+class"])
@pytest.mark.parametrize("method", ["um", "at", "alp", "tla", "tla-rn", "tla-sa"])
def test_the_running_statistics_are_those_of_the_passes_that_count(setting, method, positives, statistics):
    model, source, config, attack = setting
    config = dataclasses.replace(config, method=method, statistics=statistics, positives=positives)
    before, passes, x_adv = copy.deepcopy(model).eval(), [], None
    # What is forwarded in training mode, in order, and which of it is adversarial.
    model.register_forward_pre_hook(lambda module, args: passes.append(args[0]) if module.training else None)
    STEPS[method](model, source, 2, config, attack).total.backward()  # the block leaves nothing that hinders it
    x_adv = adversarial(before, source.batch(2), config, attack, 2)
    n_passes = {"um": 1, "at": 1, "alp": 2}.get(method, 4 if positives == "own+class" else 3)
    assert len(passes) == n_passes
    if method != "um":
        assert (passes[0] - x_adv).abs().gt(1e-6).float().mean() < 0.01  # the adversarial pass comes first
    counted = passes[:1] if statistics == "adversarial" else passes
    after, norms = running(model)
    for ours, by_hand in zip(after, moved_statistics(before, counted), strict=True):
        torch.testing.assert_close(ours.double(), by_hand, rtol=1e-4, atol=1e-6)
    assert all(norm.num_batches_tracked == len(counted) and norm.training for norm in norms)


@pytest.mark.parametrize("method", ["alp", "tla"])
def test_which_passes_count_changes_neither_loss_nor_gradients(setting, method):
    model, source, config, attack = setting
    results = []
    for statistics in ("all", "adversarial"):
        varied = dataclasses.replace(config, method=method, statistics=statistics)
        own = copy.deepcopy(model)
        torch.manual_seed(5)
        loss = STEPS[method](own, source, 2, varied, attack)
        loss.total.backward()
        results.append([loss.total, *(parameter.grad for parameter in own.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# TLA in the obvious way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 13])
def test_tla_equals_the_step_that_one_would_first_write(setting, step):
    model, source, config, attack = setting
    reference = copy.deepcopy(model)
    torch.manual_seed(5)
    ours = STEPS["tla"](model, source, step, config, attack)
    ours.total.backward()
    batch, pool = source.batch(step), source.pool(config.pool_size, step)
    torch.manual_seed(5)
    expected = plain_tla_step(
        reference, batch.images, batch.labels, source.positives(batch.labels, step).images, pool.images, pool.labels,
        start=starting_points(attack, batch.images, derive_seed(config.seed, "attack", step), batch.indices, 0),
        eps=attack.eps,
        step_size=attack.step_size, steps=attack.steps, margin=config.margin, lambda_triplet=config.lambda_triplet,
        lambda_norm=config.lambda_norm, label_smoothing=config.label_smoothing,
    )  # fmt: skip
    expected.backward()
    assert ours.terms["triplet"] > 0
    assert_same(model, ours.total, reference, expected)


# The variants, in float64 ---------------------------------------------------------------------------------------------


@pytest.fixture
def centred(setting):
    """With batch norm statistics of the data, so that features before a ReLU have both signs, also in eval mode."""
    model, source, _, _ = setting
    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    for norm in norms:
        norm.momentum = None  # the plain average of all batches
    with torch.no_grad():
        for step in range(10):
            model(source.batch(step).images)
    for norm in norms:
        norm.momentum = 0.1
    return setting


def representation(model, images, layer):
    """(logits, h) of the Table 1 network, whose layers are written out."""
    lower = model.features[:5](images)  # convolution, batch norm, ReLU, convolution, batch norm
    middle = model.features[5:12](lower)  # ReLU, pool; convolution, batch norm, ReLU, convolution, batch norm
    before_relu = model.hidden[:2](model.features[12:](middle))
    higher = before_relu.relu()
    logits = model.classifier(higher)
    named = {"lower": lower, "middle": middle, "higher": higher, "penultimate": higher, "logits": logits}
    return logits, {**named, "hidden.1": before_relu}[layer].flatten(1)


def distance(u, v):
    return 1 - abs_cos(u, v)


def plain_variant(model, source, config, attack, step, x_adv):
    """The loss of TLA and its variants, triplet by triplet; `model` is in float64."""
    batch, pool = source.batch(step), source.pool(config.pool_size, step)
    of_class = source.positives(batch.labels, step)
    n, swapped = len(batch.labels), config.method == "tla-sa"
    positives = {"class": [of_class.images], "own": [batch.images]}.get(
        config.positives, [of_class.images, batch.images]
    )
    # The noise is drawn in float32, in the order in which the images are forwarded.
    if config.method == "tla-rn":
        draws = torch.Generator().manual_seed(derive_seed(config.seed, "negatives", step))
        draw = torch.rand(n, len(pool.labels), generator=draws)
        closeness = draw
    else:
        frozen = copy.deepcopy(model).eval()
        with torch.no_grad():
            images = [positives[0] if swapped else x_adv, pool.images, *([x_adv] if swapped else positives)]
            sought = [representation(frozen, part.double(), config.layer)[1] for part in images]
        unit = [rows / rows.norm(dim=1, keepdim=True) for rows in sought]
        closeness = unit[0] @ unit[1].T
        bounds = torch.stack([(unit[0] * rows).sum(1) for rows in unit[2:]])
        if config.mining == "angular":
            closeness, bounds = closeness.abs(), bounds.abs()
        if config.negatives == "semi-hard":  # nearer ones come after all others, the farthest of them first
            too_near = closeness >= bounds.amin(0)[:, None]
            closeness = torch.where(too_near, -2 - closeness, closeness)
    chosen = [
        max(
            (j for j in range(len(pool.labels)) if pool.labels[j] != batch.labels[i]),
            key=lambda j, i=i: closeness[i, j],
        )
        for i in range(n)
    ]

    def noisy(images, wanted):
        noise = (2 * torch.rand_like(images) - 1) * attack.eps if wanted else 0
        return (images + noise).clamp(0, 1).double()

    logits, h_adv = representation(model, x_adv.double(), config.layer)
    triplets = []
    if config.positives != "own":
        _, h_class = representation(model, noisy(of_class.images, config.noise == "triplet"), config.layer)
        triplets.append((h_adv, h_class, config.margin))
    _, h_negative = representation(model, noisy(pool.images[chosen], config.noise == "triplet"), config.layer)
    if config.positives != "class":
        _, h_own = representation(model, noisy(batch.images, True), config.layer)
        triplets.append((h_adv, h_own, config.margin * config.own_margin_factor))
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
    for adversarial_rows, clean_rows, margin in triplets:
        for i in range(n):
            a, p = (clean_rows[i], adversarial_rows[i]) if swapped else (adversarial_rows[i], clean_rows[i])
            hinge = (distance(a, p) - distance(a, h_negative[i]) + margin).clamp(min=0)
            loss = loss + config.lambda_triplet * hinge / n
            if config.norm_term == "l2":
                loss = loss + config.lambda_norm * (a.norm() + p.norm() + h_negative[i].norm()) / n
            else:
                squares = (a**2 + p**2 + h_negative[i] ** 2).mean()
                loss = loss + config.lambda_triplet * config.lambda_norm * squares / n
    for i in range(n if config.lambda_feature else 0):
        loss = loss + config.lambda_feature * ((h_adv[i] - h_own[i]) ** 2).sum() / n
    return loss


def assert_same(model, loss, reference, expected):
    """Loss, gradients and batch-norm statistics; a folded attack may differ from a plain one in single pixels."""
    torch.testing.assert_close(loss.double(), expected.double(), rtol=2e-4, atol=2e-5)
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            p.grad.double(), q.grad.double(), rtol=5e-3, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}"
        )
    for p, q in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(p.double(), q.double(), rtol=1e-4, atol=1e-5)


OWN = {"positives": "own+class"}
VARIANTS = {
    "tla": {},
    "tla-rn": {"method": "tla-rn"},
    "tla-sa": {"method": "tla-sa"},
    "mean-square": {"norm_term": "mean-square", "lambda_norm": 0.1},
    # Behind a ReLU no product is negative, and the cosine chooses as the angle does.
    "before ReLU": {"layer": "hidden.1", "pool_size": 6},
    "cosine": {"layer": "hidden.1", "pool_size": 6, "mining": "cosine"},
    "no noise": {"noise": "own"},
    "semi-hard": {"negatives": "semi-hard"},
    "semi-hard, tla-sa": {"negatives": "semi-hard", "method": "tla-sa"},
    "semi-hard, own+class": {**OWN, "negatives": "semi-hard"},
    "semi-hard, cosine": {"layer": "hidden.1", "pool_size": 6, "mining": "cosine", "negatives": "semi-hard"},
    "own alone": {"positives": "own", "lambda_feature": 0.1, "noise": "own"},
    "own alone, tla-sa": {"positives": "own", "method": "tla-sa"},
    "own alone, tla-rn": {"positives": "own", "method": "tla-rn"},
    "own": OWN,
    "own, wider margin": {**OWN, "own_margin_factor": 2.5},
    "own, features": {**OWN, "lambda_feature": 0.1},
    "own, tla-sa": {**OWN, "method": "tla-sa", "own_margin_factor": 0.5, "lambda_feature": 0.05, "noise": "own"},
    "released code": {
        **OWN, "norm_term": "mean-square", "mining": "cosine", "noise": "own", "own_margin_factor": 3.0,
        "lambda_feature": 0.05, "label_smoothing": 0.0,
    },
    "released code, tla-rn": {**OWN, "method": "tla-rn", "norm_term": "mean-square", "mining": "cosine"},
    **{layer: {"layer": layer} for layer in ("lower", "middle", "higher", "logits")},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_the_loss_and_gradients_of_its_triplets_one_by_one(centred, variant):
    model, source, config, attack = centred
    config = dataclasses.replace(config, **{"method": "tla", **VARIANTS[variant]})
    reference = copy.deepcopy(model).double()
    x_adv = adversarial(model, source.batch(3), config, attack, 3)
    torch.manual_seed(5)
    ours = STEPS[config.method](model, source, 3, config, attack)
    ours.total.backward()
    torch.manual_seed(5)
    expected = plain_variant(reference, source, config, attack, 3, x_adv)
    expected.backward()
    assert ours.terms["triplet"] > 0
    assert_same(model, ours.total, reference, expected)


def test_the_variants_differ(centred):
    """Each restatement would also pass if two settings meant the same."""
    model, source, config, attack = centred
    losses = []
    for changes in VARIANTS.values():
        torch.manual_seed(5)
        varied = dataclasses.replace(config, **{"method": "tla", **changes})
        losses.append(round(STEPS[varied.method](copy.deepcopy(model), source, 3, varied, attack).total.item(), 5))
    assert len(set(losses)) == len(losses) - 1  # "higher" is what tla trains on


def test_random_negatives_are_the_same_on_a_rerun_and_others_at_another_step_or_seed(setting):
    model, source, config, attack = setting

    def loss(step, seed):
        torch.manual_seed(5)
        varied = dataclasses.replace(config, method="tla-rn", seed=seed)
        return STEPS["tla-rn"](copy.deepcopy(model), source, step, varied, attack).total.item()

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0)}) == 3


def test_a_step_needs_no_pool_larger_than_the_dataset(setting):
    model, source, config, attack = setting
    loss = STEPS["tla"](model, source, 0, dataclasses.replace(config, pool_size=10_000), attack)
    assert torch.isfinite(loss.total)


@pytest.mark.parametrize("layer", ["penultimate", "hidden.0", "features.3"])
def test_tla_trains_on_any_layer(setting, layer):
    model, source, config, attack = setting
    loss = STEPS["tla"](model, source, 0, dataclasses.replace(config, layer=layer), attack)
    loss.total.backward()
    assert torch.isfinite(loss.total) and loss.terms["triplet"] >= 0
