"""One Chromium for all tests in a browser, a server for their files, and pages with explorers."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import pickle
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import numpy as np
import pytest
from ipywidgets.embed import dependency_state, embed_data
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.browser import NONE, launch
from siamcam_lib.book.vendor import vendor
from siamcam_lib.errors import BookError
from siamcam_lib.npm import archive, archives, unpack
from siamcam_lib.widgets import Explorer


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: requests are looked at in the browser."""


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def serve() -> Callable[[Path], AbstractContextManager[str]]:
    """Serves a folder on this machine, and gives its address."""
    return _serve


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; where there is none, the tests that ask for it say how to get one."""
    with sync_playwright() as playwright:
        if (chromium := launch(playwright)) is None:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NONE)
        yield chromium
        chromium.close()


# --- pages with explorers -------------------------------------------------------------------------

DRAWN = "(n) => document.querySelectorAll('.siamcam[data-drawn]').length >= n"
# What the view number k tells of what it has drawn; arrays of numbers as their bytes.
SEEN = """(k) => {
  const bytes = (array) => btoa(Array.from(new Uint8Array(array.buffer, array.byteOffset,
    array.byteLength), (b) => String.fromCharCode(b)).join(""));
  return JSON.stringify(document.querySelectorAll(".siamcam")[k].__siamcam, (_, value) =>
    ArrayBuffer.isView(value) ? { numbers: bytes(value), kind: value.constructor.name } : value);
}"""
KINDS = {"Float64Array": "<f8", "Float32Array": "<f4", "Uint32Array": "<u4", "Uint8Array": "u1"}
# Pictures are decoded before anything is drawn of them.
ARRIVED = """(all) => ["a", "b", "image"].every((trait) => !(trait in all) ||
  document.querySelector(".siamcam").__siamcam[trait] === all[trait])"""
PIXELS = """(canvas) => {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return { width, height, data: Array.from(data) };
}"""
LINKED = """<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>page</title>
<link rel="icon" href="data:,">
<script defer src="vendor/require.js"></script>
<script defer src="vendor/html-manager/libembed-amd.js" data-jupyter-widgets-cdn="about:invalid/">
</script><script defer src="widgets-local.js"></script>
<script type="application/vnd.jupyter.widget-state+json">{state}</script></head><body>{views}</body>
</html>"""


def _numbers(found: dict) -> object:
    if "numbers" not in found:
        return found
    return np.frombuffer(base64.b64decode(found["numbers"]), KINDS[found["kind"]])


@dataclass
class Opened:
    """A page that shows explorers, and all that went wrong in it."""

    page: Page
    wrong: list[str] = field(default_factory=list)

    def watch(self, *own: str) -> None:
        """Note every error, and every request that does not begin as one of its own."""
        own = (*own, "data:", "blob:")
        note = self.wrong.append
        self.page.on("request", lambda r: r.url.startswith(own) or note(r.url[:150]))
        self.page.on("pageerror", lambda e: note(str(e)[:300]))

    def seen(self, k: int = 0) -> dict:
        """What the explorer number k draws now, as its view tells it; arrays as arrays."""
        return json.loads(self.page.evaluate(SEEN, k), object_hook=_numbers)

    def put(self, **traits: float) -> dict:
        """Set traits through the file's own model, as no control's step allows."""
        self.page.evaluate("(all) => Object.entries(all).forEach((t) => window.put(...t))", traits)
        self.page.wait_for_function(ARRIVED, arg=traits)
        return self.seen()

    def pixels(self, k: int) -> np.ndarray:
        """The picture on canvas number k, (height, width, 4)."""
        found = self.page.locator(".siamcam canvas").nth(k).evaluate(PIXELS)
        return np.array(found["data"], float).reshape(found["height"], found["width"], 4)

    def overflows(self) -> bool:
        """Whether the page scrolls sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")

    def lightness(self, selector: str, colour: str) -> float:
        """Of a colour as it is computed, from 0 to 1."""
        style = "([s, c]) => getComputedStyle(document.querySelector(s))[c]"
        computed = self.page.evaluate(style, [selector, colour])
        return sum(map(int, computed[4:-1].split(","))) / 765


@pytest.fixture(scope="session")
def as_opened() -> type[Opened]:
    """Of a page that a test has opened itself: what its explorers draw."""
    return Opened


@pytest.fixture(scope="session")
def opened(browser) -> Callable[..., AbstractContextManager[Opened]]:
    """Opens an address, whose own requests begin with `own`, and waits for its explorers."""

    @contextlib.contextmanager
    def opened(url: str, own: str, scheme: str = "light", width: int = 1280, views: int = 1):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        context.set_default_timeout(60_000)
        here = Opened(page := context.new_page())
        here.watch(own)
        page.on("requestfailed", lambda r: here.wrong.append(f"{r.failure} {r.url[:150]}"))
        page.on("console", lambda m: m.type == "error" and here.wrong.append(m.text[:300]))
        try:
            page.goto(url, wait_until="load")
            page.wait_for_function(DRAWN, arg=views)
            yield here
        finally:
            context.close()
        assert here.wrong == []

    return opened


@pytest.fixture(scope="session")
def write_alone() -> Callable[..., Path]:
    """Writes an explorer as a file of its own, with a door for `Opened.put` in its module."""

    def write(explorer: Explorer, path: Path, title: str | None = None) -> Path:
        text = explorer.to_html(path, title).read_text("utf-8")
        opened = text.replace("\nrender({ model,", "\nwindow.put = model.set;\nrender({ model,")
        assert opened != text
        path.write_text(opened, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def write_linked(root) -> Callable[..., Path]:
    """Writes explorers on a page of ipywidgets without a kernel, as the book has them."""

    def write(explorers: list[Explorer], folder: Path) -> Path:
        vendor(folder / "vendor")
        shim = root / "book" / "_static" / "widgets-local.js"
        (folder / "widgets-local.js").write_bytes(shim.read_bytes())
        # their own state only: not of all widgets that this process has made
        state = dependency_state(explorers, drop_defaults=False)
        data = embed_data(explorers, state=state)

        def script(value: object) -> str:
            return json.dumps(value, default=str).replace("<", "\\u003c")

        views = "".join(
            f'<script type="application/vnd.jupyter.widget-view+json">{script(view)}</script>'
            for view in data["view_specs"]
        )
        state = script(data["manager_state"])
        assert len(state) < 3_000_000
        file = folder / "page.html"
        file.write_text(LINKED.format(state=state, views=views), encoding="utf-8")
        return file

    return write


# --- JupyterLab, with a live kernel ---------------------------------------------------------------


@pytest.fixture(scope="session")
def server(root, tmp_path_factory) -> Iterator[tuple[str, str, Path]]:
    """A JupyterLab of our own, with nobody's settings: its address, token and folder."""
    folder, own = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("settings")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, address = secrets.token_hex(), f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", "--allow-root",
        f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {name: str(own / name) for name in places}
    environment |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(root)}
    with (own / "log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            _wait(process, f"{address}/api/status?token={token}", own / "log")
            yield address, token, folder
        finally:
            process.terminate()  # and it ends its kernels
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, f"JupyterLab did not start:\n{log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer within two minutes:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def lab(browser, server) -> Callable[..., AbstractContextManager[Opened]]:
    """Opens a new notebook with these cells in JupyterLab, runs it, and waits for its explorers.

    What is given as `data` is there in the notebook under the name `data`.
    """
    address, token, folder = server
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

    @contextlib.contextmanager
    def opened(*cells: str, data: object = None, views: int = 1):
        name = secrets.token_hex(4)
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(data))
        load = f"import pickle; data = pickle.load(open('{name}.pickle', 'rb'))\n"
        made = [nbformat.v4.new_code_cell(text) for text in (load + cells[0], *cells[1:])]
        notebook = nbformat.v4.new_notebook(cells=made, metadata=kernel)
        nbformat.write(notebook, folder / f"{name}.ipynb")
        context = browser.new_context(viewport={"width": 1400, "height": 2400})
        context.set_default_timeout(90_000)
        here = Opened(page := context.new_page())
        here.watch(address, address.replace("http", "ws"))
        try:
            url = f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={token}"
            page.goto(url, wait_until="domcontentloaded")
            page.locator(".jp-CodeCell").first.wait_for()
            # before the kernel has started, running would ask which one is wanted
            page.get_by_text(re.compile(r"\| Idle$")).first.wait_for()
            page.get_by_role("menuitem", name="Run", exact=True).first.click()
            page.get_by_text("Run All Cells", exact=True).click()
            page.wait_for_function(DRAWN, arg=views)
            yield here
        finally:
            context.close()
        assert here.wrong == []

    return opened


# --- who cannot see or point ----------------------------------------------------------------------

# Only the tests need it: it comes as the site's scripts do, and is not part of the site.
AXE = {
    "name": "axe-core",
    "version": "4.10.3",
    "sha512": "Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLk"
    "uIoYZvGfTs/PbZhideTcEg==",
}
# What stands on a gradient is not judged, and such are the shades beneath all that can scroll.
VIOLATIONS = """async ([within, rules]) => {
  const options = { preload: false, resultTypes: ["violations"], ...(rules && { runOnly: rules }) };
  const plain = document.head.appendChild(document.createElement("style"));
  plain.textContent = "* { background-image: none !important }";
  const { violations } = await axe.run(within, options);
  plain.remove();
  return violations.filter(({ impact }) => ["serious", "critical"].includes(impact))
    .map(({ id, nodes }) => [id, nodes.slice(0, 3).map(({ html }) => html.slice(0, 150))]);
}"""


@pytest.fixture(scope="session")
def violations(tmp_path_factory) -> Callable[..., list]:
    """Lists serious and critical violations of all rules, or some, within a part of a page."""
    try:
        packed = archive(AXE, archives())
    except BookError as error:
        # an archive that is not the one described fails everywhere
        if "could not fetch" not in str(error) or os.environ.get("CI") == "true":
            raise
        pytest.skip(f"axe-core is not in the cache and there is no network to get it ({error})")
    folder = tmp_path_factory.mktemp("axe")
    (script,) = unpack(packed, {"package/axe.min.js": "axe.min.js"}, folder)

    def violations(page: Page, within: str, rules: list[str] | None = None) -> list:
        page.evaluate(script.read_text("utf-8"))
        return page.evaluate(VIOLATIONS, [within, rules])

    return violations
