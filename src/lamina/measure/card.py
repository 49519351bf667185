"""What stands beside the weights in final/: the model card and lamina.json."""

from typing import Any

from lamina import __version__
from lamina.depth.plan import Plan
from lamina.depth.variants import half_open_ranges

HEALING = (
    "learning_rate lr_scheduler_type max_steps num_train_epochs per_device_train_batch_size "
    "gradient_accumulation_steps max_seq_length packing seed"
).split()
"""Parameters that a card quotes."""

LOSSES = ("baseline_eval_loss", "reduced_eval_loss", "eval_loss")
"""Metrics that a card quotes."""


def note(
    plan: Plan, *, adapter: str, parameters: dict[str, Any], record: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of lamina.json: what a model was made of, and how.

    Args:
        plan: Which layers of which model stayed.
        adapter: lora or full.
        parameters: The run's, of which the main ones are quoted.
        record: Content of result.json so far.
    """
    return {
        "lamina": __version__,
        "source_model": plan.source.name if plan.source else None,
        "revision": plan.source.revision if plan.source else None,
        "model_type": plan.model_type,
        "num_layers": plan.num_layers,
        "kept_layers": list(plan.kept_layers),
        "adapter": adapter,
        "healing": {key: parameters[key] for key in HEALING},
        "data_fingerprint": record["provenance"]["data_fingerprint"],
        "evaluation": {key: record["metrics"][key] for key in LOSSES},
    }


def card(content: dict[str, Any]) -> str:
    """Return the model card for the content of lamina.json, in the hub's Markdown form."""
    source = content["source_model"] or "random weights"
    ranges = ", ".join(f"[{a}, {b})" for a, b in half_open_ranges(content["kept_layers"]))
    header = ["---", "library_name: transformers", "tags: [lamina, depth-pruning]"]
    if content["revision"]:
        header.append(f"base_model: {source}")
    revision = f', revision="{content["revision"]}"' if content["revision"] else ""
    rows = [f"| {name} | {_shown(value)} |" for name, value in content["evaluation"].items()]
    settings = [f"| {name} | {_shown(value)} |" for name, value in content["healing"].items()]
    return "\n".join(
        [
            *header,
            "---",
            "",
            f"# {content['model_type']}: {len(content['kept_layers'])} of "
            f"{content['num_layers']} layers",
            "",
            f"Made from {source} by Lamina {content['lamina']}. "
            f"Layers that stay (0-based, half-open): {ranges}. Trained: {content['adapter']}.",
            "",
            "| loss, nats a token | |",
            "|---|---|",
            *rows,
            "",
            "| healing | |",
            "|---|---|",
            *settings,
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER"{revision})',
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")',
            "```",
            "",
        ]
    )


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
