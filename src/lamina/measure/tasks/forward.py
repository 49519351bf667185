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
"""Largest difference of a token's log-likelihood between two ways to compute it, in nats: in
float32, and with fewer bits. Wrong masks or positions give larger ones."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tokens that a model reads at once, and what it is asked about them."""

    ids: Sequence[int]
    sources: Sequence[int]
    """Positions whose predictions are scored."""
    targets: Sequence[int]
    """The token of which each source's prediction gives the likelihood."""
    prefix: int | None = None
    """Tokens that all branches see; None for a plain row."""
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

    The sources are those of all rows, in their order; each position is computed once.
    """
    import torch

    device = torch.device("cpu") if model.device.type == "meta" else model.device
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (length - len(row.ids))] for row in rows])
    flat = torch.tensor(
        [number * length + source for number, row in enumerate(rows) for source in row.sources]
    )
    places, where = flat.unique(return_inverse=True)
    selected = torch.zeros(len(rows) * length, dtype=torch.bool)
    selected[places] = True
    selected = selected.view(len(rows), length).to(device)
    with torch.inference_mode(), _head_at(model, selected):
        options = _mask(model, rows, length, device)
        logits = model(input_ids=ids.to(device), use_cache=False, **options).logits
        if logits.shape[:2] == selected.shape:
            logits = logits[selected.to(logits.device)]
        return logits.reshape(len(places), -1).float(), where.to(logits.device)


def log_likelihoods(
    model: "PreTrainedModel", rows: Sequence[Row]
) -> "list[tuple[list[float], list[bool]]]":
    """Return each row's log-likelihoods of its targets, in nats, and whether each is likeliest."""
    import torch

    logits, where = predictions(model, rows)
    with torch.inference_mode():
        targets = torch.tensor([target for row in rows for target in row.targets])
        targets = targets.to(logits.device)
        found = logits[where, targets] - logits.logsumexp(-1)[where]
        likeliest = logits.argmax(-1)[where] == targets
    counts = [len(row.targets) for row in rows]
    parts = zip(found.split(counts), likeliest.split(counts), strict=True)
    return [(each.tolist(), best.tolist()) for each, best in parts]


def longest_packed(model: "PreTrainedModel") -> int | None:
    """Return the most tokens of a packed row, if the model scores it like its plain rows.

    Recurrent layers and some positions and kernels cannot keep branches apart: one small row,
    computed in both ways, tells. Longer rows than a layer's window would lack its mask.
    """
    import torch

    config = model.config.get_text_config()
    vocabulary = config.vocab_size
    prefix, *branches = ([(n * i) % vocabulary for i in range(3, 9)] for n in (7, 11, 13))
    plain = [
        Row(ids=[*prefix, *each[:-1]], sources=range(5, 11), targets=each) for each in branches
    ]
    try:
        expected = [each for found, _ in log_likelihoods(model, plain) for each in found]
        ((found, _),) = log_likelihoods(model, [packed(prefix, branches, len(prefix))])
    except Exception:  # a family's own code, given arguments it may not know
        return None
    apart = torch.tensor(expected).sub(torch.tensor(found)).abs().max().item()
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


def _mask(
    model: "PreTrainedModel", rows: Sequence[Row], length: int, device: "torch.device"
) -> dict[str, Any]:
    """Return the arguments that say what each token sees, and where it stands."""
    import torch

    lengths = torch.tensor([len(row.ids) for row in rows])
    places = torch.arange(length)
    if all(row.prefix is None for row in rows):
        return {"attention_mask": (places < lengths[:, None]).long().to(device)}
    positions = places.repeat(len(rows), 1)
    branch = torch.full((len(rows), length), -1)  # padding; 0 is the prefix
    for number, row in enumerate(rows):
        begin = len(row.ids) if row.prefix is None else row.prefix
        branch[number, :begin] = 0
        for index, size in enumerate(row.branches, 1):
            branch[number, begin : begin + size] = index
            positions[number, begin : begin + size] = torch.arange(size) + (row.prefix or 0)
            begin += size
    seen = (branch[:, None] == 0) | (branch[:, None] == branch[:, :, None])
    seen &= places[:, None] >= places
    hidden = torch.zeros(seen.shape, dtype=model.dtype)
    hidden.masked_fill_(~seen, torch.finfo(model.dtype).min)
    return {"attention_mask": hidden[:, None].to(device), "position_ids": positions.to(device)}
