"""`python -m siamcam_lib.book`: run the chapters and build the site; what `make book` calls."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from siamcam_lib.book.build import build
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
        "--fresh", action="store_true", help="run every chapter, also those with nothing changed"
    )
    chosen = parser.parse_args(arguments)
    limits: dict[str, Any] = (
        {} if chosen.profile == "quick" else {"cell_timeout": 36e3, "chapter_timeout": 72e3}
    )
    output = chosen.root / "_build"
    try:
        run_chapters(
            chosen.root,
            output / "stage",
            data=chosen.data,
            profile=chosen.profile,
            seed=chosen.seed,
            only=with_results(chosen.root) if chosen.results else chosen.only,
            reuse=not chosen.fresh,
            **limits,
        )
        build(chosen.root, output / "stage", output / "html")
    except SiamcamError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; chapters that had ended are kept in", output / "stage", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs, as Ctrl-C does
    sys.exit(main())
