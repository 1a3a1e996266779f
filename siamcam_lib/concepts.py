r"""Recurring things in feature maps: what they are, and how much of a similarity each is worth.

Taught in the case study on rented rooms. A non-negative feature map is taken apart, place by
place, into a few *concepts* that come again in many pictures (Collins, Achanta & Süsstrunk 2018,
"Deep Feature Factorization", doi:10.1007/978-3-030-01264-9_21). All between the map and the
embedding is linear once the active units are known, so the similarity of a pair falls apart too,
into one term for each pair of concepts, and nothing is lost.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ImageOps
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from torch import Tensor

from siamcam_lib.backbones import evaluating
from siamcam_lib.cache import FeatureCache
from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import ExplanationError
from siamcam_lib.features import VIEWS, backbone_digest, feature_keys, rows_of_looks
from siamcam_lib.model import SiameseNet
from siamcam_lib.pairs import all_pairs

SWEEPS, SETTLED = 300, 1e-5
"""`Concepts.strengths` sweeps so often at most, or until nothing moves by more than this share."""


@dataclass(frozen=True)
class Concepts:
    r"""k recurring directions of a feature map: :math:`A(p) = \sum_c s_c(p)\, h_c + R(p)`.

    Attributes:
        components: :math:`h_c`, (k, K) float32, not negative, each of unit length.

    Example:
        >>> concepts = Concepts(torch.eye(2, 5))
        >>> concepts.strengths(torch.rand(4, 5, 7, 7)).shape
        torch.Size([4, 2, 7, 7])
    """

    components: Tensor

    def __len__(self) -> int:
        return len(self.components)

    def strengths(self, maps: Tensor) -> Tensor:
        r"""How strongly each concept is present at each place: non-negative least squares.

        :math:`s(p) = \arg\min_{s \ge 0} \lVert A(p) - \sum_c s_c h_c \rVert`, place by place, by
        coordinate descent.

        Args:
            maps: A, (n, K, h, w).

        Returns:
            (n, k, h, w) float32, not negative.

        Raises:
            ExplanationError: if the maps are not finite or have another number of channels.
        """
        self._check(maps)
        gram = self.components @ self.components.T  # (k, k)
        rows = [torch.einsum("nkhw,ck->cnhw", m.float(), self.components) for m in maps.split(64)]
        wanted = torch.cat(rows, dim=1).flatten(1)  # (k, places)
        s = wanted.clamp_min(0) / len(self)
        room = SETTLED * float(wanted.abs().max()) if wanted.numel() else 0.0
        for _ in range(SWEEPS):
            moved = 0.0
            for c in range(len(self)):
                better = (s[c] + (wanted[c] - gram[c] @ s) / gram[c, c]).clamp_min(0)
                moved = max(moved, float((better - s[c]).abs().max()))
                s[c] = better
            if moved <= room:
                break
        n, _, height, width = maps.shape
        return s.view(len(self), n, height, width).transpose(0, 1).contiguous()

    def without(self, maps: Tensor, which: Iterable[int]) -> Tensor:
        """Feature maps (n, K, h, w) with the concepts `which` taken out; the rest stays as it is.

        Raises:
            ExplanationError: as `strengths`, or if there is no such concept.

        Example:
            >>> concepts = Concepts(torch.eye(2, 5))
            >>> maps = torch.rand(4, 5, 7, 7)
            >>> concepts.strengths(concepts.without(maps, [0]))[:, 0].max().item()
            0.0
        """
        which = self._known(which)
        gone = torch.einsum("nchw,ck->nkhw", self.strengths(maps)[:, which], self.components[which])
        return maps - gone

    def parts(self, net: SiameseNet, maps: Tensor) -> Tensor:
        r"""The embedding of each picture as a sum over concepts.

        With :math:`D_i` the active units of image i, its embedding is
        :math:`e_i = D_i (W g_i + b)`, and :math:`g_i` is the mean of A over space. So concept c
        brings :math:`\bar s_c\, D_i W h_c`, the remainder :math:`D_i W \bar R`, the bias
        :math:`D_i b`.

        Args:
            net: Gives W, b and whether embeddings have unit length.
            maps: A, (n, K, h, w), of the network's backbone.

        Returns:
            (n, k + 2, E) float64: the concepts, the remainder, the bias. The sum over the middle
            axis is the embedding, of unit length where the network scales it so.

        Raises:
            ExplanationError: as `strengths`.
        """
        return self.pooled_parts(net, maps.mean((2, 3)), self.strengths(maps).mean((2, 3)))

    def pooled_parts(self, net: SiameseNet, pooled: Tensor, strengths: Tensor) -> Tensor:
        """`parts` from the means over space alone: pooled features (n, K) and strengths (n, k)."""
        weight, bias = (p.detach().cpu().double() for p in net.projection.parameters())
        pooled, strengths = pooled.double(), strengths.double()
        of_concepts = strengths[:, :, None] * (self.components.double() @ weight.T)  # (n, k, E)
        whole = pooled @ weight.T
        remainder = whole - of_concepts.sum(dim=1)
        offset = bias.expand_as(whole)
        parts = torch.cat([of_concepts, remainder[:, None], offset[:, None]], dim=1)
        active = whole + bias > 0
        parts = parts * active[:, None]
        if net.normalize:
            length = torch.linalg.vector_norm((whole + bias) * active, dim=1)
            parts = parts / length.clamp_min(1e-12)[:, None, None]
        return parts

    def _known(self, which: Iterable[int]) -> list[int]:
        which = sorted({int(c) for c in which})
        if which and not 0 <= which[0] <= which[-1] < len(self):
            raise ExplanationError(f"Concepts {which}: there are {len(self)}, counted from 0.")
        return which

    def _check(self, maps: Tensor) -> None:
        if maps.ndim != 4 or maps.shape[1] != self.components.shape[1]:
            raise ExplanationError(
                f"The concepts are of maps (n, {self.components.shape[1]}, h, w), not of "
                f"{tuple(maps.shape)}."
            )
        if not torch.isfinite(maps).all():
            raise ExplanationError("The feature maps hold NaN or infinite values.")


def find(maps: Tensor, k: int, seed: int = 0, *, places: int = 6000) -> Concepts:
    """Factorise feature maps into `k` concepts.

    Args:
        maps: (n, K, h, w), not negative: what a backbone gives after a ReLU. Of training pictures
            only, where the concepts are to be judged on others.
        k: Number of concepts.
        seed: Of the places drawn.
        places: So many of the n·h·w places at most are factorised, drawn at random.

    Raises:
        ExplanationError: if the maps are negative somewhere, not finite, or too few for `k`.

    Example:
        >>> things = torch.diag(torch.tensor([1.0, 2.0, 3.0]))[:2]  # of three channels
        >>> found = find(things.repeat(20, 1).view(40, 3, 1, 1), k=2)
        >>> found.components.shape, bool((found.components.max(dim=1).values > 0.99).all())
        (torch.Size([2, 3]), True)
    """
    if maps.ndim != 4 or not torch.isfinite(maps).all() or (maps < 0).any():
        raise ExplanationError(
            "Concepts are found in feature maps (n, K, h, w) of finite numbers, none negative; "
            "take a layer after a ReLU."
        )
    n, channels, height, width = maps.shape
    count = n * height * width
    if not 1 <= k <= min(count, channels):
        raise ExplanationError(f"{k} concepts cannot be found in {count} places of {channels}.")
    drawn = np.random.default_rng(seed).permutation(count)[:places]
    image, place = drawn // (height * width), drawn % (height * width)
    rows = maps[image, :, place // width, place % width].float().numpy()
    model = NMF(k, init="nndsvda", random_state=seed, tol=1e-3, max_iter=100)
    with warnings.catch_warnings():  # a hundred steps are enough for directions
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows)
    components = torch.from_numpy(model.components_).float()
    length = torch.linalg.vector_norm(components, dim=1, keepdim=True)
    return Concepts(components / length.clamp_min(1e-12))


def agreement(one: Concepts, other: Concepts) -> np.ndarray:
    """Cosine of each concept with the one of `other` it is matched with, one to one: (k,).

    Raises:
        ExplanationError: if they are not as many.

    Example:
        >>> one = Concepts(torch.eye(3))
        >>> agreement(one, Concepts(torch.eye(3)[[2, 0, 1]])).tolist()
        [1.0, 1.0, 1.0]
    """
    if len(one) != len(other):
        raise ExplanationError(f"{len(one)} concepts cannot be matched with {len(other)}.")
    cosine = (one.components @ other.components.T).double().numpy()
    return cosine[linear_sum_assignment(-cosine)]


def share_of_similarity(first: Tensor, second: Tensor) -> Tensor:
    r"""What each concept of A, together with each concept of B, brings to their similarity.

    :math:`\langle e_1, e_2 \rangle = \sum_{c, c'} \langle F_{1c}, F_{2c'} \rangle`, with F from
    `Concepts.parts`. On the diagonal stands what comes from both pictures having the same thing.
    The sum of row c is what concept c has of the shared map of A
    (`siamcam_lib.gradcam.shared_map`), added up over space.

    Args:
        first: Parts of the first images, (m, k + 2, E).
        second: Parts of their partners, as many.

    Returns:
        (m, k + 2, k + 2). All of it adds up to the inner product of the embeddings: to their
        cosine, where they have unit length.

    Example:
        >>> net = SiameseNet("resnet18", embed_dim=8, pretrained=False).eval()
        >>> maps = torch.rand(2, 512, 7, 7)
        >>> parts = find(maps, k=3).parts(net, maps)
        >>> share_of_similarity(parts[:1], parts[1:]).shape
        torch.Size([1, 5, 5])
    """
    return torch.einsum("mce,mde->mcd", first, second)


def shuffled_direction(concepts: Concepts, which: int, seed: int = 0) -> Tensor:
    """A direction with the same numbers as concept `which`, in shuffled channels: (K,), unit."""
    random = np.random.default_rng(seed)
    (which,) = concepts._known([which])
    return concepts.components[which][random.permutation(concepts.components.shape[1])]


def share_on(strengths: Tensor, cover: Tensor) -> np.ndarray:
    """Which share of each concept's strength lies on a region.

    Args:
        strengths: (n, k, h, w).
        cover: (n, h, w) in [0, 1], the share of each cell that the region covers.

    Returns:
        (k,); 0 for a concept that is nowhere.

    Example:
        >>> share_on(torch.ones(2, 3, 4, 4), torch.full((2, 4, 4), 0.25)).tolist()
        [0.25, 0.25, 0.25]
    """
    on_it = torch.einsum("nchw,nhw->c", strengths.double(), cover.double())
    return (on_it / strengths.double().sum((0, 2, 3)).clamp_min(1e-12)).numpy()


def strongest(strength: Tensor, groups: np.ndarray, count: int) -> np.ndarray:
    """Positions of the pictures with the strongest place of one concept, one picture a group.

    Args:
        strength: (n, h, w).
        groups: (n,), listings for instance.
        count: So many pictures, or as many as there are groups.

    Example:
        >>> strength = torch.tensor([1.0, 3.0, 2.0]).view(3, 1, 1)
        >>> strongest(strength, np.array([0, 1, 1]), 2).tolist()
        [1, 0]
    """
    peak = strength.flatten(1).max(dim=1).values.numpy()
    ranked = np.argsort(-peak, kind="stable")
    _, first = np.unique(np.asarray(groups)[ranked], return_index=True)
    return ranked[np.sort(first)[:count]]


def mark(images: ImageSet, chosen: Iterable[int]) -> str:
    """A short digest of the set and of some of its pictures in their order.

    Names that a person gave after looking at pictures are kept under it: they are shown for
    exactly these pictures of exactly this set, and for no others.
    """
    told = "\n".join([images.fingerprint(), *(images.items[int(i)] for i in chosen)])
    return hashlib.sha256(told.encode()).hexdigest()[:10]


def part_auc(net: SiameseNet, part: ImageSet, pooled: Tensor) -> float:
    """AUC of a network over all pairs of a part, from given pooled features (n, K).

    Pairs weigh as in `sc.pairs.all_pairs`.
    """
    pairs, weight = all_pairs(part, ordered=False)
    with torch.inference_mode():
        e = net.embed_pooled(pooled.float().to(net.device))
        d = net.distance(e[pairs.a], e[pairs.b]).cpu().numpy()
    return float(roc_auc_score(pairs.label, d, sample_weight=weight))


def auc_without(
    net: SiameseNet, part: ImageSet, concepts: Concepts, pooled: Tensor, strengths: Tensor
) -> np.ndarray:
    """`part_auc` with nothing taken out, and then with each concept taken out by itself.

    Args:
        net: Judges; it is not trained again.
        part: n pictures, those of the validation part where a concept is to be chosen.
        concepts: k concepts.
        pooled: (n, K), means over space of their feature maps.
        strengths: (n, k), means over space of the concepts' strengths.

    Returns:
        (k + 1,); first the AUC with nothing taken out.
    """
    kept = [pooled] + [
        pooled - strengths[:, [c]] * concepts.components[c] for c in range(len(concepts))
    ]
    return np.array([part_auc(net, part, changed) for changed in kept])


def feature_maps(
    net: SiameseNet, images: ImageSet, *, mirrored: bool = False, batch_size: int = 32
) -> Tensor:
    """Feature maps of all pictures: (n, K, h, w) float16 on the CPU, half the memory of float32.

    Their means over space, in full precision, are kept in the user's cache of pooled features:
    `sc.fit` and whoever else asks for those need not look again.

    Args:
        net: Its backbone looks.
        images: n pictures.
        mirrored: Look at their mirror images.
        batch_size: Pictures in one pass.

    Raises:
        ImageError: if a picture cannot be read.
        CacheError: if the cache cannot be written.
    """
    keys = feature_keys(backbone_digest(net), VIEWS[mirrored], images)
    cache, found = FeatureCache(), []
    with evaluating(net), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = [images.image(i) for i in range(start, min(start + batch_size, len(images)))]
            batch = [ImageOps.mirror(picture) for picture in batch] if mirrored else batch
            looks = net.each_look(net.to_tensor(batch).to(net.device))
            rows = rows_of_looks(looks)
            cache.put(dict(zip(keys[start : start + batch_size], rows, strict=True)))
            found.append(net.joined(looks).half().cpu())
    # a copy made outside inference mode, so that it may be used where gradients are taken
    return torch.cat(found).clone()


class HeldFeatures(FeatureCache):
    """Pooled features in memory, given to `sc.fit` and `sc.evaluate` in place of the cache.

    What a network would see had its feature maps been changed: the backbone is not run for
    pictures that are held here. A network of several looks gets the same from each of them, so that
    a head learns from fewer views than it would without.

    Args:
        net: The network whose features are replaced.
        images: n pictures.
        views: Name of the view → pooled features (n, K).

    Raises:
        ExplanationError: if a view does not have one row for each picture.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/rooms", n=20)
        >>> net = SiameseNet("resnet18", pretrained=False, image_size=64)
        >>> held = HeldFeatures(net, images, {"plain": torch.zeros(20, 512)})
        >>> sc.features.pooled_features(net, images, cache=held, progress=False).max().item()
        0.0
    """

    def __init__(self, net: SiameseNet, images: ImageSet, views: Mapping[str, Tensor]) -> None:
        model = backbone_digest(net)
        self._held: dict[str, np.ndarray] = {}
        for view, rows in views.items():
            if rows.ndim != 2 or len(rows) != len(images):
                raise ExplanationError(
                    f"View {view!r} has features {tuple(rows.shape)} for {len(images)} pictures."
                )
            keys = feature_keys(model, view, images)
            alike = rows.float().repeat(1, net.looks)  # every look has the mean of all
            self._held |= dict(zip(keys, alike.numpy(), strict=True))

    def get(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of `keys` that are held."""
        return {key: self._held[key] for key in keys if key in self._held}

    def put(self, vectors: dict[str, np.ndarray]) -> None:
        """Hold more; nothing is written to disk."""
        self._held |= vectors
