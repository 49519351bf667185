"""The teacher is the original model and shares the student's weights; nothing else leaks in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from lamina.depth.loading import load_model, load_tokenizer
from lamina.depth.plan import Plan, make_plan
from lamina.depth.selection import Uniform
from lamina.depth.variants import Original, Pruned
from lamina.heal.adapters import Adapter, Full, Lora, QLora
from lamina.heal.backends.transformers import Training, Transformers
from lamina.heal.distillation.settings import Distill
from lamina.heal.distillation.teacher import keep_apart, load_teacher, teacher_head
from lamina.runtime.sizes import trained_weights
from tests.conftest import REFERENCE, no_scores

LAYERS = 12

LIVE = Distill(
    args={},
    loss="forward_kl",
    temperature=1.0,
    cross_entropy=0.0,
    hidden=0.0,
    cache="none",
    top_k=64,
    min_mass=0.0,
)

COMMON: dict[str, Any] = {
    "learning_rate": 1e-3, "r": 4, "alpha": 4, "dropout": 0.0, "bias": "none",
    "target_modules": "all-linear",
}  # fmt: skip
LORA = Lora.of(**COMMON)
ROWS = Dataset.from_list(
    [
        {"input_ids": list(range(5, end)), "labels": [-100] * prompt + list(range(5 + prompt, end))}
        for prompt, end in ((3, 20), (0, 31), (3, 12), (3, 40))
    ]
)


def reduced(keep: int) -> tuple[Plan, Any]:
    variant = Original() if keep == LAYERS else Pruned(keep_layers=keep, selector=Uniform())
    plan = make_plan(variant, str(REFERENCE), no_scores)
    assert plan.source is not None
    return plan, load_model(plan.source, plan.kept_layers, dtype=torch.float32)


def trainer(
    folder: Path, keep: int, adapter: Adapter = LORA, settings: Distill = LIVE, **arguments: Any
) -> Any:
    """A trainer on rows with and without prompts."""
    plan, model = reduced(keep)
    assert plan.source is not None
    common: dict[str, Any] = {
        "bf16": False, "use_cpu": True, "max_length": 64, "packing": False, "logging_steps": 1,
        "gradient_checkpointing": False, "eval_strategy": "no", "save_strategy": "no",
        "max_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4,
    }  # fmt: skip
    settings, tokenizer = replace(settings, args=common | arguments), load_tokenizer(plan.source)
    settings.prepare(plan, tokenizer, ROWS, torch.float32)
    return settings.build(
        arguments=settings.arguments(folder),
        model=model,
        tokenizer=tokenizer,
        train=ROWS,
        eval=ROWS,
        backend=Transformers(),
        training=Training(
            adapter=adapter, max_seq_length=64, gradient_checkpointing=False, seed=1, folder=folder
        ),
        plan=plan,
        original=plan,
        shared=plan.kept_layers,
        callbacks=[],
    )


def test_a_teacher_shares_no_4_bit_weights() -> None:
    assert list(LIVE.conflicts(Original(), QLora.of(**COMMON), "auto", "auto", "none")) == [
        "adapter=qlora: trainer=distill does not share 4-bit weights with a teacher in this "
        "version: choose adapter=lora"
    ]


def logged(built: Any, name: str) -> float:
    built.train()
    return next(entry[name] for entry in built.state.log_history if name in entry)


def test_the_teacher_is_the_original_and_shares_what_is_kept() -> None:
    plan, student = reduced(7)
    teacher, (_, original) = load_teacher(student, plan, plan.kept_layers), reduced(LAYERS)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(teacher(ids).logits, original.eval()(ids).logits)
    assert not teacher.training
    assert not any(weight.requires_grad for weight in teacher.parameters())
    held = {weight.data_ptr() for weight in student.parameters()}
    own = sum(w.numel() for w in teacher.parameters() if w.data_ptr() not in held)
    assert own == original.num_parameters() - student.num_parameters()


def test_the_teacher_of_a_repaired_model_is_the_original() -> None:
    plan, student = reduced(7)
    student.model.layers[6].mlp.down_proj.weight.data *= 2
    teacher, (_, original) = load_teacher(student, plan, ()), reduced(LAYERS)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(teacher(ids).logits, original.eval()(ids).logits)
    assert teacher.get_input_embeddings().weight.data_ptr() == (
        student.get_input_embeddings().weight.data_ptr()
    )


def test_the_teacher_shares_nothing_with_what_an_earlier_round_left() -> None:
    plan, student = reduced(7)
    for weight in student.parameters():
        weight.data *= 2
    teacher, (_, original) = load_teacher(student, plan, None), reduced(LAYERS)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(teacher(ids).logits, original.eval()(ids).logits)


def test_the_teacher_keeps_a_copy_of_what_is_trained() -> None:
    plan, student = reduced(7)
    teacher = load_teacher(student, plan, plan.kept_layers)
    keep_apart(teacher, student)
    before = teacher.model.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        for weight in student.parameters():
            weight.zero_()
    assert torch.equal(teacher.model.layers[0].mlp.up_proj.weight, before)


@pytest.mark.parametrize("adapter", [LORA, Full(learning_rate=1e-3)], ids=["lora", "full"])
def test_with_nothing_removed_the_divergence_is_zero(adapter: Adapter, tmp_path: Path) -> None:
    built = trainer(tmp_path, LAYERS, adapter)
    assert logged(built, "loss") == pytest.approx(0, abs=1e-6)
    assert built.figures()["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("further", "changed"),
    [
        ({"modules_to_save": ["lm_head"]}, set(range(321))),
        ({"trainable_token_indices": [7, 9]}, {7, 9}),
    ],
    ids=["whole", "tokens"],
)
def test_a_head_that_peft_trains_is_read_as_it_is_trained(
    further: dict[str, Any], changed: set[int], tmp_path: Path
) -> None:
    built = trainer(tmp_path, 7, Lora.of(**COMMON, **further))
    head = built.model.get_output_embeddings()
    before = head.weight.detach().clone()
    built.train()
    assert {*(head.weight != before).any(1).nonzero().flatten().tolist()} == changed
    for weight in trained_weights(built.model):
        weight.data.normal_()
    teacher_head(built.model.get_base_model(), built.processing_class, ROWS)


def test_the_loss_does_not_depend_on_how_a_step_is_split(tmp_path: Path) -> None:
    """Rows of different lengths: pads, the ends of packed rows or a mean of means would show."""
    alone: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    ways: tuple[dict[str, Any], ...] = ({}, alone, {"packing": True})
    together, split, packed = (logged(trainer(tmp_path, 7, **way), "loss") for way in ways)
    assert together > 1e-3
    assert [split, packed] == pytest.approx([together, together], rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_are_compared_before_each_layer_that_stays(
    checkpointing: bool, tmp_path: Path
) -> None:
    """Pads, prompts and the last token of a row take no part; scattered cuts are mapped."""
    built = trainer(
        tmp_path, 7, settings=replace(LIVE, hidden=0.5), gradient_checkpointing=checkpointing
    )
    plan, student = reduced(7)
    _, whole = reduced(LAYERS)
    total, tokens = 0.0, 0
    for row in ROWS:
        ids, wanted = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:]) != -100
        with torch.no_grad():
            ours, theirs = (
                model.eval()(ids, output_hidden_states=True).hidden_states
                for model in (student, whole)
            )
        for place, layer in list(enumerate(plan.kept_layers))[1:]:
            x, y = ours[place][0, :-1][wanted].double(), theirs[layer][0, :-1][wanted].double()
            total += float((1 - torch.cosine_similarity(x, y, dim=1)).sum()) / 6
        tokens += int(wanted.sum())
    built.train()
    entry = next(each for each in built.state.log_history if "kl" in each)
    assert total > 1e-3
    assert entry["loss"] - entry["kl"] == pytest.approx(0.5 * total / tokens, rel=1e-3)


def test_dropout_is_the_students_alone(tmp_path: Path) -> None:
    built = trainer(tmp_path, 7)
    built.train()
    assert built.model.training
    assert not built._teacher.training


def test_evaluation_stays_in_nats_of_cross_entropy(tmp_path: Path) -> None:
    built = trainer(tmp_path, LAYERS)
    _, model = reduced(LAYERS)
    total, tokens = 0.0, 0
    for row in ROWS:
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model.eval()(ids).logits[0, :-1]
        wanted = labels[0, 1:]
        total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        tokens += int((wanted != -100).sum())
    assert built.evaluate()["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)
