"""The trainer of trainer=distill."""

from collections.abc import Sequence
from functools import wraps
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from typing_extensions import override

from lamina.heal.distillation.cache import CachedTeacher
from lamina.heal.distillation.divergence import (
    Mix,
    Teacher,
    divergence,
    log_softmax,
    misalignment,
    product_type,
    trained,
)
from lamina.heal.distillation.teacher import head_of, keep_apart, states_at, teacher_head
from lamina.heal.trainer import TokenLossTrainer
from lamina.runtime import distributed

TEACHER = "teacher"
"""The clock's phase of the teacher's forward passes."""

FIGURES = ("kl", "entropy", "mean_token_accuracy")
"""What is logged besides the loss: means over the tokens trained since the last log."""


class DistillationTrainer(TokenLossTrainer):
    """A trainer whose training loss is the divergence from a teacher; eval_loss stays the same."""

    further_phases: ClassVar[tuple[str, ...]] = (TEACHER,)

    def __init__(
        self,
        *arguments: Any,
        teacher: PreTrainedModel | CachedTeacher,
        mix: Mix,
        kept_layers: Sequence[int],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        model = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        self._mix, self._sums = mix, torch.zeros(1 + len(FIGURES))
        # What reaches each layer that stays, but for the first, which no other layer feeds.
        self._compared = tuple(kept_layers[1:]) if mix.hidden else ()
        # Not as an attribute of the model: the teacher would be trained, sharded and saved with it.
        self._teacher = teacher
        if isinstance(teacher, PreTrainedModel):
            keep_apart(teacher, self.model)
            self._teacher_head = teacher_head(teacher, self.processing_class, self.train_dataset)
        usual = model.forward

        @wraps(usual)
        def forward(*arguments: Any, **inputs: Any) -> Any:
            if arguments or not model.training or inputs.get("labels") is None:
                return usual(*arguments, **inputs)
            return {"loss": self._loss(model, **inputs)}

        # Within the forward pass the adapter, autocast and the wrapper of processes are at work.
        model.forward = forward

    def _loss(
        self,
        model: PreTrainedModel,
        *,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        positions = trained(labels)
        given = {name: value for name, value in inputs.items() if value is not None}
        batch = {**given, "use_cache": False}
        with self.clock.during(TEACHER), torch.no_grad():
            teacher, theirs = self._taught(batch, labels, positions)
            _wait()
        places = range(1, 1 + len(self._compared))
        hidden, *ours = states_at(model, batch, positions, places)
        sums = divergence(
            hidden,
            head_of(model, self.processing_class),
            labels.flatten()[positions + 1],
            teacher,
            self._mix,
        )
        count = sums.loss.new_tensor(len(positions))
        found = torch.stack([count, sums.kl, sums.entropy, sums.correct])
        self._sums = self._sums.to(found.device) + found
        loss = sums.loss + self._mix.hidden * misalignment(ours, theirs) if ours else sums.loss
        return loss / (count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch)

    def _taught(
        self, batch: dict[str, Any], labels: torch.Tensor, positions: torch.Tensor
    ) -> tuple[Teacher, list[torch.Tensor]]:
        """Return the teacher of a batch, and its states before each layer that stays."""
        if isinstance(self._teacher, CachedTeacher):
            ids, places = batch["input_ids"], batch.get("position_ids")
            return self._teacher.taught(input_ids=ids, labels=labels, position_ids=places), []
        last, *theirs = states_at(self._teacher, batch, positions, self._compared)
        head, temperature = self._teacher_head.cast(product_type(last)), self._mix.temperature
        last = last.to(head.weight.dtype)

        def teacher(start: int, stop: int, _: torch.Tensor) -> torch.Tensor:
            return log_softmax(head.logits(last[start:stop]), temperature)

        return teacher, theirs

    @override
    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        # That number counts the tokens of all processes, whose gradients are averaged.
        is_shared = self.args.average_tokens_across_devices and num_items_in_batch is not None
        return loss * self.accelerator.num_processes if is_shared else loss

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._means())
            self._sums = torch.zeros_like(self._sums)
        super().log(logs, start_time)

    def _means(self) -> dict[str, float]:
        """Return `FIGURES`; none if no token was trained. All processes must call it."""
        tokens, *sums = distributed.summed(self._sums.tolist())
        means = zip(FIGURES, sums, strict=True)
        return {name: each / tokens for name, each in means} if tokens else {}

    @override
    def unlogged(self) -> dict[str, Any]:
        return {**super().unlogged(), "sums": distributed.summed(self._sums.tolist())}

    @override
    def continue_log(self, unlogged: dict[str, Any]) -> None:
        super().continue_log(unlogged)
        if distributed.is_first():  # they are sums over all processes
            self._sums = torch.tensor(unlogged["sums"])

    @override
    def figures(self) -> dict[str, Any]:
        history = reversed([*self.state.log_history, self._means()])
        last = next((entry["kl"] for entry in history if "kl" in entry), None)
        figures = {**super().figures(), "kl": last}
        if isinstance(teacher := self._teacher, CachedTeacher):
            figures |= {"captured_mass": teacher.mass, "teacher_cache_seconds": teacher.seconds}
        return figures


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
