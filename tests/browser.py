"""A headless Chromium driven over its debugging protocol: enough to look at a page, click on it and read its errors."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Page:
    """One page; every method is a coroutine."""

    def __init__(self, socket: Any, session: str) -> None:
        self._socket, self._session, self._number = socket, session, 0
        self.errors: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        while True:
            data = json.loads((await asyncio.wait_for(self._socket.receive(), 120)).data)
            self._note(data)
            if data.get("id") == number:
                if "error" in data:
                    raise RuntimeError(f"{method}: {data['error']}")
                return data["result"]

    def _note(self, data: dict[str, Any]) -> None:
        kind, parameters = data.get("method"), data.get("params", {})
        if kind == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details.get("text"))))
        elif kind == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.errors.append(str([arg.get("value") for arg in parameters["args"]]))
        elif kind == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"])

    async def value(self, expression: str) -> Any:
        """What JavaScript gives."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    async def until(self, expression: str, seconds: float = 60) -> None:
        """Wait for something to become true."""
        for _ in range(int(seconds * 10)):
            if await self.value(expression):
                return
            await asyncio.sleep(0.1)
        raise TimeoutError(expression)

    async def size(self, width: int, height: int) -> None:
        mobile = width < 700
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )

    async def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            await asyncio.sleep(0.1)

    async def picture(self, path: Path, whole: bool = True) -> None:
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


async def _drive(url: str, width: int, height: int, steps: Any) -> Any:
    import aiohttp

    with tempfile.TemporaryDirectory() as profile:
        process = await asyncio.create_subprocess_exec(
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stderr is not None
            address = ""
            while not address:
                line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
                found = re.search(r"ws://\S+", line)
                address = found.group(0) if found else ""
            async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
                browser = Page(socket, "")
                target = (await browser.send("Target.createTarget", url="about:blank"))["targetId"]
                attached = await browser.send("Target.attachToTarget", targetId=target, flatten=True)
                page = Page(socket, attached["sessionId"])
                for domain in ("Page", "Runtime", "Log"):
                    await page.send(f"{domain}.enable")
                await page.size(width, height)
                await page.send("Page.navigate", url=url)
                return await steps(page)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def drive(url: str, width: int, height: int, steps: Any) -> Any:
    """Open a page at a size and run a coroutine function on it."""
    return asyncio.run(_drive(url, width, height, steps))
