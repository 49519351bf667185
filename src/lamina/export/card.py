"""The model card and lamina.json, written beside the weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from lamina import __version__
from lamina.depth.layer_sets import format_layers
from lamina.depth.plan import Plan
from lamina.measure.tasks.figures import as_text, with_interval
from lamina.measure.tasks.files import FINAL, ROLES, TaskResult, typed
from lamina.weights.reading import weights_fingerprint

HEALING = (
    "learning_rate lr_scheduler_type max_steps num_train_epochs per_device_train_batch_size "
    "gradient_accumulation_steps max_seq_length packing seed"
).split()
"""Parameters of the run on its card."""

DISTILLING = ("loss", "temperature", "cross_entropy", "hidden")
"""Settings of trainer=distill on the card, unless they are 0."""

LOSSES = ("baseline_eval_loss", "reduced_eval_loss", "eval_loss")
"""Metrics on the card."""

IN_4BIT = (
    "from transformers import BitsAndBytesConfig",
    "",
    'in_4bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
    'bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")',
)
"""Lines on the card of an adapter trained and measured on a four-bit base."""

CARD_FILE = "README.md"

LICENSE = re.compile(r"""---[ \t\r]*\n(?:(?!---).*\n)*?license: *['"]?([\w.-]+)['"]?[ \t\r]*\n""")
"""The license in a card's metadata."""

MOST_METADATA = 100_000
"""Bytes of a card that are read."""

NO_REPLICATION = "vLLM does not support layer_replication"


def manifest(
    plan: Plan,
    *,
    adapter: str | None = None,
    parameters: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    saved: bool = False,
) -> dict[str, Any]:
    """Return the content of lamina.json: where a model comes from.

    After a run, `adapter` is the option's name, None if nothing was trained, and `record` the
    content of result.json so far; for `saved` see `Plan.notes`.
    """
    source = plan.source
    # On the hub, a commit identifies the weights.
    fingerprint = weights_fingerprint(source) if source and source.is_local else None
    name = parameters["data"].get("name") if parameters else None  # on the hub
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
        "healing": healing(parameters) if parameters and adapter else None,
        "data_fingerprint": record["provenance"]["data_fingerprint"] if record else None,
        "datasets": [name] if name else None,
        "license": _license(source.folder / CARD_FILE) if source else None,
        "repair": record["repair"] if record else None,
        "evaluation": {key: record["metrics"][key] for key in LOSSES} if record else None,
        "tasks": None,  # measured once the weights are written
    }


def _license(path: Path) -> str | None:
    """Return the license that a model's card names, which hub repositories have; None without."""
    if not path.is_file():  # nothing is downloaded for it
        return None
    with path.open("rb") as file:
        found = LICENSE.match(file.read(MOST_METADATA).decode(errors="replace"))
    return found[1] if found else None


def healing(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the main parameters; a value in trainer.args is the one the trainer used."""
    trainer, budget = parameters["trainer"], parameters["budget"]["tokens"]
    own = {f"trainer.{key}": trainer[key] for key in DISTILLING if trainer.get(key)}
    found = {"trainer": "distill", **own} if own else {}
    if (answers := parameters["data"]["answers"]) != "given":
        found["data.answers"] = answers
    found |= {key: trainer["args"].get(key, parameters[key]) for key in HEALING}
    if budget is not None:
        del found["max_steps"], found["num_train_epochs"]
        found["budget.tokens"] = budget
    if rounds := parameters["ladder"]["keep_layers"]:
        found["ladder.keep_layers"] = str(rounds).replace(" ", "")
    return found


def portable(content: Any, base: str | None = None) -> Any:
    """Return a lamina.json's content without paths of this machine: folders become their names.

    A `base` on the hub takes the place of a source that was a folder.
    """
    if isinstance(content, dict):
        found = {key: portable(value) for key, value in content.items()}
        if base and not Path(base).expanduser().is_dir() and not found.get("revision"):
            found["source_model"] = base
        return found
    if isinstance(content, list | tuple):
        return [portable(value) for value in content]
    is_path = isinstance(content, str) and Path(content).is_absolute()
    return Path(content).name if is_path else content


def card(content: dict[str, Any], verified: Mapping[str, Any]) -> str:
    """Return a model card in the hub's Markdown format, from the content of lamina.json.

    `verified` is that of verification.json, by engine.
    """
    content = portable(content)
    source, adapter = content["source_model"] or "random weights", content["adapter"]
    not_healed = "Not healed: nothing was trained after removal."
    form = content.get("export") or {"form": "merged", "loss": None}
    notes = list(content.get("notes") or ())  # older runs have none
    if repair := content.get("repair"):
        notes += [f"repaired ({repair['method']}): {line}" for line in repair_lines(repair)]
    return "\n".join(
        [
            *_header(content, form["form"]),
            f"# {content['model_type']}: {len(content['kept_layers'])} of "
            f"{content['num_layers']} layers",
            "",
            f"Made from {source} by Lamina {content['lamina']}. "
            f"Layers that stay (0-based, half-open): {format_layers(content['kept_layers'])}. "
            + (f"Trained: {adapter}." if adapter else not_healed),
            "",
            *(f"- {note}" for note in notes),
            *([""] if notes else ()),
            *_loss_of(form),
            *_table("loss, nats per token", _losses(content["evaluation"], form["loss"])),
            *_tasks(content.get("tasks") or {}),
            *_table("healing", content["healing"]),
            *(f"Verified in {line}" for line in map(verified_line, verified.items())),
            *([""] if verified else ()),
            *_usage(content, form["form"]),
            "",
            "Upload it with `hf upload YOUR_NAME/MODEL PATH_OF_THIS_FOLDER`.",
            "",
        ]
    )


def repair_lines(repair: dict[str, Any]) -> list[str]:
    """Return a line on each cut of a repair, from its entry in result.json."""
    lines = []
    for cut in repair["cuts"]:
        start, end = cut["removed"]
        if "factor" in cut:
            what = f"outputs of layers after [{start}, {end}) divided by {cut['factor']:.4g}"
        else:
            what = (
                f"layer {cut['layer']} before [{start}, {end}): relative squared error of the "
                f"hidden states {cut['error_before']:.3g}, now {cut['error_after']:.3g}"
            )
        lines.append(what)
    return lines


def _header(content: dict[str, Any], form: str) -> list[str]:
    """Return the metadata that the hub reads."""
    library = {"adapter": "peft", "gguf": "gguf"}.get(form, "transformers")
    tags = ["lamina", "depth-pruning", *([content["adapter"]] if content["adapter"] else [])]
    source, data = content["source_model"], content.get("datasets")
    return [
        "---",
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        f"tags: [{', '.join(tags)}]",
        *([f"base_model: {source}"] if _is_on_hub(content) else []),
        *([f"license: {content['license']}"] if content.get("license") else []),
        *([f"datasets: [{', '.join(data)}]"] if data else []),
        "---",
        "",
    ]


def _is_on_hub(content: dict[str, Any]) -> bool:
    """Whether the larger model's name is a hub id: of a folder, a card has the name alone."""
    return bool(content["revision"] or "/" in (content["source_model"] or ""))


def _loss_of(form: dict[str, Any]) -> list[str]:
    if form["loss"] is None:
        return []
    rows = "all" if form["rows"] == form["all_rows"] else f"{form['rows']} of"
    loss = f"{form['loss']:.6g} nats per token on {rows} {form['all_rows']} rows"
    return [f"Loss of this form, {form['form']} in {form['dtype']}: {loss}.", ""]


def _losses(recorded: dict[str, Any] | None, own: float | None) -> dict[str, Any]:
    """Return the run's losses; that of its final/ is named so beside another form's own."""
    losses = dict(recorded or {})
    if own is not None and losses.get("eval_loss") not in (None, own):
        losses["eval_loss of the run's final/"] = losses.pop("eval_loss")
    return losses


def verified_line(entry: tuple[str, dict[str, Any]]) -> str:
    """Return an engine's loss beside the recorded one; `entry` is one of verification.json."""
    engine, found = entry
    return (
        f"{engine} {found['version']}, {found['dtype']}: loss {found['loss']:.6g} on "
        f"{found['rows']} rows, the run recorded {found['recorded']:.6g}; "
        f"{'within' if found['within'] else 'OUTSIDE'} {found['allowed']:.2g}."
    )


def _usage(content: dict[str, Any], form: str) -> list[str]:
    """Say how each program loads this form."""
    here, base = "PATH_OF_THIS_FOLDER", content["source_model"] or "BASE"
    served = f"Loads in: {serving(form, here, base)}"
    if form == "gguf":
        return [served]
    is_adapter, in_4bit = form == "adapter", form == "adapter" and content["adapter"] == "qlora"
    by_path = is_adapter and not _is_on_hub(content)  # an upload cannot name a folder as its base
    further = f', revision="{content["revision"]}"' if is_adapter and content["revision"] else ""
    further += ", quantization_config=in_4bit" if in_4bit else ""
    loaded = f"PATH_OF_{base}" if by_path else here
    return [
        "```python",
        *(["from peft import PeftModel"] if by_path else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *(IN_4BIT if in_4bit else ()),
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{loaded}"{further})',
        *([f'model = PeftModel.from_pretrained(model, "{here}")'] if by_path else []),
        f'tokenizer = AutoTokenizer.from_pretrained("{here}")',
        "```",
        "",
        served,
    ]


def serving(form: str, path: str, base: str) -> str:
    """Say which programs load a form; `base` is the larger model."""
    path, base = quote(path), quote(base)
    return {
        "gguf": f"llama.cpp (llama-server -m {path}).",
        "adapter": f"transformers with PEFT; lm-eval (pretrained={base},peft={path}). "
        f"{NO_REPLICATION}: lamina export --form merged writes what it serves.",
        "merged": f"transformers; vLLM (vllm serve {path}); lm-eval (pretrained={path}); llama.cpp "
        "after lamina export --form gguf.",
    }[form]


def _tasks(content: dict[str, Any]) -> list[str]:
    """Return the table of each role's figures in the tasks, and how they were measured."""
    found = {
        role: typed(dict[str, TaskResult], content[role], f"tasks: {role}")
        for role in ROLES
        if role in content
    }
    if FINAL not in found:
        return []
    lines = [f"| task | {' | '.join(found)} | chance |", "|---" * (len(found) + 2) + "|"]
    for name, task in found[FINAL].items():
        for metric, each in task.metrics.items():
            others = (tasks[name].metrics.get(metric) for tasks in found.values() if name in tasks)
            cells = [with_interval(metric, other) if other else "" for other in others]
            chance = "" if each.chance is None else as_text(metric, each.chance)
            lines.append(f"| {name} {metric} | {' | '.join(cells)} | {chance} |")
    protocols = [
        f"- {name}: {task.items:,} items; "
        + ", ".join(f"{key}={value}" for key, value in task.protocol.items() if value is not None)
        for name, task in found[FINAL].items()
    ]
    note = "95 % intervals, of losses over documents. How each task was measured:"
    return [*lines, "", note, "", *protocols, ""]


def _table(title: str, content: dict[str, Any] | None) -> list[str]:
    if not content:
        return []
    rows = [f"| {name} | {_shown(value)} |" for name, value in content.items()]
    return [f"| {title} | |", "|---|---|", *rows, ""]


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
