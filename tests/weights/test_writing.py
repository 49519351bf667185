"""Unchanged tensors are copied inside the kernel, or through memory where it cannot."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lamina.export.folder import outgoing
from lamina.weights.reading import NOT_IN_KERNEL, tensor_slices
from lamina.weights.source import resolve
from lamina.weights.writing import write_shards
from tests.conftest import REFERENCE

NAME = "model.layers.3.mlp.up_proj.weight"


def written(folder: Path, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    names = {NAME: NAME.replace("3", "2"), "model.norm.weight": "model.norm.weight"}
    with tensor_slices(resolve(str(REFERENCE)), names) as slices:
        progress: list[int] = []
        write_shards(folder, outgoing(slices, dtype), progress.append)
    found = load_file(folder / "model.safetensors")
    assert sum(progress) == sum(tensor.nbytes for tensor in found.values())
    return found


@pytest.mark.parametrize("number", [None, 0, *NOT_IN_KERNEL])
def test_every_way_of_copying_writes_the_same_bytes(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def counted(*arguments: int) -> int:
        copied.append(kernel(*arguments) if number is None else 0)
        if number:
            raise OSError(number, os.strerror(number))
        return copied[-1]

    kernel = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", counted)
    expected = load_file(REFERENCE / "model.safetensors")
    found = written(tmp_path, torch.bfloat16)  # its own type
    assert torch.equal(found[NAME.replace("3", "2")], expected[NAME])
    assert torch.equal(found["model.norm.weight"], expected["model.norm.weight"])
    in_kernel = sum(tensor.nbytes for tensor in found.values())
    assert sum(copied) == (in_kernel if number is None else 0)


def test_a_converted_tensor_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    found = written(tmp_path, torch.float32)
    expected = load_file(REFERENCE / "model.safetensors")
    assert torch.equal(found["model.norm.weight"], expected["model.norm.weight"].float())


def test_a_full_disk_is_not_taken_for_a_kernel_that_cannot_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left on device"):
        written(tmp_path, None)
