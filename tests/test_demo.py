"""`make demo`: the first thing that somebody sees."""

import pytest
from tiny import REPOSITORY

from analysis.command.demo import demo
from tla_core.datasets import load_dataset


def test_the_demo_shows_published_models_on_images_they_have_not_seen(tmp_path):
    explorer, picture, table = demo(tmp_path, images=300, root=REPOSITORY, progress=False)
    assert "MNIST under attack" in explorer.read_text(encoding="utf-8") and picture.stat().st_size > 10_000
    rows = table.with_suffix(".md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in rows.splitlines()[2:6]] == ["UM", "AT", "ALP", "TLA"]
    assert "**" not in "".join(line.split("|")[6] for line in rows.splitlines()[2:6])  # r, each of other classes
    assert "300 test images of MNIST" in rows and "PGD 10 x 0.06" in rows


@pytest.mark.parametrize("images", [299, len(load_dataset("mnist-mini", "test")) + 1])
def test_numbers_of_images_that_make_no_sense_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match=r"images must be from 300 to 5000\. Got"):
        demo(tmp_path, images=images, root=REPOSITORY)


def test_a_project_without_published_models_says_what_it_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected mnist-um, mnist-at and others"):
        demo(tmp_path / "out", root=tmp_path)
