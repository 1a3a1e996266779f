"""Finding what a test set should not share with the training set.

Taught in chapter 1 (pairs), which also measures what each leak is worth in points of accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from siamcam_lib.errors import PairError
from siamcam_lib.pairs.sampling import PairSet
from siamcam_lib.pairs.splitting import Split


@dataclass(frozen=True)
class LeakReport:
    """How much two sets of pairs, or two parts of a split, have in common.

    Attributes:
        images: Pictures on both sides (the same item, or the same bytes under another name).
        groups: Groups on both sides (other pictures of the same flat, near-copies).
        pairs: Unordered pairs on both sides.
        self_pairs: Pairs of a picture with itself (the same item, or a byte-identical copy), on
            either side.
    """

    images: int
    groups: int
    pairs: int
    self_pairs: int

    def __bool__(self) -> bool:
        return any((self.images, self.groups, self.pairs, self.self_pairs))

    def __str__(self) -> str:
        if not self:
            return "No leak: no image, group or pair on both sides, and no self-pair."
        alone = "is paired with itself" if self.self_pairs == 1 else "are paired with themselves"
        return (
            f"Leak: {_count(self.images, 'image')}, {_count(self.groups, 'group')} and "
            f"{_count(self.pairs, 'pair')} are on both sides; "
            f"{_count(self.self_pairs, 'image')} {alone}."
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def find_leaks(train: PairSet, test: PairSet) -> LeakReport:
    """Count what two sets of pairs share.

    Args:
        train: Pairs that were learned from.
        test: Pairs that are judged. Both sets' images must carry the same groups.

    Example:
        >>> import siamcam_lib as sc
        >>> parts = sc.pairs.split(sc.datasets.load("scenes/flowers", n=100), seed=0)
        >>> print(find_leaks(sc.pairs.sample(parts.train), sc.pairs.sample(parts.test)))
        No leak: no image, group or pair on both sides, and no self-pair.
    """
    names, groups, pairs, self_pairs = [], [], [], 0
    for side in (train, test):
        used = np.unique(np.concatenate([side.a, side.b]))
        digest = {int(i): side.images.digest(int(i)) for i in used}
        names.append(set(digest.values()))
        groups.append(set(side.images.groups[used].tolist()))
        ends = zip(side.a.tolist(), side.b.tolist(), strict=True)
        both = [frozenset((digest[i], digest[j])) for i, j in ends]
        pairs.append(set(both))
        self_pairs += sum(len(pair) == 1 for pair in both)
    return LeakReport(
        len(names[0] & names[1]), len(groups[0] & groups[1]), len(pairs[0] & pairs[1]), self_pairs
    )


def check_split(parts: Split) -> None:
    """Refuse a split whose parts share an image or a group.

    Raises:
        PairError: naming the parts and one group they share.
    """
    named = (("training", parts.train), ("validation", parts.val), ("test", parts.test))
    for position, (name, part) in enumerate(named):
        for other_name, other in named[position + 1 :]:
            shared = set(part.groups.tolist()) & set(other.groups.tolist())
            if shared:
                raise PairError(
                    f"The {name} and {other_name} parts share {_count(len(shared), 'group')} of "
                    f"images (first: group {min(shared)}); use sc.pairs.split with grouped=True."
                )
