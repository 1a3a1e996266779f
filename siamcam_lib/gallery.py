"""`Gallery`: many images looked at once, so that any two of them are explained at once.

Taught in chapter 4 (Grad-CAM maths). An image is kept as its projected map P and its embedding e
(25 kB); every map of every pair is a combination of two products of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from siamcam_lib import gradcam
from siamcam_lib.allocator import memory_kept
from siamcam_lib.datasets import ImageSet
from siamcam_lib.datasets.images import as_image
from siamcam_lib.embedder import (
    COMPARISONS,
    Compared,
    Explainable,
    SiameseComparison,
    as_explainable,
    check_threshold,
    compare_by_gradient,
)
from siamcam_lib.errors import GalleryError
from siamcam_lib.explaining import check_closed_form, directions
from siamcam_lib.explanation import Explanation, check_polarity, finish
from siamcam_lib.features import Looks
from siamcam_lib.looking import Pictures as _Pictures
from siamcam_lib.looking import check_embeddable, decoded, look, repeated
from siamcam_lib.neighbours import Index
from siamcam_lib.shards import KINDS, Shards, ShardWriter, blocks, half, positive, with_keys


@dataclass(frozen=True)
class Tile:
    """The maps of a block of ordered pairs.

    Attributes:
        rows: Which images the maps lie on.
        columns: Which images they are compared with.
        maps: Signed maps, float32 (r, c, h, w); positive speaks for similarity.
    """

    rows: slice
    columns: slice
    maps: np.ndarray


@dataclass(frozen=True)
class Neighbours:
    """The images nearest to one, nearest first.

    Attributes:
        index: (k,) int64.
        dissimilarity: y, (k,) float64.
    """

    index: np.ndarray
    dissimilarity: np.ndarray


class Gallery:
    """Projected maps and embeddings of n images; made by `embed`, read by `open`.

    Example:
        >>> import siamcam_lib as sc
        >>> net = sc.SiameseNet(image_size=96)
        >>> gal = Gallery.embed(net, sc.datasets.load("scenes/flowers", n=10), progress=False)
        >>> gal
        Gallery(10 images, 256 × 3 × 3, in memory)
        >>> gal.explain(0, 1).raw[0].shape, gal.nearest(0, k=3).index.shape
        ((3, 3), (3,))
    """

    def __init__(
        self,
        rows: _Held | Shards,
        table: dict[str, Any],
        images: _Pictures | None = None,
        seeing: Explainable | None = None,
    ) -> None:
        self._rows, self._table, self._images, self._seeing = rows, table, images, seeing
        self.threshold = float(table["threshold"])

    @classmethod
    def embed(
        cls,
        net: Any,
        images: ImageSet | Sequence[Any],
        *,
        layer: str | None = None,
        folder: str | Path | None = None,
        looks: Looks | None = None,
        batch_size: int = 32,
        images_per_shard: int = 1024,
        progress: bool = True,
        **options: Any,
    ) -> Gallery:
        """Look at every image once.

        Args:
            net: As in `sc.explain`.
            images: An `ImageSet`, or a sequence of paths, pictures, arrays or tensors.
            layer: As in `sc.explain`, for modules other than `SiameseNet`.
            folder: Write shards there while going on, and keep nothing in memory but 32 bytes an
                image, besides what `images` takes itself: an `ImageSet` remembers the name and the
                digest of each. On disk P is in half precision: each value within 2⁻¹¹ of its
                image's largest. A second call with the same arguments takes up an interrupted one:
                it looks at the images of those shards that are missing, or that hold a picture
                that has changed since, and at no others; only `batch_size` may be another.
                Processes started together, by `torchrun` or `srun`, share the shards: see
                `siamcam_lib.embedding`.
            looks: What was looked at before with the same backbone is not looked at again; for
                galleries in memory.
            batch_size: Images that go through the network together.
            images_per_shard: Images in a file: what an interruption costs at most.
            progress: Show a progress bar.
            options: As in `sc.explain`.

        Raises:
            GalleryError: if there is no image, or the folder cannot be written or holds a gallery
                of another network, of other images or of other settings.
            ExplanationError: if the network cannot be explained.
            ImageError: if an image cannot be read.
        """
        seeing = as_explainable(net, layer, **options)
        pictures = _Pictures(images)
        check_embeddable(pictures, batch_size, images_per_shard)
        if folder is not None:
            if looks is not None:
                raise GalleryError(
                    "Looks are kept in memory, so they serve galleries in memory; leave out looks "
                    "or folder."
                )
            from siamcam_lib import embedding  # Lightning: loaded by whoever writes a gallery

            embedding.embed(
                folder, seeing, pictures,
                batch_size=batch_size, images_per_shard=images_per_shard, progress=progress,
            )  # fmt: skip
            written = Shards(folder)
            return cls(written, written.table, pictures, seeing)
        batches = [range(*ends) for ends in blocks(len(pictures), batch_size)]
        rows = _Held()
        bar = tqdm(total=len(pictures), desc="gallery", unit="image", disable=not progress,
                   leave=False)  # fmt: skip
        with bar, memory_kept():
            for batch in decoded(pictures, batches, seeing.image_size, keep=looks is not None):
                rows.add(look(seeing, batch, looks))
                bar.update(len(batch))
        table = {
            "threshold": seeing.threshold, "settings": seeing.settings, "digest": seeing.digest()
        }  # fmt: skip
        rows.close(table)
        table["shape"] = rows.read("maps", 0, 1).shape[1:]
        return cls(rows, table, pictures, seeing)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        net: Any = None,
        images: ImageSet | Sequence[Any] | None = None,
        **options: Any,
    ) -> Gallery:
        """Open a gallery on disk; nothing is read until it is asked for.

        Args:
            folder: As `embed` or `save` wrote it.
            net: The network it was made with, to check that it is the same and to look for
                neighbours of new images; not needed otherwise.
            images: The same images in the same order, to show them. Where they have other names
                than those that `embed` wrote into the folder, every one is compared.
            options: As in `sc.explain`, with ``layer``.

        Raises:
            GalleryError: if it is missing, damaged, of another network or of other images.
        """
        rows = Shards(folder)
        seeing = None if net is None else as_explainable(net, **options)
        if seeing is not None and seeing.digest() != rows.table["digest"]:
            raise GalleryError(
                f"The gallery {folder} was made with another network, or other settings; open it "
                "with the network it was made with, or make it again with Gallery.embed."
            )
        pictures = None if images is None else _Pictures(images)
        if pictures is not None and len(pictures) != len(rows):
            raise GalleryError(
                f"The gallery {folder} holds {len(rows)} images, {len(pictures)} were given; give "
                "those it was made of, in the same order."
            )
        if pictures is not None and not _made_of(rows, pictures):
            raise GalleryError(
                f"The gallery {folder} was made of other images, or of these in another order; "
                "give those it was made of, in the same order."
            )
        return cls(rows, rows.table, pictures, seeing)

    def save(self, folder: str | Path, images_per_shard: int = 1024) -> Path:
        """Write the gallery as shards, in half precision; see `embed`.

        Raises:
            GalleryError: if the folder cannot be written or holds a gallery.
        """
        writer = ShardWriter(folder, images_per_shard)
        for start, stop in blocks(len(self), images_per_shard):
            part = {kind: self._rows.read(kind, start, stop) for kind in KINDS}
            if part["maps"].dtype != KINDS["maps"]:
                part["maps"], part["scale"] = half(part["maps"])
            writer.add(part)
        known = ("threshold", "settings", "shape", "digest", "names")
        about = {name: self._table[name] for name in known if name in self._table}
        if self._images is not None:
            about.setdefault("names", self._images.names())
        writer.close(about | {"threshold": self.threshold})
        return Path(folder)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self._table["shape"]))
        where = "in memory" if isinstance(self._rows, _Held) else f"in {self._rows.folder}"
        return f"Gallery({len(self)} images, {shape}, {where})"

    @property
    def unit(self) -> bool:
        """Whether embeddings are scaled to unit length before they are compared."""
        return bool(self._table["settings"].get("unit", False))

    @cached_property
    def embeddings(self) -> np.ndarray:
        """Embeddings of all images, (n, E) float32, before any scaling to unit length."""
        return self._rows.read("embedding", 0, len(self))

    def image(self, i: int) -> Image.Image:
        """Picture `i`.

        Raises:
            GalleryError: if the gallery was opened without its images, or there is no such one.
        """
        if self._images is None:
            raise GalleryError(
                "This gallery was opened without its images; Gallery.open(folder, images=...) "
                "lets it show them."
            )
        return self._images[self._check(i)]

    def maps(self, start: int, stop: int) -> Tensor:
        """P of images start…stop, (n, E, h, w) float32."""
        maps = torch.from_numpy(self._rows.read("maps", start, stop)).float()
        scale = torch.from_numpy(self._rows.read("scale", start, stop))
        return maps.mul_(scale[:, None, None, None])

    def compare(self, e1: Tensor, e2: Tensor) -> Compared:
        """Judge pairs of embeddings, (m, E) float64 twice, as the network does."""
        if self._seeing is not None:
            return self._seeing.compare(e1, e2)
        settings = dict(self._table["settings"])
        name = settings.pop("comparison")
        if name == "siamese":
            return SiameseComparison(**settings)(e1, e2)
        if name in COMPARISONS:
            return compare_by_gradient(COMPARISONS[name], e1, e2)
        raise GalleryError(
            f"This gallery compares embeddings by {name}, which is no part of the library; pass "
            "its network: Gallery.open(folder, net)."
        )

    def explain(
        self,
        i: int,
        j: int,
        *,
        method: str = "gradcam",
        polarity: str = "decision",
        threshold: float | None = None,
    ) -> Explanation:
        """Explain images `i` and `j`, as `sc.explain` would, without looking at them again.

        The pictures themselves are read only when the explanation is drawn.

        Raises:
            GalleryError: if there is no such image.
            ExplanationError: for an unknown method or polarity, or a threshold outside (0, 1).
        """
        check_closed_form(method)
        check_polarity(polarity)
        threshold = self.threshold if threshold is None else check_threshold(threshold)
        pair = (self._check(i), self._check(j))
        e1, e2 = (torch.from_numpy(self._rows.read("embedding", k, k + 1)).double() for k in pair)
        compared = self.compare(e1, e2)
        v = directions(method, compared, e1, e2, self.unit)
        raw = torch.cat([
            gradcam.along(gradcam.Projected(self.maps(k, k + 1), e1), direction.float())
            for k, direction in zip(pair, v, strict=True)
        ])  # fmt: skip
        sizes = [tuple(self._rows.read("size", k, k + 1)[0].tolist()) for k in pair]
        shown = _PairOf(self, pair)
        return finish(shown, sizes, compared.dissimilarity.item(), threshold, raw, method, polarity)

    def correspondence(self, i: int, j: int) -> np.ndarray:
        r"""Point to point: how much place p of image i has in common with place q of image j.

        :math:`R(p, q) = \langle P_i(p), P_j(q) \rangle`, divided by both lengths where embeddings
        have unit length. Its sum over q is the shared map of image i, but for the head's bias
        (Zhu et al. 2021, doi:10.1109/TIP.2021.3107214).

        Returns:
            (h, w, h, w) float32: first the place in i, then the place in j.
        """
        first, second = (self.maps(k, k + 1)[0] for k in (self._check(i), self._check(j)))
        found = torch.einsum("ehw,exy->hwxy", first, second)
        if self.unit:
            e = [self._rows.read("embedding", k, k + 1) for k in (i, j)]
            lengths = [float(np.linalg.norm(x)) for x in e]
            found /= (lengths[0] * lengths[1]) or 1.0
        return found.numpy()

    def all_pairs(
        self, method: str = "gradcam", *, rows: int = 32, columns: int = 512
    ) -> Iterator[Tile]:
        """Signed maps of all ordered pairs, tile by tile: no more than one tile is in memory.

        Args:
            method: As in `sc.explain`.
            rows: Images of a tile whose maps are given.
            columns: Images of a tile they are compared with.

        Yields:
            `Tile`, row by row; the pair (i, i) is among them and blank for ``"gradcam"``.
        """
        check_closed_form(method)
        positive("rows", rows)
        positive("columns", columns)
        for start, stop in blocks(len(self), rows):
            maps = self.maps(start, stop).flatten(2)  # (r, E, Z)
            e1 = torch.from_numpy(self.embeddings[start:stop])
            own_map = torch.einsum("rez,re->rz", maps, e1)
            for left, right in blocks(len(self), columns):
                e2 = torch.from_numpy(self.embeddings[left:right])
                found = self._tile(method, maps, own_map, e1, e2)
                shape = (stop - start, right - left, *self._table["shape"][1:])
                yield Tile(slice(start, stop), slice(left, right), found.view(shape).numpy())

    def _tile(self, method: str, maps: Tensor, own_map: Tensor, e1: Tensor, e2: Tensor) -> Tensor:
        """(r, E, Z) against (c, E) → (r, c, Z)."""
        known = self._combination(method, e1, e2)
        if known is None:  # any comparison has a direction for each pair
            r, c = len(e1), len(e2)
            ends = e1.repeat_interleave(c, 0).double(), e2.repeat(r, 1).double()
            return torch.bmm(self.compare(*ends).v1.float().view(r, c, -1), maps)
        own, other = known
        found = torch.matmul(e2, maps)  # S, (r, c, Z)
        return found.mul_(other[:, :, None]).addcmul_(own[:, :, None], own_map[:, None, :])

    def _combination(self, method: str, e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor] | None:
        """`own` and `other` of every pair of a tile, (r, c) each; None where they do not exist."""
        how = gradcam.relation_table(e1, e2, self.unit)
        factor: Tensor | float = 1.0
        if method == "gradcam":
            settings = self._table["settings"]
            match settings["comparison"]:
                case "siamese":
                    factor = gradcam.sigmoid_slope(how.d, settings["slope"], settings["offset"])
                    method = "distance"
                    if self.unit:
                        method, factor = "cosine", torch.where(how.d > 0, factor / how.d, 0)
                case "cosine":
                    method, factor = "cosine", 0.5
                case "l2":
                    method, factor = "distance", 1 / (1 + how.d) ** 2
                case _:
                    return None
        own, other = gradcam.coefficients(method, how, self.unit)
        return (own * factor).float(), (other * factor).float()

    def nearest(self, query: Any, k: int = 5) -> Neighbours:
        """The k images most like one of the gallery, or like a new one.

        Args:
            query: An index, or an image as in `sc.explain` (needs the gallery's network).
            k: How many; at most all others are found.

        Raises:
            GalleryError: if k is not positive, there is no such index, or the network is missing.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise GalleryError(f"k is a positive whole number, not {k!r}.")
        inside = isinstance(query, int | np.integer)
        if inside:
            e = torch.from_numpy(self._rows.read("embedding", self._check(query), query + 1))
        elif self._seeing is not None:
            e = self._seeing.see([as_image(query)]).embedding.float()
        else:
            raise GalleryError(
                "To look for a new image the gallery needs its network: Gallery.open(folder, net)."
            )
        index = self._candidates(e, k + inside)
        index = index[index != query] if inside else index
        y = self._judge(e, torch.from_numpy(self._rows.take("embedding", index)))
        order = np.argsort(y, kind="stable")[:k]
        return Neighbours(index[order], y[order])

    def _judge(self, e: Tensor, others: Tensor) -> np.ndarray:
        """Dissimilarity of one embedding (1, E) to each of others (m, E)."""
        others = others.double()
        return self.compare(e.double().expand_as(others), others).dissimilarity.numpy()

    def _candidates(self, e: Tensor, k: int) -> np.ndarray:
        """At least the k nearest, if there are as many."""
        if self._index is not None:
            return self._index.search(self._direction(e.numpy()), min(k, len(self)))
        y = np.concatenate([
            self._judge(e, torch.from_numpy(self._rows.read("embedding", *ends)))
            for ends in blocks(len(self), 8192)
        ])  # fmt: skip
        return np.argsort(y, kind="stable")[:k]

    @cached_property
    def _index(self) -> Index | None:
        """By distance or, for the cosine, by product; None where neither orders the pairs."""
        settings = self._table["settings"]
        product = settings["comparison"] == "cosine"
        if not (product or settings["comparison"] == "l2" or settings.get("slope", 0.0) > 0):
            return None

        def vectors() -> Iterator[np.ndarray]:
            for ends in blocks(len(self), 8192):
                yield self._direction(self._rows.read("embedding", *ends))

        beside = self._rows.folder if isinstance(self._rows, Shards) else None
        return Index.of(vectors, len(self), product=product, folder=beside)

    def _direction(self, e: np.ndarray) -> np.ndarray:
        """Embeddings as distances between them are meant."""
        if self.unit or self._table["settings"]["comparison"] == "cosine":
            return e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12)
        return e

    def widget(self, **options: Any) -> Any:
        """The pair explorer on this gallery, with or without a kernel.

        Args:
            options: As in `siamcam_lib.widgets.pair_explorer`.
        """
        from siamcam_lib import widgets  # a view, above this module: imported when asked for

        return widgets.pair_explorer(self, **options)

    def to_html(self, path: str | Path, **options: Any) -> Path:
        """Write the pair explorer as one self-contained file to send to a colleague.

        Args:
            path: Of the file.
            options: As in `siamcam_lib.widgets.to_html`.
        """
        from siamcam_lib import widgets

        return widgets.to_html(self, path, **options)

    def _check(self, i: Any) -> int:
        whole = isinstance(i, int | np.integer) and not isinstance(i, bool)
        if not whole or not 0 <= i < len(self):
            raise GalleryError(
                f"There is no image {i!r}; the gallery holds images 0 to {len(self) - 1}."
            )
        return int(i)


def _made_of(rows: Shards, pictures: _Pictures) -> bool:
    """Whether a gallery is of these pictures: by their names, or else by what they show."""
    same = rows.table.get("names") == pictures.names()
    if same and pictures.named:
        return True
    for start, stop in blocks(len(rows), 1024):
        keys = rows.read("key", start, stop)
        known = keys.any()  # where nobody has noted what they show, there are only the names
        if not (pictures.are(keys, start) if known else same):
            return False
    return True


class _PairOf(Sequence):
    """The two pictures of an explained pair, read when the explanation is drawn."""

    def __init__(self, gallery: Gallery, pair: tuple[int, int]) -> None:
        self._gallery, self._pair = gallery, pair

    def __len__(self) -> int:
        return 2

    def __getitem__(self, side: int) -> Image.Image:  # type: ignore[override]  # no slices
        return self._gallery.image(self._pair[side])


class _Held:
    """Rows in memory, in full precision."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self._whole: dict[str, np.ndarray] = {}

    def add(self, rows: dict[str, np.ndarray]) -> None:
        for kind, values in with_keys(rows).items():
            self._parts[kind].append(values)

    def close(self, about: dict[str, Any]) -> None:
        """Join what was added; the same picture gets the same row, as rounding may differ."""
        self._whole = {kind: np.concatenate(parts) for kind, parts in self._parts.items()}
        self._parts.clear()
        for later, first in repeated(self._whole["key"]):
            for kind in ("maps", "scale", "embedding"):
                self._whole[kind][later] = self._whole[kind][first]

    def __len__(self) -> int:
        return len(self._whole["size"])

    def read(self, kind: str, start: int, stop: int) -> np.ndarray:
        return self._whole[kind][start:stop]

    def take(self, kind: str, index: np.ndarray) -> np.ndarray:
        return self._whole[kind][index]
