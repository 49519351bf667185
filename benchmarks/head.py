"""What the distillation head costs beside the loss of an ordinary training.

    python benchmarks/head.py [--tokens 1024] [--hidden 256] [--rounds 3] [--json FILE] [--check]

Shows: seconds and peak memory of the loss and its gradients, from the same hidden states: of
trainer=distill (`heal/distillation/divergence.py`, forward KL from a teacher's hidden states) and
of TRL's chunked cross-entropy, which trainer=sft uses. Vocabularies of 32k and 152k tokens, of
which 0, 50 or 90 % are not trained, once with a frozen head, as with an adapter, and once with a
trained one. Each measurement is a fork of its own, in turn; the smallest figures count.
    Peak: memory above that of the inputs (hidden states, heads, labels), which both sides hold.
    Chunks: 256 tokens on both sides.
Peer: trl.trainer.sft_trainer._chunked_cross_entropy_loss.
Aims: at most 2.2 times the peer's seconds and 1.1 times its peak.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any, NamedTuple

from harness.figures import Aim, at_least, finish, options, show
from harness.runs import in_turn

VOCABULARIES = (32_000, 152_000)
UNTRAINED = (0.0, 0.5, 0.9)
HEADS = ("frozen", "trained")
SECONDS_AIM, PEAK_AIM = 2.2, 1.1
SEED, WARM_UP = 20261127, 16


class Case(NamedTuple):
    """What is computed."""

    vocabulary: int
    untrained: float
    """Share of the tokens."""
    head: str
    tokens: int
    hidden: int

    def __str__(self) -> str:
        """Return the row's name."""
        return f"{self.vocabulary // 1000}k, {self.untrained:.0%} untrained, {self.head} head"


class Cost(NamedTuple):
    """What a side took."""

    seconds: float
    peak: int
    """Bytes above those of the inputs."""


class Inputs(NamedTuple):
    """What both sides get."""

    states: Any
    """(1, tokens, hidden), with a gradient."""
    weight: Any
    """(vocabulary, hidden)."""
    labels: Any
    """(1, tokens)."""
    taught: Any
    """The teacher's states."""
    teacher: Any
    """Its head: the student's, or a copy where that is trained."""


def inputs(case: Case) -> Inputs:
    """Make them, alike for both sides."""
    import torch

    from lamina.runtime.device import compute_device

    torch.manual_seed(SEED)
    shape = (1, case.tokens, case.hidden)
    states, taught = torch.randn(shape), torch.randn(shape)
    weight = torch.randn(case.vocabulary, case.hidden) / case.hidden**0.5
    labels = torch.randint(case.vocabulary, shape[:2])
    labels[torch.rand(labels.shape) < case.untrained] = -100
    device, is_trained = compute_device(), case.head == "trained"
    weight = weight.to(device)
    return Inputs(
        states=states.to(device).requires_grad_(),
        weight=weight.clone().requires_grad_() if is_trained else weight,
        labels=labels.to(device),
        taught=taught.to(device),
        teacher=weight,
    )


def ours(given: Inputs) -> Any:
    """Return the sum of the divergences, as `DistillationTrainer` computes it."""
    from lamina.heal.distillation.divergence import Head, Mix, divergence, log_softmax, trained

    positions = trained(given.labels)
    student, teacher = (
        Head(weight=weight, bias=None, size=len(weight), scale=1.0, softcap=None)
        for weight in (given.weight, given.teacher)
    )
    taught = given.taught.flatten(0, 1)[positions]
    return divergence(
        given.states.flatten(0, 1)[positions],
        student,
        given.labels.flatten()[positions + 1],
        lambda start, stop, _: log_softmax(teacher.logits(taught[start:stop]), 1.0),
        Mix(loss="forward_kl", temperature=1.0, cross_entropy=0.0, hidden=0.0),
    ).loss


def trl(given: Inputs) -> Any:
    """Return the cross-entropy as TRL computes it."""
    from trl.trainer.sft_trainer import _chunked_cross_entropy_loss

    from lamina.heal.distillation.divergence import CHUNK

    return _chunked_cross_entropy_loss(given.states, given.weight, CHUNK, labels=given.labels)[0]


SIDES: dict[str, Callable[[Inputs], Any]] = {"trainer=distill": ours, "TRL": trl}


def measured(side: str, case: Case) -> Cost:
    """Compute a loss and its gradients in this process."""
    import torch

    from lamina.runtime.device import peak_memory_bytes, reset_peak_memory

    SIDES[side](inputs(case._replace(tokens=WARM_UP))).backward()
    given = inputs(case)
    reset_peak_memory()
    before, began = peak_memory_bytes(), time.perf_counter()
    SIDES[side](given).backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Cost(time.perf_counter() - began, peak_memory_bytes() - before)


def forked(side: str, case: Case) -> Cost:
    """Do that in a fork: nothing that an earlier one left in memory counts."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(measured, (side, case))


def main() -> None:
    """Measure every case, compare."""
    parser = options("Compare the distillation head with TRL's chunked cross-entropy.")
    parser.add_argument("--tokens", type=at_least(16), default=1024, help="of a batch")
    parser.add_argument("--hidden", type=at_least(8), default=256, help="size of a hidden state")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="measurements of each case")
    given = parser.parse_args()
    import trl.trainer.sft_trainer  # noqa: F401  once, for all forks

    rows, aims, figures = [], list[Aim](), {}
    for chosen in product(VOCABULARIES, UNTRAINED, HEADS):
        case = Case(*chosen, tokens=given.tokens, hidden=given.hidden)
        sides = {name: partial(forked, name, case) for name in SIDES}
        print(case)
        found = in_turn(sides, given.rounds, lambda cost: f"{cost.seconds:.3f} s")
        costs = [Cost(*map(min, zip(*each, strict=True))) for each in found.values()]
        figures[str(case)] = {n: cost._asdict() for n, cost in zip(SIDES, costs, strict=True)}
        (seconds, peak), (their_seconds, their_peak) = costs
        ratios = seconds / their_seconds, peak / their_peak
        for name, ratio, limit in zip(Cost._fields, ratios, (SECONDS_AIM, PEAK_AIM), strict=True):
            aims.append(Aim(name=f"{case}: {name} of TRL's", value=ratio, limit=limit))
        rows.append(
            [
                str(case),
                *(f"{each:.3f}" for each in (their_seconds, seconds)),
                f"{ratios[0]:.2f}",
                *(f"{each / 1e6:.0f}" for each in (their_peak, peak)),
                f"{ratios[1]:.2f}",
            ]
        )
    show(
        f"Loss and gradients of {given.tokens} tokens, hidden size {given.hidden}",
        ["vocabulary", "TRL s", "distill s", "ratio", "TRL MB", "distill MB", "ratio"],
        rows,
        f"aims: at most {SECONDS_AIM} of TRL's seconds, {PEAK_AIM} of its peak above the inputs",
    )
    sizes = {"tokens": given.tokens, "hidden": given.hidden, "rounds": given.rounds}
    finish({**sizes, "cases": figures}, aims, given.json, given.check)


if __name__ == "__main__":
    main()
