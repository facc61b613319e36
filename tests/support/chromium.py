"""A page in headless Chromium, over its debugging pipe: nothing but the browser is needed.

with Page.open(file) as page: page.size(375); page.evaluate("document.body.scrollWidth"); page.requests
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)


def browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """`requests`: the addresses that the page has asked for, its own among them."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self.commands, self.answers = commands, answers
        self.number = 0
        self.session: str | None = None
        self.requests: list[str] = []
        self.loaded = False

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[Page]:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        with tempfile.TemporaryDirectory() as profile:
            words = " ".join((*FLAGS, f"--user-data-dir={profile}", "about:blank"))
            shell = f"exec {browser()} {words} 3<&{to_read} 4>&{from_write}"
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(
                ["bash", "-c", shell], pass_fds=(to_read, from_write), stdout=quiet, stderr=quiet
            )
            os.close(to_read)
            os.close(from_write)
            with open(to_write, "wb", buffering=0) as commands, open(from_read, "rb") as answers:  # noqa: PTH123 - numbers
                page = cls(commands, answers)
                try:
                    page.load(file)
                    yield page
                finally:
                    with suppress(OSError, EOFError):
                        page.session = None
                        page.tell("Browser.close")
                    process.kill()
                    process.wait()

    def tell(self, method: str, **given: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its answer."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        self.commands.write(
            json.dumps({"id": self.number, "method": method, "params": given, **session}).encode() + b"\0"
        )
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def next(self) -> dict[str, Any]:
        """The next message; what is asked for is noted."""
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            if not byte:
                raise EOFError("the browser has gone")
            text += byte
        message = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        self.loaded = self.loaded or message.get("method") == "Page.loadEventFired"
        return message

    def load(self, file: Path) -> None:
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.tell("Network.enable")
        self.tell("Page.enable")
        self.tell("Page.navigate", url=file.resolve().as_uri())
        while not self.loaded:
            self.next()

    def size(self, width: int, dark: bool = False, height: int = 900) -> None:
        mobile = width < 600
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        value = "dark" if dark else "light"
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def evaluate(self, script: str) -> Any:
        return self.tell("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def picture(self, file: Path, top: int = 0, height: int = 2400) -> None:
        """A part of the page as PNG."""
        width = self.evaluate("window.innerWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.tell("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))
