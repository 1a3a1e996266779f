r"""Losses that teach the distance: the paper's contrastive loss and better ones.

Taught in chapter 3 (contrastive loss). An `Objective` turns a batch of embeddings into one number;
it says itself which pairs it learns from: given ones, or all pairs within the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pdist  # distances in the order of `batch_pairs`

from siamcam_lib.errors import TrainingError
from siamcam_lib.model import SiameseNet


def contrastive(distance: Tensor, label: Tensor, margin: float = 2.0) -> Tensor:
    r"""Contrastive loss of pairs, one value a pair.

    .. math:: L = \tfrac12 \left[(1 - \ell) D^2 + \ell \max(0, m - D)^2\right]

    With D the raw distance this is the loss of Hadsell et al. (2006, eq. 4,
    doi:10.1109/CVPR.2006.100). Livieris et al. (2023, section 4) print the same formula with D
    "the model's output", which is below 1, and m = 2: then the hinge never closes.

    Args:
        distance: D, (B,), not negative.
        label: (B,); 0 for pairs of one class, 1 for pairs of two.
        margin: m, dissimilar pairs farther apart than this cost nothing.

    Returns:
        (B,) losses, not negative.

    Example:
        >>> contrastive(torch.tensor([0.5, 0.5, 3.0]), torch.tensor([0, 1, 1])).tolist()
        [0.125, 1.125, 0.0]
    """
    pull = (1 - label) * distance.square()
    push = label * (margin - distance).clamp_min(0).square()
    return (pull + push) / 2


def batch_pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All unordered pairs within a batch: indices i < j and the pair's label.

    Args:
        labels: (B,) class of each image.

    Returns:
        i, j and label, each (B(B−1)/2,); label 0 for one class, 1 for two.

    Example:
        >>> [x.tolist() for x in batch_pairs(torch.tensor([4, 4, 7]))]
        [[0, 0, 1], [1, 2, 2], [0, 1, 1]]
    """
    i, j = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    return i, j, (labels[i] != labels[j]).long()


def balanced_mean(values: Tensor, label: Tensor) -> Tensor:
    """Mean in which similar and dissimilar pairs weigh the same, however many there are of each."""
    sides = [values[label == side].mean() for side in (0, 1) if bool((label == side).any())]
    return torch.stack(sides).mean()


def hardest(values: Tensor, label: Tensor, fraction: float) -> Tensor:
    """Indices of the `fraction` of pairs with the largest loss, on each side of the label.

    Online mining with a rising difficulty: `fraction` starts at 1 and falls while training goes
    on. A simple form of the idea of SimNet (Appalaraju & Chaoji 2017, arXiv:1709.08761).
    """
    chosen = []
    for side in (0, 1):
        where = torch.nonzero(label == side).squeeze(1)
        keep = max(1, round(fraction * len(where))) if len(where) else 0
        chosen.append(where[values[where].topk(keep).indices])
    return torch.cat(chosen)


def supervised_contrastive(e: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Supervised contrastive loss of a batch: of all others, which are of my class?

    .. math:: L = -\operatorname{mean}_i \frac{1}{|P(i)|} \sum_{p \in P(i)} \log
              \frac{\exp(e_i \cdot e_p / \tau)}{\sum_{k \ne i} \exp(e_i \cdot e_k / \tau)}

    P(i) are the other images of the class of image i; images without any are left out. Khosla et
    al. 2020 (eq. 2, arXiv:2004.11362). Beyond them, a batch without a choice has nothing to teach:
    as in pytorch-metric-learning its loss is 0.

    Args:
        e: Embeddings of unit length, (B, E).
        labels: (B,) class of each image.
        temperature: τ.

    Returns:
        A scalar; 0 where the batch has no similar or no dissimilar pair.

    Example:
        >>> e = torch.eye(2)[[0, 0, 1, 1]]
        >>> right, wrong = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
        >>> bool(supervised_contrastive(e, right) < supervised_contrastive(e, wrong))
        True
    """
    itself = torch.eye(len(e), dtype=torch.bool, device=e.device)
    same = labels[:, None] == labels
    similar = same & ~itself
    partners = similar.sum(dim=1)
    if not bool(partners.any()) or bool(same.all()):
        return 0 * e.sum()
    logits = (e @ e.T / temperature).masked_fill(itself, -torch.inf)
    share = logits.log_softmax(dim=1).masked_fill(~similar, 0)  # (B, B)
    anchors = partners > 0
    return -(share.sum(dim=1)[anchors] / partners[anchors]).mean()


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    Attributes:
        name: As passed to `sc.fit(loss=...)`.
        given_pairs: True where a batch is the a-images of its pairs followed by the b-images (the
            paper's random pairs); False where the loss looks at all pairs of the batch.
        unit_length: Whether the embeddings should have unit length.
        loss: ``(net, embeddings (B, E), labels (B,), progress in [0, 1]) → scalar``.
        calibrated: Whether w_y and c are fitted on validation pairs afterwards; False where the
            loss trains them itself.
    """

    name: str
    given_pairs: bool
    unit_length: bool
    loss: Callable[[SiameseNet, Tensor, Tensor, float], Tensor]
    calibrated: bool = True


def _paper(net: SiameseNet, e: Tensor, labels: Tensor, progress: float) -> Tensor:
    (e1, e2), (l1, l2) = e.chunk(2), labels.chunk(2)
    return contrastive(net.dissimilarity(net.distance(e1, e2)), (l1 != l2).long()).mean()


def _margin_random(net: SiameseNet, e: Tensor, labels: Tensor, progress: float) -> Tensor:
    (e1, e2), (l1, l2) = e.chunk(2), labels.chunk(2)
    return contrastive(net.distance(e1, e2), (l1 != l2).long()).mean()


def _margin_all(net: SiameseNet, e: Tensor, labels: Tensor, progress: float) -> Tensor:
    label = batch_pairs(labels)[2]
    return balanced_mean(contrastive(pdist(e), label), label)


def _margin_mined(net: SiameseNet, e: Tensor, labels: Tensor, progress: float) -> Tensor:
    label = batch_pairs(labels)[2]
    values = contrastive(pdist(e), label)
    chosen = hardest(values, label, fraction=1 - 0.75 * progress)
    return balanced_mean(values[chosen], label[chosen])


def _supervised_contrastive(net: SiameseNet, e: Tensor, labels: Tensor, progress: float) -> Tensor:
    return supervised_contrastive(e, labels, temperature=0.1)  # told here: a record knows it


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("paper", True, False, _paper, calibrated=False),
        Objective("margin", True, False, _margin_random),
        Objective("margin_all_pairs", False, False, _margin_all),
        Objective("margin_mined", False, False, _margin_mined),
        Objective("supervised_contrastive", False, True, _supervised_contrastive),
    )
}


def objective(name: str | Objective) -> Objective:
    """The objective called `name`; one of your own is given back as it is.

    Raises:
        TrainingError: if there is none; the message lists those known.
    """
    if isinstance(name, Objective):
        return name
    if name not in OBJECTIVES:
        raise TrainingError(f"No loss is called {name!r}; known are {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]
