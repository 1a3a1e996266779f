"""The pair explorer in JupyterLab with a live kernel: it answers, and the kernel hears of it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest

import siamcam_lib as sc

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

MAKE = """\
import torch, siamcam_lib as sc
from siamcam_lib.widgets import pair_explorer
torch.manual_seed(0)
images = sc.datasets.load("scenes/flowers", n=10)
gal = sc.Gallery.embed(sc.SiameseNet(image_size=64), images, progress=False)
explorer = pair_explorer(gal)
"""
HEARD = "print('heard', explorer.view.a, explorer.view.b, explorer.view.map)"
SEEN = """() => {
  const { a, b, kind, dissimilarity, decision, threshold, raw } =
    document.querySelector(".siamcam").__siamcam;
  return { a, b, kind, dissimilarity, decision, threshold, raw: raw.map((m) => Array.from(m)) };
}"""
SHOWS = """(wanted) => Object.entries(wanted).every(([name, value]) =>
  document.querySelector(".siamcam").__siamcam?.[name] === value)"""


@pytest.fixture(scope="module")
def lab(root, tmp_path_factory):
    """The address of a notebook in a JupyterLab of our own, with nobody's settings."""
    folder, own = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("settings")
    cells = [nbformat.v4.new_code_cell(text) for text in (MAKE + "explorer", HEARD)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, folder / "pairs.ipynb")
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
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            _wait(server, f"{address}/api/status?token={token}", own / "log")
            yield address, f"{address}/lab/tree/pairs.ipynb?token={token}"
        finally:
            server.terminate()  # and it ends its kernels
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, f"JupyterLab did not start:\n{log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not answer within two minutes:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def gal() -> sc.Gallery:
    """What the notebook makes, made here."""
    made: dict = {}
    exec(MAKE, made)
    return made["gal"]


def test_the_explorer_answers_and_the_kernel_hears(browser, lab, gal):
    base, notebook = lab
    context = browser.new_context(viewport={"width": 1400, "height": 1600})
    context.set_default_timeout(60_000)
    page = context.new_page()
    wrong: list[str] = []
    own = (base, base.replace("http", "ws"), "data:", "blob:")
    page.on("request", lambda r: r.url.startswith(own) or wrong.append(r.url[:150]))
    page.on("pageerror", lambda e: wrong.append(str(e)[:300]))

    def shows(ex: sc.Explanation, **wanted: object) -> None:
        page.wait_for_function(SHOWS, arg=wanted)
        seen = page.evaluate(SEEN)
        assert {name: seen[name] for name in wanted} == wanted
        assert seen["dissimilarity"] == pytest.approx(ex.dissimilarity, rel=1e-9)
        assert seen["decision"] == ex.decision
        for found, raw in zip(seen["raw"], ex.raw, strict=True):
            assert np.abs(np.array(found) - raw.ravel()).max() <= 1e-3 * np.abs(raw).max()

    try:
        page.goto(notebook, wait_until="domcontentloaded")
        page.locator(".jp-CodeCell").nth(1).wait_for()
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).first.click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_function("document.querySelector('.siamcam')?.dataset.drawn > 0")
        shows(gal.explain(0, 1), a=0, b=1, kind="factual", threshold=gal.threshold)

        page.locator(".siamcam-controls select").first.select_option(index=7)
        shows(gal.explain(7, 1), a=7, b=1)
        page.get_by_role("listbox", name="image B").get_by_role("option").nth(4).click()
        shows(gal.explain(7, 4), a=7, b=4)
        page.keyboard.press("ArrowRight")  # of the list, not of JupyterLab's cells
        shows(gal.explain(7, 5), a=7, b=5)
        page.get_by_role("button", name="shared", exact=True).click()
        shows(gal.explain(7, 5, method="shared"), b=5, kind="shared")
        page.get_by_role("button", name="factual", exact=True).click()
        for key, decision in [("Home", "dissimilar"), ("End", "similar")]:
            page.get_by_role("slider", name="threshold").press(key)
            page.wait_for_function(SHOWS, arg={"decision": decision})
            threshold = page.evaluate(SEEN)["threshold"]
            assert threshold < 0.02 if key == "Home" else threshold > 0.98
            shows(gal.explain(7, 5, threshold=threshold), kind="factual", decision=decision)

        page.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        page.get_by_text("heard 7 5 0", exact=True).wait_for()
    finally:
        context.close()
    assert wrong == []
