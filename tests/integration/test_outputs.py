"""What a run leaves in its folder."""

import json
from pathlib import Path

import pytest
import torch

from lamina.data.byte_tokenizer import build_tokenizer
from tests.conftest import REFERENCE, SHORT, Finished, train

RESULT_KEYS = {
    "status", "error", "name", "model_type", "num_layers", "kept_layers", "adapter",
    "num_parameters", "trainable_parameters", "overrides", "settings", "final", "dtype", "seed",
    "history", "samples", "eval_fingerprint", "provenance", "metrics", "data", "resumed_from",
    "started_from", "notes", "config", "selector", "evaluation", "repair", "rounds",
}  # fmt: skip
LOGS = "logs/pruned/keep-8-first-lora"

METRIC_KEYS = {
    "baseline_eval_loss", "reduced_eval_loss", "eval_loss", "perplexity", "eval_sample_loss",
    "tokens_per_second", "flops_per_second", "mfu", "train_tokens", "trained_tokens",
    "train_seconds", "seconds", "teacher_cache_seconds",
    "peak_memory_bytes", "kl", "captured_mass",
}  # fmt: skip


def test_the_folder_holds_exactly_what_the_readme_lists(pruned: Finished) -> None:
    assert {path.name for path in pruned.folder.iterdir()} == {
        ".hydra", "checkpoints", "eval.jsonl", "logs", "result.json", "train.log", "wandb",
    }  # fmt: skip
    folder = pruned.folder / "checkpoints" / "pruned"
    names = {path.name for path in folder.iterdir()}
    assert "final" in names
    assert names - {"final"} <= {"checkpoint-3", "checkpoint-6"}


def test_result_json_has_every_field(pruned: Finished) -> None:
    result = pruned.result
    assert set(result) == RESULT_KEYS
    assert set(result["metrics"]) == METRIC_KEYS
    unknown = [name for name, value in result["metrics"].items() if value is None]
    on_gpu = torch.cuda.is_available()
    assert unknown == [
        *("kl", "captured_mass"), *([] if on_gpu else ["mfu"]), "teacher_cache_seconds"
    ]  # fmt: skip
    assert result["status"] == "completed"
    assert result["error"] is None
    assert (result["model_type"], result["num_layers"]) == ("pruned", 12)
    assert result["kept_layers"] == list(range(8))
    assert result["final"] == "checkpoints/pruned/final"
    assert result["dtype"] == "float32"
    assert "max_steps=6" in result["overrides"]
    assert 0 < result["trainable_parameters"] < result["num_parameters"]


def test_the_history_has_every_step_once(pruned: Finished) -> None:
    history = pruned.result["history"]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert [entry["step"] for entry in history if entry["eval_loss"] is not None] == [3, 6]
    assert all(entry["loss"] and entry["learning_rate"] is not None for entry in history)
    tokens = [entry["tokens"] for entry in history]
    assert tokens == sorted(tokens)
    assert tokens[-1] == pruned.metrics["train_tokens"]


def test_provenance_says_where_the_number_comes_from(pruned: Finished) -> None:
    provenance = pruned.result["provenance"]
    assert provenance["base_model"] == str(REFERENCE)
    assert provenance["backend"] == "transformers"
    assert len(provenance["data_fingerprint"]) == 64
    assert provenance["versions"]["torch"]
    assert provenance["device"]
    assert set(provenance["git"]) == {"sha", "dirty"}


def test_eval_jsonl_holds_evaluated_rows(pruned: Finished) -> None:
    rows = [json.loads(line) for line in (pruned.folder / "eval.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"])
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        assert all(label in (-100, i) for i, label in pairs)
    counts = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
    mean = sum(row["loss"] * n for row, n in zip(rows, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(pruned.metrics["eval_sample_loss"], rel=1e-9)


def test_an_adapter_remembers_its_depth_in_every_checkpoint(pruned: Finished) -> None:
    for name in ("final", "checkpoint-3", "checkpoint-6"):
        path = pruned.final.with_name(name)
        adapter = json.loads((path / "adapter_config.json").read_text())
        assert adapter["layer_replication"] == [[0, 8]]
        assert adapter["base_model_name_or_path"] == str(REFERENCE)
        assert sorted(adapter["target_modules"]) == [
            "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
        ]  # fmt: skip


def test_final_has_what_a_user_needs_beside_the_weights(pruned: Finished) -> None:
    names = {path.name for path in pruned.final.iterdir()}
    assert names == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "lamina.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    note = json.loads((pruned.final / "lamina.json").read_text())
    assert note["kept_layers"] == list(range(8))
    assert note["source_model"] == str(REFERENCE)
    assert note["data_fingerprint"] == pruned.result["provenance"]["data_fingerprint"]
    assert list(note["healing"]) == [
        "learning_rate", "lr_scheduler_type", "max_steps", "num_train_epochs",
        "per_device_train_batch_size", "gradient_accumulation_steps", "max_seq_length", "packing",
        "seed",
    ]  # fmt: skip
    card = (pruned.final / "README.md").read_text()
    assert "8 of 12 layers" in card
    assert "[0, 8)" in card


def test_tensorboard_and_wandb_each_get_their_run(pruned: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(pruned.folder / LOGS))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
    history = pruned.result["history"]
    assert logged == [(entry["step"], pytest.approx(entry["loss"])) for entry in history]
    for name in ("baseline", "reduced"):
        (first,) = events.Scalars(f"eval/{name}_loss")
        assert (first.step, first.value) == (0, pytest.approx(pruned.metrics[f"{name}_eval_loss"]))
    assert events.Scalars("final/eval_loss")[0].value == pytest.approx(pruned.metrics["eval_loss"])
    (wandb,) = (pruned.folder / "wandb").glob("offline-run-*/*.wandb")
    written = wandb.read_bytes()
    assert all(text in written for text in (b"keep-8-first-lora", b"eval/reduced_loss"))


def test_tensorboards_hparams_tab_has_settings_and_final_figures(pruned: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(pruned.folder / LOGS))
    events.Reload()
    found = events.summary_metadata
    read = {
        kind: HParamsPluginData.FromString(found[f"_hparams_/{kind}"].plugin_data.content)
        for kind in ("experiment", "session_start_info")
    }
    hparams = read["session_start_info"].session_start_info.hparams
    assert hparams["layers"].string_value == "keep-8-first"
    assert (hparams["adapter"].string_value, hparams["max_steps"].number_value) == ("lora", 6)
    listed_first = [i.name for i in read["experiment"].experiment.hparam_infos if i.differs]
    assert sorted(listed_first) == ["adapter", "layers"]
    metrics = {info.name.tag for info in read["experiment"].experiment.metric_infos}
    assert metrics == {"final/eval_loss", "final/perplexity", "final/tokens_per_second"}


def test_samples_are_shown_in_full_with_the_expected_answer(pruned: Finished) -> None:
    rows = [json.loads(line) for line in (pruned.folder / "eval.jsonl").read_text().splitlines()]
    tokenizer = build_tokenizer()
    lines = pruned.output.splitlines()
    for sample, row in zip(pruned.result["samples"], rows, strict=False):
        trained = [i for i in row["labels"] if i != -100]
        assert sample["expected"] == tokenizer.decode(trained, skip_special_tokens=True)
        at = lines.index(f"prompt    {sample['prompt']}".ljust(len(lines[1])).rstrip())
        assert [line.split()[0] for line in lines[at + 1 : at + 4]] == [
            "expected",
            "before",
            "after",
        ]


def test_training_time_is_split_and_speed_is_logged(pruned: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics, seconds = pruned.metrics, pruned.metrics["seconds"]
    assert all(seconds.values())
    steps = sum(seconds[name] for name in ("data", "forward_backward", "optimizer"))
    assert metrics["train_seconds"] == steps
    assert max(seconds, key=seconds.__getitem__) == "forward_backward"
    events = EventAccumulator(str(pruned.folder / LOGS))
    events.Reload()
    speeds = events.Scalars("train/tokens_per_second")
    assert [event.step for event in speeds] == [3, 4, 5, 6], "two steps warm up"
    assert speeds[-1].value == pytest.approx(metrics["tokens_per_second"])
    shown = f"{metrics['tokens_per_second']:,.0f}"
    assert f"{shown} tokens/s" in pruned.errors
    assert shown in pruned.output
    rates = [tag for tag in events.Tags()["scalars"] if "tokens_per_second" in tag]
    assert rates == ["train/tokens_per_second", "final/tokens_per_second"], "one definition"
    assert "forward+backward" in pruned.output
    spent = [events.Scalars(f"train/seconds/{name}")[-1].value for name in seconds]
    for so_far, taken in zip(spent, seconds.values(), strict=True):
        assert 0 <= so_far <= taken * 1.0001  # float32 there
    memory = events.Scalars("train/peak_memory_bytes")[-1].value
    assert memory == pytest.approx(metrics["peak_memory_bytes"], rel=0.2)


def test_a_run_that_needs_its_base_folder_says_so(pruned: Finished) -> None:
    said = " ".join(pruned.output.split())
    assert f"An adapter: it loads only while {REFERENCE} exists." in said


def test_both_forms_are_written_side_by_side(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    done = train(tmp_path / "run", *SHORT, "export.form=both", "evaluation=none")
    assert done.code == 0, done.errors
    assert (done.final / "adapter_config.json").is_file()
    merged = AutoModelForCausalLM.from_pretrained(done.final.with_name("final-merged"))
    assert merged.config.num_hidden_layers == 8


def test_another_runs_final_is_never_overwritten(tmp_path: Path) -> None:
    shared = (*SHORT, "max_steps=1", "evaluation=none", f"output_dir={tmp_path / 'shared'}")
    first = train(tmp_path / "one", *shared)
    assert first.code == 0, first.errors
    before = {p: p.read_bytes() for p in (tmp_path / "shared").rglob("*.safetensors")}
    second = train(tmp_path / "two", *shared)
    assert second.code == 1
    assert "never overwritten: use another output_dir" in second.errors
    assert {p: p.read_bytes() for p in (tmp_path / "shared").rglob("*.safetensors")} == before


def test_a_sweep_of_two_jobs_leaves_two_of_everything(tmp_path: Path) -> None:
    done = train(
        tmp_path / "unused",
        "--multirun",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        *SHORT,
        "max_steps=2",
        "model=dropped",
        "model.layer_to_drop=2,9",
        "logger=both",
    )
    assert done.code == 0, done.errors
    jobs = [Finished(0, "", "", tmp_path / "sweep" / name) for name in ("0", "1")]
    kept = [job.result["kept_layers"] for job in jobs]
    assert kept == [[i for i in range(12) if i != dropped] for dropped in (2, 9)]
    runs = [path.name for job in jobs for path in job.folder.glob("wandb/offline-run-*")]
    assert len(runs) == len({name.rpartition("-")[2] for name in runs}) == 2
    for job, dropped in zip(jobs, (2, 9), strict=True):
        assert job.result["name"] == f"drop-{dropped}-lora"
        assert list(job.folder.glob(f"logs/dropped/drop-{dropped}-lora/events*"))
