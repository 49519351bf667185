"""What other programs load: GGUF files, lamina verify, cards, and a base that has moved."""

import json
import re
import shutil
import sys
import tomllib
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lamina.commands.export import _next_steps
from lamina.export.card import card
from lamina.measure import engines
from lamina.measure.separate import ask
from tests.conftest import REFERENCE, Finished, lamina

LLAMA_CPP = pytest.mark.skipif(
    any(find_spec(name) is None for name in engines.MODULES["convert"]),
    reason="make install-gguf makes it run",
)
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
LINE = r"{engine} \S+, {dtype}: loss [\d.]+ on 60 rows, the run recorded [\d.]+; within [\d.]+\."


@pytest.fixture
def moved(pruned: Finished, tmp_path: Path) -> Finished:
    """A copy of the short run, which recorded a base that is not there."""
    folder = Path(shutil.copytree(pruned.folder, tmp_path / "run"))
    final = folder / pruned.result["final"]
    for name, key in (
        ("lamina.json", "source_model"),
        ("adapter_config.json", "base_model_name_or_path"),
    ):
        content = json.loads((final / name).read_text())
        (final / name).write_text(json.dumps({**content, key: "/mnt/models/reference"}))
    return Finished(0, "", "", folder)


def texts(folder: Path) -> str:
    return (
        "".join(path.read_text() for path in folder.glob("*.json"))
        + (folder / "README.md").read_text()
    )


def about(folder: Path) -> Any:
    return json.loads((folder / "lamina.json").read_text())


@LLAMA_CPP
@pytest.mark.parametrize(
    ("given", "kind", "dtype"),
    [
        ((), "f32", "float32"),
        (("--dtype", "bfloat16"), "bf16", "bfloat16"),
        (("--quantize", "q8_0"), "q8_0", "q8_0"),
        (("--quantize", "q4_k_m"), "q4_k_m", "q4_k_m"),
        (("--quantize", "iq4_xs"), "iq4_xs", "iq4_xs"),
    ],
)
def test_a_gguf_has_the_runs_loss_in_llama_cpp(
    given: tuple[str, ...], kind: str, dtype: str, pruned: Finished, tmp_path: Path
) -> None:
    export = ("export", pruned.folder, "--output", "out", "--form", "gguf", *given)
    done = lamina(*export, cwd=tmp_path)
    assert done.code == 0, done.errors
    lines = done.output.splitlines()
    assert lines[0] == f"out: gguf, {dtype}"
    checked = r"checked: loss [\d.]+, the run recorded [\d.]+; \d+ of 60 rows, [\d.]+ allowed"
    assert re.fullmatch(checked, lines[1])
    assert lines[2] == f"loads in: llama.cpp (llama-server -m out/pruned-{kind}.gguf)."
    verify = f"lamina verify out --engine llama.cpp --run {pruned.folder}"
    assert lines[3:] == [f"verify: {verify}", "upload: hf upload YOUR_NAME/MODEL out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"pruned-{kind}.gguf", "README.md", "lamina.json"}
    assert about(tmp_path / "out")["export"]["dtype"] == dtype
    done = lamina(*verify.split()[1:], cwd=tmp_path)
    assert done.code == 0, done.errors
    assert re.fullmatch(LINE.format(engine=r"llama\.cpp", dtype=dtype), done.output.strip())
    assert f"Verified in {done.output.strip()}\n" in (tmp_path / "out" / "README.md").read_text()


def test_verify_compares_every_recorded_row_in_transformers(
    pruned: Finished, tmp_path: Path
) -> None:
    export = ("export", pruned.folder, "--output", "out", "--dtype", "bfloat16")
    verify = f"lamina verify out --engine transformers --run {pruned.folder}"
    assert f"\nverify: {verify}\n" in lamina(*export, cwd=tmp_path).output
    done = lamina(*verify.split()[1:], cwd=tmp_path)
    assert done.code == 0, done.errors
    assert re.fullmatch(LINE.format(engine="transformers", dtype="bfloat16"), done.output.strip())
    found = json.loads((tmp_path / "out" / "verification.json").read_text())["transformers"]
    assert found["recorded"] == pytest.approx(pruned.result["metrics"]["eval_loss"], abs=1e-6)
    assert found["allowed"] == pytest.approx(0.02 * (1 + found["recorded"]))
    assert 0 < abs(found["loss"] - found["recorded"]) <= found["allowed"]


def test_an_adapters_base_is_that_of_its_commit(pruned: Finished, tmp_path: Path) -> None:
    """Neither what the hub has now, nor what --base names, may have other weights."""
    run = Path(shutil.copytree(pruned.folder, tmp_path / "run"))
    final, repository = run / pruned.result["final"], tmp_path / "hub/models--owner--name"
    commits = [letter * 40 for letter in "ab"]
    for commit in commits:
        shutil.copytree(REFERENCE, repository / "snapshots" / commit)
    weights = repository / "snapshots" / commits[1] / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.3.mlp.up_proj.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commits[1])
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    given = ("export", final, "--output", "out", "--base", "owner/name")
    done = lamina(*given, cwd=tmp_path, **offline)
    assert (done.code, "owner/name does not have the weights" in done.refusal) == (1, True)
    hub = {"source_model": "owner/name", "revision": commits[0], "source_fingerprint": None}
    (final / "lamina.json").write_text(json.dumps({**about(final), **hub}))
    adapter = json.loads((final / "adapter_config.json").read_text())
    adapter |= {"base_model_name_or_path": "owner/name", "revision": commits[0]}
    (final / "adapter_config.json").write_text(json.dumps(adapter))
    done = lamina("verify", run, "--engine", "transformers", cwd=tmp_path, **offline)
    assert done.code == 0, done.errors


def test_verify_needs_an_adapters_base(moved: Finished, tmp_path: Path) -> None:
    done = lamina("verify", moved.folder, "--engine", "transformers", cwd=tmp_path)
    assert (done.code, done.refusal) == (
        1,
        "error: /mnt/models/reference: no such folder; if the base has moved, lamina export takes "
        "--base PATH\n",
    )


def test_verify_ends_with_1_outside_the_tolerance(moved: Finished, tmp_path: Path) -> None:
    export = ("export", moved.folder, "--output", "out", "--base", REFERENCE)
    assert lamina(*export, cwd=tmp_path).code == 0
    path = moved.folder / "eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "loss": row["loss"] + 1}) + "\n" for row in rows))
    given = ("verify", "out", "--engine", "transformers", "--run", moved.folder)
    done = lamina(*given, cwd=tmp_path)
    assert (done.code, done.refusal.count("\n")) == (1, 1)
    assert "error: out: transformers 5." in done.errors
    assert "; OUTSIDE " in done.errors
    assert not json.loads((tmp_path / "out" / "verification.json").read_text())["transformers"][
        "within"
    ]


def test_a_form_that_an_engine_does_not_read_is_refused(pruned: Finished, tmp_path: Path) -> None:
    run, final = pruned.folder, pruned.final
    further = f"with lamina export {run} --output DIR --form"
    for engine, message in (
        (
            "vllm",
            "vLLM does not support layer_replication: write a form that it serves "
            f"{further} merged",
        ),
        (
            "llama.cpp",
            f"--engine llama.cpp reads GGUF files: write a form that it serves {further} gguf",
        ),
    ):
        done = lamina("verify", run, "--engine", engine, cwd=tmp_path)
        assert (done.code, done.errors) == (1, f"error: {message}\n")
    assert not (final / "verification.json").exists()


def test_a_missing_engine_says_how_to_make_its_environment(
    pruned: Finished, tmp_path: Path
) -> None:
    assert lamina("export", pruned.folder, "--output", "out", cwd=tmp_path).code == 0
    given = ("verify", "out", "--run", pruned.folder, "--engine", "vllm")
    done = lamina(*given, cwd=tmp_path)
    message = (
        "this environment lacks vllm, which vllm needs: make an environment of its own and pass "
        "it: python -m venv ENV; ENV/bin/pip install vllm; --python=ENV/bin/python"
    )
    assert (done.code, done.refusal) == (1, f"error: {message}\n")
    python = tmp_path / "an environment" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho \'{"missing": "it"}\' > "$2/answer.json"\n')
    python.chmod(0o755)
    done = lamina(*given, "--python", python, cwd=tmp_path)
    message = f"--python={python} lacks it, which vllm needs: '{python}' -m pip install vllm"
    assert (done.code, done.refusal) == (1, f"error: {message}\n")
    given = ("export", pruned.folder, "--output", "new", "--form", "gguf", "--python", python)
    done = lamina(*given, cwd=tmp_path)
    extra = " ".join(
        tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]["gguf"]
    )
    message = f"--python={python} lacks it, which convert needs: '{python}' -m pip install {extra}"
    assert (done.code, done.refusal) == (1, f"error: {message}\n")
    given = ("verify", "out", "--run", pruned.folder, "--engine", "vllm")
    python.write_text("#!/bin/sh\nprintf 'no caf\\351' >&2; exit 1\n")
    done = lamina(*given, "--python", python, cwd=tmp_path)
    message = f"error: --python={python}: vllm failed: no caf\N{REPLACEMENT CHARACTER}\n"
    assert (done.code, done.errors.splitlines(keepends=True)[-1]) == (1, message)
    done = lamina(*given, "--python", "gone", cwd=tmp_path)
    assert (done.code, done.refusal) == (1, "error: --python=gone: no such interpreter\n")
    done = lamina("verify", "out", "--engine", "vllm", cwd=tmp_path)
    message = "out has no eval.jsonl: pass --run RUN, the run it came from"
    assert (done.code, done.errors) == (1, f"error: {message}\n")


def test_vllm_is_asked_for_the_prompts_log_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with vLLM's documented interface: prompt tokens in, one dictionary each out."""
    (tmp_path / "vllm.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}]
    request = {"task": "vllm", "model": "folder", "rows": rows}
    found = ask([sys.executable, engines.__file__], request)
    assert found == {"nll": [1.25], "dtype": "bfloat16", "version": "0.32.0"}


STAND_IN = """
from types import SimpleNamespace as N
__version__ = "0.32.0"
def SamplingParams(*, max_tokens, temperature, prompt_logprobs):
    assert (max_tokens, prompt_logprobs) == (1, 0)
class LLM:
    def __init__(self, *, model, enforce_eager, max_model_len):
        assert (model, enforce_eager, max_model_len) == ("folder", True, 5)
        self.llm_engine = N(model_config=N(dtype="torch.bfloat16"))
    def generate(self, prompts, wanted):
        ids = prompts[0]["prompt_token_ids"]
        each = [{x: N(logprob=-0.25 * (x - 5))} for x in ids[1:]]
        return [N(prompt_logprobs=[None, *each])]
"""


def test_a_moved_base_is_passed(moved: Finished, tmp_path: Path) -> None:
    for form in ("merged", "adapter"):
        given = ("export", moved.folder, "--form", form, "--output", f"out-{form}")
        done = lamina(*given, cwd=tmp_path)
        message = (
            "/mnt/models/reference: no such folder; if the base has moved, lamina export takes "
            "--base PATH"
        )
        assert (done.code, done.refusal) == (1, f"error: {message}\n")
        done = lamina(*given, "--base", REFERENCE, cwd=tmp_path)
        assert done.code == 0, done.errors
        assert "checked: loss" in done.output
    config = json.loads((tmp_path / "out-adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(REFERENCE)


def test_an_export_names_no_path_but_an_adapters_base(pruned: Finished, tmp_path: Path) -> None:
    for form in ("merged", "adapter"):
        done = lamina(
            "export", pruned.folder, "--form", form, "--output", f"out-{form}", cwd=tmp_path
        )
        assert done.code == 0, done.errors
        # An adapter's config has to name its base as it loads, or transformers asks the hub.
        base = f'"base_model_name_or_path": "{REFERENCE}"'
        named = texts(tmp_path / f"out-{form}")
        assert named.count(str(REFERENCE.parent)) == named.count(base) == (form == "adapter")
        assert str(tmp_path) not in named
        assert about(tmp_path / f"out-{form}")["source_model"] == "reference"
    assert str(REFERENCE.parent) not in (pruned.final / "README.md").read_text()
    # As the card says: an uploaded adapter cannot name a folder as its base.
    base = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    adapter = PeftModel.from_pretrained(base, str(tmp_path / "out-adapter"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out-adapter", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out-merged")
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert (merged(ids).logits - adapter(ids).logits).abs().max() < 1e-4
        assert (merged(ids).logits - whole(ids).logits).abs().max() < 1e-4


def test_a_card_has_the_loss_of_its_form(pruned: Finished, tmp_path: Path) -> None:
    loss = pruned.result["metrics"]["eval_loss"]
    text = (pruned.final / "README.md").read_text()
    line = f"Loss of this form, adapter in float32: {loss:.6g} nats per token on all 60 rows."
    assert line in text.splitlines()
    assert f"| eval_loss | {loss:.6g} |" in text
    given = ("export", pruned.folder, "--output", "out", "--dtype", "bfloat16")
    done = lamina(*given, cwd=tmp_path)
    assert done.code == 0, done.errors
    written = done.output.splitlines()[1].split()[2].rstrip(",")
    rows = about(tmp_path / "out")["export"]["rows"]
    line = f"Loss of this form, merged in bfloat16: {written} nats per token on {rows} of 60 rows."
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert line in lines
    table = lines.index("| loss, nats per token | |")
    baseline, reduced = (
        f"{pruned.metrics[f'{name}_eval_loss']:.6g}" for name in ("baseline", "reduced")
    )
    assert lines[table + 2 : table + 6] == [
        f"| baseline_eval_loss | {baseline} |",
        f"| reduced_eval_loss | {reduced} |",
        f"| eval_loss of the run's final/ | {loss:.6g} |",
        "",
    ]


def test_a_runs_last_line_is_the_command_that_writes_what_engines_serve(pruned: Finished) -> None:
    lines = pruned.output.splitlines()
    assert lines[-1] == f"lamina export {pruned.folder.name} --output DIR"
    said = "".join(lines[-12:]).replace(" ", "")
    final = pruned.final.relative_to(pruned.folder.parent)
    assert f"lm-eval(pretrained={REFERENCE},peft={final}).vLLMdoesnotsupportlayer_repl" in said


def test_the_license_is_that_of_the_base(tmp_path: Path) -> None:
    shutil.copytree(REFERENCE, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlanguage:\n- en\nlicense: 'mit'\n---\n")
    given = ("model_name=base", "output=out", "model=dropped", "model.layer_to_drop=1")
    done = lamina("cut", *given, cwd=tmp_path)
    assert done.code == 0, done.errors
    assert "\nlicense: mit\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_card_has_the_hubs_metadata(pruned: Finished) -> None:
    content = about(pruned.final)
    content |= {"source_model": "org/base", "revision": "abc", "datasets": ["org/data"]}
    content["license"] = "mit"
    lines = card(content, {}).splitlines()
    assert lines[:9] == [
        "---",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lamina, depth-pruning, lora]",
        "base_model: org/base",
        "license: mit",
        "datasets: [org/data]",
        "---",
        "",
    ]
    assert lines[-1] == "Upload it with `hf upload YOUR_NAME/MODEL PATH_OF_THIS_FOLDER`."
    assert (
        "Loads in: transformers with PEFT; lm-eval (pretrained=org/base,peft=PATH_OF_THIS_FOLDER). "
        "vLLM does not support layer_replication: lamina export --form merged writes what it "
        "serves." in lines
    )


def test_printed_commands_take_paths_with_spaces(tmp_path: Path) -> None:
    given = Namespace(output=str(tmp_path / "my model"), form="merged", base=None)
    _, loads, upload = _next_steps(given, "run", None)
    assert f"vllm serve '{given.output}'" in loads
    assert upload == f"upload: hf upload YOUR_NAME/MODEL '{given.output}'"


def test_a_hub_id_needs_no_slash() -> None:
    content = json.loads((REFERENCE / "lamina.json").read_text())
    content |= {
        "source_model": "gpt2",
        "adapter": "lora",
        "export": {"form": "adapter", "loss": None},
    }
    load = "model = AutoModelForCausalLM.from_pretrained"
    of_a_folder = card(content, {}).splitlines()
    assert f'{load}("PATH_OF_gpt2")' in of_a_folder
    assert "base_model: gpt2" not in of_a_folder
    of_the_hub = card({**content, "revision": "abc"}, {}).splitlines()
    assert f'{load}("PATH_OF_THIS_FOLDER", revision="abc")' in of_the_hub
    assert "base_model: gpt2" in of_the_hub


def test_the_best_job_of_a_sweep_is_exported(pruned: Finished, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    for name, loss in (("0", 9.0), ("1", pruned.result["metrics"]["eval_loss"])):
        folder = Path(shutil.copytree(pruned.folder, tmp_path / "sweep" / name))
        result = {**pruned.result, "name": f"drop-{name}-lora"}
        result["metrics"] = {**result["metrics"], "eval_loss": loss}
        (folder / "result.json").write_text(json.dumps(result))
    done = lamina("export", "sweep", "--output", "out", cwd=tmp_path)
    loss = f"{pruned.metrics['eval_loss']:.4g}"
    assert (done.code, done.errors) == (
        1,
        "error: sweep is a sweep: pass --best, or one of its jobs: "
        f"sweep/1 (drop-1-lora, loss {loss}); sweep/0 (drop-0-lora, loss 9)\n",
    )
    done = lamina("export", "sweep", "--best", "--output", "out", cwd=tmp_path)
    assert done.code == 0, done.errors
    done = lamina("export", "sweep/1", "--best", "--output", "again", cwd=tmp_path)
    assert (done.code, done.errors) == (1, "error: --best: sweep/1 is no sweep\n")
    (folder / "result.json").write_text(json.dumps({**result, "eval_fingerprint": "other rows"}))
    done = lamina("export", "sweep", "--best", "--output", "again", cwd=tmp_path)
    assert (done.code, done.errors) == (
        1,
        "error: sweep has losses on different rows, which --best cannot compare: pass one of its "
        f"jobs: sweep/1 (drop-1-lora, loss {loss}); sweep/0 (drop-0-lora, loss 9)\n",
    )


def test_quantize_needs_a_gguf(tmp_path: Path) -> None:
    given = ("export", "run", "--output", "out", "--quantize", "q8_0")
    done = lamina(*given, cwd=tmp_path)
    needs = "error: --quantize=q8_0 needs --form gguf and no --dtype, not"
    assert (done.code, done.errors) == (1, f"{needs} --form=merged\n")
    done = lamina(*given, "--form", "gguf", "--dtype", "float32", cwd=tmp_path)
    assert (done.code, done.errors) == (1, f"{needs} --dtype=float32\n")
