"""The inspector as the tests run it, and the browser that they open it in."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from support.harness import ROOT

INSPECTOR = ROOT / "spaces" / "inspector"
ASSETS = INSPECTOR / "assets"
CHROMIUM = next(
    (
        path
        for path in (os.environ.get("CHROMIUM"), "/usr/bin/chromium", "/usr/bin/google-chrome")
        if path and Path(path).exists()
    ),
    None,
)


@contextmanager
def chromium():
    """Debian's Chromium, or that of CHROMIUM, without a window."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise FileNotFoundError(
            "the tests of the inspector need Chromium: apt-get install chromium"
        )
    with sync_playwright() as player:
        running = player.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()


@contextmanager
def inspector(data="", *, python=sys.executable, folder=INSPECTOR, **env):
    """A running inspector; gives its address."""
    port = free_port()
    running = subprocess.Popen(
        [python, "app.py"],
        cwd=folder,
        env=os.environ
        | {"SP2DPO_DATA": str(data), "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "0"}
        | {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
        | {"SP2DPO_PARENT": str(os.getpid())}  # it ends with the tests, also when they are killed
        | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        answers(url, lambda: running.poll() is None)
        yield url
    finally:
        running.terminate()
        running.stdin.close()
        running.wait(timeout=30)


def answers(url, lives=lambda: True):
    """Waits until there is a page."""
    end = time.monotonic() + 180
    while lives() and time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"nothing answers at {url}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def bare(running, *names):
    """An empty page that holds some files of the inspector's, to call what is in them."""
    page = running.new_page()
    for name in names:
        source = (ASSETS / f"{name}.js").read_text()
        source = re.sub(r"^const (\w+) =", r"globalThis.\1 =", source, flags=re.MULTILINE)
        page.evaluate("(source) => { (0, eval)(source); }", source)
    yield page
    page.close()
