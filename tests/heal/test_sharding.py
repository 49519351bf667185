"""The settings of FSDP2, which itself runs on GPUs only."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lamina.heal.sft import SFT
from tests.conftest import REFERENCE


def test_sharded_training_uses_fsdp2_and_writes_single_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import FullyShardedDataParallelPlugin

    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # transformers sets it for good
    settings = SFT(args={"max_length": 64, "bf16": False, "use_cpu": True})
    assert settings.arguments(tmp_path).fsdp_plugin_args is None
    arguments = settings.arguments(tmp_path, sharded=True)
    assert arguments.fsdp is True
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.cpu_ram_efficient_loading is False


def test_the_first_process_gets_the_whole_model_in_its_own_class() -> None:
    """The wrappers are stand-ins: sharding needs GPUs."""
    import torch
    from transformers import AutoModelForCausalLM

    from lamina.heal.trainer import TokenLossTrainer

    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    plain, weights = type(model), model.state_dict()
    model.__class__ = type(f"FSDP{plain.__name__}", (plain,), {})
    accelerator = SimpleNamespace(
        unwrap_model=lambda given: given, get_state_dict=lambda _: weights
    )
    trainer = SimpleNamespace(model=model, accelerator=accelerator, is_fsdp_enabled=True)
    whole = TokenLossTrainer.best_model(trainer)
    assert type(whole) is plain
    assert whole.dtype == torch.float32
    assert all(torch.equal(whole.state_dict()[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("rows", "at_once", "expected"), [(5, 4, 8), (8, 4, 8), (1, 4, 4), (3, 1, 3)]
)
def test_padding_rows_have_no_trained_token(rows: int, at_once: int, expected: int) -> None:
    from datasets import Dataset

    from lamina.heal.sampling import ShuffledThenPadding, with_padding_rows

    content = {
        "input_ids": [[n, n, n] for n in range(rows)],
        "labels": [[n] * 3 for n in range(rows)],
    }
    given = Dataset.from_dict(content)
    made = with_padding_rows(given, at_once, 9)
    assert len(made) == expected
    assert made[:rows] == content
    assert all(row == {"input_ids": [9, 9], "labels": [-100, -100]} for row in list(made)[rows:])
    order = ShuffledThenPadding(given, at_once, 1)
    first = list(order)
    assert len(order) == len(first) == expected
    assert sorted(first[:rows]) == list(range(rows))
    assert first[rows:] == list(range(rows, expected))
    order.set_epoch(0)
    assert list(order) == first
