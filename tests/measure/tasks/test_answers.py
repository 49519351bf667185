"""What counts as right, and as a loop; batches of answers."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lamina.measure.evaluate import answer_batches, generate
from lamina.measure.tasks.generation import is_right, loops
from tests.architectures import ARCHITECTURES, build
from tests.conftest import REFERENCE


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        (" 72\n", "72", True),
        ("72.", "72", False),
        ("<think>\n71?\n</think>\n\n72", "72", True),
        ("so she has 1,072 clips.", "48+24 = <<48+24=72>>\n#### 1072", True),
        ("#### $72", "#### 72", True),
        ("72, and not 73", "#### 72", False),
        ("none", "#### 72", False),
        ("-5", "#### -5", True),
    ],
)
def test_an_answer_is_right(answer: str, reference: str, right: bool) -> None:
    assert is_right(answer, reference) == right


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([], False),
        ([1] * 10, False),
        ([1] * 11, True),
        ([*range(20)] * 3, False),
        ([*range(20)] * 4, True),
        ([*range(200)], False),
    ],
)
def test_an_answer_loops(ids: list[int], found: bool) -> None:
    assert loops(ids) == found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_do_not_depend_on_their_batch(name: str) -> None:
    """Padding on the left must not be seen; recurrent models get none."""
    model, tokenizer = build(name), cast(Any, SimpleNamespace(pad_token_id=0, eos_token_id=2))
    prompts = [[5 + n, *range(20 + n, 20 + 3 * n), 9] for n in range(5)] + [[40, 9]]

    def answered(batch: list[int]) -> list[list[int]]:
        return generate(model, tokenizer, [prompts[n] for n in batch], max_new_tokens=8)

    alone = [answered([number])[0] for number in range(6)]
    batches = answer_batches(model, [len(prompt) + 8 for prompt in prompts], 4096)
    together = {
        number: ids for batch in batches for number, ids in zip(batch, answered(batch), strict=True)
    }
    assert [together[number] for number in range(6)] == alone
    assert (len(batches) == 1) == (name not in {"mamba2", "qwen3_next", "falcon_h1"})


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2, "num_return_sequences": 2},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.1},
        {"stop_strings": ["a"], "max_time": 0.0},
        {"return_dict_in_generate": True, "min_new_tokens": 12},
    ],
)
def test_answers_are_greedy_whatever_generation_config_says(settings: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    prompts = [tokenizer(text)["input_ids"] for text in ("1 2 3 4 5 6 7", "The old man said")]
    expected = generate(model, tokenizer, prompts, max_new_tokens=12)
    model.generation_config.update(**settings)
    assert generate(model, tokenizer, prompts, max_new_tokens=12) == expected
    given = model.generation_config.to_dict()
    assert {name: given[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("pad", "end"),
    [("<|pad|>", "<|im_end|>"), ("<|im_end|>", "<|im_end|>"), ("<|pad|>", None), (None, None)],
)
def test_an_answer_that_a_text_ends_has_nothing_behind_it(pad: str | None, end: str | None) -> None:
    """A batch pads behind an end, and goes on behind the text if the model has no end."""
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE, pad_token=pad, eos_token=end)
    model.generation_config.eos_token_id = end and tokenizer.eos_token_id
    prompts = [tokenizer(text)["input_ids"] for text in ("1 2 3 4 5 6 7", "The old man said")]

    def answered(batch: list[list[int]]) -> list[list[int]]:
        return generate(model, tokenizer, batch, max_new_tokens=60, stop="9")

    together = answered(prompts)
    assert together == [answered([prompt])[0] for prompt in prompts]
    assert len({len(ids) for ids in together}) == 2
