"""The embedded data: a deterministic generator of five task families that need several layers.

A row is one question and its answer as `messages`, plus its `family`. Operands are upper-case
letters and digits, which the reference tokenizer never merges: one character is one token. The hash
of its question assigns a row to a split, so the splits are disjoint for any sizes and seeds.
"""

import hashlib
import random
import string
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal

from lamina.data.cache import cached_rows

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "eval"]
Row = dict[str, Any]

LETTERS = string.ascii_uppercase[:8]
"""Few letters, because a small model learns to match those that it sees often."""

EVAL_SHARE = 16
"""One question in this many is in the evaluation split."""


def arithmetic(rng: random.Random) -> tuple[str, str]:
    """Add or subtract one to three, three or four times, modulo ten; the answer has every step."""
    hour = rng.randrange(10)
    question = answer = str(hour)
    for _ in range(rng.randint(3, 4)):
        sign, step = rng.choice("+-"), rng.randint(1, 3)
        hour = (hour + step if sign == "+" else hour - step) % 10
        question, answer = f"{question}{sign}{step}", f"{answer}{sign}{step}={hour}"
    return f"compute {question}", answer


def sorting(rng: random.Random) -> tuple[str, str]:
    """Sort four to seven distinct digits in ascending or descending order."""
    digits = rng.sample(string.digits, rng.randint(4, 7))
    order = rng.choice(["up", "down"])
    return f"sort {order} {''.join(digits)}", "".join(sorted(digits, reverse=order == "down"))


def recall(rng: random.Random) -> tuple[str, str]:
    """Look up the values of two or three out of three to five keys."""
    keys = rng.sample(LETTERS, rng.randint(3, 5))
    facts = {key: key + rng.choice(LETTERS) for key in keys}
    queries = rng.sample(keys, rng.randint(2, 3))
    question = f"recall {','.join(facts.values())} for {','.join(queries)}"
    return question, ",".join(facts[key] for key in queries)


def multi_hop(rng: random.Random) -> tuple[str, str]:
    """Follow two or three links from a letter; one more may distract; the answer is the path."""
    hops, others = rng.randint(2, 3), rng.randint(0, 1)
    letters = rng.sample(LETTERS, hops + 1 + 2 * others)
    path, rest = letters[: hops + 1], letters[hops + 1 :]
    pairs = [*pairwise(path), *zip(rest[::2], rest[1::2], strict=True)]
    links = [a + b for a, b in pairs]
    rng.shuffle(links)
    return f"follow {','.join(links)} from {path[0]}", "".join(path)


def string_operation(rng: random.Random) -> tuple[str, str]:
    """Copy, reverse or rotate a word of three to six letters, or swap its ends."""
    word = "".join(rng.choices(LETTERS, k=rng.randint(3, 6)))
    operations: dict[str, str] = {
        "copy": word,
        "reverse": word[::-1],
        "rotate": word[1:] + word[0],
        "swap": word[-1] + word[1:-1] + word[0],
    }
    name = rng.choice(list(operations))
    return f"{name} {word}", operations[name]


FAMILIES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "arithmetic": arithmetic,
    "sorting": sorting,
    "recall": recall,
    "multi_hop": multi_hop,
    "string": string_operation,
}
"""Generators of one (question, answer) pair."""


def split_of(question: str) -> Split:
    """Return the split of a question."""
    digest = hashlib.sha256(question.encode()).digest()
    return "eval" if int.from_bytes(digest[:4], "big") % EVAL_SHARE == 0 else "train"


def generate(split: Split, seed: int) -> Iterator[Row]:
    """Yield rows of one split without end, from each family in turn."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        for family, make in FAMILIES.items():
            question, answer = make(rng)
            while split_of(question) != split:
                question, answer = make(rng)
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            yield {"family": family, "messages": messages}


def cached_split(split: Split, num_rows: int, seed: int) -> "Dataset":
    """Return the same rows as a data set, from the cache if they are in it."""
    from datasets import Features, List, Value

    message = {"role": Value("string"), "content": Value("string")}
    features = Features(family=Value("string"), messages=List(message))
    return cached_rows(_rows, features, split_name=split, num_rows=num_rows, seed=seed)


def _rows(split_name: Split, num_rows: int, seed: int, protocol: str) -> Iterator[Row]:
    yield from islice(generate(split_name, seed), num_rows)
