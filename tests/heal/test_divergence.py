"""The divergence against a reference in float64, whatever must not leak into it included."""

from typing import Any

import pytest
import torch

from lamina.heal.distillation import divergence as module
from lamina.heal.distillation.divergence import Head, Mix, Sums, divergence, trained

TOKENS, HIDDEN, VOCABULARY, PADDED = 23, 8, 40, 48


def mix(loss: str = "forward_kl", temperature: float = 1.0, cross_entropy: float = 0.0) -> Mix:
    return Mix(loss=loss, temperature=temperature, cross_entropy=cross_entropy, hidden=0.0)


def reference(logits: Any, taught: Any, targets: Any, mix: Mix) -> tuple[Any, Any]:
    """The mean loss and the mean forward KL, as the formulas have them."""
    t = mix.temperature
    p, q = (torch.softmax(each / t, -1) for each in (taught, logits))
    kl = (p * (p.log() - q.log())).sum(-1)
    if mix.loss == "jsd":
        m = (p + q) / 2
        own = ((q * (q / m).log()).sum(-1) + (p * (p / m).log()).sum(-1)) / 2
    else:
        own = kl
    cross = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    loss = (1 - mix.cross_entropy) * t * t * own + mix.cross_entropy * cross
    return loss.mean(), kl.mean()


class Case:
    """Random states and heads of a student and a teacher."""

    def __init__(self, dtype: torch.dtype = torch.float32, **head: Any) -> None:
        torch.manual_seed(3)
        settings = {"size": VOCABULARY, "scale": 1.0, "softcap": None, **head}
        self.settings = settings
        self.hidden = torch.randn(TOKENS, HIDDEN).to(dtype).requires_grad_()
        self.weight = torch.randn(PADDED, HIDDEN).to(dtype).requires_grad_()
        self.bias = torch.randn(PADDED).to(dtype).requires_grad_()
        self.states = torch.randn(TOKENS, HIDDEN).to(dtype)
        self.their_weight = torch.randn(PADDED, HIDDEN).to(dtype)
        self.targets = torch.randint(VOCABULARY, (TOKENS,))

    @property
    def leaves(self) -> tuple[torch.Tensor, ...]:
        return self.hidden, self.weight, self.bias

    @property
    def head(self) -> Head:
        return Head(weight=self.weight, bias=self.bias, **self.settings)

    def run(self, mix: Mix) -> Sums:
        theirs = Head(weight=self.their_weight, bias=None, **self.settings)

        def teacher(start: int, stop: int, _: torch.Tensor) -> torch.Tensor:
            return module.log_softmax(theirs.logits(self.states[start:stop]), mix.temperature)

        return divergence(self.hidden, self.head, self.targets, teacher, mix)

    def exact(self, mix: Mix) -> tuple[Any, Any, list[Any]]:
        """The reference's loss, KL and gradients."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        hidden, weight, bias = leaves

        def logits(states: Any, weight: Any, bias: Any) -> Any:
            found = (states @ weight[:VOCABULARY].t() + bias) * self.settings["scale"]
            cap = self.settings["softcap"]
            return found if cap is None else cap * torch.tanh(found / cap)

        taught = logits(self.states.double(), self.their_weight.double(), 0)
        own = logits(hidden, weight, bias[:VOCABULARY])
        loss, kl = reference(own, taught, self.targets, mix)
        loss.backward()
        return loss.item(), kl.item(), [leaf.grad for leaf in leaves]


@pytest.fixture(params=[4, TOKENS, 256], ids="chunks of {}".format)
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", request.param)


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize(
    "wanted",
    [
        mix(),
        mix(temperature=2.5),
        mix(cross_entropy=0.3),
        mix(temperature=0.5, cross_entropy=0.9),
        mix("jsd"),
        mix("jsd", temperature=2.0, cross_entropy=0.25),
    ],
    ids=str,
)
@pytest.mark.parametrize("head", [{}, {"scale": 0.25, "softcap": 3.0}], ids=str)
def test_loss_and_gradients_are_those_of_the_formula(wanted: Mix, head: dict[str, Any]) -> None:
    case = Case(**head)
    sums = case.run(wanted)
    (sums.loss / TOKENS).backward()
    loss, kl, gradients = case.exact(wanted)
    assert sums.loss.item() / TOKENS == pytest.approx(loss, rel=1e-5)
    assert sums.kl.item() / TOKENS == pytest.approx(kl, rel=1e-5)
    for leaf, expected in zip(case.leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-4, atol=1e-6)


def test_accuracy_and_entropy_are_the_students() -> None:
    case = Case()
    sums = case.run(mix())
    q = torch.softmax((case.hidden @ case.weight.t() + case.bias)[:, :VOCABULARY], -1)
    assert sums.correct == (q.argmax(-1) == case.targets).sum()
    assert sums.entropy.item() == pytest.approx(-(q * q.log()).sum().item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["forward_kl", "jsd"])
def test_the_figure_has_no_constant_entropy(loss: str) -> None:
    """A soft cross-entropy has the same gradient, but is the teacher's entropy where KL is 0."""
    case = Case()
    case.their_weight, case.states = case.weight.detach(), case.hidden.detach()
    case.bias = torch.zeros(PADDED, requires_grad=True)
    sums = case.run(mix(loss))
    sums.loss.backward()
    assert sums.loss.item() == pytest.approx(0, abs=1e-6)
    assert case.hidden.grad.abs().max() < 1e-6


def test_rows_that_pad_the_vocabulary_take_no_part() -> None:
    case, other = Case(), Case()
    with torch.no_grad():
        other.weight[VOCABULARY:] = 50
        other.their_weight[VOCABULARY:] = -50
    first, second = case.run(mix(cross_entropy=0.5)), other.run(mix(cross_entropy=0.5))
    first.loss.backward()
    second.loss.backward()
    assert first.loss == second.loss
    assert torch.equal(case.hidden.grad, other.hidden.grad)
    assert not other.weight.grad[VOCABULARY:].any()


def test_a_frozen_head_gets_no_gradient() -> None:
    case = Case()
    case.weight.requires_grad_(False)
    case.bias.requires_grad_(False)
    case.run(mix()).loss.backward()
    assert case.weight.grad is case.bias.grad is None
    assert case.hidden.grad.any()


def test_under_autocast_products_are_bfloat16_and_gradients_keep_their_type() -> None:
    case, exact = Case(), Case().exact(mix())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = case.run(mix())
    sums.loss.backward()
    assert [leaf.grad.dtype for leaf in case.leaves] == [torch.float32] * 3
    assert sums.loss.item() / TOKENS == pytest.approx(exact[0], rel=0.02)


def test_without_trained_tokens_the_loss_is_zero_and_reaches_every_weight() -> None:
    case = Case()
    case.targets, states = case.targets[:0], case.hidden[:0]
    head = Head(weight=case.weight, bias=None, **case.settings)
    sums = divergence(states, head, case.targets, lambda *_: pytest.fail("no chunk"), mix())
    sums.loss.backward()
    assert sums.loss == 0
    assert not case.hidden.grad.any()
    assert not case.weight.grad.any()


def test_no_float32_logits_of_all_tokens_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    case, rows = Case(), set[int]()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            found = func(*args, **(kwargs or {}))
            for each in found if isinstance(found, tuple) else (found,):
                is_logits = isinstance(each, torch.Tensor) and each.shape[1:] == (VOCABULARY,)
                if is_logits and len(each) != HIDDEN:  # else it is the head's weight
                    rows.add(len(each))
            return found

    with Watch():
        case.run(mix("jsd", cross_entropy=0.5)).loss.backward()
    assert max(rows) == 4


@pytest.mark.parametrize(
    ("labels", "positions"),
    [
        ([[7, 8, 9, 5]], [0, 1, 2]),  # the last state predicts nothing, the first label is unused
        ([[-100, -100, 9, 5]], [1, 2]),  # a prompt: its last token predicts the first trained one
        ([[7, 8, 9, -100, -100]], [0, 1]),  # padding
        ([[7, 8, -100, 5, 6]], [0, 2, 3]),  # a pack: no state predicts the next document's start
        ([[7, 8, 9], [-100, 5, 6]], [0, 1, 3, 4]),  # the first row's last state is not the second's
        ([[-100, -100]], []),
    ],
    ids=["shift", "prompt", "padding", "pack", "rows", "nothing"],
)
def test_states_before_trained_tokens_are_compared(
    labels: list[list[int]], positions: list[int]
) -> None:
    assert trained(torch.tensor(labels)).tolist() == positions
