"""`python -m benchmarks`: what explanations cost, as ratios measured side by side.

Printed, and written to ``benchmarks/out``, with the processor's name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import collection, explorer, gallery, own, pair

OUT = Path(__file__).parent / "out"


def main() -> None:
    """Measure everything and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", type=int, default=512, help="images whose pairs are explained")
    parser.add_argument("--on-disk", type=int, default=100_000, help="images of the stored gallery")
    parser.add_argument("--pictures", type=int, default=320, help="JPEG files that are looked at")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="searched among")
    parser.add_argument("--only", choices=("pair", "gallery", "collection", "explorer", "own"))
    chosen = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    tables = {
        "pair": lambda: pair.table(chosen.rounds),
        "gallery": lambda: gallery.table(chosen.images, chosen.on_disk, chosen.rounds),
        "collection": lambda: collection.table(chosen.pictures, chosen.vectors, 5),
        "explorer": lambda: explorer.table(chosen.rounds),
        "own": lambda: own.table(chosen.rounds),
    }
    for name, make in tables.items():
        if chosen.only in (None, name):
            text = make()
            print(text, end="\n\n")
            (OUT / f"{name}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
