"""Drive the system's Chromium over the DevTools protocol, through a pipe: no package, no port, no network."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
ABOVE_STANDARD_STREAMS = 10
KEY_CODES = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
    " ": 32,
}


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Connection:
    """Commands to the browser and the events that came back, one JSON message up to every zero byte."""

    def __init__(self, reading: int, writing: int, timeout_s: float = 30.0) -> None:
        self._reading, self._writing, self._timeout_s = reading, writing, timeout_s
        self._buffer = b""
        self._sent = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Run one command and return its result; events that arrive meanwhile are kept."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._sent:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._reading, 1 << 20) if ready else b""
            if not piece:
                raise TimeoutError(f"the browser did not answer within {self._timeout_s:g} s")
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """One tab. Coordinates are CSS pixels of the viewport."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        target = connection.send("Target.createTarget", url="about:blank")["targetId"]
        attached = connection.send("Target.attachToTarget", targetId=target, flatten=True)
        self._target, self._session = target, attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A raw command of the protocol."""
        return self._connection.send(method, self._session, **parameters)

    def close(self) -> None:
        """Close the tab."""
        self._connection.send("Target.closeTarget", targetId=self._target)

    def goto(self, path: Path) -> None:
        """Open a file and wait until it has loaded."""
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; a promise is waited for."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", answer))
        return answer["result"].get("value")

    def wait(self, expression: str, timeout_s: float = 20.0) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.02)

    def resize(self, width: int, height: int) -> None:
        """Set the viewport."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def media(self, *, scheme: str = "light", reduced_motion: bool = True) -> None:
        """Emulate the user's preferences."""
        motion = "reduce" if reduced_motion else "no-preference"
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self.send(
            "Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()]
        )

    def press(self, key: str) -> None:
        """One key stroke on whatever has the focus."""
        text = key if len(key) == 1 else ""
        code = KEY_CODES.get(key) or ord(key.upper())
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    def mouse(self, kind: str, x: float, y: float, *, down: bool = False) -> None:
        """ "mouseMoved", "mousePressed" or "mouseReleased"; ``down``: while the left button is held."""
        button = "left" if down or kind != "mouseMoved" else "none"
        held = 1 if down or kind == "mousePressed" else 0
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=held, clickCount=1)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

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
        extra: dict[str, Any] = {"captureBeyondViewport": clip is None}
        if clip is not None:
            scroll = self.evaluate("[scrollX, scrollY]")
            extra["clip"] = {**clip, "x": clip["x"] + scroll[0], "y": clip["y"] + scroll[1], "scale": 1}
        png = base64.b64decode(self.send("Page.captureScreenshot", format="png", **extra)["data"])
        if path is not None:
            path.write_bytes(png)
        return png

    def events(self, *methods: str) -> list[dict[str, Any]]:
        """Parameters of the events of these kinds so far."""
        self.evaluate("0")  # what is on its way arrives before the answer
        return [
            event.get("params", {})
            for event in self._connection.events
            if event.get("sessionId") == self._session and event.get("method") in methods
        ]

    def complaints(self) -> list[str]:
        """Whatever the page wrote to the console, and every exception."""
        events = self.events("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event) for event in events]

    def requests(self) -> list[str]:
        """Every address asked for, data and blob addresses inside the page left out."""
        asked = (event["request"]["url"] for event in self.events("Network.requestWillBeSent"))
        return [url for url in asked if not url.startswith(("data:", "blob:"))]


@contextmanager
def chromium(path: str) -> Iterator[Connection]:
    """Start a browser with an empty profile; it is gone, with its profile, when the context closes."""
    profile = tempfile.mkdtemp(prefix="chromium-profile-")
    pipes = [_high(fd) for pair in (os.pipe(), os.pipe()) for fd in pair]
    to_read, to_write, from_read, from_write = pipes
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, to_read, 3),
        (os.POSIX_SPAWN_DUP2, from_write, 4),
    ]
    arguments = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    pid = os.posix_spawn(path, arguments, os.environ, file_actions=actions)
    os.close(to_read)
    os.close(from_write)
    connection = Connection(from_read, to_write)
    try:
        yield connection
    finally:
        with suppress(Exception):
            connection.send("Browser.close")
        os.close(to_write)
        os.close(from_read)
        _reap(pid)
        shutil.rmtree(profile, ignore_errors=True)


def _high(fd: int) -> int:
    """The same pipe end at a number that 3 and 4 of the child cannot collide with."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, ABOVE_STANDARD_STREAMS)
    os.close(fd)
    return moved


def _reap(pid: int, patience_s: float = 5.0) -> None:
    deadline = time.monotonic() + patience_s
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.02)
