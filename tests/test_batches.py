import numpy as np
import pytest
import torch
from oracles import crop_flip
from torchvision.transforms.functional import adjust_saturation

import tla_core as tla
from tla_core.batches import BatchSource, augment
from tla_core.random_numbers import counter_uniform

N_IMAGES, BATCH_SIZE = 107, 20


@pytest.fixture(scope="module")
def digits():
    return tla.load_dataset("mnist-mini", "train").subset(range(N_IMAGES))


def make_source(digits, *, seed=0, batch_size=BATCH_SIZE, **options):
    return BatchSource(
        digits.images, digits.labels, batch_size=batch_size, seed=seed, device=torch.device("cpu"), **options
    )


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


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
@pytest.mark.parametrize("world_size", [2, 4, 5])
def test_the_shares_of_the_processes_are_the_batch_of_one(digits, world_size, augmentation):
    one = make_source(digits, augmentation=augmentation)
    ranks = [
        make_source(digits, augmentation=augmentation, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step in (0, 4, 13):
        batch, shares = one.batch(step), [source.batch(step) for source in ranks]
        assert {len(share.labels) for share in shares} == {BATCH_SIZE // world_size}
        positives = one.positives(batch.labels, step)
        positive_shares = [source.positives(share.labels, step) for source, share in zip(ranks, shares, strict=True)]
        for whole, parts in ((batch, shares), (positives, positive_shares)):
            for name in ("images", "labels", "indices"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        for source in ranks:
            assert torch.equal(source.pool(30, step).images, one.pool(30, step).images)
        assert ranks[0].steps_per_epoch == one.steps_per_epoch


@pytest.mark.parametrize("world_size, batch_size", [(3, 20), (11, 20), (20, 20)])
def test_a_batch_that_cannot_be_shared_is_refused(digits, world_size, batch_size):
    with pytest.raises(ValueError, match=rf"{world_size} processes must share a batch equally.*Got a batch of 20"):
        make_source(digits, batch_size=batch_size, world_size=world_size)


# Augmentation ---------------------------------------------------------------------------------------------------------


def colour_images(n=40, channels=3, height=16, width=16, seed=0):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def draws_of(seed, indices, height, width):
    """Top, left, mirrored and the saturation's factor of each image, as `augment` says it draws them."""
    uniform = counter_uniform(seed, indices, 0, 4).numpy().astype(np.float64)
    top, left = (np.floor(uniform[:, k] * (2 * (size // 8) + 1)).astype(int) for k, size in ((0, height), (1, width)))
    return top, left, uniform[:, 2] < 0.5, 0.5 + uniform[:, 3]


@pytest.mark.parametrize("channels, height, width", [(3, 16, 16), (1, 28, 28), (3, 8, 24), (4, 17, 9), (3, 5, 5)])
def test_crops_and_mirrors_equal_a_slow_loop(channels, height, width):
    images, indices = colour_images(12, channels, height, width), torch.arange(12) * 7
    augmented = augment(images, indices, seed=3)
    assert augmented.shape == images.shape and augmented.dtype == torch.float32
    top, left, mirror, _ = draws_of(3, indices, height, width)
    for i, image in enumerate(images.numpy()):
        np.testing.assert_array_equal(augmented[i].numpy(), crop_flip(image, top[i], left[i], mirror[i]))


def test_saturation_equals_torchvision_s():
    images, indices = colour_images(), torch.arange(40)
    cropped = augment(images, indices, seed=5)
    saturated = augment(images, indices, seed=5, saturation=True)
    *_, factors = draws_of(5, indices, 16, 16)
    assert factors.min() < 0.6 and factors.max() > 1.4
    for i, factor in enumerate(factors):
        # torchvision weighs red by 0.2989, and so a grey image loses 0.0001 of its light; 0.299 keeps it.
        torch.testing.assert_close(saturated[i], adjust_saturation(cropped[i], factor), rtol=0, atol=1e-4)
    assert 0 <= saturated.min() and saturated.max() <= 1


def test_grey_images_keep_their_colour():
    grey = colour_images(channels=1)
    indices = torch.arange(40)
    for channels in (1, 3):
        cropped = augment(grey.expand(-1, channels, -1, -1), indices, seed=5)
        saturated = augment(grey.expand(-1, channels, -1, -1), indices, seed=5, saturation=True)
        torch.testing.assert_close(saturated, cropped, rtol=0, atol=1e-6)
    assert torch.equal(augment(grey, indices, seed=5, saturation=True), augment(grey, indices, seed=5))


def test_half_of_the_images_are_mirrored_and_every_crop_occurs():
    """Each pixel holds its own position, so that an image tells where it was cut and whether it is mirrored."""
    size, n = 16, 4000
    rows = torch.arange(1, size + 1.0)[:, None].expand(size, size) / 64
    columns = torch.arange(1, size + 1.0)[None].expand(size, size) / 64
    image = torch.stack([rows, columns]).expand(n, 2, size, size)
    augmented = augment(image, torch.arange(n), seed=0)
    middle = augmented[:, :, size // 2, size // 2 - 1 : size // 2 + 1]  # two neighbours inside any crop
    mirrored = middle[:, 1, 1] < middle[:, 1, 0]
    assert 0.45 < mirrored.double().mean() < 0.55
    shift = (middle[:, 0, 0] * 64 - size // 2 - 1).round().long()
    counts = torch.bincount(shift + 2, minlength=5)
    assert shift.abs().max() == 2 and (counts - n / 5).abs().max() < 5 * (n / 5) ** 0.5
    left = (middle[:, 1].mean(1) * 64 - size / 2 - 0.5).round().long()
    counts = torch.bincount(left + 2, minlength=5)
    assert left.abs().max() == 2 and (counts - n / 5).abs().max() < 5 * (n / 5) ** 0.5


def test_what_happens_to_an_image_depends_on_the_seed_and_its_index_alone():
    images, indices = colour_images(), torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:40]
    before = images.clone()
    whole = augment(images, indices, seed=3, saturation=True)
    assert torch.equal(images, before)
    torch.manual_seed(99)
    split = [augment(images[part], indices[part], seed=3, saturation=True) for part in torch.arange(40).split(7)]
    assert torch.equal(torch.cat(split), whole)
    order = torch.arange(40).flip(0)
    assert torch.equal(augment(images[order], indices[order], seed=3, saturation=True), whole[order])
    same = augment(images[:1].expand(40, -1, -1, -1), torch.full((40,), 5), seed=3, saturation=True)
    assert (same == same[0]).all()
    for other in (augment(images, indices, seed=4), augment(images, indices + 1, seed=3)):
        assert not torch.equal(other, augment(images, indices, seed=3))


def test_a_source_augments_all_that_it_draws_and_anew_at_each_step(digits):
    plain, source = make_source(digits), make_source(digits, augmentation="crop-flip")
    again = make_source(digits, augmentation="crop-flip")
    again.batch(7)
    labels = plain.batch(3).labels
    for draw in (lambda s: s.batch(3), lambda s: s.positives(labels, 3), lambda s: s.pool(30, 3)):
        assert torch.equal(draw(source).indices, draw(plain).indices)
        assert not torch.equal(draw(source).images, draw(plain).images)
        assert torch.equal(draw(source).images, draw(again).images)
    everything = make_source(digits, batch_size=N_IMAGES, augmentation="crop-flip")
    first, second = (everything.batch(step) for step in (0, 1))
    assert not torch.equal(first.images[first.indices.argsort()], second.images[second.indices.argsort()])


def test_an_anchor_and_the_positive_that_is_the_same_image_are_augmented_differently(digits):
    source = make_source(digits, augmentation="crop-flip")
    indices = torch.arange(N_IMAGES)
    batch, positive = (source._take(indices, what, 0) for what in ("batch", "positives"))
    assert not torch.equal(batch.images, positive.images)


def test_the_source_says_saturation_when_it_is_meant():
    colours = (colour_images(30) * 255).to(torch.uint8)
    labels = torch.arange(30) % 3

    def source(augmentation):
        return BatchSource(
            colours, labels, batch_size=30, seed=0, device=torch.device("cpu"), augmentation=augmentation
        )

    cropped, saturated = source("crop-flip").batch(0).images, source("crop-flip-saturation").batch(0).images
    assert torch.equal((cropped == 0).all(1), (saturated == 0).all(1))  # cut at the same place
    assert not torch.equal(cropped, saturated)
