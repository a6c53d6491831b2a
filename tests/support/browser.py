"""Chromium as a test looks through it: a page at a width, light or dark, printed, pointed at.

Speaks the DevTools protocol over two pipes (``--remote-debugging-pipe``): no port, no driver.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""To wait for an answer on a busy machine."""


class Browser:
    """One tab. ``events`` are what the browser told of itself, in order."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self.process, self.to, self.back = process, to, back
        self.number, self.session, self.unread = 0, "", b""
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.back], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            got = os.read(self.back, 1 << 20)
            assert got, "the browser has ended"
            self.unread += got
        text, _, self.unread = self.unread.partition(b"\0")
        return dict(json.loads(text))

    def open(self, page: Path, width: int = 1200, *, dark: bool = False, printed: bool = False) -> None:
        """Show ``page`` in a window of ``width`` pixels, with events of this page alone."""
        self.look(width, dark=dark, printed=printed)
        self.events.clear()
        self.ask("Page.navigate", url=page.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def look(self, width: int = 1200, *, dark: bool = False, printed: bool = False) -> None:
        """The same page in another width or light."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media="print" if printed else "", features=[scheme])

    def value(self, script: str) -> Any:
        """What ``script`` is on the page, as JSON has it."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def point(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """A key down and up."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def shot(self, path: Path) -> Path:
        """The whole page as a PNG."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        got = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(got["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it is printed, on A4."""
        got = self.ask("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(got["data"]))
        return path

    def complaints(self) -> list[str]:
        """Errors on the console, scripts that failed, and addresses outside that were asked for."""
        found = []
        for event in self.events:
            method, what = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent":
                address = what["request"]["url"]
                found += [address] * (not address.startswith(("file:", "data:")))
            elif method == "Runtime.exceptionThrown":
                found.append(str(what["exceptionDetails"]))
            elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
                found.append(str(what["entry"]["text"]))
            elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
                found.append(str(what["args"]))
        return found


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Browser]:
    """A headless ``program`` with its profile in ``folder``; it has ended afterwards."""
    its_in, ours_out = os.pipe()
    ours_in, its_out = os.pipe()

    def third_and_fourth() -> None:
        spare = [os.dup(its_in), os.dup(its_out)]  # either may be 3 or 4 itself
        os.dup2(spare[0], 3)
        os.dup2(spare[1], 4)

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [program, *options, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=third_and_fourth,
        close_fds=False,
        start_new_session=True,
    )
    os.close(its_in)
    os.close(its_out)
    try:
        found = Browser(process, ours_out, ours_in)
        pages = [t for t in found.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        while not pages:
            pages = [t for t in found.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = pages[0]["targetId"]
        found.session = found.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            found.ask(f"{domain}.enable")
        yield found
    finally:
        os.close(ours_out)
        os.close(ours_in)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
