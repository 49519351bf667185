"""Pages of runs that never ran, and a Chromium without a window that opens them."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from lamina.report.page.document import write_page
from lamina.report.reading import read_report
from lamina.report.runs import Report
from tests.conftest import CACHE, ROOT

HOSTILE = (
    "</script><script>document.title = 'owned'</script>\x1b[31m\u202e<img src=x onerror=alert(1)>"
)
"""A run name that would run as code, colour a terminal and reverse a line."""

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Opened:
    """A page in the browser, and what went wrong there."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Messages on the console, and errors of scripts."""
    requests: list[str] = field(default_factory=list)
    """What the page asked for, beyond itself."""

    def names(self) -> list[str]:
        """The names of the runs in the table, from top to bottom."""
        return self.page.locator("#ranking tbody th.name").all_inner_texts()


def made(folder: Path, count: int = 12, *, is_finished: bool = True) -> Report:
    """Read a sweep and a scan that were made up; one run has a hostile name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from harness.made_runs import write_scan, write_sweep

    jobs = write_sweep(folder / "sweep", count)
    write_scan(folder / "scan")
    result = folder / "sweep" / "0" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"name": HOSTILE}))
    planned = [] if is_finished else jobs
    return read_report(
        [folder / "sweep", folder / "scan"], lambda place: planned if place.name == "sweep" else ()
    )


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep's page."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMINA_CACHE", CACHE.name)
        write_page(made(folder), folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        # Root, as which CI runs, has no sandbox of its own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


Open = Callable[..., Opened]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Open a page at a size, light or dark; each has a profile of its own."""
    with _contexts(browser) as new:

        def open_page(path: Path, size: Any = DESKTOP, scheme: Any = "light") -> Opened:
            context = new(viewport=size, color_scheme=scheme, offline=True)
            found = Opened(context.new_page())
            found.page.on("console", lambda message: found.complaints.append(message.text))
            found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
            found.page.on("request", lambda request: found.requests.append(request.url))
            found.page.goto(path.as_uri())
            drawn(found.page)
            assert found.requests.pop(0) == path.as_uri()
            return found

        yield open_page


def drawn(page: Page) -> None:
    """Wait until all charts are there."""
    page.wait_for_selector("html[data-drawn]", timeout=20_000)


def until(page: Page, condition: str, argument: Any = None) -> None:
    """Wait until a condition holds; the browser's own wait needs eval, which the page forbids.

    Raises:
        TimeoutError: It does not hold after ten seconds.
    """
    deadline = time.monotonic() + 10
    while not page.evaluate(condition, argument):
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        page.wait_for_timeout(20)


@contextmanager
def _contexts(browser: Browser) -> Iterator[Callable[..., Any]]:
    contexts: list[Any] = []

    def new(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        return contexts[-1]

    yield new
    for context in contexts:
        context.close()
