"""Vectors kept on disk under content keys, so that nothing dear is computed twice.

Used for perceptual hashes (chapter 1) and pooled features (chapter 2).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from siamcam_lib.errors import CacheError
from siamcam_lib.files import cache_home


class FeatureCache:
    """Vectors under content keys, in one SQLite file: safe against crashes and second processes.

    Example:
        >>> import tempfile
        >>> cache = FeatureCache(Path(tempfile.mkdtemp()) / "features.sqlite")
        >>> cache.put({"key": np.ones(3, np.float32)})
        >>> cache.get(["key", "other"])
        {'key': array([1., 1., 1.], dtype=float32)}
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_home() / "features.sqlite"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, value BLOB)"
                )
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise CacheError(
                f"The feature cache {self.path} cannot be used ({error}); delete it, or set "
                "SIAMCAM_CACHE to a folder that can be written."
            ) from error

    def get(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of `keys` that are known, with their float32 vectors.

        Raises:
            CacheError: if the file cannot be read or is damaged.
        """
        with self._open() as connection:
            query = "SELECT value FROM features WHERE key = ?"
            rows = ((key, connection.execute(query, (key,)).fetchone()) for key in keys)
            return {key: _vector(row[0]) for key, row in rows if row}

    def put(self, vectors: dict[str, np.ndarray]) -> None:
        """Store float32 vectors, all or none.

        Raises:
            CacheError: if the file cannot be written.
        """
        rows = [(key, np.ascontiguousarray(v, np.float32).tobytes()) for key, v in vectors.items()]
        with self._open() as connection:
            connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", rows)


def _vector(value: object) -> np.ndarray:
    if not isinstance(value, bytes) or len(value) % 4:
        raise sqlite3.DatabaseError("a row holds no vector")
    return np.frombuffer(value, np.float32)
