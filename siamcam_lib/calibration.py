"""Turning a distance into a probability and a decision, on validation pairs.

Taught in chapter 3 (contrastive loss). The threshold is part of the model: it is chosen on
validation pairs and never on test pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from siamcam_lib.errors import TrainingError


@dataclass(frozen=True)
class Calibration:
    """w_y and c of the sigmoid y = σ(w_y d + c)."""

    slope: float
    offset: float


def fit_sigmoid(distance: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Calibration:
    """Logistic regression of the label on the distance (Platt scaling).

    Args:
        distance: (m,) d of validation pairs.
        label: (m,) 0 similar, 1 dissimilar; both must occur.
        weight: (m,) how much each pair counts.

    Raises:
        TrainingError: if only one label occurs or all distances are equal.

    Example:
        >>> fitted = fit_sigmoid(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1]), np.ones(4))
        >>> fitted.slope > 0
        True
    """
    _require_both(label)
    spread = require_spread(distance)
    model = LogisticRegression().fit(distance[:, None] / spread, label, sample_weight=weight)
    return Calibration(float(model.coef_[0, 0]) / spread, float(model.intercept_[0]))


def require_spread(distance: np.ndarray) -> float:
    """Standard deviation of the distances, a positive number.

    Raises:
        TrainingError: if all distances are equal, or one is not finite.
    """
    spread = float(np.std(distance))
    if not 0 < spread < np.inf:
        found = "are not finite" if spread else "are all the same: the embeddings have collapsed"
        raise TrainingError(
            f"The distances of the validation pairs {found}. Train longer, with a smaller "
            "learning rate, or with another loss."
        )
    return spread


def best_threshold(score: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Threshold on the dissimilarity with the highest weighted accuracy on these pairs.

    Where several do equally well, the middle of the widest such gap; always inside (0, 1).

    Args:
        score: (m,) dissimilarities y in [0, 1].
        label: (m,) 0 similar, 1 dissimilar; both must occur.
        weight: (m,) how much each pair counts.

    Example:
        >>> best_threshold(np.array([0.1, 0.2, 0.6, 0.9]), np.array([0, 0, 1, 1]), np.ones(4))
        0.4
    """
    _require_both(label)
    values, position = np.unique(score, return_inverse=True)
    gain = np.bincount(position, np.where(label == 0, weight, -weight), len(values))
    right = np.concatenate([[0.0], np.cumsum(gain)])  # threshold below value k
    edges = np.concatenate([[0.0], values, [1.0]])
    best = np.flatnonzero(np.isclose(right, right.max()))
    widest = best[np.argmax(edges[best + 1] - edges[best])]
    middle = (edges[widest] + edges[widest + 1]) / 2
    return float(np.clip(middle, 1e-6, 1 - 1e-6))


def _require_both(label: np.ndarray) -> None:
    if len(np.unique(label)) < 2:
        raise TrainingError(
            "Calibration needs similar and dissimilar validation pairs, but only one kind is "
            "there; give the validation part at least two classes and two images of one of them."
        )
