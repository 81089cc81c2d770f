"""Image folders as people have them: nothing is skipped silently, pixels are those that a viewer shows."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tla_core import image_decoding
from tla_core.datasets import DatasetError, DatasetNotFoundError, ImageDataset, load_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save(path, pixels, **options):
    """Write an array (h, w), (h, w, 3) or (h, w, 4)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)


def flat(value, size=(5, 6)):
    return np.full((*size, 3), (value, 255 - value, 7), np.uint8)


def png_of_16_bits(pixels):
    """A PNG of an array (h, w, c) of uint16, which Pillow cannot write in colour."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.fixture
def pets(tmp_path):
    folder = tmp_path / "pets"
    for split in ("train", "test"):
        for value, name in ((10, "cat/a.png"), (20, "dog/a.png")):
            save(folder / split / name, flat(value))
    return folder


def first_values(data):
    return data.images[:, 0, 0, 0].tolist()


# Which files ----------------------------------------------------------------------------------------------------------


def test_files_in_nested_folders_belong_to_their_class(pets):
    save(pets / "train/cat/2024/may/b.png", flat(11))
    save(pets / "train/cat/2023/c.png", flat(12))
    train = load_dataset(pets, "train")
    assert first_values(train) == [12, 11, 10, 20] and train.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("name", ["train/cat/b.heic", "train/cat/more/IMG_0001", "train/cat/b.png.bak"])
def test_a_file_that_may_be_an_image_is_refused_by_name(pets, name):
    (pets / name).parent.mkdir(exist_ok=True)
    (pets / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match=rf"{name} is not named like an image .*Convert, rename or remove it"):
        load_dataset(pets, "train")


def test_an_image_outside_the_classes_is_refused_by_name(pets):
    save(pets / "train/lost.png", flat(1))
    with pytest.raises(DatasetError, match=r"train/lost.png lies in no class folder. Move it into one"):
        load_dataset(pets, "train")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_test_split_may_have_another_name(pets, name):
    save(pets / "test/cat/b.png", flat(99))
    (pets / "test").rename(pets / name)
    test = load_dataset(pets, "test")
    assert first_values(test) == [10, 99, 20] and test.split == "test"
    save(pets / "test/cat/only.png", flat(55))
    save(pets / "test/dog/only.png", flat(56))
    assert first_values(load_dataset(pets, "test")) == [55, 56]


def test_a_folder_of_classes_alone_is_both_splits_and_it_is_said(pets):
    with pytest.warns(UserWarning, match=r"train has no train and test folders: all of its images are taken"):
        both = [load_dataset(pets / "train", split) for split in ("train", "test")]
    assert [first_values(data) for data in both] == [[10, 20]] * 2
    assert both[0].source == "train (image folder), without splits"


def test_a_folder_that_is_no_dataset_is_not_searched(tmp_path):
    (tmp_path / "project/source").mkdir(parents=True)
    (tmp_path / "project/source/module.c").write_text("")
    with pytest.raises(DatasetNotFoundError, match=r"no folder .*project/train; expected an image folder"):
        load_dataset(tmp_path / "project", "train")


def test_a_split_that_is_missing_is_not_made_up(pets):
    (pets / "test").rename(pets / "somewhere")
    with pytest.raises(DatasetNotFoundError, match=r"no folder .*pets/test; expected an image folder"):
        load_dataset(pets, "test")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: os.mkfifo(path), r"train/cat/z.png is neither a file nor a folder, but a pipe"),
        (lambda path: path.symlink_to("absent.png"), r"cat/z.png is a link to absent.png, which cannot be followed"),
        (lambda path: path.symlink_to("z.png"), r"train/cat/z.png is a link to z.png, which cannot be followed"),
        (lambda path: path.with_suffix("").symlink_to(".."), r"train/cat/z/cat is a link to a folder .* a circle"),
        (lambda path: path.with_suffix("").symlink_to("."), r"train/cat/z is a link to a folder .* a circle. Remove"),
    ],
)  # fmt: skip
def test_what_is_no_file_is_named(pets, make, message):
    make(pets / "train/cat/z.png")
    with pytest.raises(DatasetError, match=message):
        load_dataset(pets, "train")


def test_links_to_images_and_folders_are_followed(pets):
    save(pets.parent / "elsewhere/more/x.png", flat(31))
    (pets / "train/cat/linked").symlink_to(pets.parent / "elsewhere", target_is_directory=True)
    (pets / "train/dog/x.png").symlink_to(pets.parent / "elsewhere/more/x.png")
    assert first_values(load_dataset(pets, "train")) == [10, 31, 20, 31]


# Which pixels ---------------------------------------------------------------------------------------------------------


def test_orientation_is_applied(pets):
    pixels = np.zeros((5, 6, 3), np.uint8)
    pixels[0, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the viewer turns it by 90 degrees clockwise
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save(pets / split / name / "a.png", pixels, exif=exif)
    images = load_dataset(pets, "train").images
    assert images.shape == (2, 3, 6, 5) and images[0, 0, 0].tolist() == [0, 0, 0, 0, 200]


def test_sixteen_bits_are_scaled_in_grey_and_in_colour(pets):
    values = np.array([0, 255, 0x80FF, 0xFFFF, 1000, 256], np.uint16)
    grey = np.broadcast_to(values, (5, 6))
    colour = np.stack([grey, grey[:, ::-1], grey], -1)
    (pets / "train/cat/b.png").write_bytes(png_of_16_bits(colour))
    (pets / "train/cat/c.png").write_bytes(png_of_16_bits(grey[..., None]))
    save(pets / "train/cat/d.tif", grey.copy())
    (pets / "train/cat/e.pgm").write_bytes(b"P5 6 5 65535\n" + grey.astype(">u2").tobytes())
    images = load_dataset(pets, "train").images.int()
    expected = torch.tensor([0, 0, 128, 255, 3, 1])
    for row in (1, 2, 3, 4):
        assert (images[row, 0, 0] - expected).abs().max() <= 1, row
    assert images[1, 1, 0, 3].item() == 128 and (images[2] == images[3]).all()


def test_values_of_unknown_range_are_refused(pets):
    save(pets / "train/cat/b.tif", np.ones((5, 6), np.float32))
    with pytest.raises(DatasetError, match=r"cat/b.tif cannot be decoded: it has 32-bit values \(mode F\)"):
        load_dataset(pets, "train")


def test_what_is_transparent_shows_white(pets):
    clear = np.zeros((5, 6, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    clear[0, 1] = (0, 0, 0, 128)
    save(pets / "train/cat/b.png", clear)
    image = load_dataset(pets, "train").images[1]
    assert image[:, 0, 0].tolist() == [10, 20, 30] and image[:, 4, 4].tolist() == [255] * 3
    assert abs(image[0, 0, 1].item() - 127) <= 1


def test_grey_images_with_transparency_stay_grey(tmp_path):
    Image.new("LA", (6, 5), (40, 0)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = image_decoding.pixels_of(image)
    assert pixels.shape == (5, 6, 1) and (pixels == 255).all()


def test_resize_and_crop_bring_images_to_one_size(pets):
    save(pets / "train/dog/wide.png", flat(60, size=(10, 40)))
    for options, size in (
        ({"resize": (8, 4)}, (8, 4)), ({"resize": 8, "crop": 8}, (8, 8)), ({"crop": (5, 4)}, (5, 4)),
    ):  # fmt: skip
        train = load_dataset(pets, "train", **options)
        assert train.images.shape == (3, 3, *size) and first_values(train) == [10, 20, 60]
    halves = np.zeros((4, 8, 3), np.uint8)
    halves[:, 4:] = 100
    for split in ("train", "test"):
        for name in ("cat/a.png", "dog/a.png", "dog/wide.png"):
            save(pets / split / name, halves)
    cropped = load_dataset(pets, "train", crop=(2, 4)).images[0, 0]
    assert cropped.tolist() == [[0, 0, 100, 100]] * 2  # out of the middle
    assert load_dataset(pets, "train", resize=2).images.shape == (3, 3, 2, 4)


def test_bad_shapes_are_refused(pets):
    with pytest.raises(DatasetError, match=r"cat/a.png cannot be decoded: it has 6x5 pixels, fewer than the crop"):
        load_dataset(pets, "train", crop=9)
    with pytest.raises(ValueError, match=r"resize must be a whole number of at least 1. Got 0"):
        load_dataset(pets, "train", resize=0)
    with pytest.raises(ValueError, match=r"for image files. Got them for mnist-mini"):
        load_dataset("mnist-mini", "train", crop=20)


def test_different_sizes_name_two_files_and_what_to_pass(pets):
    save(pets / "train/dog/b.png", flat(1, size=(5, 7)))
    with pytest.raises(DatasetError, match=r"cat/a.png has 6x5 pixels and train/dog/b.png has 7x5.*resize=\(5, 6\)"):
        load_dataset(pets, "train")


def test_only_the_named_formats_are_opened(pets):
    (pets / "train/cat/b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\nshowpage\n")
    with pytest.raises(DatasetError, match=r"cat/b.png cannot be decoded: cannot identify image file"):
        load_dataset(pets, "train")


def test_a_huge_image_is_refused_by_its_header(pets):
    small = png_of_16_bits(np.zeros((1, 1, 1), np.uint16))
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)  # 81 megapixels that are not there
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (pets / "train/cat/b.png").write_bytes(small[:8] + chunk + small[33:])
    with pytest.raises(DatasetError, match=r"cat/b.png cannot be decoded: it has 9000x9000 pixels, and at most"):
        load_dataset(pets, "train")


@pytest.mark.parametrize("grey", ["train", "test"])
def test_a_grey_split_beside_a_coloured_one_fails_early(pets, grey):
    for name in ("cat/a.png", "dog/a.png"):
        save(pets / grey / name, np.zeros((5, 6), np.uint8))
    for split in ("train", "test"):
        with pytest.raises(DatasetError, match=r"One split is grey and the other has colour.*Convert one of them"):
            load_dataset(pets, split)


def test_splits_of_different_sizes_fail_early(pets):
    for name in ("cat/a.png", "dog/a.png"):
        save(pets / "test" / name, flat(1, size=(8, 8)))
    with pytest.raises(DatasetError, match=r"train/cat/a.png has 6x5 pixels and test/cat/a.png has 8x8"):
        load_dataset(pets, "train")
    assert load_dataset(pets, "train", resize=(4, 4)).images.shape == (2, 3, 4, 4)


# The cache and the names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["in place", "another file", "another folder"])
def test_equal_names_sizes_and_times_are_told_apart(pets, how):
    path = pets / "train/cat/a.bmp"
    save(path, flat(30))
    before = path.stat()
    assert first_values(load_dataset(pets, "train")) == [30, 10, 20]
    if how == "in place":
        save(path, flat(31))
    elif how == "another file":
        save(path.with_name("b.bmp"), flat(31))
        path.with_name("b.bmp").replace(path)
    else:  # whose files were made earlier
        save(pets.parent / "cat/a.bmp", flat(31))
        (pets / "train/cat/a.png").rename(pets.parent / "cat/a.png")
        (pets / "train/cat").rename(pets.parent / "old")
        (pets.parent / "cat").rename(pets / "train/cat")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert first_values(load_dataset(pets, "train")) == [31, 10, 20]


def test_class_names_may_be_a_dictionary():
    images = np.zeros((2, 1, 4, 4), np.uint8)
    assert ImageDataset(images, [0, 1], {1: "dog", 0: "cat"}).class_names == ("cat", "dog")
    with pytest.raises(DatasetError, match=r"name each of the classes 0\.\.1. Got names of 0, 2"):
        ImageDataset(images, [0, 1], {0: "cat", 2: "dog"})
    with pytest.raises(DatasetError, match=r"must be a list of names. Got the text 'cat'"):
        ImageDataset(images, [0, 1], "cat")
