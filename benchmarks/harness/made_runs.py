"""Files of runs that never ran, for what only reads them: a sweep, its evaluations and a scan."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamina.measure.results import KNOWN_LATER, METRICS, RESULT_FILE, ROWS_FILE, SCAN_FILE

LAYERS = 24
BASELINE = 2.914
ADAPTERS = ("lora", "full")
LAYER_PARAMETERS, OTHER_PARAMETERS = 7_100_000, 28_300_000
STEPS, TOKENS_PER_STEP = 200, 4096
ITEMS = 500
EVAL_ROWS = 60

TASKS = {"arc_easy": (0.585, 0.25), "piqa": (0.684, 0.5)}
"""The original's accuracy and the chance floor."""

VERSIONS = {"python": "3.11.7", "lamina": "0.1.0", "torch": "2.13.0", "transformers": "5.17.0"}


def cost(layer: int) -> float:
    """Return the loss that removing a layer costs: most at both ends."""
    place = layer / (LAYERS - 1)
    return 0.03 + 4.2 * math.exp(-14 * place) + 0.5 * math.exp(-16 * (1 - place))


def write_sweep(folder: Path, count: int, *, seed: int = 7) -> list[list[str]]:
    """Write the results of a sweep's jobs; return their overrides.

    Its last two jobs, if there are more than ten, failed and were not started.
    """
    chance = random.Random(seed)
    jobs = [_overrides(number, count) for number in range(count)]
    for number, overrides in enumerate(jobs):
        place = folder / str(number)
        if count > 10 and number == count - 1:
            continue
        result = _result(number, overrides, chance)
        if count > 10 and number == count - 2:
            result |= {"status": "failed", "metrics": dict.fromkeys(METRICS)}
            result |= {"samples": [], "history": []}
            result["error"] = "loss is not a number at step 12: lower trainer.args.learning_rate"
        _write(place / RESULT_FILE, result)
        if result["status"] == "completed":
            _evaluate(place, result, chance)
            _write_rows(place / ROWS_FILE, result["metrics"]["eval_loss"], chance)
    return jobs


def write_scan(folder: Path) -> None:
    """Write the scan of the same model."""
    every = range(LAYERS)
    losses = [BASELINE + cost(layer) for layer in every]
    scores = {
        "loss": losses,
        "stderr": [0.05] * LAYERS,
        # One interval reaches below 0, where a logarithmic axis has no place for it.
        "delta_stderr": [(0.6 if layer == 10 else 0.08) * cost(layer) for layer in every],
        "kl": [0.9 * cost(layer) for layer in every],
    }
    distances = [
        [0.0, *(_distance(start, size) for size in range(1, LAYERS - start + 1))] for start in every
    ]
    content = {
        "num_layers": LAYERS,
        "num_tokens": 65_536,
        "num_windows": 32,
        "baseline_loss": BASELINE,
        "baseline_stderr": 0.05,
        "leave_one_out": scores,
        "block_influence": [min(1.0, 0.3 * cost(layer)) for layer in every],
        "magnitude": [0.5 * cost(layer) for layer in every],
        "angular_distance": distances,
        "angular_distance_last": distances,
        "provenance": {"versions": VERSIONS, "dtype": "bfloat16"},
    }
    _write(folder / SCAN_FILE, content)


def _distance(start: int, size: int) -> float:
    return min(0.5, 0.04 * math.sqrt(sum(cost(start + each) for each in range(size)) + size * 0.2))


def _overrides(number: int, count: int) -> list[str]:
    """Return the overrides of a job: every third one keeps fewer layers, the others drop one."""
    adapter, turn = ADAPTERS[number % len(ADAPTERS)], number // 3
    if number % 3 == 2:
        own = ["model=pruned", f"model.keep_layers={22 - 2 * (turn % 6)}"]
    else:
        own = ["model=dropped", f"model.layer_to_drop={5 * (2 * turn + number % 3) % LAYERS}"]
    seeds = [f"seed={number // LAYERS}"] if count > LAYERS else []
    return [*own, f"max_steps={STEPS}", f"adapter={adapter}", *seeds]


def _kept(given: Mapping[str, str]) -> list[int]:
    if given["model"] == "dropped":
        return [layer for layer in range(LAYERS) if layer != int(given["model.layer_to_drop"])]
    dropped = sorted(range(LAYERS), key=cost)[: LAYERS - int(given["model.keep_layers"])]
    return [layer for layer in range(LAYERS) if layer not in dropped]


def _result(number: int, overrides: Sequence[str], chance: random.Random) -> dict[str, Any]:
    given = dict(override.split("=", 1) for override in overrides)
    kept, adapter = _kept(given), given["adapter"]
    removed = [cost(layer) for layer in range(LAYERS) if layer not in kept]
    reduced = BASELINE + sum(removed) * len(removed) ** 0.7
    share = {"lora": 0.72, "full": 0.8}[adapter] + chance.gauss(0, 0.02)
    healed = reduced - share * (reduced - BASELINE)
    steps = range(10, STEPS + 1, 10)
    history = [
        {
            "step": step,
            "tokens": step * TOKENS_PER_STEP,
            "loss": healed + 0.1 + chance.gauss(0, 0.02),
            "learning_rate": 2e-4 * (1 - step / STEPS),
            "eval_loss": healed + (reduced - healed) * math.exp(-5 * step / STEPS),
        }
        for step in steps
    ]
    seconds = 300.0 + chance.gauss(0, 20)
    metrics = {
        **dict.fromkeys(METRICS),
        "baseline_eval_loss": BASELINE,
        "reduced_eval_loss": reduced,
        "eval_loss": healed,
        "perplexity": math.exp(healed),
        "tokens_per_second": STEPS * TOKENS_PER_STEP / seconds,
        "train_tokens": STEPS * TOKENS_PER_STEP,
        "train_seconds": seconds,
        "peak_memory_bytes": 3_200_000_000,
        "seconds": {"forward_backward": seconds},
    }
    after = "Paris." if healed - BASELINE < 0.3 else "Paris Paris Paris Paris"
    prompt, broken = "What is the capital of France?", "The the the of of"
    layer = given.get("model.layer_to_drop")
    variant = f"keep-{len(kept)}" if layer is None else f"drop-{layer}"
    name = "-".join([variant, adapter, *(o for o in overrides if o.startswith("seed="))])
    return {
        **dict.fromkeys(KNOWN_LATER),
        "status": "completed",
        "name": name,
        "model_type": given["model"],
        "num_layers": LAYERS,
        "kept_layers": kept,
        "adapter": adapter,
        "num_parameters": OTHER_PARAMETERS + len(kept) * LAYER_PARAMETERS,
        "trainable_parameters": {"lora": 4_900_000, "full": 191_600_000}[adapter],
        "overrides": list(overrides),
        "config": f"{number:064x}",
        "notes": [],
        "settings": {
            "adapter": adapter,
            "trainer.args.learning_rate": {"lora": 2e-4, "full": 2e-5}[adapter],
            "trainer.args.seed": int(given.get("seed", 42)),
            "trainer.args.packing": True,
        },
        **dict.fromkeys(("resumed_from", "started_from")),
        "final": "checkpoints/dropped/final",
        "dtype": "bfloat16",
        "seed": int(given.get("seed", 42)),
        "history": history,
        "samples": [{"prompt": prompt, "expected": "Paris.", "before": broken, "after": after}],
        "eval_fingerprint": "94e09515514427469b84ab9745a054b0",
        "provenance": {
            "git": {"sha": "38eefb8da0198183c8b6fecbd8a17cad43a83d62", "dirty": False},
            "versions": VERSIONS,
            "device": "AMD EPYC, 2 threads",
            "backend": "transformers",
            "base_model": "example/model-200m",
            "base_revision": "5b1cd5b0c1b7e6a9f0a2e6f3c8d4b7a1e9f00d11",
            "data_fingerprint": "b566fc29109f67e25f124da2f48d9ea461b31e4a0ba437364d6e8019acb39e54",
        },
        "data": {},
        "metrics": metrics,
    }


def _write_rows(path: Path, loss: float, chance: random.Random) -> None:
    """Write the loss of each evaluation row: some are hard for every run."""
    hard = random.Random(2)
    rows = [
        {
            "input_ids": [0, *range(1, 9)],
            "labels": [-100, *range(1, 9)],
            "loss": max(0.0, loss + hard.gauss(0, 0.3) + chance.gauss(0, 0.02)),
        }
        for _ in range(EVAL_ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _evaluate(folder: Path, result: Mapping[str, Any], chance: random.Random) -> None:
    """Write the evaluations of the original and the final model, item by item."""
    lost = result["metrics"]["eval_loss"] - BASELINE
    luck = random.Random(1)
    drawn = {task: [luck.random() for _ in range(ITEMS)] for task in TASKS}
    for role, share, layers in (
        ("original", 0.0, LAYERS),
        ("final", lost, len(result["kept_layers"])),
    ):
        tasks, lines = {}, []
        for task, (accuracy, floor) in TASKS.items():
            reached = floor + (accuracy - floor) * math.exp(-1.5 * share)
            noise = [chance.gauss(0, 0.02 if share else 0) for _ in range(ITEMS)]
            right = [at + shift < reached for at, shift in zip(drawn[task], noise, strict=True)]
            tasks[task] = _task(sum(right) / ITEMS, floor)
            lines += [_item(task, number, is_right) for number, is_right in enumerate(right)]
        model = {
            "name": "example/model-200m",
            "revision": None,
            "kept_layers": None if role == "original" else result["kept_layers"],
            "layers": layers,
            "parameters": OTHER_PARAMETERS + layers * LAYER_PARAMETERS,
            "bytes": 2 * (OTHER_PARAMETERS + layers * LAYER_PARAMETERS),
            "dtype": "bfloat16",
        }
        content = {
            "format": 1,
            "role": role,
            "model": model,
            "tasks": tasks,
            "speed": [_speed(40.0 * LAYERS / layers + chance.gauss(0, 0.4))],
            "versions": VERSIONS,
            "device": "AMD EPYC, 2 threads",
            "seconds": 61.0,
        }
        place = folder / "evaluation" / role
        _write(place / "evaluation.json", content)
        (place / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _task(value: float, floor: float) -> dict[str, Any]:
    error = math.sqrt(value * (1 - value) / ITEMS)
    return {
        "kind": "choices",
        "items": ITEMS,
        "items_hash": "0c2f" * 16,
        "protocol": {"few_shot": 0, "template": None, "scorer": "lamina", "limit": ITEMS},
        "metrics": {"acc": {"value": value, "stderr": error, "n": ITEMS, "chance": floor}},
        "health": None,
        "agreement": None,
        "seconds": 20.0,
    }


def _item(task: str, number: int, is_right: bool) -> dict[str, Any]:
    return {"task": task, "id": number, "correct": is_right, "log_likelihoods": [-3.1, -4.2]}


def _speed(decode: float) -> dict[str, Any]:
    return {
        "batch": 1,
        "prompt_tokens": 128,
        "new_tokens": 32,
        "prefill_tokens_per_second": 22 * decode,
        "decode_tokens_per_second": decode,
        "first_token_seconds": 5.8 / decode,
        "kv_cache_bytes": 3_400_000,
        "peak_memory_bytes": 700_000_000,
        "repeats": 3,
        "spread": 0.02,
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
