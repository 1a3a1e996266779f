"""How an explanation is written down: ``explanation.json``.

`siamcam explain` writes it, and so does the pair explorer in a reader's browser; `Explanation.open`
reads it. It is an object with the entries

- ``format``: ``"siamcam-explanation"``, ``version``: 1;
- ``images``: for a and b its ``file`` as given, ``sha256`` of its bytes, or null where they are not
  known, ``width``, ``height``;
- ``model``: its ``file``, or null for ImageNet features and in pages; ``digest`` of all that an
  embedding and a map depend on besides the image; ``calibrated``: whether the threshold was chosen
  on pairs;
- ``dissimilarity`` in [0, 1], ``similarity`` = 1 − dissimilarity, ``threshold``, ``decision``:
  ``"dissimilar"`` from the threshold on, else ``"similar"``;
- ``method`` and ``polarity``: see `sc.explain`;
- ``raw``: for a and b the signed map, positive where it speaks for similarity: its ``shape`` (rows,
  columns), ``kind`` ``"float32"`` and ``data``, base64 of the numbers in little-endian order, which
  ``np.frombuffer(base64.b64decode(raw["data"]), "<f4").reshape(raw["shape"])`` reads;
- ``blank``: for the factual and the counterfactual maps of a and b, whether they are zero
  everywhere;
- ``versions`` of the library and of what ran the network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from siamcam_lib.datasets.images import MAX_PIXELS, as_image
from siamcam_lib.embedder import check_threshold
from siamcam_lib.errors import ExplanationError
from siamcam_lib.explanation import Explanation, check_polarity, finish

FORMAT, VERSION = "siamcam-explanation", 1
MOST_BYTES, MOST_PLACES = 20_000_000, 512 * 512
"""Of a file, and of a map: far more than any network gives."""


def opened(path: str | Path, a: Any = None, b: Any = None) -> Explanation:
    """Read ``explanation.json``; see `Explanation.open`.

    Raises:
        ExplanationError: if it is no such file, or a picture is not the one that was explained.
        ImageError: if a picture cannot be read.
    """
    record = _parsed(Path(path))
    try:
        images = [record["images"][side] for side in "ab"]
        sizes = [(_whole(image["width"]), _whole(image["height"])) for image in images]
        if max(w * h for w, h in sizes) > MAX_PIXELS:
            raise ValueError(f"pictures of {sizes} pixels")
        raw = torch.from_numpy(np.stack([_map(record["raw"][side]) for side in "ab"]))
        y = float(record["dissimilarity"])
        if not 0 <= y <= 1:
            raise ValueError(f"a dissimilarity of {y}")
        threshold = check_threshold(record["threshold"])
        method, polarity = record["method"], record["polarity"]
        if not isinstance(method, str):
            raise ValueError(f"a method {method!r}")
        check_polarity(polarity)
    except (KeyError, TypeError, ValueError) as error:
        raise ExplanationError(
            f"{path} holds no explanation that can be read ({error!r}); `siamcam explain` writes "
            "one, and so does the pair explorer of the book."
        ) from error
    given = [
        None if picture is None else _same(picture, image, size)
        for picture, image, size in zip((a, b), images, sizes, strict=True)
    ]
    return finish(_Given(given), sizes, y, threshold, raw, method, polarity)


class _Given(Sequence[Image.Image]):
    """The two pictures, where they were given."""

    def __init__(self, pictures: list[Image.Image | None]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return 2

    def __getitem__(self, side: int) -> Image.Image:  # type: ignore[override]  # no slices
        picture = self._pictures[side]
        if picture is None:
            raise ExplanationError(
                "This explanation was read from a file, which holds no pictures; to draw it give "
                "them: Explanation.open(path, a, b)."
            )
        return picture


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 1_000_000} MB")
        record = json.loads(path.read_text(encoding="utf-8"))
        known = isinstance(record, dict) and record.get("format") == FORMAT
        if not known or record.get("version") != VERSION:
            raise ValueError(f"its format is not {FORMAT} {VERSION}")
    except (OSError, ValueError, RecursionError) as error:
        raise ExplanationError(
            f"{path} is no explanation ({error}); `siamcam explain` writes one, and so does the "
            "pair explorer of the book."
        ) from error
    return record


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a size of {value!r}")
    return value


def _map(packed: dict[str, Any]) -> np.ndarray:
    h, w = (_whole(n) for n in packed["shape"])
    if packed["kind"] != "float32" or h * w > MOST_PLACES:
        raise ValueError(f"a map of {packed['kind']} {h} × {w}")
    values = np.frombuffer(base64.b64decode(packed["data"], validate=True), "<f4")
    if len(values) != h * w or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} values of a map {h} × {w}, or some that are not finite")
    return values.reshape(h, w).astype(np.float32)


def _same(given: Any, image: dict[str, Any], size: tuple[int, int]) -> Image.Image:
    """A picture, if it is the one that was explained."""
    picture = as_image(given)
    wanted = image.get("sha256")
    if isinstance(given, str | Path) and isinstance(wanted, str):
        same = hashlib.sha256(Path(given).read_bytes()).hexdigest() == wanted
    else:
        same = math.isclose(picture.width * size[1], picture.height * size[0], rel_tol=0.02)
    if not same:
        raise ExplanationError(
            f"{given} is not the picture that was explained ({image.get('file')!r}, {size[0]} × "
            f"{size[1]} pixels); give that one."
        )
    if picture.size != size:  # a page knows gallery pictures only as it shows them
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture
