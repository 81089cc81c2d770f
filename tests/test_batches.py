import pytest
import torch

import tla_core as tla
from tla_core.batches import BatchSource

N_IMAGES, BATCH_SIZE = 107, 20


@pytest.fixture(scope="module")
def digits():
    return tla.load_dataset("mnist-mini", "train").subset(range(N_IMAGES))


def make_source(digits, *, seed=0, batch_size=BATCH_SIZE):
    return BatchSource(digits.images, digits.labels, batch_size=batch_size, seed=seed, device=torch.device("cpu"))


def draws(source, step):
    """The indices of all that a step draws."""
    batch = source.batch(step)
    return batch.indices, source.positives(batch.labels, step).indices, source.pool(30, step).indices


def test_an_epoch_is_a_permutation_without_its_incomplete_batch(digits):
    source = make_source(digits)
    assert source.steps_per_epoch == 5
    epochs = [torch.cat([source.batch(5 * epoch + i).indices for i in range(5)]) for epoch in range(3)]
    for seen in epochs:
        assert len(seen) == 100 and len(seen.unique()) == 100
    left_out = [set(range(N_IMAGES)) - set(seen.tolist()) for seen in epochs]
    assert not torch.equal(epochs[0], epochs[1]) and left_out[0] != left_out[1]


def test_images_and_labels_are_those_of_the_indices(digits):
    source = make_source(digits)
    batch = source.batch(3)
    for drawn in (batch, source.positives(batch.labels, 3), source.pool(30, 3)):
        assert torch.equal(drawn.images, digits.images[drawn.indices].float() / 255)
        assert torch.equal(drawn.labels, digits.labels[drawn.indices])
        assert drawn.images.dtype == torch.float32 and 0 <= drawn.images.min() < drawn.images.max() <= 1


def test_a_step_draws_the_same_whatever_was_drawn_before(digits):
    one, other = make_source(digits), make_source(digits)
    forwards = [draws(one, step) for step in range(12)]
    torch.manual_seed(99)
    for step in reversed(range(12)):
        for expected, drawn in zip(forwards[step], draws(other, step), strict=True):
            assert torch.equal(drawn, expected)


def test_steps_and_seeds_draw_differently(digits):
    source = make_source(digits)
    for other in (draws(source, 4), draws(make_source(digits, seed=1), 3)):
        for here, there in zip(draws(source, 3), other, strict=True):
            assert not torch.equal(here, there)


def test_positives_have_the_anchors_classes_and_reach_every_image_of_them(digits):
    source = make_source(digits)
    labels = torch.arange(10).repeat(40)
    seen = set()
    for step in range(5):
        positives = source.positives(labels, step)
        assert torch.equal(positives.labels, labels)
        seen |= set(positives.indices.tolist())
    assert seen == set(range(N_IMAGES))


def test_a_pool_has_no_image_twice(digits):
    source = make_source(digits)
    for step in range(20):
        assert len(source.pool(30, step).indices.unique()) == 30
    assert source.pool(1000, 0).indices.sort().values.tolist() == list(range(N_IMAGES))


def test_a_batch_larger_than_the_dataset_is_all_of_it(digits):
    source = make_source(digits, batch_size=1000)
    assert source.steps_per_epoch == 1
    assert source.batch(5).indices.sort().values.tolist() == list(range(N_IMAGES))


def test_classes_may_be_missing_and_labels_unsorted():
    source = BatchSource(
        torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([5, 2, 5, 0, 5, 2]), batch_size=2, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    labels = torch.tensor([0, 2, 5] * 20)
    assert torch.equal(source.positives(labels, 0).labels, labels)
