import contextlib
import errno
import hashlib
import os
import pickle
import signal
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import file_size_limit

from tla_core.checkpoint import (
    CheckpointError,
    file_sha256,
    load_tensors,
    read_metadata,
    save_tensors,
    write_atomic,
    write_json,
)

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64,
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    """A small file that was written before."""
    path = tmp_path / "run" / "state.safetensors"
    save_tensors(path, {"a": torch.arange(5.0), "b": torch.tensor(True)}, {"step": 7, "name": "before"})
    return path


def assert_still_there(path):
    """The file of the fixture is unchanged, and nothing lies beside it."""
    tensors, metadata = load_tensors(path)
    assert metadata == {"step": 7, "name": "before"} and torch.equal(tensors["a"], torch.arange(5.0))
    assert os.listdir(path.parent) == [path.name]


# ---- round trip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (2, 3, 4, 5)], ids=str)
def test_every_dtype_and_shape_comes_back_the_same(dtype, shape, tmp_path):
    tensor = (torch.arange(120) % 7).to(dtype)[: int(np.prod(shape))].reshape(shape)
    save_tensors(tmp_path / "x", {"x": tensor}, {})
    loaded = load_tensors(tmp_path / "x")[0]["x"]
    assert loaded.dtype == dtype and loaded.shape == shape and torch.equal(loaded, tensor)


def test_views_come_back_contiguous_and_stay_as_they_were(tmp_path):
    base = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    tensors = {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "sliced": base[:, 1:, ::2],
        "transposed": base.transpose(0, 3),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "tied/one": base,
        "tied/two": base,
        "parameter": torch.nn.Parameter(base),
    }
    strides = {name: tensor.stride() for name, tensor in tensors.items()}
    save_tensors(tmp_path / "x", tensors, {})
    loaded, _ = load_tensors(tmp_path / "x")
    assert {name: tensor.stride() for name, tensor in tensors.items()} == strides
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].is_contiguous() and not loaded[name].requires_grad


def test_bits_of_nan_and_minus_zero_survive(tmp_path):
    tensor = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    save_tensors(tmp_path / "x", {"x": tensor}, {})
    assert torch.equal(load_tensors(tmp_path / "x")[0]["x"].view(torch.int32), tensor.view(torch.int32))


def test_arrays_are_taken_too(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_tensors(tmp_path / "x", {"x": array}, {})
    assert np.array_equal(load_tensors(tmp_path / "x")[0]["x"], array)


def test_metadata_comes_back_from_both_readers(tmp_path):
    metadata = {"name": 'Zürich "ε"', "nested": {"list": [1, 0.5, None, True], "empty": {}}, "whole": 2.0}
    save_tensors(tmp_path / "x", {}, metadata)
    assert load_tensors(tmp_path / "x") == ({}, metadata)
    assert read_metadata(tmp_path / "x") == metadata


def test_the_same_content_gives_the_same_bytes(tmp_path):
    a, b = torch.ones(3), torch.zeros(2, dtype=torch.int8)
    checksums = set()
    for _ in range(10):  # the order in which safetensors writes its metadata is random
        save_tensors(tmp_path / "x", {"a": a, "ä/b": b}, {"x": 1, "y": 2})
        checksums.add(file_sha256(tmp_path / "x"))
        save_tensors(tmp_path / "x", {"ä/b": b, "a": a}, {"y": 2.0, "x": 1.0})
        checksums.add(file_sha256(tmp_path / "x"))
    assert len(checksums) == 1
    with safetensors.safe_open(tmp_path / "x", "pt") as file:  # and it is a file that safetensors itself reads
        assert torch.equal(file.get_tensor("ä/b"), b)


def test_file_sha256_is_that_of_the_content(path):
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_no_length_of_the_header_is_taken_for_a_pickle(tmp_path):
    # A safetensors file begins with the length of its header, and 640 = 0x0280 are the first bytes of a pickle.
    lengths = set()
    for letters in range(0, 1600, 8):
        save_tensors(tmp_path / "x", {}, {"text": "x" * letters})
        load_tensors(tmp_path / "x")
        lengths.add(int.from_bytes((tmp_path / "x").read_bytes()[:8], "little"))
    assert {0x0280, 0x0380, 0x0480, 0x0580} <= lengths


# ---- files that cannot be trusted


def test_a_change_of_any_byte_is_noticed(path):
    content = path.read_bytes()
    for position in range(len(content)):
        for bits in (0x01, 0x80, 0xFF):
            altered = bytearray(content)
            altered[position] ^= bits
            path.write_bytes(altered)
            with pytest.raises(CheckpointError, match=r"state\.safetensors .*(altered|truncated|not a file of this)"):
                load_tensors(path)
            with contextlib.suppress(CheckpointError):  # it may read an altered file, but raises nothing else
                read_metadata(path)


def test_a_file_of_any_shorter_length_is_refused(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        for reader in (load_tensors, read_metadata):
            with pytest.raises(CheckpointError, match="truncated"):
                reader(path)
    path.write_bytes(content + b"\0")
    for reader in (load_tensors, read_metadata):
        with pytest.raises(CheckpointError, match="altered"):
            reader(path)


class Bomb:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("reader", [load_tensors, read_metadata])
@pytest.mark.parametrize("how", ["torch.save", "torch.save of old", *range(2, pickle.HIGHEST_PROTOCOL + 1)])
def test_a_pickle_is_named_and_not_loaded(reader, how, tmp_path):
    path = tmp_path / "model.pt"
    bomb = {"weights": Bomb(tmp_path / "exploded"), "name": "x" * 1000}
    with path.open("wb") as file:
        if isinstance(how, int):
            pickle.dump(bomb, file, protocol=how)
        else:
            torch.save(bomb, file, _use_new_zipfile_serialization=how == "torch.save")
    with pytest.raises(CheckpointError, match=r"model\.pt is a pickle.*only safetensors"):
        reader(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"not a checkpoint, whatever its name says", bytes(100), b'{"json": true}', b"\xff" * 64,
        (10).to_bytes(8, "little") + b"[1, 2, 3] ", (22).to_bytes(8, "little") + b'{"__metadata__": "no"}',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=["empty", "text", "zeros", "json", "ones", "a list", "no dictionary", "deep"],
)  # fmt: skip
@pytest.mark.parametrize("reader", [load_tensors, read_metadata])
def test_other_files_are_refused(reader, content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="no safetensors file, or a truncated one"):
        reader(tmp_path / "x")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "tla/2"}])
@pytest.mark.parametrize("reader", [load_tensors, read_metadata])
def test_safetensors_files_of_others_are_refused(reader, metadata, tmp_path):
    safetensors.torch.save_file({"x": torch.ones(3)}, tmp_path / "x", metadata)
    with pytest.raises(CheckpointError, match=r"not a file of this toolkit: expected the format tla/1\. Got"):
        reader(tmp_path / "x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*x\.safetensors"):
        load_tensors(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors"):
        read_metadata(tmp_path / "x.safetensors")


# ---- writing


def test_a_full_disk_leaves_the_file_that_was_there(path):
    big = torch.zeros(100_000)
    with file_size_limit(50_000), pytest.raises(OSError, match=r"could not write .*state.*\(0\.4 MB\).*unchanged"):
        save_tensors(path, {"a": big}, {})
    assert_still_there(path)
    save_tensors(path, {"a": big}, {})  # there is room again
    assert torch.equal(load_tensors(path)[0]["a"], big)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_whatever_fails_while_writing_leaves_the_file_that_was_there(call, error, path, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error), match="^$" if isinstance(error, KeyboardInterrupt) else "No space.*unchanged"):
        save_tensors(path, {"a": torch.zeros(3)}, {})
    monkeypatch.undo()
    assert_still_there(path)


def test_a_folder_that_cannot_be_made_is_named(path):
    with pytest.raises(OSError, match=r"could not write .*below.*permissions"):
        write_atomic(path / "below" / "x", b"content")
    assert_still_there(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts writers by fork")
def test_neither_a_reader_nor_a_kill_finds_a_part(tmp_path):
    path, contents = tmp_path / "x", [bytes([letter]) * 2_000_000 for letter in b"ab"]
    write_atomic(path, contents[0])
    for delay in (0.05, 0.11, 0.17, 0.23):
        writer = os.fork()
        if writer == 0:  # writes and nothing else: torch must not be used after a fork
            while True:
                for content in contents:
                    write_atomic(path, content)
        end = time.monotonic() + delay
        try:
            while time.monotonic() < end:
                assert path.read_bytes() in contents
        finally:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
        assert path.read_bytes() in contents


def test_json_is_for_people(tmp_path):
    write_json(tmp_path / "x.json", {"b": "Zürich", "a": [1]})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": [\n    1\n  ],\n  "b": "Zürich"\n}\n'
