"""Losses and mining: equal to a naive loop, and to pytorch-metric-learning."""

import pytest
import torch
from oracles import hardest_negatives as naive_hardest
from oracles import norm_term as naive_norm
from oracles import semi_hard_negatives as naive_semi_hard
from oracles import triplet_loss as naive_triplet

import tla_core as tla
from tla_core.losses import mean_square_norm_loss
from tla_core.mining import random_negatives


def draw(n=12, d=7, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.5, 2.0])
def test_triplet_loss_equals_a_naive_loop(dtype, tolerance, margin):
    anchor, positive, negative = (part.to(dtype) for part in draw())
    expected = naive_triplet(anchor.tolist(), positive.tolist(), negative.tolist(), margin)
    assert tla.triplet_loss(anchor, positive, negative, margin).item() == pytest.approx(expected, abs=tolerance)


def test_triplet_loss_equals_pytorch_metric_learning():
    """Their distance has no absolute value: on vectors with non-negative products, and over all triplets, it is equal.

    Without MeanReducer they average only the triplets that violate the margin: a larger number.
    """
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.reducers import MeanReducer

    anchor, positive, negative = (part.abs() for part in draw())
    embeddings, n = torch.cat([anchor, positive, negative]), len(anchor)
    rows = torch.arange(n)
    triplets = (rows, rows + n, rows + 2 * n)
    peer = losses.TripletMarginLoss(margin=0.05, distance=CosineSimilarity(), reducer=MeanReducer())
    theirs = peer(embeddings, torch.zeros(3 * n).long(), triplets)
    ours = tla.triplet_loss(anchor, positive, negative, 0.05)
    torch.testing.assert_close(ours, theirs)
    default = losses.TripletMarginLoss(margin=0.05, distance=CosineSimilarity())
    assert default(embeddings, torch.zeros(3 * n).long(), triplets) > ours


def test_angular_distance_takes_the_absolute_value():
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    v = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 5.0], [4.0, 3.0]])
    torch.testing.assert_close(tla.angular_distance(u, v), torch.tensor([0.0, 0.0, 1.0, 1 - 24 / 25]))


def test_norm_loss_is_the_mean_of_summed_norms_not_squared():
    a, p, n = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[0.0, 2.0]] * 2)
    assert tla.norm_loss(a, p, n).item() == pytest.approx(((5 + 1 + 2) + (0 + 1 + 2)) / 2)


@pytest.mark.parametrize("kind, loss", [("l2", tla.norm_loss), ("mean-square", mean_square_norm_loss)])
@pytest.mark.parametrize("n, d", [(12, 7), (1, 1), (3, 40)])
def test_the_norm_terms_equal_a_naive_loop(kind, loss, n, d):
    parts = [part.double() for part in draw(n, d)]
    expected = naive_norm([part.tolist() for part in parts], kind)
    assert loss(*parts).item() == pytest.approx(expected, rel=1e-12)


def test_mean_square_norm_averages_over_batch_and_features():
    a, p, n = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[0.0, 2.0]] * 2)
    assert mean_square_norm_loss(a, p, n).item() == pytest.approx((9 + 16) / 4 + 1 / 2 + 4 / 2)


def test_logit_pairing_sums_over_classes_and_averages_over_images():
    clean, adversarial = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    assert tla.logit_pairing_loss(clean, adversarial).item() == pytest.approx((1 + 4 + 1) / 2)


def test_gradients_are_finite_where_a_representation_is_zero():
    anchor, positive, negative = (part.requires_grad_() for part in draw(n=3))
    with torch.no_grad():
        anchor[0] = 0
    loss = tla.triplet_loss(anchor, positive, negative, 0.05) + 1e-3 * tla.norm_loss(anchor, positive, negative)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, [anchor, positive, negative]))


@pytest.mark.parametrize("metric", ["angular", "cosine"])
@pytest.mark.parametrize("seed", range(5))
def test_the_hardest_negative_equals_a_naive_search(seed, metric):
    generator = torch.Generator().manual_seed(seed)
    anchors, pool = torch.randn(20, 5, generator=generator), torch.randn(30, 5, generator=generator)
    anchor_labels, pool_labels = torch.arange(20) % 4, torch.randint(0, 4, (30,), generator=generator)
    chosen = tla.hardest_negatives(anchors, anchor_labels, pool, pool_labels, metric=metric)
    expected = naive_hardest(anchors.tolist(), anchor_labels.tolist(), pool.tolist(), pool_labels.tolist(), metric)
    assert chosen.tolist() == expected
    assert (pool_labels[chosen] != anchor_labels).all()


def test_the_hardest_negative_is_never_of_the_anchors_class_even_if_that_is_closest():
    anchors, pool = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1]])
    assert tla.hardest_negatives(anchors, torch.tensor([0]), pool, torch.tensor([0, 1, 2])).tolist() == [2]


def test_the_cosine_keeps_the_sign_and_the_angle_does_not():
    anchors, pool, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.1], [1.0, 1.0]]), torch.tensor([1, 2])
    assert tla.hardest_negatives(anchors, torch.tensor([0]), pool, labels).tolist() == [0]
    assert tla.hardest_negatives(anchors, torch.tensor([0]), pool, labels, metric="cosine").tolist() == [1]
    with pytest.raises(ValueError, match=r"metric must be one of angular, cosine\. Got 'euclidean'"):
        tla.hardest_negatives(anchors, torch.tensor([0]), pool, labels, metric="euclidean")


def test_the_search_does_not_depend_on_the_length_of_the_vectors():
    anchors, pool, _ = draw(20, 5)
    labels, pool_labels = torch.arange(20) % 3, torch.arange(20) % 4
    chosen = tla.hardest_negatives(anchors, labels, pool, pool_labels)
    lengths = torch.rand(20, 1, generator=torch.Generator().manual_seed(1)) * 100 + 0.01
    assert torch.equal(tla.hardest_negatives(anchors * lengths, labels, pool * lengths.flip(0), pool_labels), chosen)


def test_features_that_are_no_numbers_are_left_for_the_loss_to_tell():
    """The message about the pool would hide that the training diverged."""
    anchors = torch.full((2, 3), torch.nan)
    chosen = tla.hardest_negatives(anchors, torch.tensor([0, 1]), torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    assert chosen.shape == (2,) and ((0 <= chosen) & (chosen < 4)).all()


@pytest.mark.parametrize("metric", ["angular", "cosine"])
@pytest.mark.parametrize("n_positives", [1, 2])
def test_a_semi_hard_negative_equals_a_naive_search(metric, n_positives):
    generator = torch.Generator().manual_seed(7)
    anchors, pool = torch.randn(40, 5, generator=generator), torch.randn(30, 5, generator=generator)
    # From an anchor's twin, which every negative is beyond, to its opposite.
    share = torch.linspace(0, 1, 40)[torch.randperm(40, generator=generator)][:, None]
    positives = [(1 - share) * anchors + share * torch.randn(40, 5, generator=generator) for _ in range(n_positives)]
    labels, pool_labels = torch.arange(40) % 4, torch.randint(0, 4, (30,), generator=generator)
    chosen = tla.semi_hard_negatives(anchors, labels, pool, pool_labels, positives, metric=metric).tolist()
    lists = [part.tolist() for part in (anchors, labels, pool, pool_labels)]
    assert chosen == naive_semi_hard(*lists, [part.tolist() for part in positives], metric)
    hardest = tla.hardest_negatives(anchors, labels, pool, pool_labels, metric=metric).tolist()
    assert 5 < sum(one != other for one, other in zip(chosen, hardest, strict=True)) < 40


def test_where_no_negative_is_beyond_the_positive_the_farthest_is_taken():
    anchors, pool = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.5], [1.0, 0.3]])
    arguments = anchors, torch.tensor([0]), pool, torch.tensor([1, 1, 2])
    assert tla.semi_hard_negatives(*arguments, [torch.tensor([[0.0, 1.0]])]).tolist() == [1]
    assert tla.semi_hard_negatives(*arguments, [torch.tensor([[1.0, 0.2]])]).tolist() == [2]
    assert tla.semi_hard_negatives(*arguments, [anchors]).tolist() == [0]
    # A training that diverges is left for the loss to tell.
    assert tla.semi_hard_negatives(anchors * torch.nan, *arguments[1:], [anchors]).tolist()[0] in range(3)


def test_random_negatives_are_uniform_over_the_other_classes():
    labels, pool_labels = torch.arange(3).repeat(4000), torch.tensor([0, 0, 0, 0, 1, 2, 2, 0])
    chosen = random_negatives(labels, pool_labels, generator=torch.Generator().manual_seed(3))
    assert (pool_labels[chosen] != labels).all()
    for label in range(3):
        counts = torch.bincount(chosen[labels == label], minlength=8)
        allowed = pool_labels != label
        expected = 4000 / allowed.sum()
        assert (counts[allowed] - expected).abs().max() < 5 * expected.sqrt() and counts[~allowed].sum() == 0


def test_random_negatives_need_no_generator_and_are_reproducible():
    labels, pool_labels = torch.arange(20) % 4, torch.arange(30) % 5
    chosen = random_negatives(labels, pool_labels)
    assert torch.equal(chosen, random_negatives(labels, pool_labels, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(chosen, random_negatives(labels, pool_labels, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match=r"pool of 2 images has no negative for class 3.*Raise pool_size"):
        random_negatives(torch.tensor([1, 3]), torch.tensor([3, 3]))


def test_a_pool_without_another_class_is_refused():
    anchors, pool = torch.randn(2, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"pool of 4 images has no negative for class 1.*Raise pool_size"):
        tla.hardest_negatives(anchors, torch.tensor([1, 1]), pool, torch.ones(4).long())
