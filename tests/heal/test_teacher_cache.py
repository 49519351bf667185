"""trainer.cache: the loss from a file, what a file is bound to, and that no teacher is built."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lamina.depth.plan import make_plan
from lamina.depth.selection import First
from lamina.depth.variants import Pruned
from lamina.errors import ConfigError, ModelError
from lamina.heal.distillation import cache as module
from lamina.heal.distillation.cache import likeliest, spread
from lamina.heal.distillation.divergence import Sums, divergence
from lamina.heal.distillation.settings import Distill
from lamina.measure.provenance import base_identity, fingerprint
from tests.conftest import REFERENCE, no_scores
from tests.heal.test_distillation import LIVE, ROWS, logged, trainer
from tests.heal.test_divergence import TOKENS, VOCABULARY, Case, mix
from tests.integration.test_foreign_data import listing, read_only

FIRST = "teacher-00000.safetensors"
TOKENIZER = AutoTokenizer.from_pretrained(REFERENCE)
EVERY = len(TOKENIZER)
PLAN = make_plan(Pruned(keep_layers=7, selector=First()), str(REFERENCE), no_scores)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(os.environ, "LAMINA_CACHE", str(tmp_path / "lamina"))
    return tmp_path / "given"


class FromCache(Case):
    """The divergence with the teacher's likeliest tokens in place of its logits."""

    top_k = VOCABULARY

    def taught(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        logits = (self.states @ self.their_weight.t())[:, :VOCABULARY]
        return likeliest(logits, self.top_k, temperature)

    def run(self, mix: Any) -> Sums:
        ids, log_probs = self.taught(mix.temperature)
        return divergence(
            self.hidden,
            self.head,
            self.targets,
            lambda start, stop, log_q: spread(ids[start:stop], log_probs[start:stop], log_q),
            mix,
        )


@pytest.mark.parametrize(
    "wanted", [mix(), mix(temperature=2.5, cross_entropy=0.3), mix("jsd"), mix("jsd", 2.0)], ids=str
)
def test_with_the_whole_vocabulary_loss_and_gradients_are_the_live_teachers(wanted: Any) -> None:
    live, read = Case(), FromCache()
    found, expected = (vars(case.run(wanted)) for case in (read, live))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found["loss"].backward()
    expected["loss"].backward()
    for leaf, other in zip(read.leaves, live.leaves, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["forward_kl", "jsd"])
def test_the_other_tokens_count_as_one(loss: str) -> None:
    """Loss and gradient are those of top_k + 1 outcomes, in float64."""
    case = FromCache()
    case.top_k = 5
    case.run(mix(loss)).loss.backward()
    ids, log_probs = case.taught(1.0)
    hidden, weight, bias = (leaf.detach().double().requires_grad_() for leaf in case.leaves)
    q = torch.softmax((hidden @ weight.t() + bias)[:, :VOCABULARY], 1)
    listed = q.gather(1, ids)
    q = torch.cat([listed, 1 - listed.sum(1, keepdim=True)], 1)
    p = log_probs.double().exp()
    assert p[:, -1].min() > 1e-3
    m = (p + q) / 2
    halves = (p * (p / m).log() + q * (q / m).log()) / 2
    expected = ((p * (p / q).log()) if loss == "forward_kl" else halves).sum()
    expected.backward()
    assert case.run(mix(loss)).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for leaf, exact in zip(case.leaves, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_a_student_that_equals_its_teacher_learns_nothing() -> None:
    """If the likeliest were renormalized, it would unlearn the others."""
    case = FromCache()
    case.top_k = 5
    case.their_weight, case.states = case.weight.detach(), case.hidden.detach()
    case.bias = torch.zeros_like(case.bias).requires_grad_()
    sums = case.run(mix())
    sums.loss.backward()
    assert sums.loss.item() / TOKENS == pytest.approx(0, abs=1e-6)
    assert case.hidden.grad.abs().max() < 1e-5


def cached(folder: Path | str = "auto", top_k: int = EVERY, **changes: Any) -> Distill:
    return replace(LIVE, cache=str(folder), top_k=top_k, **changes)


def wrote(settings: Distill, rows: Dataset = ROWS, plan: Any = PLAN) -> None:
    settings.prepare(plan, TOKENIZER, rows, torch.float32)


def no_teacher(*_: Any, **__: Any) -> Any:
    raise AssertionError("the teacher is built")


def test_a_training_from_the_cache_is_the_live_ones_however_rows_are_batched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = logged(trainer(tmp_path, 7), "loss")
    monkeypatch.setattr(module, "TOKENS_PER_FILE", 20)
    wrote(cached())
    monkeypatch.setattr(module, "load_model", no_teacher)
    monkeypatch.setattr("lamina.heal.distillation.teacher.load_teacher", no_teacher)
    for how in (
        {},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"packing": True, "per_device_train_batch_size": 2},
    ):
        built = trainer(tmp_path, 7, settings=cached(), **how)
        assert logged(built, "loss") == pytest.approx(live, rel=1e-3)
        assert built.figures()["captured_mass"] == pytest.approx(1, abs=1e-4)


def test_a_training_in_bfloat16_reads_the_cache(tmp_path: Path) -> None:
    live = logged(trainer(tmp_path, 7, bf16=True), "loss")
    built = trainer(tmp_path, 7, settings=cached(), bf16=True)
    assert logged(built, "loss") == pytest.approx(live, rel=1e-2)


def predictions(path: Path) -> dict[str, bytes]:
    """A file's content but for the note, which holds the seconds that it took."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def test_a_killed_pass_goes_on_and_a_damaged_file_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_FILE", 10)
    double = Dataset.from_list([*ROWS, *ROWS])  # a row that is there twice is asked once
    wrote(cached(folder, 8), double)
    names = [f"teacher-0000{number}.safetensors" for number in range(3)]
    whole = {name: predictions(folder / name) for name in names}
    assert sorted(path.name for path in folder.glob("teacher-*")) == names
    asked: list[int] = []
    predicted = module.TeacherCache._predicted

    def counted(self: Any, model: Any, head: Any, rows: Any, shown: Any) -> Any:
        asked.append(len(rows))
        return predicted(self, model, head, rows, shown)

    monkeypatch.setattr(module.TeacherCache, "_predicted", counted)
    (folder / names[1]).unlink()
    (folder / "teacher.cached").unlink()
    shutil.copy(folder / names[0], folder / "teacher-copy.safetensors")  # is none of the cache's
    wrote(cached(folder, 8), double)
    assert asked == [1]
    assert {name: predictions(folder / name) for name in names} == whole
    wrote(cached("auto", 8), double)
    (hashed,) = folder.parent.glob("lamina/teachers/*")
    (hashed / names[1]).write_bytes((hashed / names[1]).read_bytes()[:-9])
    wrote(cached("auto", 8), double)
    assert asked == [1, 1, 1, 2, 1]
    assert predictions(hashed / names[1]) == whole[names[1]]


def test_a_complete_cache_is_read_from_a_read_only_folder_and_says_what_it_took(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_FILE", 20)
    clock = iter(range(0, 100, 7))
    monkeypatch.setattr(module, "perf_counter", lambda: next(clock))
    wrote(settings := cached(folder, 8))
    assert len([*folder.glob("teacher-*")]) == 2
    before = listing(folder)
    with read_only(folder):
        settings.refuse_unwritable()
        built = trainer(tmp_path, 7, settings=settings)
        assert logged(built, "loss") > 0
        assert built.figures()["teacher_cache_seconds"] == 14
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("ids", "teacher-00000.safetensors"),
        ("log_probs", "teacher-00000.safetensors"),
        ("keys", ""),
    ],
)
def test_a_changed_byte_is_found_when_it_is_read(
    tmp_path: Path, folder: Path, tensor: str, named: str
) -> None:
    wrote(settings := cached(folder, 8))
    path = folder / FIRST
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
    content[8 + length + start] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError) as refused:
        trainer(tmp_path, 7, settings=settings).train()
    assert str(refused.value) == (
        f"{folder / named} is damaged: remove it, and the teacher writes it again"
    )


def cut_off(folder: Path) -> None:
    path = folder / "teacher-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "changes", "rows", "message"),
    [
        (
            cut_off,
            {},
            ROWS,
            "trainer.cache={folder}: teacher-00000.safetensors is cut off or damaged: remove it, "
            "and the teacher writes it again",
        ),
        (
            nothing,
            {},
            ROWS.select([0, 1]),
            "trainer.cache={folder} was written with data {whole}, this run has {part}: use "
            "another folder, or trainer.cache=auto",
        ),
        (
            nothing,
            {"top_k": 9},
            ROWS,
            "trainer.cache={folder} was written with trainer.top_k 8, this run has 9: use another "
            "folder, or trainer.cache=auto",
        ),
        (
            nothing,
            {"temperature": 2.0},
            ROWS,
            "trainer.cache={folder} was written with trainer.temperature 9.0, this run has 2.0: "
            "use another folder, or trainer.cache=auto",
        ),
        (
            nothing,
            {"args": {"bf16": True}},
            ROWS,
            "trainer.cache={folder} was written with precision float32, this run has float32 "
            "bfloat16: use another folder, or trainer.cache=auto",
        ),
        (
            nothing,
            {"min_mass": 0.9999},
            ROWS,
            "trainer.top_k=8: these tokens hold {mass:.1%} of the teacher's probability, less than "
            "trainer.min_mass=0.9999: raise trainer.top_k, or set trainer.cache=none",
        ),
    ],
    ids=["cut off", "other data", "top_k", "temperature", "precision", "mass"],
)
def test_a_cache_that_does_not_fit_is_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[Path], None],
    changes: dict[str, Any],
    rows: Dataset,
    message: str,
) -> None:
    written = cached(folder, 8, temperature=9.0)
    wrote(written)
    monkeypatch.setattr(module, "load_model", no_teacher)
    mass = trainer(folder.parent, 7, settings=written)._teacher.mass
    before(folder)
    with pytest.raises(ConfigError) as refused:
        wrote(replace(written, **changes), rows)
    whole, part = (fingerprint(each)[:16] for each in (ROWS, rows))
    assert str(refused.value) == message.format(folder=folder, whole=whole, part=part, mass=mass)


def test_a_cache_of_another_teacher_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote(cached(folder, 8))
    monkeypatch.setattr("lamina.heal.distillation.settings.base_identity", lambda _: "another@1")
    with pytest.raises(ConfigError) as refused:
        wrote(cached(folder, 8))
    assert str(refused.value) == (
        f"trainer.cache={folder} was written with teacher {base_identity(PLAN.source)}, this run "
        "has another@1: use another folder, or trainer.cache=auto"
    )


def test_a_low_mass_and_a_full_disk_are_refused_before_anything_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.top_k=1: these tokens hold [\d.]+% of "):
        wrote(cached(folder, 1, min_mass=0.999, temperature=9.0))
    monkeypatch.setattr(module, "load_model", no_teacher)
    monkeypatch.setattr(module, "free_disk_bytes", lambda _: 1000)
    for dry in (True, False):
        with pytest.raises(ConfigError) as refused:
            cached(folder / "other", 8).prepare(PLAN, TOKENIZER, ROWS, torch.float32, dry=dry)
        assert str(refused.value) == (
            f"trainer.cache: {folder / 'other'} needs 0.00365 MB for the teacher's 8 likeliest "
            "tokens, 0.001 MB are free: make room, or lower trainer.top_k"
        )
