r"""Retrieval: does an image find its like among the others, and how early?

Taught in the chapter on galleries. Pairs ask whether two images are of one class; a collection asks
what comes first. Each image is a query in turn, all others are ordered by their distance to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import digamma, gammaln

from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation.statistics import Estimate, mean_interval

DISTANCES = 4_000_000
"""Distances that are held and ordered at once; in double precision they take 32 MB."""


@dataclass(frozen=True)
class Retrieval:
    """What every query found.

    Attributes:
        values: Measure → (q,) numbers in [0, 1], one a query: ``"Recall@1"`` and the like,
            ``"mAP"``, ``"mAP@R"``.
        query: (q,) which images asked.
        label: (q,) their classes.
        chance: Measure → what an order drawn at random would have on average.
        estimates: Measure → mean over queries with its 95% bootstrap interval, an exact one where
            the mean is 0 or 1; see `mean_interval`.
        left_out: Queries that no other image could answer, and that count nowhere.
    """

    values: dict[str, np.ndarray]
    query: np.ndarray
    label: np.ndarray
    chance: dict[str, float]
    estimates: dict[str, Estimate]
    left_out: int

    def __getitem__(self, measure: str) -> Estimate:
        return self.estimates[measure]

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter((name, estimate.value) for name, estimate in self.estimates.items())

    def __str__(self) -> str:
        rows = [f"{len(self.query)} queries, {self.left_out} left out"]
        for name, found in self.estimates.items():
            rows.append(f"{name:<10}{found}  by chance {self.chance[name]:.3f}")
        return "\n".join(rows)

    __repr__ = __str__


def retrieval(
    embeddings: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray,
    groups: Sequence[int] | np.ndarray | None = None,
    *,
    queries: Sequence[int] | np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
    bootstrap: int = 1000,
    seed: int = 0,
) -> Retrieval:
    r"""Recall@K, mean average precision and mAP@R of a collection that is asked for its own images.

    With :math:`r_i` 1 where the i-th nearest image has the query's class, and R the number of
    images that do:

    .. math::
        \text{Recall@}K = \max_{i \le K} r_i \qquad
        AP = \frac1R \sum_i r_i \frac1i \sum_{j \le i} r_j \qquad
        AP@R = \frac1R \sum_{i \le R} r_i \frac1i \sum_{j \le i} r_j

    Recall@K is that of metric learning: one image of the class among the K nearest is enough. The
    mean of AP over queries is mAP; mAP@R stops at the R-th image (Musgrave et al. 2020, section
    3.2, doi:10.1007/978-3-030-58595-2_41). Of two images equally far the one of another class
    comes first, so that an embedding which is the same for everything finds nothing.

    Args:
        embeddings: (n, E) as they are compared: at unit length where the network compares so.
        labels: (n,) class of each image.
        groups: (n,) images of one group (copies, one flat) do not find each other; by default
            each is a group of its own. An image never finds itself.
        queries: Which images ask, their positions or (n,) bool; by default all. All n are looked
            among.
        ks: Each at least 1.
        bootstrap: Resamples of the queries; those of one group are drawn together.
        seed: Of the resampling.

    Raises:
        EvaluationError: if the lengths differ, a number is not finite, `ks` is not positive,
            `queries` are no positions, or no query has another image of its class to find.

    Example:
        >>> e = np.array([[0.0], [0.1], [0.3], [1.0], [1.2], [0.2]])
        >>> found = retrieval(e, [0, 0, 0, 1, 1, 1], ks=(1, 2))
        >>> print(found["Recall@1"], round(found.chance["Recall@1"], 2))
        0.500 [0.167, 0.833] 0.4
    """
    e = torch.as_tensor(embeddings).detach().cpu().double()
    n = len(e)
    labels = np.asarray(labels)
    groups = np.arange(n) if groups is None else np.asarray(groups)
    asked = np.arange(n) if queries is None else np.asarray(queries)
    if asked.dtype == bool and asked.shape == (n,):
        asked = np.flatnonzero(asked)
    _check(e, labels, groups, asked, ks)
    values: list[dict[str, np.ndarray]] = []
    chances, answered = [], []
    for block in torch.from_numpy(asked).split(max(1, DISTANCES // n)):
        far = torch.cdist(e[block], e, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        block = block.numpy()
        eligible = groups[block, None] != groups
        relevant = (labels[block, None] == labels) & eligible
        order = np.lexsort((relevant, far, ~eligible), axis=1)  # the last key sorts first
        hit = np.take_along_axis(relevant, order, axis=1)
        some = hit.any(axis=1)
        answered.append(some)
        values.append(measures(hit[some], ks))
        chances.append(by_chance(eligible.sum(1)[some], relevant.sum(1)[some], ks))
    kept = np.concatenate(answered)
    if not kept.any():
        raise EvaluationError(
            "No query has another image of its class to find; give classes of two images or more, "
            "which are not all of one group."
        )
    whole = {name: np.concatenate([part[name] for part in values]) for name in values[0]}
    chance = {name: float(np.concatenate([c[name] for c in chances]).mean()) for name in whole}
    query = asked[kept]
    estimates = {
        name: mean_interval(value, groups[query], within=(0, 1), resamples=bootstrap, seed=seed)
        for name, value in whole.items()
    }
    return Retrieval(whole, query, labels[query], chance, estimates, int((~kept).sum()))


def measures(hit: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, np.ndarray]:
    """The measures of answers that are already in order.

    Args:
        hit: (q, n) bool, nearest first: is the image of the query's class? What must not be found
            at all stands at the end, as False. Each row has at least one hit.
        ks: As in `retrieval`.

    Returns:
        Measure → (q,) numbers in [0, 1].

    Example:
        >>> found = measures(np.array([[False, True, True, False]]), ks=(1,))
        >>> {name: value.round(3).tolist() for name, value in found.items()}
        {'Recall@1': [0.0], 'mAP': [0.583], 'mAP@R': [0.25]}
    """
    rank = np.arange(1, hit.shape[1] + 1)
    total = hit.sum(axis=1)
    precision = hit * np.cumsum(hit, axis=1) / rank  # where there is a hit, 0 elsewhere
    return {
        **{f"Recall@{k}": hit[:, :k].any(axis=1).astype(float) for k in ks},
        "mAP": precision.sum(axis=1) / total,
        "mAP@R": (precision * (rank <= total[:, None])).sum(axis=1) / total,
    }


def by_chance(
    n: int | np.ndarray, relevant: int | np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, np.ndarray]:
    r"""What the measures are on average where the order is drawn at random.

    Recall@K is one less the chance to draw K others, without putting back. For the rest, a hit at
    rank i has :math:`1 + (i - 1) q` hits up to it on average, :math:`q = (R - 1)/(n - 1)`.

    Args:
        n: Images that can be found, one number a query or one for all.
        relevant: R, how many of them have the query's class; at least 1.
        ks: As in `retrieval`.

    Example:
        >>> {name: round(float(value), 3) for name, value in by_chance(5, 2, ks=(1, 2)).items()}
        {'Recall@1': 0.4, 'Recall@2': 0.7, 'mAP': 0.593, 'mAP@R': 0.325}
    """
    n, r = np.asarray(n, float), np.asarray(relevant, float)
    q = np.divide(r - 1, n - 1, out=np.zeros_like(n + r), where=n > 1)

    def precision_up_to(last: np.ndarray) -> np.ndarray:
        """The sum of (1 + (i − 1) q) / i over ranks i = 1 … last."""
        return (1 - q) * (digamma(last + 1) + np.euler_gamma) + q * last

    def missed(k: int) -> np.ndarray:
        possible = n - r >= k
        logs = gammaln(n - r + 1) - gammaln(np.where(possible, n - r - k, 0) + 1)
        logs = logs - gammaln(n + 1) + gammaln(np.maximum(n - k, 0) + 1)
        return np.where(possible, np.exp(logs), 0.0)

    return {
        **{f"Recall@{k}": 1 - missed(k) for k in ks},
        "mAP": precision_up_to(n) / n,
        "mAP@R": precision_up_to(r) / n,
    }


def _check(
    e: torch.Tensor, labels: np.ndarray, groups: np.ndarray, asked: np.ndarray, ks: Sequence[int]
) -> None:
    if e.ndim != 2 or not len(e) or labels.shape != (len(e),) or groups.shape != (len(e),):
        raise EvaluationError(
            f"One label and one group are needed for each of the embeddings {tuple(e.shape)}; "
            f"labels are {labels.shape}, groups {groups.shape}."
        )
    if not torch.isfinite(e).all():
        raise EvaluationError(
            "An embedding is not finite; the network's weights are damaged or its training "
            "diverged."
        )
    whole = asked.ndim == 1 and len(asked) and np.issubdtype(asked.dtype, np.integer)
    if not whole or not ((asked >= 0) & (asked < len(e))).all():
        raise EvaluationError(
            f"Queries are positions of images, 0 to {len(e) - 1}, at least one, or {len(e)} "
            f"booleans; {asked.ravel()[:5].tolist()} were given."
        )
    if not len(ks) or not all(isinstance(k, int | np.integer) and k > 0 for k in ks):
        raise EvaluationError(f"ks are positive whole numbers, not {tuple(ks)}.")
