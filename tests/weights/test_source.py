"""A model's files: defects are named before a weight is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from lamina.depth.plan import make_plan
from lamina.depth.selection import First
from lamina.depth.variants import Original, Pruned
from lamina.errors import ModelError
from lamina.weights.reading import weights_fingerprint
from lamina.weights.source import INDEX_FILE, SINGLE_FILE, resolve
from tests.architectures import save
from tests.conftest import REFERENCE, no_scores


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("shards"), max_shard_size="20KB")


@pytest.fixture
def folder(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path, shards: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "model"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, message: str) -> None:
    """Check that planning fails, with and without dropped layers."""
    for variant in (Original(), Pruned(keep_layers=2, selector=First())):
        with pytest.raises(ModelError, match=message):
            make_plan(variant, str(folder), no_scores)


@pytest.mark.parametrize("cut", [1, 1000, 10_000_000])
def test_a_truncated_file_is_named(folder: Path, cut: int) -> None:
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    refused(folder, r"model\.safetensors is truncated or corrupt .*: download or copy it again")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 4096, b"\x10" + b"\0" * 30])
def test_a_corrupt_file_is_named(folder: Path, content: bytes) -> None:
    (folder / SINGLE_FILE).write_bytes(content)
    refused(folder, r"model\.safetensors is truncated or corrupt")


def test_bytes_that_belong_to_no_tensor_are_refused(folder: Path) -> None:
    with (folder / SINGLE_FILE).open("ab") as file:
        file.write(b"more")
    refused(folder, "incomplete metadata, file not fully covered")


def test_a_shape_that_does_not_fit_its_bytes_is_refused(folder: Path) -> None:
    path = folder / SINGLE_FILE
    content = path.read_bytes()
    assert content.count(b"[64,16]") == 2
    path.write_bytes(content.replace(b"[64,16]", b"[64,61]"))
    refused(folder, "invalid shape, data type, or offset for tensor")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    first = sorted(sharded.glob("model-*.safetensors"))[0]
    first.unlink()
    refused(sharded, rf"{first.name} is missing from that folder")


def test_an_index_with_a_tensor_that_its_file_lacks_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    filename = index["model.norm.weight"]
    change_json(sharded / INDEX_FILE, weight_map={**index, "model.extra.weight": filename})
    refused(sharded, rf"index\.json disagrees with {filename}, which lacks model\.extra\.weight")


def test_a_shard_with_more_than_the_index_says_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    path = sharded / index["model.norm.weight"]
    save_file({**load_file(path), "model.extra.weight": torch.ones(2)}, path, {"format": "pt"})
    refused(sharded, r"disagrees with .*, which has model\.extra\.weight")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_an_index_that_leads_out_of_the_folder_is_refused(sharded: Path, name: str) -> None:
    change_json(sharded / INDEX_FILE, weight_map={"model.norm.weight": name})
    refused(sharded, "is not a file of that folder")


def test_an_index_without_a_map_is_refused(sharded: Path) -> None:
    (sharded / INDEX_FILE).write_text("{}")
    refused(sharded, "has no weight_map")
    (sharded / INDEX_FILE).write_text("{")
    refused(sharded, "cannot be read as JSON")


@pytest.mark.parametrize(("depth", "message"), [(7, "no tensors for layer 6"), (5, "for layer 5")])
def test_a_checkpoint_of_another_depth_is_refused(folder: Path, depth: int, message: str) -> None:
    change_json(folder / "config.json", num_hidden_layers=depth)
    refused(folder, message)


def test_an_adapter_is_not_mistaken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError) as raised:
        resolve(str(tmp_path))
    assert str(raised.value) == (
        f"model_name={tmp_path}: that folder holds an adapter, not a model: "
        "lamina export RUN --output DIR writes the model"
    )


def test_other_weights_have_another_fingerprint(folder: Path, whole: Path) -> None:
    same = weights_fingerprint(resolve(str(whole)))
    assert weights_fingerprint(resolve(str(folder))) == same
    tensors = load_file(folder / SINGLE_FILE)
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})
    assert weights_fingerprint(resolve(str(folder))) != same
    assert len(weights_fingerprint(resolve(str(REFERENCE)))) == 64


def test_a_commit_is_one_of_the_hub_beside_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    snapshot = tmp_path / "cache/models--owner--name/snapshots" / commit
    for folder in (snapshot, tmp_path / "owner/name"):
        folder.mkdir(parents=True)
        shutil.copy(REFERENCE / "config.json", folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name", commit).folder == snapshot
    assert resolve("owner/name").folder == tmp_path / "owner/name"
