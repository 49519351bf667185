"""Which backend a run gets, and what each says before anything slow."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from lamina.config.backend_choice import choose_backend, needs_own_process
from lamina.config.preflight import preflight
from lamina.errors import ConfigError
from lamina.heal.backends import unsloth
from tests.config import conftest
from tests.conftest import REFERENCE, train

ABSENT = (
    "backend=unsloth, but Unsloth is not installed: make install-unsloth, or choose "
    "backend=transformers"
)
NO_PACKING = (
    "backend=unsloth sets packing=false: on a CPU Unsloth cannot keep packed documents apart; each "
    "sequence is one document, so a step reads fewer tokens"
)
CHOSEN = "backend=unsloth: it supports this run"
FAMILIES = "llama, mistral, gemma, gemma2, qwen2, qwen3"

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this a machine with or without Unsloth, and with some GPUs."""

    def make(*, installed: bool, gpus: int) -> None:
        monkeypatch.setattr(unsloth, "is_installed", lambda: installed)
        monkeypatch.setattr("lamina.runtime.device.has_gpu", lambda: gpus > 0)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))

    return make


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A model of a family that Unsloth has no kernels for, as far as its config goes."""
    folder = shutil.copytree(REFERENCE, tmp_path / "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    return folder


def composed(*overrides: str) -> DictConfig:
    return conftest.composed(f"model_name={REFERENCE}", "data=synthetic", *overrides)


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        preflight(composed("backend=unsloth", *overrides))
    return str(raised.value)


@pytest.mark.parametrize(
    ("installed", "gpus", "processes", "overrides", "note"),
    [
        (False, 0, 1, (), "backend=transformers: Unsloth is not installed"),
        (False, 1, 1, (), "backend=transformers: Unsloth is not installed"),
        (True, 0, 1, (), "backend=transformers: there is no GPU for Unsloth"),
        (True, 1, 1, (), CHOSEN),
        (True, 1, 1, ("adapter=full", "model=pruned", "model.keep_layers=8"), CHOSEN),
        (True, 2, 1, ("distributed=none",), CHOSEN),
        (
            True,
            2,
            2,
            (),
            "backend=transformers: Unsloth trains in one process, and there are 2",
        ),
        (
            True,
            1,
            1,
            ("model=scratch",),
            "backend=transformers: model=scratch has no checkpoint that Unsloth could load",
        ),
        (
            True,
            1,
            1,
            ("bf16=false",),
            "backend=transformers: bf16=false, but on a GPU Unsloth computes in bfloat16 anyway",
        ),
        (
            True,
            1,
            1,
            ("adapter.rank_pattern={q_proj: 4}",),
            "backend=transformers: adapter.rank_pattern={'q_proj': 4}: Unsloth's get_peft_model "
            "does not accept it",
        ),
        (
            True,
            1,
            1,
            ("attention=eager",),
            "backend=transformers: attention=eager, but Unsloth decides that itself",
        ),
    ],
)
def test_auto_chooses_and_says_why(
    installed: bool,
    gpus: int,
    processes: int,
    overrides: tuple[str, ...],
    note: str,
    machine: Machine,
) -> None:
    machine(installed=installed, gpus=gpus)
    config = composed(*overrides)
    preflight(config)
    assert choose_backend(config, processes) == [note]
    name = note.partition(":")[0].removeprefix("backend=")
    assert config.backend._target_.lower().endswith(name)
    assert needs_own_process(config) == (name == "unsloth")
    assert config.packing  # on a GPU Unsloth packs


def test_auto_leaves_families_without_kernels_to_transformers(machine: Machine, gpt2: Path) -> None:
    machine(installed=True, gpus=1)
    config = composed(f"model_name={gpt2}")
    said = f"backend=transformers: model_name={gpt2}: Unsloth has no kernels for gpt2, only for "
    assert choose_backend(config, 1) == [said + FAMILIES]


def test_a_chosen_backend_needs_no_note(machine: Machine) -> None:
    machine(installed=True, gpus=1)
    for name in ("transformers", "unsloth"):
        config = composed(f"backend={name}")
        preflight(config)
        assert choose_backend(config, 1) == []


def test_without_a_gpu_packing_is_off_and_a_note_says_so(machine: Machine) -> None:
    machine(installed=True, gpus=0)
    config = composed("backend=unsloth", "++trainer.args.eval_packing=true")
    preflight(config)
    assert choose_backend(config, 1) == [NO_PACKING]
    assert not config.packing
    assert not config.trainer.args.packing
    assert not config.trainer.args.eval_packing
    assert choose_backend(composed("backend=unsloth", "packing=false"), 1) == []


def test_several_processes_are_refused(machine: Machine) -> None:
    machine(installed=True, gpus=2)
    with pytest.raises(ConfigError) as raised:
        choose_backend(composed("backend=unsloth"), 2)
    assert str(raised.value) == (
        "backend=unsloth trains in one process on one GPU, and distributed=auto makes 2: set "
        "distributed=none, or choose backend=transformers"
    )


def test_preflight_refuses_what_unsloth_cannot_do(machine: Machine, gpt2: Path) -> None:
    machine(installed=True, gpus=0)
    assert refused("model=scratch", "adapter=full") == (
        "model=scratch has no checkpoint that Unsloth could load: choose backend=transformers"
    )
    assert refused("adapter.rank_pattern={q_proj: 4}", "adapter.use_qalora=true") == (
        "adapter.rank_pattern={'q_proj': 4}: Unsloth's get_peft_model does not accept it: leave it "
        "out, or choose backend=transformers\n"
        "adapter.use_qalora=True: Unsloth's get_peft_model does not accept it: leave it out, or "
        "choose backend=transformers"
    )
    assert refused("adapter.target_modules=[q_proj,lm_head]") == (
        "adapter.target_modules with lm_head: Unsloth would train all of their weights: put them "
        "into adapter.modules_to_save, or choose backend=transformers"
    )
    assert refused(f"model_name={gpt2}") == (
        f"model_name={gpt2}: Unsloth has no kernels for gpt2, only for {FAMILIES}: choose "
        "backend=transformers"
    )
    assert refused("bf16=false", "trainer.args.fp16=true", "optim=adamw_torch") == (
        "trainer.args.fp16=true, but on a CPU Unsloth computes in bfloat16 instead: use "
        "bf16=true, or choose backend=transformers\n"
        "optim=adamw_torch, but on a CPU Unsloth uses adamw_torch_fused instead: "
        "use that, or choose backend=transformers"
    )
    assert refused("attention=eager", "torch_compile=true") == (
        "attention=eager, but Unsloth decides that itself: leave it out, or choose "
        "backend=transformers\n"
        "torch_compile=True, but Unsloth decides that itself: leave it out, or choose "
        "backend=transformers"
    )
    machine(installed=True, gpus=1)
    assert refused("bf16=false") == (
        "bf16=false, but on a GPU Unsloth computes in bfloat16 anyway: use bf16=true, or "
        "choose backend=transformers"
    )


def test_distillation_is_refused(machine: Machine) -> None:
    machine(installed=True, gpus=1)
    assert refused("trainer=distill") == (
        "trainer=distill needs the hidden states of a forward pass that Unsloth replaces: choose "
        "backend=transformers, or trainer=sft"
    )


def test_a_missing_unsloth_is_named_in_one_line(machine: Machine) -> None:
    machine(installed=False, gpus=0)
    assert refused() == ABSENT


@pytest.mark.skipif(unsloth.is_installed(), reason="Unsloth is installed")
def test_the_command_names_it_before_anything_slow(tmp_path: Path) -> None:
    (tmp_path / "unsloth").mkdir()  # a folder of that name is not the library
    done = train(tmp_path / "run", "experiment=quickstart", "backend=unsloth")
    assert (done.code, done.errors) == (1, f"error: {ABSENT}\n")
