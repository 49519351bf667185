"""Whether the token that ends an answer is trained: without it a model does not learn to stop."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from lamina.data.splits import Split
from lamina.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Endings:
    """The tokens on which trained text must end.

    In chats each stretch of trained tokens must, blanks behind its end aside, and any token beside
    the vocabulary's own counts as an end, as in TRL's check of templates. Plain text must end on
    the end-of-text token. A chat of which every token is trained is as its template makes it.
    """

    tokenizer: "PreTrainedTokenizerBase"
    ends: frozenset[int]
    """Empty where nothing is checked."""

    @classmethod
    def of(
        cls, tokenizer: "PreTrainedTokenizerBase", columns: tuple[str, ...], loss_on: str
    ) -> "Endings":
        """Return what must end rows with these columns, after their conversion."""
        if columns == ("messages",) and loss_on == "all":
            return cls(tokenizer, frozenset())
        ends = set(tokenizer.get_added_vocab().values())
        if tokenizer.eos_token_id is not None:
            ends.add(tokenizer.eos_token_id)
        return cls(tokenizer, frozenset(ends))

    def are_trained(self, ids: Sequence[int], mask: Sequence[int], is_chat: bool) -> bool:
        """Return whether every answer of a row ends on a trained end.

        Args:
            ids: All tokens of the row.
            mask: 1 for each of them that is trained.
            is_chat: Whether a chat template made them.
        """
        if not is_chat:
            return bool(ids) and bool(mask[-1]) and ids[-1] == self.tokenizer.eos_token_id
        if not self.ends:
            return True
        pairs = zip(mask, ids, strict=True)
        runs = [[i for _, i in run] for kept, run in groupby(pairs, lambda p: p[0]) if kept]
        return bool(runs) and all(self._last(run) in self.ends for run in runs)

    def check(self, split: Split, unended: Iterable[bool]) -> None:
        """Refuse a split with a row that does not teach to stop.

        Args:
            split: The rows.
            unended: For each of them whether `are_trained` said no.

        Raises:
            ConfigError: There is one.
        """
        for index, missing in enumerate(unended):
            if missing:
                raise ConfigError(
                    f"{split.place(index)}: the token that ends an answer would not be trained, so "
                    "the model would not learn to stop; the tokenizer of "
                    f"{self.tokenizer.name_or_path} has eos_token={self.tokenizer.eos_token}: give "
                    "a model whose tokenizer or chat template ends an answer with it"
                )

    def _last(self, run: list[int]) -> int | None:
        """Return the last token that is more than blanks."""
        shown = (i for i in reversed(run) if i in self.ends or self.tokenizer.decode([i]).strip())
        return next(shown, None)
