"""The model card and lamina.json, written beside the weights."""

from typing import Any

from lamina import __version__
from lamina.depth.layer_sets import format_layers
from lamina.depth.plan import Plan
from lamina.weights.reading import weights_fingerprint

HEALING = (
    "learning_rate lr_scheduler_type max_steps num_train_epochs per_device_train_batch_size "
    "gradient_accumulation_steps max_seq_length packing seed"
).split()
"""Parameters of the run on its card."""

LOSSES = ("baseline_eval_loss", "reduced_eval_loss", "eval_loss")
"""Metrics on the card."""

IN_4BIT = (
    "from transformers import BitsAndBytesConfig",
    "",
    'in_4bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
    'bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")',
)
"""Lines on the card of an adapter trained and measured on a four-bit base."""


def manifest(
    plan: Plan,
    *,
    adapter: str | None = None,
    parameters: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    saved: bool = False,
) -> dict[str, Any]:
    """Return the content of lamina.json: where a model comes from.

    After a run, `adapter` is the option's name and `record` the content of result.json so far;
    for `saved` see `Plan.notes`.
    """
    source = plan.source
    # On the hub, a commit identifies the weights.
    fingerprint = weights_fingerprint(source) if source and source.is_local else None
    return {
        "lamina": __version__,
        "source_model": source.name if source else None,
        "revision": source.revision if source else None,
        "source_fingerprint": fingerprint,
        "model_type": plan.model_type,
        "selector": plan.selector,
        "num_layers": plan.num_layers,
        "kept_layers": list(plan.kept_layers),
        "notes": plan.notes(saved=saved),
        "adapter": adapter,
        "healing": _healing(parameters) if parameters else None,
        "data_fingerprint": record["provenance"]["data_fingerprint"] if record else None,
        "evaluation": {key: record["metrics"][key] for key in LOSSES} if record else None,
    }


def _healing(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the main parameters; a value in trainer.args is the one the trainer used."""
    given = parameters["trainer"]["args"]
    return {key: given.get(key, parameters[key]) for key in HEALING}


def card(content: dict[str, Any], *, is_adapter: bool) -> str:
    """Return a model card in the hub's Markdown format, from the content of lamina.json."""
    source, adapter = content["source_model"] or "random weights", content["adapter"]
    not_healed = "Not healed: nothing was trained after removal."
    header = ["---", "library_name: transformers", "tags: [lamina, depth-pruning]"]
    if content["revision"]:
        header.append(f"base_model: {source}")
    pinned = is_adapter and content["revision"]
    further = f', revision="{content["revision"]}"' if pinned else ""
    in_4bit = is_adapter and adapter == "qlora"
    further += ", quantization_config=in_4bit" if in_4bit else ""
    return "\n".join(
        [
            *header,
            "---",
            "",
            f"# {content['model_type']}: {len(content['kept_layers'])} of "
            f"{content['num_layers']} layers",
            "",
            f"Made from {source} by Lamina {content['lamina']}. "
            f"Layers that stay (0-based, half-open): {format_layers(content['kept_layers'])}. "
            + (f"Trained: {adapter}." if adapter else not_healed),
            "",
            *(f"- {note}" for note in content.get("notes", ())),  # older runs have none
            *([""] if content.get("notes") else ()),
            *_table("loss, nats per token", content["evaluation"]),
            *_table("healing", content["healing"]),
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            *(IN_4BIT if in_4bit else ()),
            "",
            f'model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER"{further})',
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")',
            "```",
            "",
        ]
    )


def _table(title: str, content: dict[str, Any] | None) -> list[str]:
    if not content:
        return []
    rows = [f"| {name} | {_shown(value)} |" for name, value in content.items()]
    return [f"| {title} | |", "|---|---|", *rows, ""]


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
