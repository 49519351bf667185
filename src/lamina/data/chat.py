"""Chat messages to token ids, by a tokenizer's chat template."""

from typing import TYPE_CHECKING, Any

from lamina.data.forms import BadRowError
from lamina.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], **options: Any
) -> Any:
    """Return `apply_chat_template`'s dictionary with input_ids; `options` are its own.

    Raises BadRowError if the template refuses the messages: some require alternating turns, some
    have no system role.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    except TemplateError as error:
        raise BadRowError(
            f"the model's chat template refuses these messages ({error}); expected roles and an "
            "order that it supports"
        ) from error


def training_template(tokenizer: "PreTrainedTokenizerBase", loss_on: str) -> str | None:
    """Return a chat template that marks the assistant's tokens; None: use the tokenizer's own.

    Raises ConfigError if there is none that trains the assistant's tokens and their end.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    if tokenizer.chat_template is None:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, which rows with "
            "messages need: use rows with text, or a model tuned for chat"
        )
    if loss_on == "all":
        return None
    template = None
    advice = "choose data.loss_on=all to train on every token"
    if not has_generation_markers(tokenizer.chat_template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError as error:
            raise ConfigError(
                "data.loss_on=assistant: this model's chat template does not mark the "
                f"assistant's tokens; {advice}"
            ) from error
    if not is_chat_template_stop_token_trained(tokenizer, chat_template=template):
        raise ConfigError(
            "data.loss_on=assistant: this model's chat template leaves the end-of-turn token "
            f"untrained, so the model would not learn to stop; {advice}"
        )
    return template
