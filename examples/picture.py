"""Draws the picture at the head of the README: two scenes, a decision, and its reasons.

.venv/bin/python examples/picture.py
"""

from pathlib import Path

import numpy as np

import siamcam_lib as sc

OUT = Path(__file__).resolve().parents[1] / "book" / "_static" / "two_scenes.jpg"


def main(out: Path = OUT) -> None:
    """Train on scenes; of the twelve pairs least alike, save the one both pictures speak in."""
    images = sc.datasets.load("scenes/flowers", n=300)
    split = sc.pairs.split(images, seed=0)
    net = sc.SiameseNet()
    sc.fit(net, split, seed=0, views=("plain",), progress=False)
    pairs = sc.pairs.sample(split.test, seed=0)
    least = np.argsort(-sc.evaluate(net, pairs, progress=False).score)[:12]
    sides = ([split.test.image(int(i)) for i in side[least]] for side in (pairs.a, pairs.b))
    explained = sc.explain(net, *sides)
    ex = max(explained, key=lambda ex: ex.top and min(m.max() for m in ex.factual) / ex.top)
    sc.plots.use_style()
    ex.plot().savefig(out, dpi=110, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
