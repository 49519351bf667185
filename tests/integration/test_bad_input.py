"""Bad input that only a running job can detect: one clear error and a failed result."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.architectures import save
from tests.conftest import REFERENCE, SHORT, Finished, lamina, train

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def rows(path: Path, *content: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def refused(done: Finished, *parts: str) -> None:
    assert done.code == 1, done.output
    lines = [line for line in done.errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.errors
    for part in parts:
        assert part in done.errors
    assert "Traceback" not in done.errors
    assert done.result["status"] == "failed"
    assert done.result["error"] in done.errors


def test_a_row_without_the_expected_columns_is_named(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", *[GOOD] * 3, {"question": "a"}, *[GOOD] * 9)
    held = rows(tmp_path / "held.jsonl", GOOD)
    given = (*SHORT, "data=jsonl", f"data.train={path}", f"data.eval={held}")
    refused(
        train(tmp_path / "run", *given),
        f"{path}, row 4: column 'messages' is empty or missing (found question)",
    )


def test_an_empty_data_set_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    given = (*SHORT, "data=jsonl", f"data.train={path}")
    refused(train(tmp_path / "run", *given), f"data.train={path}: the file is empty")


def test_a_folder_without_safetensors_is_named_before_torch_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(REFERENCE / "config.json", folder)
    given = (*SHORT, f"model_name={folder}")
    refused(train(tmp_path / "run", *given), f"model_name={folder} has no safetensors weights")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *SHORT, "learning_rate=1e30", "evaluation=none", "max_steps=20")
    refused(done, "at step", "lower learning_rate=1e+30")


def test_an_export_that_would_not_be_exact_is_refused_before_training(tmp_path: Path) -> None:
    given = (*SHORT, "model=scratch", "adapter=lora", "export.form=adapter")
    done = train(tmp_path / "run", *given)
    refused(done, "export.form=adapter: an adapter cannot rebuild scratch of this architecture")
    assert done.result["trainable_parameters"] is None


def model(folder: Path, **changes: object) -> Path:
    """The reference model with another config.json; None removes a field."""
    shutil.copytree(REFERENCE, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    content = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


UNUSABLE: list[tuple[dict[str, object], str]] = [
    (
        {"model_type": None},
        "config.json has no model_type: add that of the model's architecture, such as "
        '"model_type": "llama"',
    ),
    *(
        (
            {"quantization_config": content},
            f"its weights are quantized ({method}) and can be neither reduced nor trained: use "
            "the unquantized model; adapter=qlora quantizes it in memory",
        )
        for method, content in {
            "hqq": "hqq",
            **{
                name: {"quant_method": name, "bits": 4}
                for name in ("awq", "gptq", "compressed-tensors", "fp8")
            },
        }.items()
    ),
]


@pytest.mark.parametrize("variant", ["model=original", "model=pruned model.keep_layers=8"])
@pytest.mark.parametrize(("changes", "message"), UNUSABLE)
def test_a_model_that_cannot_be_trained_is_named_before_anything_slow(
    changes: dict[str, object], message: str, variant: str, tmp_path: Path
) -> None:
    folder = model(tmp_path / "model", **changes)
    done = train(tmp_path / "run", *SHORT, *variant.split(), f"model_name={folder}")
    assert done.refusal == f"error: model_name={folder}: {message}\n"
    assert done.code == 1


@pytest.mark.parametrize("command", ["train", "scan", "shortlist", "cut"])
def test_an_architecture_that_transformers_lacks_is_refused_before_anything_slow(
    command: str, tmp_path: Path
) -> None:
    own = f"model_name={model(tmp_path / 'model', model_type='qwen33')}"
    given = ("experiment=quickstart", own, "model=original")
    if command == "train":
        done = train(tmp_path / "run", *given, "logger=none")
    else:
        given = (own, "model=original", "output=out") if command == "cut" else given
        done = lamina(command, *given, cwd=tmp_path)
    assert done.refusal == (
        f"error: {own}: config.json's model_type=qwen33: transformers knows no such architecture; "
        "did you mean qwen3?\n"
    )
    assert done.code == 1


def test_weights_that_do_not_fit_are_refused_with_model_original(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", tie_word_embeddings=False)
    done = train(tmp_path / "run", *SHORT, "model=original", f"model_name={folder}")
    message = (
        f"error: model_name={folder}: 1 tensors do not fit the model (first: lm_head.weight): the "
        "checkpoint and its config.json disagree\n"
    )
    refused(done, message)
    done = lamina("scan", "experiment=quickstart", f"model_name={folder}", cwd=tmp_path)
    assert done.errors.endswith(message)
    for variant in ("model=original", "model=pruned model.keep_layers=4"):
        given = (f"model_name={folder}", *variant.split(), "output=out")
        assert lamina("cut", *given, cwd=tmp_path).refusal == message


POSITIONS = (
    "error: max_seq_length=512: this gpt2 has learned positions for 64 tokens: use 64 or less\n"
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with 64 positions and 300 tokens, and a larger tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    save("gpt2", folder, vocab_size=300, eos_token_id=2, pad_token_id=0)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / name, folder)
    return folder


def test_sequences_beyond_learned_positions_are_refused(gpt2: Path, tmp_path: Path) -> None:
    own = f"model_name={gpt2}"
    for number, given in enumerate((("model=original",), ("model=pruned", "model.keep_layers=3"))):
        refused(train(tmp_path / str(number), *SHORT, *given, own), POSITIONS)
    done = lamina("scan", "experiment=quickstart", "model=original", own, cwd=tmp_path)
    assert done.errors.endswith(POSITIONS)
    absent = ("intermediate_size", "num_key_value_heads", "head_dim", "initializer_range")
    sizes = ("model.architecture.model_type=opt", "model.architecture.max_position_embeddings=64")
    given = ("model=scratch", "adapter=full", *sizes, *(f"~model.architecture.{k}" for k in absent))
    refused(train(tmp_path / "new", *SHORT, *given), POSITIONS.replace("gpt2", "opt"))


SAMPLED = re.compile(
    r"error: evaluation\.num_samples: longest prompt \+ evaluation\.max_new_tokens=\d\d: this gpt2 "
    "has learned positions for 64 tokens: use 64 or less"
)


def test_samples_and_rows_beyond_learned_positions_are_refused(tmp_path: Path) -> None:
    folder, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    save("gpt2", folder, vocab_size=321, eos_token_id=2, pad_token_id=0)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / name, folder)
    given = [f"model_name={folder}", "model=original", "max_seq_length=64"]
    given += ["evaluation.max_new_tokens=50", "evaluation.reduced=false"]
    for number, more in enumerate(([], ["dry_run=true"])):
        done = train(tmp_path / str(number), *SHORT, *given, *more)
        assert SAMPLED.search(done.errors.splitlines()[-1]), done.errors
        assert not (done.folder / "checkpoints" / "original" / "final").exists()
    rows.write_text((json.dumps({"text": "ABCD" * 25}) + "\n") * 40)
    rows_of = ("data=jsonl", f"data.train={rows}", "evaluation.tasks=[]")
    measured = ("evaluate", f"model_name={folder}", *rows_of)
    done = lamina(*measured, cwd=tmp_path)
    assert done.errors.endswith(
        "error: max_seq_length: longest row=101: this gpt2 has learned positions for 64 tokens: "
        "use 64 or less\n"
    )
    cut = ("max_seq_length=64", "data.max_dropped=1", "evaluation.speed.batch_sizes=[]")
    done = lamina(*measured, *cut, cwd=tmp_path)
    assert done.code == 0, done.errors


def test_tokens_that_the_embedding_lacks_are_refused(gpt2: Path, tmp_path: Path) -> None:
    given = (f"model_name={gpt2}", "max_seq_length=64", "model=original")
    done = train(tmp_path / "run", *SHORT, *given, "data.max_dropped=1")
    scan = lamina("scan", "experiment=quickstart", *given, cwd=tmp_path)
    cut = ("data.max_dropped=1", "evaluation.tasks=[]")
    measured = lamina("evaluate", *given[:2], "data=synthetic", *cut, cwd=tmp_path)
    refused(done, "error:")
    for found in (done, scan, measured):
        assert re.fullmatch(
            f"error: model_name={gpt2}: its tokenizer has 321 tokens, its embedding 300, and token "
            r"3\d\d \(\w+\) is used: take the tokenizer that the model was trained with, or "
            r"enlarge the embedding with transformers' resize_token_embeddings first\n",
            found.errors.splitlines(keepends=True)[-1],
        )
