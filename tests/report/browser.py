"""The system's Chromium, driven by Playwright, behind the few verbs that the tests of the pages use."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox"]


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab with a context of its own. Coordinates are CSS pixels of the viewport.

    Args:
        browser: of Playwright's sync API.
    """

    def __init__(self, browser: Any) -> None:
        self._context = browser.new_context(viewport={"width": 1280, "height": 900})
        self._page = self._context.new_page()
        self._complaints: list[str] = []
        self._requests: list[str] = []
        self._page.on("console", lambda message: self._complaints.append(f"{message.type}: {message.text}"))
        self._page.on("pageerror", lambda error: self._complaints.append(f"exception: {error}"))
        self._page.on("request", lambda request: self._requests.append(request.url))

    def close(self) -> None:
        """Close the tab and forget what it stored."""
        self._context.close()

    def goto(self, path: Path) -> None:
        """Open a file and wait until it has loaded."""
        self._page.goto(path.resolve().as_uri(), wait_until="load")

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; a promise is waited for."""
        return self._page.evaluate(expression)

    def wait(self, expression: str, timeout_s: float = 20.0) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.02)

    def resize(self, width: int, height: int) -> None:
        """Set the viewport."""
        self._page.set_viewport_size({"width": width, "height": height})

    def media(self, *, scheme: str = "light", reduced_motion: bool = True) -> None:
        """Emulate the user's preferences."""
        self._page.emulate_media(
            color_scheme=scheme, reduced_motion="reduce" if reduced_motion else "no-preference"
        )

    def press(self, key: str) -> None:
        """One key stroke on whatever has the focus."""
        self._page.keyboard.press(key)

    def mouse(self, kind: str, x: float, y: float, *, down: bool = False) -> None:
        """ "mouseMoved", "mousePressed" or "mouseReleased"; ``down``: while the left button is held."""
        self._page.mouse.move(x, y)
        if kind == "mousePressed":
            self._page.mouse.down()
        elif kind == "mouseReleased":
            self._page.mouse.up()
        elif kind != "mouseMoved":
            raise ValueError(f"kind must be mouseMoved, mousePressed or mouseReleased, got {kind!r}")

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        self._page.mouse.click(x, y)

    def box(self, selector: str) -> dict[str, float]:
        """x, y, width and height of an element, scrolled into view."""
        return self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect();"
            "return {x: b.x, y: b.y, width: b.width, height: b.height}; })()"
        )

    def screenshot(self, path: Path | None = None, clip: dict[str, float] | None = None) -> bytes:
        """PNG of the whole page, or of a ``box`` of the viewport."""
        # Animations are left alone: a player's frames are not to be moved on for the picture.
        return self._page.screenshot(path=path, clip=clip, full_page=clip is None, animations="allow")

    def complaints(self) -> list[str]:
        """Whatever the page wrote to the console, and every exception."""
        self.evaluate("0")  # what is on its way arrives before the answer
        return list(self._complaints)

    def requests(self) -> list[str]:
        """Every address asked for, data and blob addresses inside the page left out."""
        self.evaluate("0")
        return [url for url in self._requests if not url.startswith(("data:", "blob:"))]


@contextmanager
def chromium(path: str) -> Iterator[Any]:
    """Start a browser; it is gone, with its profile, when the context closes.

    Playwright runs an event loop in this thread until then: keep the context short, or whatever else wants
    one fails.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
