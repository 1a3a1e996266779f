"""Draws the picture at the head of the README: two scenes, a decision, and its reasons.

.venv/bin/python examples/picture.py
"""

from pathlib import Path

import siamcam_lib as sc

OUT = Path(__file__).resolve().parents[1] / "book" / "_static" / "two_scenes.png"


def main(out: Path = OUT) -> None:
    """Train on scenes, explain the test pair that is most surely dissimilar, and save it."""
    images = sc.datasets.load("scenes/flowers")
    split = sc.pairs.split(images, seed=0)
    net = sc.SiameseNet()
    sc.fit(net, split, seed=0, progress=False)
    pairs = sc.pairs.sample(split.test, seed=0)
    report = sc.evaluate(net, pairs, progress=False)
    k = int(report.score.argmax())
    ex = sc.explain(net, split.test.image(pairs.a[k]), split.test.image(pairs.b[k]))
    sc.plots.use_style()
    ex.plot().savefig(out, dpi=110)


if __name__ == "__main__":
    main()
