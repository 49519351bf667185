"""Exact ids and labels of chats under the templates of known models.

templates/README.md names their sources. The texts of goldens.json were put
together by hand from the formats, without rendering a template, but after a look at what Lamina
marks; ⟦ and ⟧ enclose what is trained. Where a template has marks, they decide, headers included.
The ids come from the tokenizers library alone, each piece encoded by itself.
"""

import datetime
import json
import re
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from lamina.data.splits import Split
from lamina.data.tokenization import IGNORED, Tokenization
from lamina.errors import ConfigError, DataError
from tests.conftest import REFERENCE, ROOT

FOLDER = ROOT / "tests/data/chat/templates"
GOLDENS: dict[str, Any] = json.loads((FOLDER / "goldens.json").read_text())
CHATS = [
    (name, chat)
    for name, golden in GOLDENS["templates"].items()
    for chat in GOLDENS["conversations"]
    if chat in golden
]


class Today(datetime.datetime):
    """A day that stays, for the templates that write the date."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Today":
        return cls(2024, 7, 26)


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    chat_template_utils._compile_jinja_template.cache_clear()
    monkeypatch.setattr(chat_template_utils, "datetime", Today)


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """Return the reference tokenizer with a template and its special tokens."""
    golden = GOLDENS["templates"][name]
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    tokenizer.add_special_tokens({"eos_token": golden["eos"]})
    if golden["bos"]:
        tokenizer.add_special_tokens({"bos_token": golden["bos"]})
    tokenizer.add_tokens(golden["tokens"], special_tokens=True)
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    tokenizer.name_or_path = name
    return tokenizer


def expected(text: str, encoder: Tokenizer) -> dict[str, list[int]]:
    ids, labels = [], []
    for number, piece in enumerate(re.split("[⟦⟧]", text)):
        found = encoder.encode(piece, add_special_tokens=False).ids
        ids += found
        labels += found if number % 2 else [IGNORED] * len(found)
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize(("name", "chat"), CHATS)
def test_a_chat_has_the_ids_and_labels_of_its_template(name: str, chat: str) -> None:
    tokenizer = tokenizer_of(name)
    golden = GOLDENS["templates"][name][chat]
    tools = json.dumps(GOLDENS["tools"]) if chat == "tools" else None
    rows = Dataset.from_list([{"messages": GOLDENS["conversations"][chat], "tools": tools}])
    split = Split(rows, "rows")
    tokenization = Tokenization(tokenizer, "assistant", 8192, split)
    if isinstance(golden, str):
        encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        assert tokenization(split).rows[0] == expected(golden, encoder)
        return
    with pytest.raises((ConfigError, DataError)) as refused:
        tokenization(split)
    assert str(refused.value).startswith(f"rows, row 1: {golden['refused']}")
