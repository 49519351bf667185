"""Rows, config files and sizes that mean no good: refused by name within seconds."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SHORT, lamina, train
from tests.hostile.conftest import CANARY, Refused
from tests.hostile.models import Content, write

GOOD = json.dumps(
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
)
SECONDS = 20
"""What is refused in about two would take minutes, or all memory, if it were read."""


def messages(text: str) -> str:
    return f'{GOOD}\n{GOOD}\n{{"messages": {text}}}\n'


def turn(**changed: object) -> str:
    asked = {"role": "user", "content": "a", **changed}
    return messages(json.dumps([asked, {"role": "assistant", "content": "b"}]))


FILES: dict[str, tuple[str, Content, str]] = {
    "rows in UTF-16": ("jsonl", GOOD.encode("utf-16"), "row 1: not UTF-8 (byte 1 is 0xff)"),
    "rows in Latin-1": ("jsonl", GOOD.replace("b", "\xe9").encode("latin-1"), "row 1: not UTF-8"),
    "binary rows": ("jsonl", bytes(range(128, 256)), "row 1: not UTF-8"),
    "nested rows": ("jsonl", b"[" * 200_000, "row 1: not JSON (nested too deeply)"),
    "null": ("jsonl", "null\n", "row 1: found NoneType; expected a JSON object"),
    "escapes in a key": ("jsonl", '{"\\u001b[31mred\\r": 1, "b": 2}\n', r"\x1b[31mred\r"),
    "an object in UTF-16": ("json", GOOD.encode("utf-16"), "not UTF-8 (byte 1 is 0xff)"),
    "a nested object": ("json", b"[" * 200_000, "not JSON (nested too deeply)"),
    "a number": ("json", "5", "found int; expected a list of objects"),
    "a table in UTF-16": ("csv", "a,b\n1,2\n".encode("utf-16"), "expected distinct column names"),
    "a table with escapes": ("csv", "\x1b[31mred,b\n1,2\n", r"\x1b[31mred"),
    "an open quote": ("csv", 'text\n"a\n' * 3, "row 3: a quote is never closed"),
    "no Parquet": ("parquet", b"PAR1" + bytes(100) + b"PAR1", "damaged, or not a Parquet file"),
    "binary Parquet": ("parquet", bytes(range(128, 256)), "damaged, or not a Parquet file"),
    "messages of text": ("jsonl", messages('"x"'), "row 3"),
    "messages of numbers": ("jsonl", messages("[1]"), "row 3"),
    "a role that is a number": ("jsonl", turn(role=5), "row 3"),
    "a role with escapes": ("jsonl", turn(role="\x1b[31mred\r\u202e"), r"\x1b[31mred\r\u202e"),
    "content in a list": ("jsonl", turn(content=[1]), "row 3"),
    "content that is an object": ("jsonl", turn(content={"a": 1}), "row 3"),
    "calls that are a number": ("jsonl", turn(role="assistant", tool_calls=5), "row 3"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_rows(case: str, refused: Refused, tmp_path: Path) -> None:
    kind, content, reason = FILES[case]
    path = write(tmp_path / f"rows.{kind}", content)
    given = (f"data={kind}", f"data.train={path}", "data.eval=null")
    refused(train(tmp_path / "run", *SHORT, *given), str(path), reason)


NO_FILE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("case", NO_FILE)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_rows_that_are_no_file(kind: str, case: str, refused: Refused, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows.{kind}", NO_FILE[case])
    given = (f"data={kind}", f"data.train={path}", "data.eval=null")
    began = time.monotonic()
    refused(train(tmp_path / "run", *SHORT, *given), f"data.train={path}")
    assert time.monotonic() - began < SECONDS


def test_a_row_of_30_megabytes(refused: Refused, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", turn(content="x" * 30_000_000))
    given = ("data=jsonl", f"data.train={path}", "data.eval=null")
    began = time.monotonic()
    refused(train(tmp_path / "run", *SHORT, *given), f"{path}, row 3: ", "30,000,0")
    assert time.monotonic() - began < SECONDS


ALIASES = "".join(
    f"  b{number}: &b{number} [{', '.join([f'*b{number - 1}'] * 9)}]\n" for number in range(1, 9)
)
BOMB = "  b0: &b0 [x, x, x, x, x, x, x, x, x]\n" + ALIASES

CONFIGS: dict[str, tuple[bytes | str, str]] = {
    "an alias bomb": (f"trainer:\n{BOMB}", "alias"),
    "an alias to itself": ("a: &a [*a]\n", "alias"),
    "a merge of itself": ("a: &a {b: *a}\n", "alias"),
    "nested lists": (f"a: {'[' * 49_000}\n", "experiment/hostile: nested too deeply"),
    "many values": (f"a: [{'1,' * 49_000}]\n", "more than 5,000 values"),
    "as many values as may be": (f"a: [{'1,' * 4_900}]\n", "hostile"),
    "many values and an alias": (f"a: [&a 1, *a{', 1' * 330_000}]\n", "larger than 100,000 bytes"),
    "UTF-16": ("model_name: x\n".encode("utf-16"), "experiment/hostile"),
    "Latin-1": ("model_name: \xe9\n".encode("latin-1"), "experiment/hostile"),
    "binary": (bytes(range(128, 256)), "experiment/hostile"),
    "a control character": (b"model_name: \x07\n", "experiment/hostile"),
    "a list": ("[1]\n", "hostile"),
    "Python": (f"a: !!python/object/apply:os.system ['touch {CANARY}']\n", "hostile"),
    "escapes in a value": ('model_name: "\\e[31mred\\r"\n', r"\x1b[31mred\r"),
    "escapes in a key": ('"\\e[31mred\\u202e": 1\n', r"\x1b[31mred\u202e"),
    "a logger that is off": (
        "logger: {wandb: {mode: online}}\n",
        "logger.wandb=",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_file(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = CONFIGS[case]
    text = f"# @package _global_\n{content}" if isinstance(content, str) else content
    (tmp_path / "experiment").mkdir()
    write(tmp_path / "experiment" / "hostile.yaml", text)
    given = (f"--config-dir={tmp_path}", "experiment=hostile", "logger=none")
    began = time.monotonic()
    refused(train(tmp_path / "run", *given), reason)
    assert time.monotonic() - began < SECONDS


OLDER: dict[str, tuple[Content, str]] = {
    "an alias bomb": (
        f"trainer:\n{BOMB}",
        "more than 5,000 values, with those that aliases (*NAME) repeat",
    ),
    "UTF-16": ("model_name: x\n".encode("utf-16"), "can't decode byte 0xff"),
    "a list": ("[1]\n", "expected a mapping of keys to values"),
    "nested lists": (f"a: {'[' * 49_000}\n", "nested too deeply"),
    "as many values as may be": (f"a: [{'1,' * 4_900}]\n", "a="),
    "30 megabytes": (f"a: {'x' * 30_000_000}\n", "larger than 100,000 bytes"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
}


@pytest.mark.parametrize("case", OLDER)
def test_a_config_of_the_older_form(case: str, refused: Refused, tmp_path: Path) -> None:
    content, reason = OLDER[case]
    path = write(tmp_path / "old.yaml", content)
    began = time.monotonic()
    refused(lamina("migrate", path, cwd=tmp_path), f"{path}", reason)
    assert time.monotonic() - began < SECONDS


def test_what_a_config_of_the_older_form_loses_is_printed_plainly(tmp_path: Path) -> None:
    text = 'model_type: original\nmodel_name: "\\e[31mred\\r"\n"\\e[31mkey\\u202e": 1\n'
    path = write(tmp_path / "old.yaml", text)
    done = lamina("migrate", "--force", path, cwd=tmp_path)
    assert done.code == 0, done.errors
    assert f"left out: {path}: \\x1b[31mkey\\u202e=1: no such key" in done.output
    assert done.output.replace("\n", "").isprintable()


LINES: dict[str, tuple[tuple[str, ...], str]] = {
    "a key without its group": (("logger=none", "logger.wandb.mode=online"), "logger.wandb.mode"),
    "a group without its class": (
        ("logger=none", "+logger={wandb: {mode: online}}"),
        "logger.wandb",
    ),
    "arguments of an optimizer": (
        ("+trainer.args.optim_args=x",),
        "trainer.args.optim_args=x: expected KEY=VALUE",
    ),
    "a range of layers": (("model=dropped", "model.layer_to_drop=range(0,100000000)"), "range("),
    "a sweep of layers": (
        ("--multirun", "model=dropped", "model.layer_to_drop=range(0,100000000)"),
        "range(0,100000000)",
    ),
    "a sweep of seeds": (("--multirun", "seed=range(0,1e8)"), "range(0,1e8)"),
    "a product of sweeps": (
        ("--multirun", "seed=range(0,10000)", "max_steps=range(1,10000)"),
        "max_steps=range(1,10000): more than 10,000 jobs",
    ),
    "layers to keep": (
        ("model=layers", "model.keep=0-100000000000"),
        "model.keep=0-100000000000: 0-100000000000 lies outside of the model's 12 layers",
    ),
    "a list to keep": (
        ("model=layers", "model.keep=[0,1000000000000]"),
        "1000000000000 lies outside of the model's 12 layers",
    ),
    "layers to protect": (("depth.protect=0-1000000000000",), "depth.protect=0-1000000000000"),
    "a seed of digits": ((f"seed={'9' * 5000}",), "seed="),
    "a model from scratch": (
        ("model=scratch", "model.architecture.num_hidden_layers=1000000000"),
        "num_hidden_layers is 1000000000, expected 1 to 10,000",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_a_command_line(case: str, refused: Refused, tmp_path: Path) -> None:
    given, reason = LINES[case]
    began = time.monotonic()
    refused(train(tmp_path / "run", *given[: given[0] == "--multirun"], *SHORT, *given), reason)
    assert time.monotonic() - began < SECONDS
