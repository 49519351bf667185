"""The settings of trainer=distill."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import override

from lamina.depth.plan import Plan
from lamina.depth.variants import Pruned, Scratch, Variant
from lamina.heal.adapters import Adapter, Lora
from lamina.heal.sft import SFT
from lamina.limits import AT_LEAST_ONE, FRACTION, NOT_NEGATIVE, Limit, named, one_of
from lamina.measure.provenance import base_identity, fingerprint
from lamina.runtime import distributed
from lamina.runtime.cache import cache_folder, folder_of
from lamina.runtime.files import refuse_unwritable

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lamina.heal.distillation.cache import TeacherCache
    from lamina.heal.trainer import TokenLossTrainer

INDEX = "teacher.cached"
"""File of a cache that is complete."""

TEMPERATURE = Limit(lambda value: 0 < value <= 20, "use a value above 0, at most 20")
"""Float32's rounding is multiplied by the temperature squared: at 20 a loss of 0.05 nats is right
to about one part in 1000, at 100 one of 0.5 nats no longer is."""


@dataclass(frozen=True, kw_only=True)
class Distill(SFT):
    """Training in which the original model, with all its layers, teaches the reduced one."""

    loss: Annotated[str, one_of("forward_kl", "jsd")]
    temperature: Annotated[float, TEMPERATURE]
    """Divisor of both models' logits."""
    cross_entropy: Annotated[float, FRACTION]
    """Share of the cross-entropy in the loss."""
    hidden: Annotated[float, NOT_NEGATIVE]
    """Weight of 1 - cosine of both models' states before each layer that stays."""
    cache: Annotated[str, named("use none, auto or a folder")]
    """none, auto, or the folder of the teacher's predictions."""
    top_k: Annotated[int, AT_LEAST_ONE]
    """Tokens in the cache for each trained one."""
    min_mass: Annotated[float, FRACTION]
    """Least mean probability that they hold."""
    name: ClassVar[str] = "distill"
    shards: ClassVar[bool] = False
    has_own_loss: ClassVar[bool] = True

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
        if self.is_cached and self.hidden:
            yield (
                f"trainer.hidden={self.hidden} compares hidden states, and trainer.cache="
                f"{self.cache} has predictions alone: set trainer.hidden=0, or trainer.cache=none"
            )
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
        if self.hidden and isinstance(model, Pruned) and model.count == 1:
            yield (
                f"trainer.hidden={self.hidden} compares states before each kept layer but the "
                "first, and model.keep_layers=1 keeps no other: set trainer.hidden=0"
            )
        given = adapter.further if isinstance(adapter, Lora) else {}
        if given.get("init_lora_weights") == "olora" and not self.is_cached:
            yield (
                "adapter.init_lora_weights=olora changes weights in place that trainer=distill "
                "shares with its teacher: leave it out, or set trainer.cache=auto"
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
            "top_k": self.top_k if self.is_cached else None,
        }

    @property
    def is_cached(self) -> bool:
        """Whether the teacher's predictions are read from files."""
        return self.cache != "none"

    def refuse_unwritable(self) -> None:
        """Refuse a cache that cannot be written; one that is complete need not be."""
        if self.cache == "auto":
            refuse_unwritable(cache_folder(), "LAMINA_CACHE")
        elif self.is_cached and not (self._given / INDEX).is_file():
            refuse_unwritable(self._given, "trainer.cache")

    def refuse_other_cache(self, plan: Plan, dtype: "torch.dtype") -> None:
        """Refuse a given folder with a cache of another teacher or other settings, or damaged."""
        if self.is_cached and self.cache != "auto":
            self._teacher_cache(plan, None, dtype).whole_files()

    @property
    def _given(self) -> Path:
        return Path(self.cache).expanduser().absolute()

    @override
    def taught(self, original: Plan, shared: Sequence[int] | None) -> tuple[int, int] | None:
        from lamina.depth.reduction import decoder_stack, reduction

        if self.is_cached:
            return None
        assert original.source is not None
        every = range(original.num_layers)
        whole = reduction(original.source, every).blueprint
        count = whole.num_parameters()
        if shared is None:
            return count, count
        layers = decoder_stack(whole, len(every))[1]
        own = (layers[at].parameters() for at in {*every} - {*shared})
        return sum(weight.numel() for each in own for weight in each), count

    def prepare(
        self,
        plan: Plan,
        tokenizer: "PreTrainedTokenizerBase",
        train: "Dataset",
        dtype: "torch.dtype",
        *,
        dry: bool = False,
    ) -> None:
        """Let the teacher write what it predicts for tokenized rows, unless it is not cached.

        `dtype` is that of the weights. A `dry` run only refuses a cache that cannot be used.
        """
        if not self.is_cached:
            return
        cache = self._teacher_cache(plan, train, dtype)
        if dry:
            cache.missing(train)
            return
        distributed.first_process_first(
            "teacher", lambda: cache.complete(train, plan, tokenizer, dtype)
        )

    def _teacher_cache(
        self, plan: Plan, train: "Dataset | None", dtype: "torch.dtype"
    ) -> "TeacherCache":
        """Return the cache of a teacher in its original type; for tokenized rows, if known."""
        import torch

        from lamina.heal.distillation.cache import PROTOCOL, TeacherCache

        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        half = next((kind for key, kind in halves.items() if self.args.get(key)), None)
        bound = {
            "teacher": base_identity(plan.source),
            **({} if train is None else {"data": fingerprint(train)[:16]}),
            "trainer.top_k": self.top_k,
            "trainer.temperature": self.temperature,
            "precision": f"{dtype} {half or ''}".replace("torch.", "").rstrip(),
            "protocol": PROTOCOL,
        }
        is_given = self.cache != "auto"
        hashed = folder_of("teachers", [json.dumps(bound)])
        return TeacherCache(
            folder=self._given if is_given else hashed,
            key="trainer.cache" if is_given else "LAMINA_CACHE",
            bound=bound,
            top_k=self.top_k,
            temperature=self.temperature,
            min_mass=self.min_mass,
            half=half,
        )

    @override
    def trainer_of(
        self,
        model: "PreTrainedModel",
        original: Plan,
        train: "Dataset",
        shared: Sequence[int] | None,
    ) -> "partial[TokenLossTrainer]":
        from lamina.heal.distillation.cache import CachedTeacher
        from lamina.heal.distillation.divergence import Mix
        from lamina.heal.distillation.teacher import load_teacher
        from lamina.heal.distillation.trainer import DistillationTrainer

        teacher = (
            CachedTeacher(self._teacher_cache(original, train, model.dtype))
            if self.is_cached
            else load_teacher(model, original, shared)
        )
        mix = Mix(**{each.name: getattr(self, each.name) for each in fields(Mix)})
        return partial(
            DistillationTrainer, teacher=teacher, mix=mix, kept_layers=original.kept_layers
        )
