"""The four steps against plain re-statements of their algorithm boxes, on the same batches and the same attack."""

import copy

import pytest
import torch
import torch.nn.functional as F

import tla_core as tla
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


@pytest.mark.parametrize("layer", ["lower", "middle", "higher", "penultimate", "logits", "hidden.0"])
def test_tla_trains_on_any_layer(setting, layer):
    import dataclasses

    model, source, config, attack = setting
    loss = STEPS["tla"](model, source, 0, dataclasses.replace(config, layer=layer), attack)
    loss.total.backward()
    assert torch.isfinite(loss.total) and loss.terms["triplet"] >= 0
