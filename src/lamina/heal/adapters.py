"""Adapters: which weights are trained."""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import override

from lamina.depth.reduction import decoder_stack, is_tied, untie_head
from lamina.depth.variants import Pruned, Scratch, Variant
from lamina.errors import ConfigError, naming
from lamina.export.merge import LEFT_OUT, NON_LORA_TRAINABLES
from lamina.limits import ABOVE_ZERO, AT_LEAST_ONE, FRACTION, one_of
from lamina.runtime.device import installed

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
"""PEFT's name for every linear layer except the output head."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of values of adapter.init_lora_weights that also change the base's weights."""

NEEDS_DATA = ("eva", "corda", "lora_ga")
"""Values of adapter.init_lora_weights that need a pass over data before training."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank updates beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    learning_rate: Annotated[float, ABOVE_ZERO]
    """Default of the parameter of that name."""
    r: Annotated[int, AT_LEAST_ONE]
    alpha: Annotated[int, AT_LEAST_ONE]
    dropout: Annotated[float, FRACTION]
    bias: Annotated[str, one_of("none", "all", "lora_only")]
    target_modules: Any
    further: dict[str, Any]
    """Other fields of PEFT's LoraConfig."""
    name: ClassVar[str] = "lora"
    in_4bit: ClassVar[bool] = False
    trains_all: ClassVar[bool] = False

    @property
    def is_loadable(self) -> bool:
        """Whether transformers loads all that is trained from the saved adapter."""
        return not any(map(self.further.get, NON_LORA_TRAINABLES))

    @classmethod
    def of(cls, /, **given: Any) -> "Lora":
        """Build from the config's keys: the fields above and any other of LoraConfig."""
        own = {each.name: given.pop(each.name) for each in fields(cls) if each.name != "further"}
        return cls(**own, further=given)

    def problems(self) -> Iterator[str]:
        """Refuse settings that PEFT or this version does not support."""
        if (initial := self.further.get("init_lora_weights")) in NEEDS_DATA:
            yield (
                f"adapter.init_lora_weights={initial}: needs a pass over the data before "
                "training, which this version does not do"
            )
        layers = self.further.get("layers_to_transform")
        if layers is not None and isinstance(self.target_modules, str):
            yield (
                f"adapter.layers_to_transform={layers} needs a list in adapter.target_modules, "
                "such as [q_proj,v_proj]"
            )
        tokens = self.further.get("trainable_token_indices")
        lists = tokens.values() if isinstance(tokens, dict) else ()
        if not all(isinstance(ids, list) and {*map(type, ids)} <= {int} for ids in lists):
            yield (
                f"adapter.trainable_token_indices={tokens}: use lists of token ids, such as "
                "{embed_tokens:[3,4]}"
            )

    def conflicts(self, model: Variant, form: str) -> Iterator[str]:
        """Refuse a model, or a value of export.form, that this adapter does not support."""
        if form in ("adapter", "both"):
            for key in filter(self.further.get, NON_LORA_TRAINABLES):
                yield (
                    f"adapter.{key}={self.further[key]} needs export.form=merged, not {form}: "
                    f"{LEFT_OUT}"
                )
        initial = self.further.get("init_lora_weights", True)
        if initial in NEEDS_DATA or form == "merged":
            return
        if str(initial).startswith(CHANGES_BASE) or self.further.get("kasa_config"):
            yield (
                f"adapter.init_lora_weights={initial} changes the base's weights, which an "
                "adapter alone cannot rebuild: set export.form=merged"
            )

    def settings(self) -> dict[str, Any]:
        """Return the settings under their names in PEFT."""
        return {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": self.bias,
            "target_modules": self.target_modules,
            **self.further,
        }

    def peft_config(self) -> "LoraConfig":
        """Return these settings as PEFT's LoraConfig; PEFT's refusals become ConfigErrors."""
        from peft import LoraConfig, LoraRuntimeConfig

        settings = self.settings()
        with naming("adapter", TypeError, ValueError, ImportError):
            if "runtime_config" in settings:  # the one nested class PEFT does not build itself
                settings["runtime_config"] = LoraRuntimeConfig(**settings["runtime_config"])
            return LoraConfig(task_type="CAUSAL_LM", **settings)


@dataclass(frozen=True, kw_only=True)
class Dora(Lora):
    """Separate updates of weights' magnitude and direction (Liu et al. 2024, arXiv:2402.09353)."""

    name: ClassVar[str] = "dora"

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "use_dora": True}


@dataclass(frozen=True, kw_only=True)
class QLora(Lora):
    """Low-rank updates beside four-bit weights (Dettmers et al. 2023, arXiv:2305.14314)."""

    name: ClassVar[str] = "qlora"
    in_4bit: ClassVar[bool] = True

    @override
    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not installed("bitsandbytes"):
            yield (
                "adapter=qlora needs bitsandbytes: pip install bitsandbytes, or choose adapter=lora"
            )

    @override
    def conflicts(self, model: Variant, form: str) -> Iterator[str]:
        if isinstance(model, Scratch):
            yield "adapter=qlora quantizes existing weights, and model=scratch has none"
        yield from super().conflicts(model, form)


@dataclass(frozen=True, kw_only=True)
class Full:
    """Train every weight, without an adapter."""

    learning_rate: Annotated[float, ABOVE_ZERO]
    """Default of the parameter of that name."""
    name: ClassVar[str] = "full"
    in_4bit: ClassVar[bool] = False
    is_loadable: ClassVar[bool] = False
    trains_all: ClassVar[bool] = True

    def conflicts(self, model: Variant, form: str) -> Iterator[str]:
        """Refuse an export form that holds an adapter."""
        if form in ("adapter", "both"):
            yield f"export.form={form} needs adapter=lora: adapter={self.name} has no adapter"

    def settings(self) -> dict[str, Any]:
        """Return nothing: PEFT is not used."""
        return {}

    def peft_config(self) -> None:
        """Return None: PEFT is not used."""


@dataclass(frozen=True, kw_only=True)
class Partial(Full):
    """Train the output head and the last layers (Lu et al. 2024, arXiv:2411.15558)."""

    layers: Annotated[int, AT_LEAST_ONE]
    head: Annotated[str, one_of("auto", "untied")]
    name: ClassVar[str] = "partial"
    trains_all: ClassVar[bool] = False

    @override
    def conflicts(self, model: Variant, form: str) -> Iterator[str]:
        if isinstance(model, Pruned) and model.count:
            yield from self.refuse_depth(model.count)
        yield from super().conflicts(model, form)

    def refuse_depth(self, kept: int) -> Iterator[str]:
        """Refuse to train more layers than stay."""
        if self.layers > kept:
            yield f"adapter.layers={self.layers}, but only {kept} layers stay: use {kept} or less"

    def freeze(self, model: "PreTrainedModel") -> None:
        """Freeze all but what is trained, and separate a tied head if `head` asks for it.

        Raises ConfigError if the model has fewer layers than are to be trained.
        """
        depth = model.config.get_text_config().num_hidden_layers
        for problem in self.refuse_depth(depth):
            raise ConfigError(problem)
        trained = [*decoder_stack(model, depth)[1]][-self.layers :]
        if self.head == "untied":
            untie_head(model)
        model.requires_grad_(False)
        if not is_tied(model):
            trained.append(model.get_output_embeddings())
        elif model.device.type != "meta":
            logger.info(
                "the output head is tied to the embedding and stays frozen; adapter.head=untied "
                "trains a copy of it"
            )
        for part in trained:
            part.requires_grad_(True)


def adapted(model: "PreTrainedModel", adapter: "Adapter") -> "PreTrainedModel":
    """Add an adapter to a model without weights; ConfigError if the model lacks what it trains."""
    from peft import get_peft_model

    if (config := adapter.peft_config()) is None:
        return model
    config.init_lora_weights = True  # others read the weights
    size, tokens = len(model.get_input_embeddings().weight), config.trainable_token_indices or []
    lists = tokens.values() if isinstance(tokens, dict) else [tokens]
    if not all(0 <= token < size for ids in lists for token in ids):
        raise ConfigError(
            f"adapter.trainable_token_indices={tokens}: the model has {size:,} tokens: use ids "
            f"from 0 to {size - 1}"
        )
    # What it warns of, it says again in training.
    with naming("adapter", ValueError), warnings.catch_warnings(action="ignore"):
        return get_peft_model(model, config)


Adapter = Lora | Full
"""Anything with `name`, `in_4bit`, `is_loadable`, `trains_all`, `conflicts`, `settings` and
`peft_config`."""
