"""Runs the chapters of the book once and renders the result; the introduction says how.

`run` executes every notebook of `_toc.yml` into a staging folder, `vendor` and `models` put the
scripts and the models of the pages there, `build` renders the staged copies. The same staged run
serves the tests and the pages.
"""

from siamcam_lib.book.build import build
from siamcam_lib.book.run import ChapterRun, chapters, run_chapters

__all__ = ["ChapterRun", "build", "chapters", "run_chapters"]
