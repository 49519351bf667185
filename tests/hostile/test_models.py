"""Models whose files are damaged or mean no good: refused by name, before a weight is used."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamina.depth.loading import refuse_not_finite
from lamina.errors import ModelError
from tests.conftest import REFERENCE, SHORT, Finished, lamina, train
from tests.hostile.conftest import Refused
from tests.hostile.models import (
    MISSING,
    Content,
    changed,
    encodings,
    safetensors,
    split_safetensors,
    tampered,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER, BODY = split_safetensors(REFERENCE / WEIGHTS)
FIRST, SECOND = [name for name in HEADER if name != "__metadata__"][:2]
DAMAGED = f"{WEIGHTS} is truncated or corrupt ("
UTF16, BINARY = "can't decode byte 0xff", "can't decode byte 0x80"


def run(command: str, model: Path, folder: Path) -> Finished:
    pruned = ("model=pruned", "model.keep_layers=6", f"model_name={model}")
    if command == "train":
        return train(folder / "run", *SHORT, *pruned)
    if command == "original":
        return train(folder / "run", *SHORT, "model=original", pruned[-1])
    given = {
        "show": ("show", model),
        "cut": ("cut", *pruned, "output=out"),
        "scan": ("scan", "experiment=quickstart", pruned[-1]),
    }
    return lamina(*given[command], cwd=folder)


def tensor(name: str = FIRST, **changes: Any) -> bytes:
    """A file whose header describes one tensor differently."""
    described = {key: value for key, value in {**HEADER[name], **changes}.items() if value != ""}
    return safetensors({**HEADER, name: described}, BODY)


def cut_short(offsets: list[int]) -> list[int]:
    return [0, offsets[1] - offsets[0]]


HEADERS: dict[str, tuple[bytes, str]] = {
    "overlapping": (
        tensor(SECOND, data_offsets=cut_short(HEADER[SECOND]["data_offsets"])),
        "invalid offset for tensor",
    ),
    "negative": (tensor(data_offsets=[-8, 8]), "integer `-8`, expected usize"),
    "swapped": (tensor(data_offsets=HEADER[FIRST]["data_offsets"][::-1]), "invalid offset"),
    "fractions": (tensor(data_offsets=[0.5, 1.5]), "floating point `0.5`, expected usize"),
    "three offsets": (tensor(data_offsets=[0, 1, 2]), "invalid JSON in header"),
    "a list": (safetensors([1, 2], BODY), "invalid JSON in header"),
    "null": (safetensors(b"null", BODY), "invalid"),
    "NaN": (safetensors(b"NaN", BODY), "invalid"),
    "nested": (safetensors(b"[" * 100_000, BODY), "invalid"),
    "nested objects": (safetensors(b'{"a":' * 100_000, BODY), "invalid"),
    "UTF-16": (safetensors(json.dumps(HEADER).encode("utf-16"), BODY), "invalid"),
    "a tensor that is a list": (safetensors({**HEADER, FIRST: [1]}, BODY), "invalid JSON"),
    "a shape of text": (tensor(shape="wide"), "invalid JSON in header"),
    "a negative shape": (tensor(shape=[-1, -128]), "invalid JSON in header"),
    "a huge shape": (tensor(shape=[2**62, 2**62]), "overflow"),
    "a shape of no elements": (tensor(shape=[0, 128]), "invalid shape, data type, or offset"),
    "an unknown type": (tensor(dtype="X9"), "unknown variant `X9`"),
    "no type": (tensor(dtype=""), "missing field `dtype`"),
    "a hole": (
        safetensors({name: HEADER[name] for name in HEADER if name != SECOND}, BODY),
        "invalid offset",
    ),
    "metadata of numbers": (
        safetensors({**HEADER, "__metadata__": {"a": 1}}, BODY),
        "integer `1`, expected a string",
    ),
    "metadata that is a list": (safetensors({**HEADER, "__metadata__": [1]}, BODY), "invalid"),
    "a header beyond the file": (struct.pack("<Q", 2**63) + b"{}", "header too large"),
    "no bytes": (b"", "header too small"),
    "seven bytes": (b"1234567", "header too small"),
    "truncated": (safetensors(HEADER, BODY[:-100]), "file not fully covered"),
    "trailing bytes": (safetensors(HEADER, BODY + b"more"), "file not fully covered"),
}


READ_BEFORE = ("overlapping", "negative", "swapped", "metadata of numbers")
"""Headers that Lamina once read, and trained on what they led to."""


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_the_library_refuses(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = HEADERS[case]
    model = tampered(tmp_path / "model", WEIGHTS, content)
    for command in ("show", "train") if case in READ_BEFORE else ("show",):
        refused(run(command, model, tmp_path), f"model_name={model}: {DAMAGED}", reason)


INDEXES: dict[str, tuple[Content, str]] = {
    "a list": ([1], "expected a JSON object, found [1]"),
    "a list of files": ({"weight_map": [1]}, "has no weight_map"),
    "null": ({"weight_map": None}, "has no weight_map"),
    "files that are lists": ({"weight_map": {FIRST: [1]}}, "names '[1]', which is not a file"),
    "numbers": ({"weight_map": {FIRST: 1}}, "names '1', which is not a file"),
    "the folder above": ({"weight_map": {FIRST: "../x.safetensors"}}, "names '../x.safetensors'"),
    "a system file": ({"weight_map": {FIRST: "/etc/passwd"}}, "names '/etc/passwd'"),
    "its own config": ({"weight_map": {FIRST: "config.json"}}, "names 'config.json'"),
    "no name": ({"weight_map": {FIRST: ""}}, "names ''"),
    "a missing file": (
        {"weight_map": dict.fromkeys(HEADER, "x.safetensors")},
        "x.safetensors is missing from that folder",
    ),
    "an escape": ({"weight_map": {FIRST: "\x1b[31mred"}}, r"names '\x1b[31mred'"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_leads_nowhere(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = INDEXES[case]
    model = tampered(tmp_path / "model", INDEX, content)
    (model / WEIGHTS).unlink()
    for command in ("show", "train"):
        refused(run(command, model, tmp_path), str(model), reason)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a billion layers": (
        {"num_hidden_layers": 10**9},
        "num_hidden_layers is 1000000000, expected 1 to 10,000",
    ),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected 1 to 10,000"),
    "layers of text": ({"num_hidden_layers": "12"}, "num_hidden_layers is '12', expected int"),
    "half a layer": ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5, expected int"),
    "a list of layers": ({"num_hidden_layers": [12]}, "num_hidden_layers is [12], expected"),
    "more layers than stored": (
        {"num_hidden_layers": 13, "layer_types": MISSING},
        "no tensors for layer 12",
    ),
    "fewer layers than stored": (
        {"num_hidden_layers": 11, "layer_types": MISSING},
        "has tensors for layer 11",
    ),
    "kinds that are a number": ({"layer_types": 5}, "layer_types is 5, expected list"),
    "kinds for other layers": ({"layer_types": ["a"]}, "layer_types has 1 entries for 12 layers"),
    "a window of text": ({"max_window_layers": "x"}, "max_window_layers is 'x', expected int"),
    "heads of text": ({"num_mtp_layers": "x"}, "num_mtp_layers is 'x', expected int"),
    "a billion heads": ({"num_mtp_layers": 10**9}, "num_mtp_layers is 1000000000, expected 0 to"),
    "no type": ({"model_type": MISSING}, "config.json has no model_type"),
    "a type that is a list": ({"model_type": ["qwen3"]}, "model_type=['qwen3']: transformers kno"),
    "an unknown type": ({"model_type": "\x1b[31mred\r\u202e"}, r"model_type=\x1b[31mred\r\u202e"),
    "half a character": ({"model_type": "\ud800"}, r"model_type=\ud800"),
    "a size of text": ({"hidden_size": "x"}, "Field 'hidden_size' expected int, got str"),
    "a negative size": ({"hidden_size": -1}, "config.json: Trying to create tensor with negative"),
    "a size beyond numbers": ({"hidden_size": 10**30}, "config.json: empty(): argument 'size'"),
    "heads of no size": ({"head_dim": 0}, "config.json: 0.0 cannot be raised to a negative power"),
    "an unknown activation": ({"hidden_act": "x"}, "config.json: KeyError: 'x'"),
    "an unknown dtype": ({"dtype": "x"}, "config.json: AttributeError: module 'torch' has no"),
    "a dtype that is a number": ({"dtype": 5}, "config.json: AttributeError: 'int' object has no"),
    "rotations of text": ({"rope_parameters": "x"}, "config.json: "),
    "unknown rotations": ({"rope_parameters": {"rope_type": "x"}}, "config.json: "),
    "a yes that is text": ({"attention_bias": "x"}, "Field 'attention_bias' expected bool"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_field_of_the_config(case: str, refused: Refused, tmp_path: Path) -> None:
    changes, reason = CONFIGS[case]
    content = changed("config.json", **changes)
    model = tampered(tmp_path / "model", "config.json", content)
    refused(run("train", model, tmp_path), f"model_name={model}", reason)


@pytest.mark.parametrize("changes", [{"hidden_size": 10**9}, {"vocab_size": 10**12}])
def test_a_size_beyond_memory(changes: dict[str, Any], refused: Refused, tmp_path: Path) -> None:
    model = tampered(tmp_path / "model", "config.json", changed("config.json", **changes))
    message = "tensors do not fit the model (first: model.embed_tokens.weight)"
    refused(run("cut", model, tmp_path), f"model_name={model}", message)


@pytest.mark.parametrize("case", encodings({}))
def test_a_config_that_is_no_json_object(case: str, refused: Refused, tmp_path: Path) -> None:
    content = encodings(changed("config.json"))[case]
    model = tampered(tmp_path / "model", "config.json", content)
    for command in ("show", "train"):
        refused(run(command, model, tmp_path), f"{model}/config.json")


GENERATION: dict[str, tuple[Content, str]] = {
    **{case: (content, "") for case, content in encodings({"eos_token_id": 2}).items()},
    "an end of text": ({"eos_token_id": "x"}, "eos_token_id is 'x', expected a token id"),
    "an end in lists": ({"eos_token_id": [[1]]}, "eos_token_id is [[1]], expected a token id"),
    "padding of an object": ({"pad_token_id": {}}, "pad_token_id is {}, expected a token id"),
    "a length of text": ({"max_new_tokens": "x"}, "'<=' not supported between instances of 'str'"),
    "a negative length": ({"max_new_tokens": -3}, "`max_new_tokens` must be greater than 0"),
    "an unknown cache": ({"cache_implementation": "x"}, "Invalid `cache_implementation` (x)"),
    "beams in a list": ({"num_beams": [1]}, "num_beams is [1], expected int | None"),
    "watermarks in a list": ({"watermarking_config": [1]}, "AttributeError: 'list' object has no"),
    "an unknown watermark": ({"watermarking_config": {"a": 1}}, "unexpected keyword argument 'a'"),
}


@pytest.mark.parametrize("case", GENERATION)
def test_generation_settings(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = GENERATION[case]
    model = tampered(tmp_path / "model", "generation_config.json", content)
    refused(run("train", model, tmp_path), str(model), "generation_config.json", reason)


TOKENIZER = json.loads((REFERENCE / "tokenizer.json").read_text())
TOKENIZERS: dict[str, tuple[str, Content, str]] = {
    "a list": ("tokenizer.json", [1], "cannot be interpreted as an integer"),
    "null": ("tokenizer.json", b"null", "'NoneType' object"),
    "empty": ("tokenizer.json", b"", "Expecting value"),
    "UTF-16": ("tokenizer.json", json.dumps(TOKENIZER).encode("utf-16"), UTF16),
    "binary": ("tokenizer.json", bytes(range(128, 256)), BINARY),
    "nested": ("tokenizer.json", b"[" * 200_000, "maximum recursion depth"),
    "no vocabulary": ("tokenizer.json", {**TOKENIZER, "model": {}}, "data did not match"),
    "a text for an id": (
        "tokenizer.json",
        {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": {"a": "b"}}},
        'invalid type: string "b", expected u32',
    ),
    "a negative id": (
        "tokenizer.json",
        {**TOKENIZER, "added_tokens": [{"id": -1}]},
        "integer `-1`, expected u32",
    ),
    "tokens of text": ("tokenizer.json", {**TOKENIZER, "added_tokens": "x"}, "'str' object"),
    "a config that is a list": ("tokenizer_config.json", [1], "list indices must be integers"),
    "a config in UTF-16": ("tokenizer_config.json", "{}".encode("utf-16"), UTF16),
    "a nested config": ("tokenizer_config.json", b"[" * 200_000, "maximum recursion depth"),
    "a class that is a number": (
        "tokenizer_config.json",
        changed("tokenizer_config.json", tokenizer_class=5),
        "'int' object has no attribute",
    ),
    "an end that is a number": (
        "tokenizer_config.json",
        changed("tokenizer_config.json", eos_token=5),
        "Special token eos_token has to be either str or AddedToken",
    ),
    "a length of text": (
        "tokenizer_config.json",
        changed("tokenizer_config.json", model_max_length="x"),
        "not supported between instances of",
    ),
    "a template in UTF-16": ("chat_template.jinja", "{{ x }}".encode("utf-16"), UTF16),
    "a binary template": ("chat_template.jinja", bytes(range(128, 256)), BINARY),
    "a template that raises": (
        "chat_template.jinja",
        r"{{ raise_exception('\x1b[31mred') }}",
        r"refuses these messages (\x1b[31mred)",
    ),
    "a template that never ends": (
        "chat_template.jinja",
        "{% for i in range(100000000000) %}x{% endfor %}",
        "refuses these messages (Range too big",
    ),
    "a template that divides by zero": (
        "chat_template.jinja",
        "{{ 1 / 0 }}",
        "refuses these messages (division by zero)",
    ),
    "special tokens in a list": ("special_tokens_map.json", [1], "'list' object"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer(case: str, refused: Refused, tmp_path: Path) -> None:
    name, content, reason = TOKENIZERS[case]
    model = tampered(tmp_path / "model", name, content)
    place = () if "refuses" in reason else (f"model_name={model}: no usable tokenizer",)
    refused(run("train", model, tmp_path), *place, reason)


NO_FILE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_FILE)
@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json"])
def test_what_is_no_file(name: str, kind: str, refused: Refused, tmp_path: Path) -> None:
    model = tampered(tmp_path / "model", name, NO_FILE[kind])
    refused(run("train", model, tmp_path), f"model_name={model}")


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero", "~", "\x1b[31mred"])
def test_a_name_of_no_model(name: str, refused: Refused, tmp_path: Path) -> None:
    refused(run("train", Path(name), tmp_path), "model_name=")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_a_weight_that_is_not_finite_is_named(
    name: str, value: float, refused: Refused, tmp_path: Path
) -> None:
    tensors = load_file(REFERENCE / WEIGHTS)
    tensors[name].view(-1)[7] = value

    def save(path: Path) -> None:
        save_file(tensors, path, metadata={"format": "pt"})

    model = tampered(tmp_path / "model", WEIGHTS, save)
    message = f"model_name={model}: {name} has a weight that is NaN or infinite"
    for command in ("train", "original", "scan"):
        refused(run(command, model, tmp_path), message)


def test_the_largest_finite_weights_are_no_mistake() -> None:
    model: Any = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    torch.nn.init.constant_(model.weight, torch.finfo(torch.bfloat16).max)
    refuse_not_finite("any", model)
    model.bias.data[3] = float("-inf")
    with pytest.raises(ModelError, match=r"^model_name=any: bias has a weight that is NaN"):
        refuse_not_finite("any", model)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.3.mlp.up_proj.weight"])
def test_a_tensor_of_no_elements_fits_no_model(name: str, refused: Refused, tmp_path: Path) -> None:
    tensors = load_file(REFERENCE / WEIGHTS)
    tensors[name] = tensors[name][:0].clone()
    model = tampered(tmp_path / "model", WEIGHTS, lambda path: save_file(tensors, path))
    for command in ("train", "cut", "scan"):
        refused(run(command, model, tmp_path), f"model_name={model}", f"first: {name}")
