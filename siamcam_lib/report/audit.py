"""`audit`: what a network gets right and wrong on a set of pictures, why, and what to do about it.

Taught in the chapter on your own photographs; ``siamcam evaluate`` writes its page. Every piece of
advice follows from a measure by a rule that stands on the page with the measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siamcam_lib.cache import FeatureCache
from siamcam_lib.datasets import ImageSet
from siamcam_lib.embedder import as_explainable
from siamcam_lib.evaluation import Estimate, Report, blank, energy, evaluate, mean_interval
from siamcam_lib.explanation import Explanation, stretch
from siamcam_lib.gallery import Gallery
from siamcam_lib.model import SiameseNet
from siamcam_lib.pairs import PairSet, sample
from siamcam_lib.report import page

HARDEST = 6
"""Pairs of either kind that are shown."""
EXPLAINED = 200
"""Pairs whose maps are measured, drawn at random where there are more."""
BORDER, CENTRE, SIDE = 0.1, 0.5, 40
"""Width of the border and side of the centre, in sides of the picture; pixels of that side."""


@dataclass(frozen=True)
class ClassPair:
    """All judged pairs of two classes, or of one.

    Attributes:
        classes: Names of both, equal for similar pairs.
        pairs: How many.
        accuracy: Share judged rightly.
        dissimilarity: Their mean y.
    """

    classes: tuple[str, str]
    pairs: int
    accuracy: float
    dissimilarity: float


@dataclass(frozen=True)
class HardPair:
    """A pair to look at.

    Attributes:
        names: Of both pictures.
        classes: Of both pictures.
        right: Whether it was judged rightly.
        explanation: By Grad-CAM.
    """

    names: tuple[str, str]
    classes: tuple[str, str]
    right: bool
    explanation: Explanation


@dataclass(frozen=True)
class Evidence:
    """What the factual maps of some pairs rest on.

    Attributes:
        pairs: How many were explained.
        border: Share of the evidence in the outer tenth on every side, over the share of the
            picture that this is (0.36): 1 where the evidence is even. None if all maps are blank.
        centre: The same for the middle half (0.25 of the picture).
        blank: Share of maps that are zero everywhere.
        mean: Mean of the maps that are not, each with the sum 1, (40, 40) float32.
    """

    pairs: int
    border: Estimate | None
    centre: Estimate | None
    blank: float
    mean: np.ndarray

    def times(self, where: str) -> str:
        """The share at the ``"border"`` or in the ``"centre"``, in words."""
        ratio = getattr(self, where)
        return (
            "unknown, all maps are blank" if ratio is None else f"{ratio:.2f} times the even share"
        )


@dataclass(frozen=True)
class Check:
    """A measure, the rule that looks at it, and what the rule advises.

    Attributes:
        measure: What was measured, with its value.
        rule: When advice is given.
        fires: Whether it is.
        advice: What to do then.
    """

    measure: str
    rule: str
    fires: bool
    advice: str


@dataclass(frozen=True)
class Audit:
    """What `audit` found.

    Attributes:
        images: What was judged.
        pairs: Each image with a partner of its class and one of another.
        report: Metrics of these pairs.
        calibration_error: See `calibration_error`.
        classes: Every two classes that were compared, worst first.
        wrong: The most confident wrong judgements.
        doubtful: The judgements nearest to the threshold.
        evidence: What the maps rest on.
        checks: All rules, whether they fire or not.
        digest: Of the network.
        seed: Of pairs and bootstrap.
    """

    images: ImageSet
    pairs: PairSet
    report: Report
    calibration_error: float
    classes: tuple[ClassPair, ...]
    wrong: tuple[HardPair, ...]
    doubtful: tuple[HardPair, ...]
    evidence: Evidence
    checks: tuple[Check, ...]
    digest: str
    seed: int

    def __repr__(self) -> str:
        fired = sum(check.fires for check in self.checks)
        return f"Audit({self.images.name!r}, {len(self.pairs)} pairs, {fired} rules fire)"

    def record(self) -> dict[str, Any]:
        """All numbers, as JSON takes them; ``format`` and ``version`` say how to read them."""
        metrics = {name: Estimate(value, *self.report.intervals[name])._asdict()
                   for name, value in self.report}  # fmt: skip
        rests = self.evidence
        shares = {"border": rests.border, "centre": rests.centre}
        evidence = {name: share and share._asdict() for name, share in shares.items()}
        return {
            "format": "siamcam-evaluation", "version": 1,
            "images": {"name": self.images.name, "count": len(self.images),
                       "digest": self.images.fingerprint()},
            "network": self.digest, "seed": self.seed,
            "pairs": len(self.pairs), "threshold": self.report.threshold, "metrics": metrics,
            "calibration_error": self.calibration_error,
            "classes": [vars(row) for row in self.classes],
            "wrong": [_short(pair) for pair in self.wrong],
            "doubtful": [_short(pair) for pair in self.doubtful],
            "evidence": evidence | {"pairs": rests.pairs, "blank": rests.blank},
            "checks": [vars(check) for check in self.checks],
        }  # fmt: skip

    def to_html(self, path: str | Path) -> Path:
        """Write the report as one page that needs nothing else, whole or not at all.

        Raises:
            EvaluationError: if it cannot be written.
        """
        return page.write(Path(path), f"Report on {self.images.name}", page.body(self))


def audit(
    net: SiameseNet,
    images: ImageSet,
    *,
    seed: int = 0,
    cache: FeatureCache | None = None,
    progress: bool = True,
) -> Audit:
    """Judge a network on pictures it has not seen, and say what the numbers ask for.

    Args:
        net: Trained and calibrated.
        images: At least two classes. Pictures the network was trained on flatter it.
        seed: Of the pairs and of the bootstrap.
        cache: Feature cache; by default the user's.
        progress: Show progress bars.

    Raises:
        PairError: if no pairs can be made.
        EvaluationError: if a score is not finite.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> audit(sc.SiameseNet(image_size=64), images, progress=False)
        Audit('scenes/flowers', 20 pairs, ... rules fire)
    """
    pairs = sample(images, seed)
    report = evaluate(net, pairs, seed=seed, cache=cache, progress=progress)
    right = (report.score >= report.threshold) == report.label
    margin = np.abs(report.score - report.threshold)
    nearest = np.argsort(margin, kind="stable")
    wrong = nearest[~right[nearest]][::-1][:HARDEST]
    doubtful = [k for k in nearest if k not in wrong][:HARDEST]
    random = np.random.default_rng(seed)
    drawn = np.sort(random.permutation(len(pairs))[:EXPLAINED])
    looked = [*drawn, *wrong, *doubtful]
    used = np.unique([pairs.a[looked], pairs.b[looked]])
    gallery = Gallery.embed(net, images.subset(used), progress=progress)
    place = {int(i): k for k, i in enumerate(used)}

    def explained(k: int) -> Explanation:
        return gallery.explain(place[int(pairs.a[k])], place[int(pairs.b[k])])

    def hard(k: int) -> HardPair:
        ends = int(pairs.a[k]), int(pairs.b[k])
        one, two = (images.items[i] for i in ends)
        its, other = (images.classes[images.labels[i]] for i in ends)
        ex = explained(k)  # a second look, rounded otherwise: at the threshold its decision counts
        rightly = (ex.decision == "dissimilar") == bool(report.label[k])
        return HardPair((one, two), (its, other), rightly, ex)

    rests = evidence([explained(k) for k in drawn], pairs.a[drawn], seed)
    error = calibration_error(report.score, report.label)
    rows = class_pairs(pairs, report)
    return Audit(
        images, pairs, report, error, rows, tuple(map(hard, wrong)), tuple(map(hard, doubtful)),
        rests, checks(report, error, rows, rests), as_explainable(net).digest(), seed,
    )  # fmt: skip


# --- measures -----------------------------------------------------------------------------------


def calibration_error(score: np.ndarray, label: np.ndarray) -> float:
    r"""How far y is from the share of dissimilar pairs among those that get it: in [0, 1].

    :math:`\sum_k \tfrac{m_k}{m} \lvert \bar y_k - \bar l_k \rvert` over at most ten bins of equally
    many pairs, at least twenty each (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602).

    Args:
        score: (m,) dissimilarities.
        label: (m,) 0 similar, 1 dissimilar.

    Example:
        >>> calibration_error(np.array([0.2, 0.2, 0.9, 0.9]), np.array([0, 0, 1, 1])).__round__(2)
        0.05
    """
    bins = np.array_split(np.argsort(score, kind="stable"), min(10, max(1, len(score) // 20)))
    gaps = [abs(float(score[k].sum() - label[k].sum())) for k in bins]
    return sum(gaps) / len(score)


def class_pairs(pairs: PairSet, report: Report) -> tuple[ClassPair, ...]:
    """Every two classes that were compared, by accuracy, worst first."""
    labels, names = pairs.images.labels, pairs.images.classes
    both = np.sort(np.stack([labels[pairs.a], labels[pairs.b]], axis=1), axis=1)
    right = (report.score >= report.threshold) == report.label
    rows = []
    for c, d in np.unique(both, axis=0):
        among = (both == (c, d)).all(axis=1)
        accuracy, y = float(right[among].mean()), float(report.score[among].mean())
        rows.append(ClassPair((names[c], names[d]), int(among.sum()), accuracy, y))
    return tuple(sorted(rows, key=lambda row: (row.accuracy, -row.pairs)))


def evidence(found: Sequence[Explanation], anchor: np.ndarray, seed: int = 0) -> Evidence:
    """What the factual maps rest on.

    Args:
        found: Explanations of pairs.
        anchor: (m,) what is not independent of each other.
        seed: Of the bootstrap.
    """
    signs = [1 if ex.decision == "similar" else -1 for ex in found]
    raws = [(torch.from_numpy(raw) * sign) for ex, sign in zip(found, signs, strict=True)
            for raw in ex.raw]  # fmt: skip
    blanks = blank(torch.stack(raws)).astype(bool)
    share = float(blanks.mean())
    maps = torch.stack(raws)[~torch.from_numpy(blanks)]
    if not len(maps):
        return Evidence(len(found), None, None, share, np.zeros((SIDE, SIDE), np.float32))
    anchor = np.repeat(anchor, 2)[~blanks]
    place = np.abs((np.arange(SIDE) + 0.5) / SIDE - 0.5)
    off = np.maximum(place, place[:, None])  # 0 in the middle, ½ at the edge

    def concentration(mask: np.ndarray) -> Estimate:
        inside = energy(maps, np.broadcast_to(mask, (len(maps), SIDE, SIDE)))
        return mean_interval(inside / mask.mean(), anchor, seed=seed)

    border, centre = concentration(off > 0.5 - BORDER), concentration(off < CENTRE / 2)
    full = np.stack([np.maximum(stretch(one, (SIDE, SIDE)), 0) for one in maps])
    total = full.sum(axis=(1, 2), keepdims=True)  # 0 where negative neighbours outweigh a spot
    shares = np.divide(full, total, out=np.zeros_like(full), where=total > 0)
    mean = shares.sum(axis=0) / max(1, (total > 0).sum())
    return Evidence(len(found), border, centre, share, mean)


# --- rules --------------------------------------------------------------------------------------


def checks(
    report: Report, error: float, rows: Sequence[ClassPair], rests: Evidence
) -> tuple[Check, ...]:
    """All rules, each held to its measure."""
    accuracy, auc = (Estimate(getattr(report, name), *report.intervals[name])
                     for name in ("accuracy", "auc"))  # fmt: skip
    similar, dissimilar = (report.confusion.diagonal() / report.confusion.sum(axis=1)).tolist()
    weak = [row for row in rows if row.pairs >= 5 and row.accuracy < 0.75]
    named = "; ".join(
        f"{_two(row.classes)} ({row.accuracy:.0%} of {row.pairs})" for row in weak[:5]
    )
    border = rests.border
    return (
        Check(
            f"AUC {auc}",
            "its interval reaches 0.5 or less",
            auc.low <= 0.5,
            "The order of the scores may be chance: train on pictures like these.",
        ),
        Check(
            f"accuracy {accuracy}",
            "its interval is wider than 0.10",
            accuracy.high - accuracy.low > 0.10,
            f"{len(report.label)} pairs leave the accuracy open by "
            f"{accuracy.high - accuracy.low:.2f}: judge on more pictures before you rely on it.",
        ),
        Check(
            f"right of similar pairs {similar:.3f}, of dissimilar pairs {dissimilar:.3f}",
            "they differ by 0.15 or more",
            abs(similar - dissimilar) >= 0.15,
            "The threshold does not fit these pictures: too many pairs are called "
            f"{'dissimilar' if similar < dissimilar else 'similar'}. Choose it anew on other "
            "pictures of the same origin.",
        ),
        Check(
            f"calibration error {error:.3f}",
            "0.10 or more",
            error >= 0.10,
            "Do not read y as a probability here, only as an order: calibrate on pictures like "
            "these.",
        ),
        Check(
            f"class pairs with an accuracy below 0.75: {len(weak)}",
            "there is one, of at least five pairs",
            bool(weak),
            f"More and more varied pictures of these classes are needed, worst first: {named}. "
            "Look at them first: are the labels right?",
        ),
        Check(
            f"evidence at the border {rests.times('border')}",
            "its interval lies above 1.25 times the even share",
            border is not None and border.low > 1.25,
            "The network looks at the border more than at the rest: look for frames, captions and "
            "backgrounds that go with a class; crop them away and train again.",
        ),
        Check(
            f"blank maps {rests.blank:.3f}",
            "more than 0.05 of the maps",
            rests.blank > 0.05,
            "Some decisions rest on no place that Grad-CAM can name: explain such pairs with "
            "another method too, --method occlusion for example.",
        ),
    )  # fmt: skip


def _two(classes: tuple[str, str]) -> str:
    return f"{classes[0]} with itself" if len(set(classes)) == 1 else " and ".join(classes)


def _short(pair: HardPair) -> dict[str, Any]:
    ex = pair.explanation
    return {
        "names": pair.names, "classes": pair.classes, "right": pair.right,
        "decision": ex.decision, "dissimilarity": ex.dissimilarity,
    }  # fmt: skip
