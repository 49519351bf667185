"""The settings of trainer=distill."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import override

from lamina.depth.plan import Plan
from lamina.depth.variants import Scratch, Variant
from lamina.heal.adapters import Adapter
from lamina.heal.sft import SFT
from lamina.limits import ABOVE_ZERO, FRACTION, NOT_NEGATIVE, one_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lamina.heal.trainer import TokenLossTrainer


@dataclass(frozen=True, kw_only=True)
class Distill(SFT):
    """Training in which the original model, with all its layers, teaches the reduced one."""

    loss: Annotated[str, one_of("forward_kl", "jsd")]
    temperature: Annotated[float, ABOVE_ZERO]
    """Divisor of both models' logits."""
    cross_entropy: Annotated[float, FRACTION]
    """Share of the cross-entropy in the loss."""
    hidden: Annotated[float, NOT_NEGATIVE]
    """Weight of 1 - cosine of both models' states before each layer that stays."""
    name: ClassVar[str] = "distill"
    shards: ClassVar[bool] = False

    @override
    def problems(self) -> Iterator[str]:
        for key in ("loss_type", "label_smoothing_factor", "router_aux_loss_coef"):
            if value := self.args.get(key):
                yield (
                    f"trainer.args.{key}={value} has no effect with trainer=distill: leave it out, "
                    "or choose trainer=sft"
                )
        if self.args.get("torch_compile"):
            yield "torch_compile=true does not work with trainer=distill: leave it out"
        yield from super().problems()

    @override
    def conflicts(
        self, model: Variant, adapter: Adapter, parallel: str, processes: int | str, kernels: str
    ) -> Iterator[str]:
        if isinstance(model, Scratch):
            yield (
                "trainer=distill learns from the original model, and model=scratch has none: "
                "choose trainer=sft"
            )
        if adapter.in_4bit:
            yield (
                f"adapter={adapter.name}: trainer=distill does not share 4-bit weights with a "
                "teacher in this version: choose adapter=lora"
            )
        if kernels == "liger":
            yield (
                "kernels=liger replaces the loss, and trainer=distill has one of its own: leave it "
                "out, or choose trainer=sft"
            )
        if parallel == "fsdp":
            yield (
                "parallel=fsdp: trainer=distill does not shard its teacher: set parallel=ddp, or "
                "choose trainer=sft"
            )
            return
        yield from super().conflicts(model, adapter, parallel, processes, kernels)

    @property
    @override
    def own(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "temperature": self.temperature,
            "cross_entropy": self.cross_entropy,
            "hidden": self.hidden,
        }

    @override
    def unshared(self, plan: Plan, *, repaired: bool) -> int:
        from lamina.depth.reduction import decoder_stack, reduction

        assert plan.source is not None
        whole = reduction(plan.source, range(plan.num_layers)).blueprint
        layers = decoder_stack(whole, plan.num_layers)[1]
        own = {*range(plan.num_layers)} - {*(() if repaired else plan.kept_layers)}
        return sum(weight.numel() for at in own for weight in layers[at].parameters())

    @override
    def trainer_of(
        self, model: "PreTrainedModel", plan: Plan, *, repaired: bool
    ) -> "partial[TokenLossTrainer]":
        from lamina.heal.distillation.divergence import Mix
        from lamina.heal.distillation.teacher import load_teacher
        from lamina.heal.distillation.trainer import DistillationTrainer

        teacher = load_teacher(model, plan, repaired=repaired)
        return partial(
            DistillationTrainer,
            teacher=teacher,
            mix=Mix(**self.own),
            kept_layers=plan.kept_layers,
        )
