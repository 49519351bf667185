"""ladder.keep_layers: cut, heal and score again, round by round, within one budget."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lamina.depth.plan import Plan, protection_of
from lamina.depth.variants import Pruned, Variant
from lamina.heal.budget import Budget
from lamina.heal.repair.methods import NONE

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTConfig


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Rounds, each of which cuts and heals the model that the one before it left."""

    keep_layers: Any
    """Layers that stay after each round, fewer each time; None for a single round."""

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        return len(self.keep_layers) if self.keep_layers else 1

    @property
    def given(self) -> str:
        """The setting, for messages."""
        return f"ladder.keep_layers={str(self.keep_layers).replace(' ', '')}"

    def problems(self) -> Iterator[str]:
        """Refuse what is no ladder."""
        counts = self.keep_layers
        if counts is None:
            return
        is_list = isinstance(counts, list) and all(type(count) is int for count in counts)
        if not is_list or len(counts) < 2:
            yield f"{self.given}: use two numbers of layers or more, such as [27,24]"
        elif min(counts) < 1:
            yield f"{self.given}: each round must keep 1 layer or more"
        elif sorted(set(counts), reverse=True) != counts:
            yield f"{self.given}: each round must keep fewer layers"

    def conflicts(
        self,
        model: Variant,
        form: str,
        resume: str,
        args: Mapping[str, Any],
        trainer: str,
        repair: str,
    ) -> Iterator[str]:
        """Refuse a model, an export form, a checkpoint, a length or a method that rounds forbid."""
        if self.keep_layers is None or [*self.problems()]:
            return
        last = self.keep_layers[-1]
        if not isinstance(model, Pruned) or model.target is not None:
            yield f"{self.given} needs model=pruned with model.keep_layers={last}"
        elif model.keep_layers != last:
            yield (
                f"{self.given} ends with {last} layers, but model.keep_layers={model.keep_layers}: "
                "set both to the same number"
            )
        if form in ("adapter", "both"):
            yield (
                f"{self.given} merges each round's adapter, after which export.form={form} has no "
                "base: leave export.form out"
            )
        if resume != "auto":
            yield f"{self.given} needs resume=auto: each round resumes from its own checkpoints"
        if 0 < (max_steps := args["max_steps"]) < self.rounds:
            yield f"{self.given} has more rounds than max_steps={max_steps}: set a larger max_steps"
        if trainer == "none":
            yield f"{self.given} heals, and trainer=none trains nothing: leave out one of them"
        if repair != NONE:
            yield f"{self.given} and repair={repair}: leave out one of them"

    def refuse_depth(self, num_layers: int) -> Iterator[str]:
        """Refuse a first round that removes nothing from a model of this depth."""
        if self.keep_layers and not [*self.problems()] and self.keep_layers[0] >= num_layers:
            yield (
                f"{self.given}, but the model has {num_layers} layers: begin with "
                f"{num_layers - 1} or less"
            )

    def settings(self, args: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
        """Return what rounds depend on, by config key: also the length, which they share."""
        if self.keep_layers is None:
            return {}
        lengths = {f"trainer.args.{key}": args[key] for key in ("max_steps", "num_train_epochs")}
        return {"ladder.keep_layers": self.keep_layers, "budget.tokens": budget.tokens, **lengths}


@dataclass(frozen=True, kw_only=True)
class Round:
    """One of a ladder's rounds; the defaults are those of a run without a ladder."""

    number: int = 1
    """1-based."""
    rounds: int = 1
    keep_layers: int | None = None
    """Layers that stay; None leaves them to the variant."""
    before: Plan | None = None
    """Which layers of the original the round before left; None in the first."""
    base: str | None = None
    """Folder of the model that the round before left."""
    trained_tokens: int = 0
    """Tokens that the rounds before trained."""

    def variant(self, model: Variant) -> Variant:
        """Return the choice of layers that this round makes."""
        if self.keep_layers is None:
            return model
        assert isinstance(model, Pruned)
        return replace(model, keep_layers=self.keep_layers)

    def protect(self, protect: Any) -> Any:
        """Return depth.protect for the model that this round cuts."""
        if self.before is None:
            return protect
        assert self.before.source is not None
        layers = protection_of(self.before.source, protect).layers
        return [place for place, layer in enumerate(self.before.kept_layers) if layer in layers]

    def of_original(self, cut: Plan) -> Plan:
        """Return the plan of this round's cut as one of the original model."""
        before = self.before
        if before is None:
            return cut
        kept_layers = tuple(before.kept_layers[place] for place in cut.kept_layers)
        return replace(
            cut, source=before.source, num_layers=before.num_layers, kept_layers=kept_layers
        )

    def shared(self, plan: Plan, *, repaired: bool) -> tuple[int, ...] | None:
        """Return which layers of the original this round's model has as they were.

        None says that the weights outside layers, too, may be other ones.
        """
        if self.before is not None:
            return None
        return () if repaired else plan.kept_layers

    def set_length(
        self, arguments: "SFTConfig", budget: Budget, rows: "Dataset", processes: int
    ) -> None:
        """Set the training's length to this round's share, and an order of rows of its own.

        For `rows` and errors see `Budget.set_steps`. Warm-up and decay follow the share.
        """
        number, steps = self.number, arguments.max_steps
        if steps > 0:
            until = steps * (number - 1) // self.rounds
            arguments.max_steps = steps * number // self.rounds - until
        arguments.num_train_epochs /= self.rounds
        if arguments.data_seed is not None:
            arguments.data_seed += number - 1
        share = Fraction(number, self.rounds)
        budget.set_steps(arguments, rows, processes, share=share, spent=self.trained_tokens)
