"""Rows become windows: joined into one text, or kept apart as in training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lamina.data.sources import Files
from lamina.data.splits import Split
from lamina.data.tokenization import Tokenization
from lamina.errors import ConfigError, DataError
from lamina.measure.evaluate import row_losses
from lamina.scan.cached import without_holdout
from lamina.scan.calibration import Calibration
from lamina.scan.layers import open_stack
from lamina.scan.passes import Budget, score_removals
from lamina.units import parse_bytes, parse_parameters, parse_tokens
from lamina.weights.source import resolve
from tests.conftest import FOREIGN, REFERENCE

LOSS = {"sets": 1, "seed": 0, "loss_on": "auto"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(REFERENCE)


def split(*rows: dict[str, Any]) -> Split:
    from datasets import Dataset

    return Split(Dataset.from_list(list(rows)), "rows.jsonl")


TEXT = [{"text": f"{'abcdefgh'[: 3 + n % 5]} {n}"} for n in range(60)]


def test_joined_rows_are_one_text_in_their_order(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [token for row in TEXT for token in tokenizer(row["text"])["input_ids"]]
    made = Calibration(tokens=50, length=16, apart=False, **LOSS)
    windows, sets = made.windows(split(*TEXT), tokenizer)
    assert windows.ids.tolist() == [ids[0:16], ids[16:32], ids[32:48]]
    assert windows.positions is None
    assert sets == (range(3),)
    assert windows.scored[:, 1:].all()
    assert not windows.scored[:, 0].any()


def test_a_chat_is_read_with_its_template(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    made = Calibration(tokens=len(ids), length=len(ids), apart=False, **LOSS)
    windows, _ = made.windows(split({"messages": chat}), tokenizer)
    assert windows.ids.tolist() == [ids]


def test_further_sets_are_drawn_from_the_rest_of_the_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    made = Calibration(tokens=32, length=16, apart=False, **{**LOSS, "sets": 3})
    windows, sets = made.windows(split(*TEXT), tokenizer)
    first = Calibration(tokens=32, length=16, apart=False, **LOSS).windows(split(*TEXT), tokenizer)
    assert sets == (range(2), range(2, 4), range(4, 6))
    assert windows.ids[:2].equal(first[0].ids)
    assert len({tuple(row) for row in windows.ids.tolist()}) == 6
    other = Calibration(tokens=32, length=16, apart=False, **{**LOSS, "sets": 3, "seed": 1})
    assert not other.windows(split(*TEXT), tokenizer)[0].ids.equal(windows.ids)


def test_rows_apart_have_the_losses_of_the_evaluation(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    chats = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in (("reverse ABC", "CBA"), ("sort up 312", "123"), ("reverse HGB", "BGH")) * 4
    ]
    rows = split(*({"messages": chat} for chat in chats))
    made = Calibration(tokens=64, length=64, apart=True, **LOSS)
    windows, _ = made.windows(rows, tokenizer)
    assert windows.positions is not None
    starts = (windows.positions[0] == 0).nonzero()[:, 0].tolist()
    assert len(starts) > 2
    with open_stack(resolve(str(REFERENCE)), torch.float32, "cpu") as stack:
        scores, _ = score_removals(
            stack, windows, Budget(hold=True, windows=1), sublayers=False, folder=None
        )
    tokenized = list(Tokenization(tokenizer, "auto", 64, rows)(rows).rows)[: len(starts)]
    cut = 64 - starts[-1]
    tokenized[-1] = {key: values[:cut] for key, values in tokenized[-1].items()}
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    expected = row_losses(model, tokenized, max_tokens=64)
    assert scores.counts == [sum(expected.tokens)]
    assert scores.loss[None] == [pytest.approx(sum(expected.nll), abs=1e-5)]


def test_a_window_that_a_prompt_fills_is_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    short = [{"prompt": f"{n}? ", "completion": f"ab{n}"} for n in range(9)]
    long = {"prompt": "a b c " * 20, "completion": "d"}
    made = Calibration(tokens=32, length=16, apart=True, **LOSS)
    windows, _ = made.windows(split(long, *short), tokenizer)
    assert windows.fingerprint == made.windows(split(*short), tokenizer)[0].fingerprint
    assert windows.scored.any(dim=1).all()
    with pytest.raises(DataError, match="max_seq_length=16 tokens that hold a trained one"):
        made.windows(split(long), tokenizer)


def test_text_shorter_than_a_window_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    short = Calibration(tokens=4000, length=2000, apart=False, **LOSS)
    with pytest.raises(DataError, match=r"rows\.jsonl: its text fills 0 windows of .*=2000"):
        short.windows(split(*TEXT), tokenizer)
    many = Calibration(tokens=64, length=64, apart=False, **{**LOSS, "sets": 50})
    with pytest.raises(DataError, match="and 50 are needed"):
        many.windows(split(*TEXT), tokenizer)


def test_a_row_that_cannot_be_used_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    made = Calibration(tokens=500, length=16, apart=False, **LOSS)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 3: column 'text' is empty"):
        made.windows(split(*TEXT[:2], {"text": ""}, *TEXT), tokenizer)


@pytest.mark.parametrize("apart", [False, True])
def test_rows_of_other_forms_are_read_as_for_training(
    tokenizer: PreTrainedTokenizerBase, apart: bool
) -> None:
    pairs = [(f"ab {n}", f"{n} ba") for n in range(9)]
    own = [{"question": asked, "answer": answer} for asked, answer in pairs]
    plain = [{"prompt": f"{asked}\n\n", "completion": answer} for asked, answer in pairs]
    made = Calibration(tokens=48, length=16, apart=apart, **LOSS)
    bad = {"question": "", "answer": ""}
    windows, _ = made.windows(replace(split(bad, *own), skips=True), tokenizer)
    assert windows.fingerprint == made.windows(split(*plain), tokenizer)[0].fingerprint


def test_a_scan_uses_every_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXT))
    data = Files(format="jsonl", train=str(path), **{**FOREIGN, "eval_fraction": 0.1})
    every = [row["text"] for row in without_holdout(data).load().train.usable()]
    assert every == [row["text"] for row in TEXT]
    kept = [row["text"] for row in data.load().train.usable()]
    assert len(kept) == 54
    assert list(kept) == [row["text"] for row in TEXT if row["text"] in set(kept)]


@pytest.mark.parametrize(
    ("value", "number"), [("16k", 16_000), ("1.6M", 1_600_000), (512, 512), ("2B", 2 * 10**9)]
)
def test_counts(value: Any, number: int) -> None:
    assert parse_tokens("scan.tokens", value) == number


@pytest.mark.parametrize(
    "value", ["many", "16K", "-1", 0, "0k", "", None, "1e999", float("inf"), "1e-3"]
)
def test_invalid_counts_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"scan\.tokens=.*: use a number such as 4096, 16k"):
        parse_tokens("scan.tokens", value)


def test_sizes() -> None:
    assert parse_bytes("scan.memory", "8GB") == 8 * 10**9
    assert parse_bytes("scan.memory", "500MB") == 5 * 10**8
    assert parse_bytes("scan.memory", "1.5GiB") == 3 * 2**29
    assert parse_parameters("x", 6e9) == parse_parameters("x", "6B") == 6 * 10**9
    assert parse_parameters("x", 6e16) == parse_parameters("x", "6e16") == 6 * 10**16
    with pytest.raises(ConfigError, match=r"scan\.memory=8: use"):
        parse_bytes("scan.memory", "8")
