"""The teacher: the original model, frozen, which shares the student's weights.

Only the removed layers are read again. A weight that is trained exists twice, and so does each one
that a repair or an earlier round of a ladder has changed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lamina.depth.loading import load_model, load_sharing
from lamina.depth.plan import Plan
from lamina.errors import ModelError
from lamina.heal.distillation.divergence import Head
from lamina.runtime.sizes import trained_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE = 8
"""Tokens with which heads are compared."""


def load_teacher(
    student: "PreTrainedModel", plan: Plan, shared: Sequence[int] | None
) -> "PreTrainedModel":
    """Load the original model around a reduced one without an adapter.

    They share the weights of the original's `shared` layers, the first ones of the reduced model,
    and those outside layers; nothing if that is None.
    """
    assert plan.source is not None
    if shared is None:
        given: dict[str, Any] = {"dtype": student.dtype, "device": str(student.device)}
        teacher = load_model(plan.source, range(plan.num_layers), **given)
    else:
        teacher = load_sharing(plan.source, student, shared)
    if (attention := student.config._attn_implementation) != teacher.config._attn_implementation:
        teacher.set_attn_implementation(attention)
    teacher.config.get_text_config().output_router_logits = False
    return teacher.eval().requires_grad_(False)


def states_at(
    model: "PreTrainedModel",
    batch: dict[str, Any],
    positions: torch.Tensor,
    layers: Sequence[int] = (),
) -> list[torch.Tensor]:
    """Return the last hidden states, (tokens, hidden), at flat positions of a batch.

    Behind them come those that reach each of `layers`.
    """
    found = model.base_model(**batch, output_hidden_states=bool(layers))
    states = [found.last_hidden_state, *(found.hidden_states[layer] for layer in layers)]
    return [each.flatten(0, 1)[positions] for each in states]


def keep_apart(teacher: "PreTrainedModel", student: "PreTrainedModel") -> None:
    """Give the teacher a copy of its own of each weight that the student trains."""
    changing = {weight.data_ptr() for weight in trained_weights(student)}
    for weight in teacher.parameters():
        if weight.data_ptr() in changing:
            weight.data = weight.data.clone()


def head_of(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Head:
    """Return a model's output head as it is now, without rows that pad its vocabulary."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    # MPT's logit_scale may be None; Granite divides instead.
    factors = (getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier"))
    divisor = getattr(config, "logits_scaling", None)
    scale = next((each for each in factors if each is not None), 1 / divisor if divisor else 1.0)
    return Head(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        size=min(len(layer.weight), 1 + max(tokenizer.get_vocab().values())),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def teacher_head(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", train: "Dataset"
) -> Head:
    """Return a teacher's output head; refuse a model that makes logits in another way."""
    head = head_of(model, tokenizer)
    ids = torch.tensor([train[0]["input_ids"][:PROBE]], device=model.device)
    with torch.no_grad():
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
    found = replace(head, size=expected.shape[-1]).logits(states.to(head.weight.dtype))
    if not torch.allclose(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max())):
        raise ModelError(
            f"model_name={model.name_or_path}: trainer=distill does not know how this "
            f"{model.config.model_type} makes logits: choose trainer=sft"
        )
    return head
