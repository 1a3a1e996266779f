"""What training pictures have on average, so that what everybody has can be taken away.

Taught in the chapter on what Grad-CAM cannot see. A place that counts as much for every partner as
for this one explains nothing about this pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from siamcam_lib.datasets import ImageSet
from siamcam_lib.embedder import Explainable, SiameseEmbedder, as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.features import pooled_features
from siamcam_lib.heads import Seen

AT_ONCE = 32  # pictures whose projected maps are held in memory together


@dataclass(frozen=True)
class Typical:
    r"""Means over training pictures, as embeddings are compared: at unit length where they are.

    Attributes:
        embedding: :math:`\bar e`, (E,) float64.
        place: :math:`\bar P`, the mean of :math:`Z P_i(p)` over pictures and places, (E,) float64.
            Divided by the number of places Z of a map it is what the map's places are on average,
            at whatever resolution.
        digest: Of the network it was found with.
    """

    embedding: Tensor
    place: Tensor
    digest: str

    def check(self, seeing: Explainable) -> None:
        """Raise `ExplanationError` if it was found with another network."""
        if seeing.digest() != self.digest:
            raise ExplanationError(
                "This explainer was fitted with another network, or the network was trained since; "
                "fit it again: explainer.fit(net, split.train)."
            )


def typical(net: Any, images: ImageSet, *, progress: bool = True) -> Typical:
    r"""Average over every picture.

    Of a `SiameseNet` the pooled features :math:`g_i` are enough, and they are taken from the
    cache where they are known: :math:`\sum_p P_i(p) = D_i W g_i`, with :math:`D_i` the active
    units. Any other network looks at every picture once.

    Args:
        net: As in `sc.explain`.
        images: Training pictures; their labels are not used.
        progress: Show a progress bar.

    Raises:
        ExplanationError: if there is no picture, or the network cannot be explained.
        CacheError: if the cache of features cannot be read or written.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> typical(sc.SiameseNet(image_size=96), images, progress=False).embedding.shape
        torch.Size([256])
    """
    seeing = as_explainable(net)
    if not len(images):
        raise ExplanationError("An average needs at least one training picture; none was given.")
    if isinstance(seeing, SiameseEmbedder):
        embeddings, places = _from_features(seeing, images, progress)
    else:
        embeddings, places = _from_looks(seeing, images, progress)
    if not torch.isfinite(embeddings).all():
        raise ExplanationError(
            "The network's embedding is not finite; its weights are damaged. Load or train it "
            "again."
        )
    return Typical(embeddings.mean(dim=0), places.mean(dim=0), seeing.digest())


def _from_features(
    seeing: SiameseEmbedder, images: ImageSet, progress: bool
) -> tuple[Tensor, Tensor]:
    """Embeddings and sums over the places of their maps, (n, E) float64 each."""
    pooled = pooled_features(seeing.net, images, progress=progress).double()
    weight, bias = (p.detach().cpu().double() for p in seeing.net.projection.parameters())
    whole = pooled @ weight.T
    e = torch.relu(whole + bias)
    length = own_length(seeing, e)[:, None]
    return e / length, whole * (e > 0) / length


def _from_looks(seeing: Explainable, images: ImageSet, progress: bool) -> tuple[Tensor, Tensor]:
    """The same of any network."""
    embeddings, places = [], []
    bar = tqdm(total=len(images), desc="typical", unit="image", disable=not progress, leave=False)
    with bar:
        for start in range(0, len(images), AT_ONCE):
            batch = range(start, min(start + AT_ONCE, len(images)))
            seen = seeing.see([images.image(i) for i in batch])
            e, maps = compared(seeing, seen)
            embeddings.append(e)
            places.append(maps.sum(dim=(2, 3), dtype=torch.float64))  # Z times the mean over places
            bar.update(len(batch))
    return torch.cat(embeddings), torch.cat(places)


def compared(seeing: Explainable, seen: Seen) -> tuple[Tensor, Tensor]:
    """Embeddings (n, E) float64 and projected maps (n, E, h, w) float32, as they are compared.

    Both are divided by the embedding's length where the network compares at unit length; an
    embedding of zero stays zero.
    """
    e, maps = seen.embedding, seen.project().maps
    length = own_length(seeing, e)
    return e / length[:, None], maps / length[:, None, None, None].float()


def own_length(seeing: Explainable, e: Tensor) -> Tensor:
    """What embeddings (n, E) are divided by before they are compared: (n,), never zero."""
    length = torch.linalg.vector_norm(e, dim=-1)
    return torch.where((length > 0) & torch.tensor(seeing.unit), length, 1.0)
