"""A small part of the campaign of faults; `make faults` runs all of it."""

import os
import random
import subprocess
import sys

import pytest
from faults import BAD, damage, judge
from tiny import REPOSITORY


@pytest.mark.skipif(not hasattr(os, "fork"), reason="faults come to forks")
def test_a_small_part_of_the_campaign_finds_nothing():
    command = [sys.executable, REPOSITORY / "tests" / "faults.py", "--share", "0.03", "--seed", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, "--only", "kills", "full-disks", "--kinds", "model", "representations"],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model killed" in done.stdout and "on a full disk" in done.stdout


@pytest.mark.parametrize("kind", ["bit", "cut", "empty", "text", "zeros"])
def test_damage_is_damage_and_the_same_again(kind):
    content = bytes(range(100))
    first, second = (damage(content, kind, random.Random(0)) for _ in range(2))
    assert first == second != content
    if kind == "bit":
        assert sum((one ^ other).bit_count() for one, other in zip(first, content, strict=True)) == 1


@pytest.mark.parametrize(
    ("status", "text", "mended", "outcome"),
    [
        (1, "tla: error: model.safetensors was altered", False, "named"),
        (0, "restored", True, "mended"),
        (0, "clean 99 %\nstored in model.safetensors", False, "the same answer"),
        (0, "another", False, f"{BAD}another answer, status 0"),
        (0, "clean 12 %\nstored in model.safetensors", False, f"{BAD}another answer, status 0"),
        (1, "broken", False, f"{BAD}an error without the file"),
        (1, "Traceback (most recent call last): model.safetensors", False, f"{BAD}a traceback"),
    ],
)
def test_what_comes_of_a_damaged_file_is_judged(status, text, mended, outcome, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"whole" if mended else b"damaged")
    intact = (0, "clean 99 %\nstored in model.safetensors")  # commands name the file that they write
    assert judge(status, text, path, b"whole", intact) == outcome
