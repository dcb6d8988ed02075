"""The built site served by a plain file server and opened in Chromium, for tests and record.py."""

import contextlib
import functools
import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import npm
from selenium import webdriver

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "headless=new no-sandbox disable-gpu disable-dev-shm-usage no-first-run disable-sync disable-background-networking "
    "disable-component-update"
)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Files(http.server.SimpleHTTPRequestHandler):
    """Files as they are, without a log."""

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path, handler: type[Files] = Files) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def browser(script: str | None = None, size: str = "1280,1400") -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile that reaches no other host; `script` runs before the page's own."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--window-size={size}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)
    if script:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(condition: Callable[[], Any], seconds: float = 90, what: str = "the page") -> Any:
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


def emulate(page: webdriver.Chrome, width: int, height: int, scheme: str) -> None:
    """Another screen; a narrow one is a phone's. scheme: "light" or "dark"."""
    metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def unemulate(page: webdriver.Chrome) -> None:
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def accessibility_faults(page: webdriver.Chrome) -> list[str]:
    """What axe-core finds serious or critical on the page: its rule, and the first place."""
    page.execute_script(npm.read("axe-core", "axe.min.js").decode())
    found = page.execute_async_script("const done = arguments[0]; axe.run().then((result) => done(result.violations));")
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    return [f"{each['help']}: {each['nodes'][0]['html']} ({len(each['nodes'])} places)" for each in serious]


def asked(page: webdriver.Chrome) -> set[str]:
    """The addresses that the page has requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return {each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"}
