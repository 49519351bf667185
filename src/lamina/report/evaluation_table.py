"""Rows of the console's tables about evaluations: a model's figures, and beside the original's."""

from collections.abc import Container, Iterator
from pathlib import Path

from lamina.measure.comparison import Comparison, compare_all, incomparable, load_evaluation
from lamina.measure.serving_speed import share_of_ideal
from lamina.measure.tasks.figures import as_text, with_interval
from lamina.measure.tasks.files import (
    EVALUATION_FILE,
    EVALUATION_FOLDER,
    FINAL,
    ORIGINAL,
    REDUCED,
    ROLES,
    EvaluationResult,
    Speed,
    TaskResult,
    read_evaluation,
)
from lamina.units import format_bytes

Row = tuple[str, str, str]
"""A name, its figure and a remark."""


def evaluation_rows(found: EvaluationResult) -> Iterator[Row]:
    """Yield each figure with its 95 % interval, and the speed."""
    for name, task in found.tasks.items():
        yield from _task(name, task)
    for speed in found.speed or ():
        yield from _speed(speed)


def comparison_rows(folder: Path) -> Iterator[Row]:
    """Yield a run's figures in its tasks beside the original's; none of a run without tasks."""
    roles = {role: folder / EVALUATION_FOLDER / role for role in ROLES}
    there = {role: path for role, path in roles.items() if (path / EVALUATION_FILE).is_file()}
    if FINAL not in there:
        return
    if ORIGINAL not in there:
        yield from evaluation_rows(read_evaluation(there[FINAL]))
        return
    original, final = (load_evaluation(there[role]) for role in (ORIGINAL, FINAL))
    reduced = read_evaluation(there[REDUCED]).tasks if REDUCED in there else {}
    differing, compared = incomparable(original, final), compare_all([(original, final)])[0]
    for name, task in final.result.tasks.items():
        if name in differing:
            yield name, "", f"not comparable with the original's: {differing[name]}"
        before = reduced[name].metrics if name in reduced else {}
        for metric, each in compared.get(name, {}).items():
            about = _beside(metric, each)
            if metric in before:
                about += f", reduced {as_text(metric, before[metric].value)}"
            yield f"{name} {metric}", as_text(metric, each.second), about
        yield from _task(name, task, compared.get(name, ()))
    if share := share_of_ideal(final.result, original.result):
        assert final.result.speed is not None
        layers = f"{final.result.model.layers} of {original.result.model.layers} layers"
        rate = final.result.speed[0].decode_tokens_per_second
        about = f"{share:.0%} of the speed-up that {layers} could give"
        yield "written tokens/s", f"{rate:,.1f}", about


def _beside(metric: str, each: Comparison) -> str:
    """Say what share of the original's figure is left, and whether that could be chance."""
    original = f"original {as_text(metric, each.first)}"
    if each.retention is None:
        return original
    kept = f"{each.retention:.1f} %"
    if each.retention_low is not None and each.retention_high is not None:
        kept += f" ({each.retention_low:.1f} to {each.retention_high:.1f})"
    noise = ", within noise" if each.is_within_noise else ""
    return f"retains {kept}{noise}, {original}"


def _task(name: str, task: TaskResult, compared: Container[str] = ()) -> Iterator[Row]:
    """Yield a task's figures but those that are compared."""
    agreement = task.agreement
    for metric, each in {**task.metrics, **(vars(agreement) if agreement else {})}.items():
        if metric in compared:
            continue
        parts = [f"{each.n:,} {'documents' if task.kind == 'text' else 'items'}"]
        if each.chance is not None:
            parts.append(f"chance {as_text(metric, each.chance)}")
        yield f"{name} {metric}", with_interval(metric, each), ", ".join(parts)
    if task.health:
        shares = (f"{end} {as_text(end, share)}" for end, share in vars(task.health).items())
        yield f"{name} answers", "", ", ".join(shares)


def _speed(speed: Speed) -> Iterator[Row]:
    size = f"batch {speed.batch}, {speed.prompt_tokens} + {speed.new_tokens} tokens"
    first = f"first token after {speed.first_token_seconds:.3g} s"
    cache = f"KV cache {format_bytes(speed.kv_cache_bytes)}"
    yield "read tokens/s", f"{speed.prefill_tokens_per_second:,.0f}", f"{size}, {first}"
    yield "written tokens/s", f"{speed.decode_tokens_per_second:,.1f}", f"{size}, {cache}"
