"""`python -m siamcam_lib.book`: run the chapters and build the site; what `make book` calls."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

from siamcam_lib.book.build import build, is_built, summary
from siamcam_lib.book.run import run_chapters, with_results
from siamcam_lib.errors import SiamcamError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, build; 1 and a message for people where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m siamcam_lib.book", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="folder that holds _toc.yml")
    parser.add_argument("--data", default="auto", help="auto, scenes, real, or a folder")
    parser.add_argument("--profile", default="quick", choices=["quick", "full"])
    parser.add_argument("--seed", type=int, default=0)
    some = parser.add_mutually_exclusive_group()
    some.add_argument(
        "--only",
        help="run this page only, e.g. book/cases/flowers; the others stay as they are, and those "
        "never run are shown without results",
    )
    some.add_argument(
        "--results",
        action="store_true",
        help="run only the chapters whose numbers stand on the results page",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="run every chapter and build the site, also where nothing has changed",
    )
    chosen = parser.parse_args(arguments)
    limits: dict[str, Any] = (
        {} if chosen.profile == "quick" else {"cell_timeout": 36e3, "chapter_timeout": 72e3}
    )
    stage, site = (chosen.root / "_build" / name for name in ("stage", "html"))
    first, start = site.resolve() / "index.html", time.monotonic()
    try:
        run_chapters(
            chosen.root,
            stage,
            data=chosen.data,
            profile=chosen.profile,
            seed=chosen.seed,
            only=with_results(chosen.root) if chosen.results else chosen.only,
            reuse=not chosen.fresh,
            **limits,
        )
        if not chosen.fresh and is_built(chosen.root, stage, site):
            print("Nothing that goes into the pages has changed, so they stay as they are.")
        else:
            build(chosen.root, stage, site)
            print(summary(stage))
    except SiamcamError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; chapters that had ended are kept in", stage, file=sys.stderr)
        return 130
    print(f"This took {time.monotonic() - start:.1f} s from beginning to end.")
    print(f"The book is at {first}", flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs, as Ctrl-C does
    sys.exit(main())
