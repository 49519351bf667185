"""Predictions at the scored positions alone, of rows that may share a prefix."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WINDOWS = ("sliding_window", "attention_chunk_size")
"""Fields of config.json with how far back a layer sees, in tokens."""

SAME = {"torch.float32": 1e-3}
ROUNDED = 0.1
"""Largest mean difference of a token's log-likelihood between two ways to compute it, in nats: in
float32, and with fewer bits. SmolLM2 in bfloat16 has 0.04, and 0.2 if only positions are wrong."""

LINE = 256
"""Tokens in which rows are packed side by side; a longer row has a line of its own."""

MOST_LOGITS = 2**27
"""Values of logits in one forward pass: half a GB."""

IN_CACHE = 2**21
"""Logits to reduce at once: what a processor's cache holds."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tokens that a model reads at once, and what it is asked about them."""

    ids: Sequence[int]
    sources: Sequence[int]
    """Positions whose predictions are scored."""
    targets: Sequence[int]
    """The token of which each source's prediction gives the likelihood."""
    prefix: int | None = None
    """Tokens that all branches see; None for a row that is padded, not packed with others."""
    branches: Sequence[int] = ()
    """Lengths of the branches behind the prefix; they do not see each other."""


def packed(prefix: Sequence[int], branches: Sequence[Sequence[int]], begin: int) -> Row:
    """Return a row that scores several continuations of a prefix, one after the other.

    `begin` is the first scored position of the prefix, which counts for each of them.
    """
    ids, sources, targets, lengths = list(prefix), list[int](), list[int](), []
    for branch in branches:
        sources += range(begin - 1, len(prefix) - 1)
        targets += prefix[begin:]
        if branch:  # its last token predicts nothing that is scored
            sources += [len(prefix) - 1, *range(len(ids), len(ids) + len(branch) - 1)]
            targets += branch
            ids += branch[:-1]
        lengths.append(max(0, len(branch) - 1))
    return Row(ids=ids, sources=sources, targets=targets, prefix=len(prefix), branches=lengths)


def predictions(
    model: "PreTrainedModel", rows: Sequence[Row]
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return float32 logits (scored positions, vocabulary), and each source's index in them.

    The sources are those of all rows, in their order; each position is computed once. Either all
    rows have a prefix, or none. What all prefixes begin with, such as solved examples, is computed
    once for each line.
    """
    import torch

    device = torch.device("cpu") if model.device.type == "meta" else model.device
    common = shared_start([row.ids[: row.prefix or 0] for row in rows])
    lines = _lines(rows, common)
    length = common + max(sum(len(rows[number].ids) - common for number in line) for line in lines)
    ids = torch.zeros((len(lines), length), dtype=torch.long)
    ids[:, :common] = torch.tensor(rows[0].ids[:common])
    starts = {}
    for place, line in enumerate(lines):
        begin = common
        for number in line:
            own = rows[number].ids[common:]
            ids[place, begin : begin + len(own)] = torch.tensor(own)
            starts[number] = (place * length, begin - common)
            begin += len(own)
    flat = torch.tensor(
        [
            starts[number][0] + source + (starts[number][1] if source >= common else 0)
            for number, row in enumerate(rows)
            for source in row.sources
        ]
    )
    places, where = flat.unique(return_inverse=True)
    selected = torch.zeros(ids.numel(), dtype=torch.bool)
    selected[places] = True
    selected = selected.view(ids.shape).to(device)
    with torch.inference_mode(), _head_at(model, selected):
        options = _mask(model, rows, lines, common, length)
        options = {name: tensor.to(device) for name, tensor in options.items()}
        logits = model(input_ids=ids.to(device), use_cache=False, **options).logits
        if logits.shape[:2] == selected.shape:
            logits = logits[selected.to(logits.device)]
        return logits.reshape(len(places), -1).float(), where.to(logits.device)


def likelihoods_of(logits: "torch.Tensor", where: "torch.Tensor", targets: Any) -> "torch.Tensor":
    """Return the log-likelihood of each target, in nats, from `predictions`."""
    import torch

    with torch.inference_mode():
        rows = max(1, IN_CACHE // logits.shape[-1])
        norms = torch.cat([part.logsumexp(-1) for part in logits.split(rows)])
        return logits[where, torch.tensor(targets).to(logits.device)] - norms[where]


def log_likelihoods(model: "PreTrainedModel", rows: Sequence[Row]) -> list[list[float]]:
    """Return each row's log-likelihoods of its targets, in nats."""
    logits, where = predictions(model, rows)
    found = likelihoods_of(logits, where, [target for row in rows for target in row.targets])
    return [part.tolist() for part in found.split([len(row.targets) for row in rows])]


def likeliest(model: "PreTrainedModel", rows: Sequence[Row]) -> list[list[tuple[float, bool]]]:
    """Return the same, with whether the model finds no token more likely."""
    import torch

    logits, where = predictions(model, rows)
    targets = [target for row in rows for target in row.targets]
    found = likelihoods_of(logits, where, targets)
    best = logits.argmax(-1)[where].cpu() == torch.tensor(targets)
    counts = [len(row.targets) for row in rows]
    parts = zip(found.split(counts), best.split(counts), strict=True)
    return [list(zip(each.tolist(), same.tolist(), strict=True)) for each, same in parts]


def longest_packed(model: "PreTrainedModel") -> int | None:
    """Return the most tokens of a packed row, if the model scores it like its plain rows.

    Recurrent layers and some positions and kernels cannot keep branches apart: one small row,
    computed in both ways, tells. Longer rows than a layer's window would lack its mask.
    """
    import torch

    config = model.config.get_text_config()
    vocabulary = config.vocab_size
    prefix, *branches = ([(n * i) % vocabulary for i in range(3, 27)] for n in (7, 11, 13))
    prefix = prefix[:6]
    plain = [Row(ids=[*prefix, *b[:-1]], sources=range(5, 29), targets=b) for b in branches]
    try:
        expected = [each for found in log_likelihoods(model, plain) for each in found]
        rows = [packed(prefix, branches, len(prefix)) for _ in range(2)]
        found = log_likelihoods(model, rows)[1]
    except Exception:  # a family's own code, given arguments it may not know
        return None
    apart = torch.tensor(expected).sub(torch.tensor(found)).abs().mean().item()
    if not apart <= SAME.get(str(model.dtype), ROUNDED):
        return None
    windows = (getattr(config, name, None) for name in WINDOWS)
    return min([each for each in windows if type(each) is int], default=2**31)


@contextmanager
def _head_at(model: "PreTrainedModel", selected: "torch.Tensor") -> Iterator[None]:
    """Let the model's head see the selected positions (batch, tokens) alone, as one row."""

    def select(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments
        if hidden.shape[:2] != selected.shape:
            return arguments
        return hidden[selected.to(hidden.device)][None], *rest

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def shared_start(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all texts begin with."""
    first, *rest = texts
    for place, token in enumerate(first):
        if any(len(text) <= place or text[place] != token for text in rest):
            return place
    return len(first)


def _lines(rows: Sequence[Row], common: int) -> list[list[int]]:
    """Return the rows, by number, that stand side by side: as many as fit, or one if padded."""
    lines: list[list[int]] = []
    room: list[int] = []
    longest = max(LINE, *(len(row.ids) - common for row in rows))
    for number in sorted(range(len(rows)), key=lambda n: -len(rows[n].ids)):
        size = len(rows[number].ids) - common
        fits = (place for place, left in enumerate(room) if size <= left)
        place = None if rows[number].prefix is None else next(fits, None)
        if place is None:
            place = len(lines)
            lines.append([])
            room.append(longest)
        lines[place].append(number)
        room[place] -= size
    return lines


def _mask(
    model: "PreTrainedModel",
    rows: Sequence[Row],
    lines: Sequence[Sequence[int]],
    common: int,
    length: int,
) -> "dict[str, torch.Tensor]":
    """Return the arguments that say what each token sees, and where it stands."""
    import torch

    places = torch.arange(length)
    if rows[0].prefix is None:
        lengths = torch.tensor([len(rows[number].ids) for (number,) in lines])
        return {"attention_mask": (places < lengths[:, None]).long()}
    positions = torch.zeros((len(lines), length), dtype=torch.long)
    owner, branch = positions - 1, torch.zeros_like(positions)
    positions[:, :common] = torch.arange(common)
    for place, line in enumerate(lines):
        begin = common
        for number in line:
            prefix = rows[number].prefix or 0
            owner[place, begin : begin + len(rows[number].ids) - common] = number
            positions[place, begin : begin + prefix - common] = torch.arange(common, prefix)
            begin += prefix - common
            for index, size in enumerate(rows[number].branches, 1):
                branch[place, begin : begin + size] = index
                positions[place, begin : begin + size] = torch.arange(size) + prefix
                begin += size
    seen = (branch[:, None] == 0) | (branch[:, None] == branch[:, :, None])
    seen &= (places < common) | (owner[:, None] == owner[:, :, None])
    seen &= places[:, None] >= places
    hidden = torch.zeros(seen.shape, dtype=model.dtype)
    hidden.masked_fill_(~seen, torch.finfo(model.dtype).min)
    return {"attention_mask": hidden[:, None], "position_ids": positions}
