"""What every hostile case is judged by."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Finished

CANARY = "canary"
"""The name of a file that hostile input tries to make in its test's folder."""

Refused = Callable[..., None]


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[Refused]:
    """Assert that a command refused its input: a few plain lines that name the culprit."""

    def judge(done: Finished, *named: str, code: int = 1) -> None:
        lines = done.refusal.splitlines()
        assert done.code == code, (done.code, done.output[-2000:], done.errors[-2000:])
        assert 1 <= len(lines) <= 3, done.errors
        assert "Traceback" not in done.output + done.errors, done.errors
        assert all(name in done.refusal for name in named), (named, done.errors)
        printed = (done.output + done.errors).replace("\n", "").replace("\t", "")
        assert printed.replace("\r", "").isprintable(), repr(printed)

    yield judge
    assert not list(tmp_path.rglob(CANARY)), "hostile input ran code or wrote a file"
