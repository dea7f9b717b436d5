"""Chromium, as Debian has it, for tests of the page; they are skipped where it is not installed."""

import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium():
    """A headless Chromium, driven by playwright, in the block."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page of a file that is opened in a browser, and what went wrong: errors, and requests to elsewhere.

    `page` is playwright's.
    """

    def __init__(self, browser, path: Path, width: int = 1280, **settings):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.errors, self.elsewhere, self.requested = [], [], []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(error.message))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._note)
        self.page.goto(path.absolute().as_uri())
        self.page.wait_for_selector("#rows article, .nothing")

    def _note(self, request):
        self.requested.append(request.url)
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.elsewhere.append(request.url)

    def names(self) -> list[str]:
        """The films that the page shows, in order."""
        return self.page.locator("#rows article h2").all_inner_texts()

    def row(self, name: str):
        """The row of a film."""
        return self.page.locator("#rows article", has=self.page.get_by_role("heading", name=name, exact=True))

    def wait(self, expression: str, seconds: float = 15):
        """Wait until an expression is true. playwright's own wait needs `eval`, which the page forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(50)

    def close(self):
        """Close it; nothing may have gone wrong."""
        self.context.close()
        assert not (self.errors or self.elsewhere), f"{self.errors} {self.elsewhere}"
