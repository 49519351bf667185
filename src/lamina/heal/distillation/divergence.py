"""The divergence of a student from its teacher, in chunks of trained tokens.

Neither model's logits exist for more than one chunk, and the student's gradient is computed in the
forward pass, so that no chunk is projected twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lamina.data.tokenization import IGNORED

CHUNK = 256
"""Trained tokens whose logits exist at once."""

MINUS_INFINITY = -1e4
"""Log-probability of a token that a teacher rules out; its products with 0 stay finite."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The output head: from hidden states to float32 logits."""

    weight: torch.Tensor
    """(vocabulary, hidden)."""
    bias: torch.Tensor | None
    """(vocabulary,)."""
    size: int
    """Tokens of the vocabulary; further rows of the weight pad it and have no meaning."""
    scale: float
    """Factor of all logits."""
    softcap: float | None
    """Limit c of logits z, which become c * tanh(z / c)."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, (tokens, size), of hidden states, (tokens, hidden)."""
        found = (hidden @ self.weight[: self.size].t()).float()
        if self.bias is not None:
            found += self.bias[: self.size].float()
        if self.scale != 1:
            found *= self.scale
        if self.softcap is not None:
            found.div_(self.softcap).tanh_().mul_(self.softcap)
        return found

    def back(self, gradient: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Turn a gradient of the logits, in place, into one of the product with the weight."""
        if self.softcap is not None:
            gradient *= 1 - (logits / self.softcap) ** 2
        if self.scale != 1:
            gradient *= self.scale
        return gradient

    def cast(self, dtype: torch.dtype) -> "Head":
        """Return a head that computes in a type."""
        return replace(self, weight=self.weight.detach().to(dtype))


Teacher = Callable[[int, int, torch.Tensor], torch.Tensor]
"""Returns the teacher's log-probabilities at the temperature, (tokens, size), for the trained
tokens [start, stop), given the student's."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What the loss is made of."""

    loss: str
    """forward_kl or jsd."""
    temperature: float
    """Divisor of both models' logits in the divergence."""
    cross_entropy: float
    """Weight of the cross-entropy with the data's own tokens; the divergence has the rest."""
    hidden: float
    """Weight of the hidden states' misalignment, which is added."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over trained tokens."""

    loss: torch.Tensor
    """The mix, in nats; the only one with a gradient."""
    kl: torch.Tensor
    """Forward Kullback-Leibler divergence at the temperature, in nats."""
    entropy: torch.Tensor
    """The student's entropy at the temperature, in nats."""
    correct: torch.Tensor
    """Tokens that the student ranks first."""


def trained(labels: torch.Tensor) -> torch.Tensor:
    """Return the flat positions, (trained tokens,), whose hidden states predict a trained token.

    The state at one position predicts the label of the next, in labels of (rows, tokens).
    """
    is_trained = torch.zeros_like(labels, dtype=torch.bool)
    is_trained[:, :-1] = labels[:, 1:] != IGNORED
    return is_trained.flatten().nonzero().squeeze(1)


def divergence(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, teacher: Teacher, mix: Mix
) -> Sums:
    """Compare a student with its teacher on trained tokens.

    `hidden` has the student's states, (tokens, hidden), `targets` the tokens that follow,
    (tokens,).
    """
    dtype = product_type(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        values = _Divergence.apply(
            hidden, head.weight, head.bias, head, targets, teacher, mix, dtype
        )
    return Sums(**dict(zip(Sums.__dataclass_fields__, values, strict=True)))


def product_type(hidden: torch.Tensor) -> torch.dtype:
    """Return the type of matrix products: that of autocast, or else of the hidden states."""
    device = hidden.device.type
    is_cast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else hidden.dtype


def misalignment(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
    """Return 1 - cosine of two models' states, (tokens, hidden) for each layer.

    It is a mean over layers, which must not be none, and a sum over tokens.
    """
    pairs = zip(ours, theirs, strict=True)
    cosines = [torch.cosine_similarity(x.float(), y.float(), dim=1).sum() for x, y in pairs]
    return len(ours[0]) - torch.stack(cosines).mean()


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: Head,
        targets: torch.Tensor,
        teacher: Teacher,
        mix: Mix,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:
        wanted = ctx.needs_input_grad
        grads = [
            torch.zeros_like(value, memory_format=torch.contiguous_format) if needed else None
            for value, needed in zip((hidden, weight, bias), wanted, strict=False)
        ]
        student, sums = head.cast(dtype), hidden.new_zeros(4, dtype=torch.float32)
        for start in range(0, len(hidden), CHUNK):
            stop = min(start + CHUNK, len(hidden))
            states = hidden[start:stop].to(dtype)
            logits = student.logits(states)
            taught = partial(teacher, start, stop)
            found, gradient = _chunk(logits, taught, targets[start:stop], mix)
            sums += found
            if not any(wanted):
                continue
            gradient = student.back(gradient, logits)
            del logits
            if grads[2] is not None:
                grads[2][: head.size] += gradient.sum(0)
            gradient = gradient.to(dtype)
            if grads[0] is not None:
                grads[0][start:stop] = gradient @ student.weight[: head.size]
            if grads[1] is not None and grads[1].dtype == dtype:
                grads[1][: head.size].addmm_(gradient.t(), states)
            elif grads[1] is not None:
                grads[1][: head.size] += gradient.t() @ states
            del gradient  # before the next chunk's logits
        ctx.grads = grads
        loss, *others = sums.unbind()
        ctx.mark_non_differentiable(*others)
        return (loss, *others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        # In place, since a copy of the weight's gradient may be large; so it works only once.
        grads, ctx.grads = ctx.grads, None
        for each in grads:
            if each is not None:
                each.mul_(factor)
        return (*grads, None, None, None, None, None)


def _chunk(
    logits: torch.Tensor,
    taught: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    mix: Mix,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of a chunk, (4,), and the loss's gradient of the student's logits."""
    log_q = log_softmax(logits, mix.temperature)
    correct = (log_q.argmax(1) == targets).sum()
    share = mix.cross_entropy
    likely, towards = None, None
    if share:
        log_likely = log_q if mix.temperature == 1 else log_softmax(logits, 1)
        likely = log_likely.gather(1, targets[:, None]).sum()
        towards = log_likely.exp()
        towards.scatter_add_(1, targets[:, None], -torch.ones_like(towards[:, :1]))
    log_p = taught(log_q)
    kl, diverged, entropy, gradient = {"forward_kl": _forward_kl, "jsd": _jsd}[mix.loss](
        log_p, log_q
    )
    # Times the temperature squared, so that the gradient's size does not depend on it.
    loss = diverged * mix.temperature**2
    if mix.temperature != 1:
        gradient *= mix.temperature
    if likely is not None:
        loss = (1 - share) * loss - share * likely
        gradient = gradient.mul_(1 - share).add_(towards, alpha=share)
    return torch.stack([loss, kl, entropy, correct.float()]), gradient


def log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log-probabilities at a temperature."""
    scaled = logits if temperature == 1 else logits / temperature
    return torch.log_softmax(scaled, dim=1)


Diverged = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Sums of forward KL, of the divergence and of the student's entropy, and the divergence's
gradient of the student's logits over the temperature. Both inputs are overwritten."""


def _forward_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> Diverged:
    p = log_p.exp()
    kl = log_p.sub_(log_q).mul_(p).sum()
    q = torch.exp(log_q, out=log_p)
    entropy = -log_q.mul_(q).sum()
    return kl, kl, entropy, q.sub_(p)


def _jsd(log_p: torch.Tensor, log_q: torch.Tensor) -> Diverged:
    p, q = log_p.exp(), log_q.exp()
    log_m = torch.logaddexp(log_p, log_q).sub_(torch.log(torch.tensor(2.0)).item())
    kl = ((log_p - log_q) * p).sum()
    entropy = -(log_q * q).sum()
    slope = log_q.sub_(log_m).mul_(0.5)  # of the divergence by q
    mean = (slope * q).sum(1, keepdim=True)
    divergence = (log_p.sub_(log_m).mul_(p).sum()) / 2 + mean.sum()
    return kl, divergence, entropy, slope.sub_(mean).mul_(q)
