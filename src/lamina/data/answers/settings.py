"""Whose answers are trained, and how the original model writes them."""

from dataclasses import dataclass
from typing import Annotated

from lamina.limits import NOT_NEGATIVE, WHOLE_TOKENS, named, one_of

Answers = Annotated[str, one_of("given", "original")]

VLLM_KEY = "data.answer_settings.vllm"

INTERPRETER = named("use auto, none, or the path of an interpreter with vLLM")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How the original model answers the prompts of training rows."""

    temperature: Annotated[float, NOT_NEGATIVE]
    """0 takes the likeliest token; above it, tokens are sampled."""
    seed: int
    """Seed of the samples."""
    max_new_tokens: Annotated[int, WHOLE_TOKENS]
    """Most tokens in one answer."""
    batch_tokens: Annotated[int, WHOLE_TOKENS]
    """Most tokens in one batch, answers and padding included."""
    vllm: Annotated[str, INTERPRETER]
    """Path of an interpreter with vLLM, auto (this one, if it has vLLM) or none (transformers)."""
