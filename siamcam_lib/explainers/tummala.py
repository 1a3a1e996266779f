"""Tummala and Suresh, as we read them: a class activation map against a support set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siamcam_lib.datasets import ImageSet
from siamcam_lib.decoder import as_compared, check_network, embeddings
from siamcam_lib.embedder import as_explainable
from siamcam_lib.explainers.utkin import nearest_prototype, prototypes
from siamcam_lib.explaining import Explainer, Pairs


class Tummala(Explainer):
    r"""Our reading of "class activation maps between query image and support set".

    The formula was not to be had, so this is not their method but one that its description
    allows. In few-shot learning a query is compared with a support set, some labelled pictures of
    a class. Here each picture of a pair is the query once, and its support set are the training
    pictures of its partner's class, which is that of the nearest mean embedding. The mean
    embedding c of the support set takes the place of a class's weights in a class activation map:
    :math:`M(p) = \langle P(p), c \rangle`, with P as in `siamcam_lib.gradcam`.

    With the partner alone as support set it would be the shared map, up to its scale.

    Example:
        >>> import siamcam_lib as sc
        >>> images, net = sc.datasets.load("scenes/flowers", n=20), sc.SiameseNet(image_size=64)
        >>> explainer = Tummala().fit(net, images, progress=False)
        >>> sc.explain(net, images.image(0), images.image(1), method=explainer).raw[0].shape
        (2, 2)
    """

    title = "Tummala and Suresh (our reading)"
    source = "after Tummala and Suresh 2023, doi:10.1007/s11517-023-02804-3"
    cost = "closed form"
    needs = "labels"
    limits = (
        "Our reading of a description; the formula was not to be had. It explains likeness to the "
        "partner's class: two partners of one class give the same map."
    )

    def fit(self, net: Any, images: ImageSet, *, seed: int = 0, progress: bool = True) -> Tummala:
        """Average the support set of each class.

        Raises:
            ExplanationError: if there are fewer than two classes.
        """
        self.prototypes = prototypes(embeddings(net, images, progress=progress), images)
        self.network = as_explainable(net).digest()
        self.fitted = True
        return self

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:  # noqa: D102
        check_network(self.network, pairs.seeing)
        e = as_compared(pairs.seeing, pairs.seen.embedding)
        support = self.prototypes[nearest_prototype(e, self.prototypes)]
        first, second = pairs.first, pairs.second
        ends = ((first, support[second]), (second, support[first]))
        return torch.stack([pairs.seen.along(rows, c) for rows, c in ends], dim=1)
