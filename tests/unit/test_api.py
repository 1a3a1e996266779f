"""The reference has every public name of the library, each once."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import siamcam_lib as sc

ROOT = Path(__file__).resolve().parents[2]
api = SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "_ext" / "api.py")))
ASKED = re.compile(r"^```\{api\} (\S+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def shown() -> Counter:
    """Module and name of all that the pages show."""
    pages = (ROOT / "book" / "appendix").glob("api*.md")
    asked = [found for page in pages for found in ASKED.findall(page.read_text("utf-8"))]
    return Counter(
        (module, name)
        for module, content in asked
        for name in content.split() or api.offered(module)
    )


def test_every_public_name_is_shown_once(shown):
    modules = {module for module, _ in shown}
    missing = {
        name
        for name in sc.__all__
        if ("siamcam_lib", name) not in shown and f"siamcam_lib.{name}" not in modules
    }
    assert missing == set()
    assert [name for name, times in shown.items() if times > 1] == []
    assert len(shown) > 100


def test_everything_shown_is_there_and_says_what_it_is(shown):
    for module, name in shown:
        value = getattr(sys.modules[module], name)
        text = api.described(module, name)
        assert f"{module}.{name}" in text
        if inspect.isclass(value) or inspect.isroutine(value):
            assert text.startswith(".. auto") and inspect.getdoc(value), name


def test_what_is_not_public_is_not_offered():
    assert "pair_maps" in api.offered("siamcam_lib.gradcam")
    assert not {"Tensor", "dataclass", "torch"} & set(api.offered("siamcam_lib.gradcam"))
    assert "Report" not in api.offered("siamcam_lib.evaluation")  # sc.Report is it
