"""Takes pictures of a report's page in Chromium: phone and desktop, light and dark.

    python tools/page_pictures.py [RUNS ...] --output DIR

Without RUNS it shows runs that were made up. `--readme` also writes docs/report.png: the top of the
page, light, on a desktop.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

from lamina.report.page.document import PAGE_FILE, write_page
from lamina.report.reading import read_report

ROOT = Path(__file__).resolve().parents[1]

SIZES = {"phone": (360, 740), "desktop": (1280, 900)}
README_SIZE = (1200, 1600)


def main() -> None:
    """Write a page, and a picture of it for each size and scheme."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--readme", action="store_true", help="write docs/report.png, too")
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("error: no chromium: apt-get install chromium")
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_page(read_report(given.runs or _made(Path(folder))), given.output)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for name, (width, height) in SIZES.items():
                size = ViewportSize(width=width, height=height)
                context = browser.new_context(
                    viewport=size, color_scheme="dark" if scheme == "dark" else "light"
                )
                page = _opened(context.new_page(), given.output / PAGE_FILE)
                page.screenshot(path=given.output / f"{name}-{scheme}.png", full_page=True)
        if given.readme:
            width, height = README_SIZE
            page = browser.new_page(viewport={"width": width, "height": height})
            _opened(page, given.output / PAGE_FILE)
            page.screenshot(path=ROOT / "docs" / "report.png")
        browser.close()


def _opened(page: Page, path: Path) -> Page:
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-drawn]")
    return page


def _made(folder: Path) -> list[Path]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from harness.made_runs import write_scan, write_sweep

    write_sweep(folder / "sweep", 12)
    write_scan(folder / "scan")
    return [folder / "sweep", folder / "scan"]


if __name__ == "__main__":
    main()
