"""Messages as token ids, by a tokenizer's chat template."""

from typing import TYPE_CHECKING, Any

from lamina.data.rows import BadRowError
from lamina.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def show_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], **options: Any
) -> Any:
    """Apply a chat template.

    Args:
        tokenizer: Has the template, unless `options` gives one.
        messages: With role and content.
        options: Of apply_chat_template.

    Returns:
        input_ids, and what else the options ask for.

    Raises:
        BadRowError: The template does not take these messages: some want turns to alternate, some
            have no system role.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    except TemplateError as error:
        raise BadRowError(
            f"the model's chat template does not take these messages ({error}); expected roles in "
            "an order that it takes"
        ) from error


def training_template(tokenizer: "PreTrainedTokenizerBase", loss_on: str) -> str | None:
    """Return a chat template that marks the assistant's tokens, or None for the model's own.

    Args:
        tokenizer: The model's.
        loss_on: assistant or all.

    Raises:
        ConfigError: There is no template, or none that trains the assistant's tokens and their end.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    if tokenizer.chat_template is None:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, which rows "
            "with messages need: give rows with text, or a model that was tuned for chat"
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
