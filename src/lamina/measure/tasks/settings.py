"""The settings of all tasks of an evaluation."""

from dataclasses import dataclass
from typing import Annotated

from lamina.limits import AT_LEAST_ONE, NOT_NEGATIVE, WHOLE_TOKENS, one_of


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """How every task's items are put to the model; part of each result's protocol."""

    few_shot: Annotated[int, NOT_NEGATIVE]
    """Solved items before each item: the first rows of the task's file, which are not scored."""
    limit: Annotated[int | None, AT_LEAST_ONE]
    """Most items per task, the first ones; None takes all."""
    template: Annotated[str, one_of("none", "chat")]
    """`chat` puts questions through the tokenizer's chat template."""
    thinking: bool | None
    """What the template gets as enable_thinking; None leaves its own default."""
    max_new_tokens: Annotated[int, WHOLE_TOKENS]
    """Most tokens in one generated answer."""
    window: Annotated[int | None, WHOLE_TOKENS]
    """Tokens a model sees at once of a text; None takes its longest, at most 1024."""
    stride: Annotated[int | None, WHOLE_TOKENS]
    """Tokens scored in each window but the first, which scores all; None takes the window."""
    bos: Annotated[str, one_of("auto", "always", "never")]
    """Whether a text starts with the token that begins texts; `auto` leaves it to the tokenizer."""
    batch_tokens: Annotated[int, WHOLE_TOKENS]
    """Most tokens in one forward pass, padding included; does not change results."""
