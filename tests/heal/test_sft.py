"""Settings reach the trainer unchanged; a library that changes one is an error."""

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version

from lamina.data.byte_tokenizer import build_tokenizer
from lamina.depth.loading import load_model, load_tokenizer
from lamina.depth.plan import Plan, make_plan
from lamina.depth.selection import First
from lamina.depth.variants import Original, Pruned
from lamina.errors import ConfigError
from lamina.heal.adapters import Full, Lora
from lamina.heal.backends.transformers import Training, Transformers, excluded
from lamina.heal.backends.unsloth import Unsloth
from lamina.heal.callbacks.saving import Checkpointing
from lamina.heal.callbacks.stopping import EarlyStop
from lamina.heal.kernels import balance_experts
from lamina.heal.memory import ALL_LOSSES_CHUNKED
from lamina.heal.sft import SFT
from tests.architectures import save
from tests.conftest import REFERENCE, no_scores

ARGUMENTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "optim": "sgd",
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "accelerator_config": {"even_batches": False},
    "include_num_input_tokens_seen": True,
    "debug": "underflow_overflow",
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "best",
    "metric_for_best_model": "eval_loss",
    "gradient_checkpointing": False,
    "bf16": False,
    "max_length": 64,
    "adam_beta2": 0.95,
    "data_seed": None,
    "use_cpu": True,
}
ADAPTER: dict[str, Any] = {
    "learning_rate": 2e-4,
    "r": 4,
    "alpha": 8,
    "dropout": 0.1,
    "bias": "none",
    "target_modules": ["q_proj", "v_proj"],
    "use_rslora": True,
    "rank_pattern": {"v_proj": 2},
    "init_lora_weights": "gaussian",
    "layers_to_transform": [0, 3],
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(Pruned(keep_layers=4, selector=First()), str(REFERENCE), no_scores)


def build(plan: Plan, folder: Path, arguments: dict[str, Any], adapter: dict[str, Any]) -> Any:
    from datasets import Dataset

    settings = SFT(args=arguments)
    training = Training(
        adapter=Lora.of(**adapter),
        max_seq_length=64,
        gradient_checkpointing=False,
        seed=1,
        folder=folder,
    )
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 4, "labels": [[5, 6, 7]] * 4})
    assert plan.source is not None
    return settings.build(
        arguments=settings.arguments(folder),
        model=load_model(plan.source, plan.kept_layers, dtype=torch.float32, device="cpu"),
        tokenizer=load_tokenizer(plan.source),
        train=rows,
        eval=rows,
        backend=Transformers(),
        training=training,
        plan=plan,
        original=plan,
        shared=plan.kept_layers,
        callbacks=[],
    )


def test_every_setting_reaches_the_trainer(plan: Plan, tmp_path: Path) -> None:
    trainer = build(plan, tmp_path, ARGUMENTS, ADAPTER)
    assert trainer.args.optim == "sgd"
    assert trainer.args.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    ranks = {
        name.split(".lora_A")[0].removeprefix("base_model.model.model."): len(weight)
        for name, weight in trainer.model.named_parameters()
        if "lora_A" in name
    }
    assert ranks == {
        f"layers.{layer}.self_attn.{name}": rank
        for layer in (0, 3)
        for name, rank in (("q_proj", 4), ("v_proj", 2))
    }
    module = trainer.model.base_model.model.model.layers[0].self_attn.q_proj
    assert module.scaling["default"] == 8 / 4**0.5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "args.learning_rate",
            5e-5,
            "trainer.args.learning_rate=0.001, but a library changed it to 5e-05: set "
            "trainer.args.learning_rate=5e-05 if that is intended",
        ),
        (
            "args.optim",
            "adamw_8bit",
            "trainer.args.optim=sgd, but a library changed it to adamw_8bit: set "
            "trainer.args.optim=adamw_8bit if that is intended",
        ),
        (
            "args.max_grad_norm",  # which the config leaves to TRL
            0.5,
            "trainer.args.max_grad_norm=1.0, but a library changed it to 0.5: set "
            "trainer.args.max_grad_norm=0.5 if that is intended",
        ),
        (
            "model.peft_config.default.r",
            16,
            "adapter.r=4, but a library changed it to 16: set adapter.r=16 if that is intended",
        ),
    ],
)
def test_a_setting_changed_by_a_library_is_an_error(
    key: str,
    value: Any,
    message: str,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lamina.heal.trainer import TokenLossTrainer

    before = TokenLossTrainer.__init__

    def patched(trainer: Any, *arguments: Any, **options: Any) -> None:
        """Change settings as Unsloth does."""
        before(trainer, *arguments, **options)
        *path, name = key.split(".")
        node = trainer
        for part in path:
            node = node[part] if isinstance(node, dict) else getattr(node, part)
        setattr(node, name, value)

    monkeypatch.setattr(TokenLossTrainer, "__init__", patched)
    with pytest.raises(ConfigError) as raised:
        build(plan, tmp_path, ARGUMENTS, ADAPTER)
    assert str(raised.value) == message


def test_bfloat16_is_refused_on_a_gpu_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla V100")
    with pytest.raises(ConfigError, match="bf16=true, but Tesla V100 does not compute in bfloat16"):
        SFT(args={"bf16": True}).arguments(tmp_path)


def test_on_a_gpu_unsloth_may_change_defaults_that_affect_no_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours, common = Unsloth(statistics=False), {"max_seq_length": 64, "gradient_checkpointing": True}
    lora, full = (
        Training(adapter=adapter, seed=1, folder=tmp_path, **common)
        for adapter in (Lora.of(**ADAPTER), Full(learning_rate=2e-5))
    )
    assert ours.preserves("remove_unused_columns", lora, given=False)
    assert ours.preserves("bf16", full, given=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not ours.preserves("remove_unused_columns", lora, given=False)
    assert ours.preserves("remove_unused_columns", lora, given=True)
    assert ours.preserves("max_grad_norm", lora, given=False)
    assert ours.preserves("bf16", lora, given=True)
    assert not ours.preserves("bf16", full, given=True)


@pytest.mark.parametrize(
    ("model_type", "given", "expected"),
    [
        ("llama4_text", {}, 0.0),
        ("llama4_text", {"router_aux_loss_coef": 0.01}, "trainer.args.router_aux_loss_coef=0.01: "
         "llama4_text has no loss that balances its experts: leave it out"),
        ("granitemoe", {"loss_type": "nll"}, None),
        ("granitemoe", {"router_aux_loss_coef": 0}, 0),
        pytest.param(
            "granitemoe", {}, "trainer.args.loss_type=chunked_nll: TRL cannot balance the experts "
            "of granitemoe with it: set trainer.args.loss_type=nll, or "
            "trainer.args.router_aux_loss_coef=0",
            marks=pytest.mark.skipif(
                Version(version("trl")) >= ALL_LOSSES_CHUNKED,
                reason="this TRL has no chunked_nll of its own; constraints.txt pins one that does",
            ),
        ),
        ("mixtral", {}, None),
        ("qwen3_moe", {"router_aux_loss_coef": 0.01}, 0.01),
        ("qwen3", {}, None),
    ],
)  # fmt: skip
def test_experts_are_balanced_as_the_model_does(
    model_type: str, given: dict[str, Any], expected: float | str | None, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import SFTConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    arguments = SFTConfig(str(tmp_path), bf16=False, use_cpu=True, **given)
    if isinstance(expected, str):
        with pytest.raises(ConfigError) as refused:
            balance_experts(model, arguments)
        assert str(refused.value) == expected
    else:
        balance_experts(model, arguments)
        assert arguments.router_aux_loss_coef == expected


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_the_loss_is_that_of_the_model_s_own_logits(factor: float, tmp_path: Path) -> None:
    """Falcon-H1 multiplies logits after the head, which TRL's chunked loss does not know."""
    import torch
    from torch.nn.functional import cross_entropy

    save("falcon_h1", tmp_path / "model", lm_head_multiplier=factor)
    build_tokenizer().save_pretrained(tmp_path / "model")
    plan = make_plan(Original(), str(tmp_path / "model"), no_scores)
    given = {"bf16": False, "max_length": 64, "use_cpu": True}
    trainer = build(plan, tmp_path, given, {**ADAPTER, "layers_to_transform": [0]})
    ids = torch.tensor([[5, 6, 7]])
    logits = trainer.model(input_ids=ids).logits[0, :-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        cross_entropy(logits, ids[0, 1:]).item(), abs=1e-5
    )


@pytest.mark.parametrize("given", [None, ["q_proj"], r".*\.q_proj"])
def test_what_cannot_be_adapted_is_excluded_beside_what_the_user_excludes(
    given: str | list[str] | None,
) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=["q_proj", "out_proj", "router", "k_proj"])
    config.exclude_modules = excluded(given, ["mamba.out_proj", "router"])
    names = [f"model.layers.0.{name}" for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.out_proj", "mamba.out_proj", "mlp.router"
    )]  # fmt: skip
    adapted = [
        name.rpartition("0.")[2] for name in names if check_target_module_exists(config, name)
    ]
    assert adapted == ["self_attn.q_proj"] * (given is None) + [
        "self_attn.k_proj",
        "self_attn.out_proj",
    ]
    assert excluded(None, []) is None


def logged(trainer: Any, *losses: float) -> None:
    trainer.state.log_history = [
        {"step": step, "eval_loss": loss} for step, loss in enumerate(losses, 1)
    ]


@pytest.mark.parametrize(
    ("arguments", "best", "loss"),
    [
        ({"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2}, 2, 0.25),
        ({"load_best_model_at_end": False}, 2, 0.5),
        (
            {
                "load_best_model_at_end": True,
                "metric_for_best_model": "mean_token_accuracy",
                "save_strategy": "steps",
                "save_steps": 2,
            },
            1,
            1.0,
        ),
    ],
)
def test_the_eval_loss_is_that_of_the_weights_that_are_kept(
    arguments: dict[str, Any], best: int, loss: float, plan: Plan, tmp_path: Path
) -> None:
    trainer = build(plan, tmp_path, {**ARGUMENTS, **arguments}, ADAPTER)
    logged(trainer, 1.0, 0.25, 0.5)
    trainer.state.best_global_step, trainer.state.best_metric = best, 0.25
    trainer.state.global_step = 3
    assert trainer.kept_loss() == loss
    trainer.state.global_step = 4  # a callback of the user's ended training there
    assert trainer.kept_loss() == (loss if arguments["load_best_model_at_end"] else None)


def test_modules_to_exclude_may_be_in_any_order(plan: Plan, tmp_path: Path) -> None:
    given = {**ADAPTER, "target_modules": "all-linear", "layers_to_transform": None}
    given |= {"rank_pattern": {}, "exclude_modules": ["up_proj", "down_proj"]}
    weights = build(plan, tmp_path, ARGUMENTS, given).model.state_dict()
    trained = {name.split(".lora_A")[0].rpartition(".")[2] for name in weights if "lora_A" in name}
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"}


def test_all_rows_are_evaluated_though_training_drops_the_last(plan: Plan, tmp_path: Path) -> None:
    dropping = {"dataloader_drop_last": True, "per_device_eval_batch_size": 3}
    trainer = build(plan, tmp_path, {**ARGUMENTS, **dropping}, ADAPTER)
    assert sum(len(batch["input_ids"]) for batch in trainer.get_eval_dataloader()) == 4
    assert trainer.args.dataloader_drop_last


def test_an_end_token_in_a_pack_is_counted_though_it_also_pads(plan: Plan, tmp_path: Path) -> None:
    counted = {"include_num_input_tokens_seen": "non_padding"}
    trainer = build(plan, tmp_path, {**ARGUMENTS, **counted}, ADAPTER)
    ids = torch.tensor([[5, trainer.processing_class.pad_token_id, 6, 7]])
    batch = {"input_ids": ids, "labels": ids, "position_ids": torch.tensor([[0, 1, 0, 1]])}
    trainer._track_num_input_tokens(batch)
    assert trainer.state.num_input_tokens_seen == 4


def test_a_checkpoint_is_saved_for_the_best_of_any_metric() -> None:
    arguments = SimpleNamespace(
        load_best_model_at_end=True, metric_for_best_model="accuracy", greater_is_better=True
    )
    state, found = SimpleNamespace(best_metric=0.6), []
    for accuracy in (0.5, 0.7):
        control = SimpleNamespace(should_save=False)
        metrics = {"eval_loss": accuracy, "eval_accuracy": accuracy}
        Checkpointing().on_evaluate(arguments, state, control, metrics)  # type: ignore[arg-type]
        found.append(control.should_save)
    assert found == [False, True]


def test_early_stopping_goes_on_counting() -> None:
    arguments = SimpleNamespace(
        load_best_model_at_end=True, metric_for_best_model="loss", eval_strategy="steps"
    )
    before = EarlyStop(3)
    before.early_stopping_patience_counter = 2
    state = SimpleNamespace(stateful_callbacks={"EarlyStop": before.state()})
    after = EarlyStop(3)
    after.on_train_begin(arguments, state, SimpleNamespace())  # type: ignore[arg-type]
    assert after.early_stopping_patience_counter == 2
