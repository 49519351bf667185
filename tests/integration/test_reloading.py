"""final/ is the model that was trained, or the run fails; in the form that its source had."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import REFERENCE, SHORT, Finished, lamina, train

CONSTANT = ("lr_scheduler_type=constant", "warmup_ratio=0")


def best_loss(done: Finished) -> float:
    return min(entry["eval_loss"] for entry in done.result["history"] if entry["eval_loss"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Plain LoRA, which the runs below must not equal."""
    done = train(tmp_path_factory.mktemp("plain") / "run", *SHORT, *CONSTANT)
    assert done.code == 0, done.errors
    return done


@pytest.mark.parametrize(
    ("given", "changed", "tied"),
    [
        ("adapter.modules_to_save=[lm_head]", "lm_head.weight", False),
        ("adapter.modules_to_save=[embed_tokens]", "model.embed_tokens.weight", False),
        ("adapter.modules_to_save=[norm]", "model.norm.weight", True),
        (
            "adapter.trainable_token_indices=[5,6] trainer.args.loss_type=nll",
            "model.embed_tokens.weight",
            True,
        ),
    ],
)
def test_whole_weights_beside_an_adapter_are_in_final(
    given: str, changed: str, tied: bool, plain: Finished, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", *SHORT, *CONSTANT, *given.split())
    assert done.code == 0, done.errors
    assert done.metrics["eval_loss"] == pytest.approx(best_loss(done), abs=1e-5)
    assert done.metrics["eval_loss"] != plain.metrics["eval_loss"]
    assert not (done.final / "adapter_config.json").exists()
    after, before = (load_file(f / "model.safetensors") for f in (done.final, REFERENCE))
    embedding = before["model.embed_tokens.weight"]
    assert not torch.equal(after[changed], before.get(changed, embedding).float())
    assert ("lm_head.weight" in after) is not tied
    config = json.loads((done.final / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    export = lamina("export", done.folder, "--output", "out", cwd=tmp_path)
    assert (export.code, export.refusal) == (0, "")
    copy = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(copy[name], after[name]) for name in copy | after)


def test_export_refuses_an_adapter_that_would_lose_whole_weights(tmp_path: Path) -> None:
    given = "adapter.modules_to_save=[lm_head]"
    done = train(tmp_path / "run", *SHORT, "evaluation=none", given)
    assert done.code == 0, done.errors
    export = lamina("export", done.folder, "--output", "o", "--form", "adapter", cwd=tmp_path)
    assert export.refusal == (
        "error: --form adapter: adapter.modules_to_save=['lm_head'] was trained, but "
        "transformers leaves it out when it loads an adapter; choose --form merged\n"
    )
    # An adapter as earlier versions wrote it to final/.
    shutil.copy(done.final.parent / "checkpoint-6" / "adapter_config.json", done.final)
    export = lamina("export", done.folder, "--output", "o", cwd=tmp_path)
    assert export.refusal == (
        f"error: {done.final}: adapter.modules_to_save=['lm_head'] was trained, but "
        "transformers leaves it out when it loads an adapter, so the run's losses are not this "
        "model's: run the same command with export.form=merged and the same hydra.run.dir\n"
    )
    assert not (tmp_path / "o").exists()


DAMAGE = """
import importlib.machinery, sys

class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        save = module.save_final

        def damaged(*arguments, **options):
            from safetensors.torch import load_file, save_file
            ref = save(*arguments, **options)
            (path,) = module.Path(ref.name).glob("*.safetensors")
            tensors = load_file(path)
            {damage}
            save_file(tensors, path, {"format": "pt"})
            return ref

        module.save_final = damaged

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "lamina.export.final":
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            spec.loader = Loader(spec.loader.name, spec.loader.path)
            return spec

sys.meta_path.insert(0, Finder)
"""
"""A sitecustomize.py with which what was written is not what was trained."""


@pytest.mark.parametrize(
    ("damage", "form", "message"),
    [
        (
            "tensors = {name: tensor * 3 for name, tensor in tensors.items()}",
            "adapter",
            r"{final}: loaded again, its eval_loss is [\d.]+, but the best checkpoint had [\d.]+, "
            r"and rounding explains a difference of [\d.]+ at most: transformers loads the adapter "
            r"as another model than was trained: set export.form=merged, and continue with the "
            r"same hydra.run.dir",
        ),
        (
            "del tensors[min(tensors)]",
            "adapter",
            r"{final}: 1 tensors do not fit the model \(first: model.layers.0.\S+\): transformers "
            r"loads the adapter as another model than was trained: set export.form=merged, and "
            r"continue with the same hydra.run.dir",
        ),
        (
            "tensors = {name: tensor * 1.1 for name, tensor in tensors.items()}",
            "merged",
            r"{final}: loaded again, its eval_loss is [\d.]+, but the best checkpoint had [\d.]+, "
            r"and rounding explains a difference of [\d.]+ at most: transformers loads another "
            r"model than was trained: please report this",
        ),
    ],
)
def test_a_run_fails_if_final_is_not_what_was_trained(
    damage: str, form: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DAMAGE.replace("{damage}", damage))
    given = (*SHORT, *CONSTANT, f"export.form={form}")
    done = train(tmp_path / "run", *given, PYTHONPATH=str(tmp_path))
    assert done.code == 1
    (folder,) = (tmp_path / "run").glob("checkpoints/*/final")
    line = "error: " + message.replace("{final}", re.escape(str(folder))) + "\n"
    assert re.fullmatch(line, done.errors.splitlines(keepends=True)[-1]), done.errors
    assert (done.result["status"], done.result["final"]) == ("failed", None)
    # Its checkpoints are sound: without the damage the same command finishes it.
    done = train(tmp_path / "run", *given)
    assert (done.code, done.result["status"]) == (0, "completed"), done.errors
    assert done.metrics["eval_loss"] == pytest.approx(best_loss(done), abs=1e-5)


def older(folder: Path, **changes: Any) -> Path:
    """The reference model as transformers 4 wrote it: its config and its tokenizer."""
    shutil.copytree(REFERENCE, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for field in ("rope_parameters", "layer_types", "dtype", "use_cache"):
        del config[field]
    config |= {"rope_theta": 50000.0, "torch_dtype": "bfloat16", "transformers_version": "4.51.3"}
    path.write_text(json.dumps({**config, **changes}))
    path = folder / "tokenizer_config.json"
    tokens = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokens |= {"chat_template": (folder / "chat_template.jinja").read_text()}
    del tokens["backend"]
    path.write_text(json.dumps(tokens))
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.mark.parametrize(
    "given",
    [
        ("adapter=full", "model=original"),
        ("adapter=full", "model=dropped", "model.layer_to_drop=2"),
        ("export.form=merged", "model=original"),
        ("export.form=both", "model=dropped", "model.layer_to_drop=2"),
    ],
    ids=" ".join,
)
def test_final_has_the_form_of_its_source(given: tuple[str, ...], tmp_path: Path) -> None:
    source = older(tmp_path / "source")
    dtype = "export.dtype=bfloat16"
    done = train(tmp_path / "run", *SHORT, f"model_name={source}", *given, dtype)
    assert done.code == 0, done.errors
    whole = done.final.with_name("final-merged") if "export.form=both" in given else done.final
    config = json.loads((whole / "config.json").read_text())
    cut = ("cut", f"model_name={source}", *given[1:], "output=cut")
    assert lamina(*cut, cwd=tmp_path).code == 0
    assert config == json.loads((tmp_path / "cut" / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (50000.0, "bfloat16")
    assert not {"rope_parameters", "dtype"} & config.keys()
    for folder in {done.final, whole}:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (source / name).read_bytes()
        assert AutoTokenizer.from_pretrained(folder).chat_template
    model, info = AutoModelForCausalLM.from_pretrained(whole, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert model.config.rope_parameters["rope_theta"] == 50000.0
