"""Words of a page that the glossary explains."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
terms = SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "_ext" / "terms.py")))
GLOSSARY = """# Glossary

```{glossary}
deletion, insertion
  Two measures.

feature map
  What a backbone
  gives.

AUC
  An area.
```

not a term
"""


def test_every_word_knows_its_entry():
    assert terms.words(GLOSSARY) == {
        "deletion": "deletion, insertion", "insertion": "deletion, insertion",
        "feature map": "feature map", "AUC": "AUC",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Feature maps and deletions", ["Feature maps", "deletions"]),
        ("an AUC, no auc", ["AUC"]),
        ("remaps, feature-map, deletional", []),
        ("insertion: it", ["insertion"]),
    ],
)
def test_what_counts_as_a_use(text, found):
    assert terms.pattern(terms.words(GLOSSARY)).findall(text) == found


def test_the_book_s_own_glossary_is_read():
    known = terms.words((ROOT / f"{terms.GLOSSARY}.md").read_text("utf-8"))
    assert {"embedding", "Grad-CAM", "planted truth", "shared map"} <= set(known)
