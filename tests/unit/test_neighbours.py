"""The search for neighbours: what it finds is what comparing everything finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import siamcam_lib as sc
from siamcam_lib import neighbours
from siamcam_lib.neighbours import FILE, Index
from siamcam_lib.shards import ShardWriter, blocks

E, N = 16, 700
SETTINGS = {
    "unit": {"comparison": "siamese", "unit": True, "slope": 3.0, "offset": -1.0},
    "plain": {"comparison": "siamese", "unit": False, "slope": 3.0, "offset": -1.0},
    "cosine": {"comparison": "cosine"},
    "l2": {"comparison": "l2"},
}


def vectors(seed: int = 0, count: int = N, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(9, E))
    found = centres[random.integers(9, size=count)] + 0.3 * random.normal(size=(count, E))
    return (scale * np.maximum(found, 0)).astype(np.float32)


def gallery(folder, e: np.ndarray, kind: str = "unit") -> sc.Gallery:
    writer = ShardWriter(folder, 100)
    for start, stop in blocks(len(e), 100):
        n = stop - start
        writer.add({
            "maps": np.zeros((n, E, 1, 1)), "scale": np.ones(n), "embedding": e[start:stop],
            "size": np.ones((n, 2)),
        })  # fmt: skip
    writer.close({
        "threshold": 0.5, "settings": SETTINGS[kind], "shape": (E, 1, 1), "digest": ""
    })  # fmt: skip
    return sc.Gallery.open(folder)


@pytest.fixture
def large(monkeypatch):
    """What is large enough for copies in half precision."""
    monkeypatch.setattr(neighbours, "EXACT", 100)


def truth(gal: sc.Gallery, i: int) -> np.ndarray:
    e = torch.from_numpy(gal.embeddings).double()
    y = gal.compare(e[i].expand_as(e), e).dissimilarity.numpy().copy()
    y[i] = np.inf
    return y


def spied(monkeypatch) -> list[str]:
    """How each index came about."""
    how = []
    for name in ("_Made", "_Kept"):
        known = getattr(neighbours, name)

        def made(*args, known=known, name=name):
            found = known(*args)
            how.append(name)
            return found

        monkeypatch.setattr(neighbours, name, made)
    return how


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_the_nearest_of_many_are_those_of_comparing_all(tmp_path, large, kind, scale):
    gal = gallery(tmp_path / "g", vectors(scale=scale), kind)
    for i in range(0, N, 70):
        y = truth(gal, i)
        for k in (1, 10, 200):
            found = gal.nearest(i, k)
            assert len(found.index) == k and i not in found.index
            np.testing.assert_allclose(found.dissimilarity, y[found.index], rtol=1e-12)
            np.testing.assert_allclose(found.dissimilarity, np.sort(y)[:k], rtol=1e-6)


def test_all_others_are_found_when_all_are_asked_for(tmp_path, large):
    gal = gallery(tmp_path / "g", vectors())
    assert sorted(gal.nearest(3, 10_000).index.tolist()) == [k for k in range(N) if k != 3]


def test_many_equals(tmp_path, large):
    e = vectors()
    e[:300] = e[0]
    gal = gallery(tmp_path / "g", e)
    found = gal.nearest(5, 20)
    assert 5 not in found.index and (found.index < 300).all() and len(set(found.index)) == 20


def test_it_searches_on_as_many_cores_as_there_are(large, monkeypatch):
    import faiss

    for cores in (1, 3):
        monkeypatch.setattr(faiss, "omp_get_max_threads", lambda cores=cores: cores)
        e = vectors()
        index = Index.of(lambda e=e: iter([e[:500], e[500:]]), N, product=False)
        assert len(index._parts) == cores and index.search(e[650:651], 1)[0] == 650


def test_opening_again_makes_nothing(tmp_path, large, monkeypatch):
    how = spied(monkeypatch)
    gal = gallery(tmp_path / "g", vectors())
    first = gal.nearest(0, 10)
    again = sc.Gallery.open(tmp_path / "g").nearest(0, 10)
    assert how == ["_Made", "_Kept", "_Kept"]  # what is made is written and given up
    assert first.index.tolist() == again.index.tolist()


def test_small_galleries_write_nothing(tmp_path):
    gallery(tmp_path / "g", vectors(count=90)).nearest(0)
    assert not (tmp_path / "g" / FILE).exists()


def test_copies_of_another_table_are_made_anew(tmp_path, large, monkeypatch):
    gallery(tmp_path / "g", vectors()).nearest(0)
    kept = (tmp_path / "g" / FILE).read_bytes()
    other = gallery(tmp_path / "h", vectors(seed=1))
    (tmp_path / "h" / FILE).write_bytes(kept)
    how = spied(monkeypatch)
    y = truth(other, 0)
    np.testing.assert_allclose(other.nearest(0, 5).dissimilarity, np.sort(y)[:5], rtol=1e-12)
    assert how == ["_Made", "_Kept"]
    sc.Gallery.open(tmp_path / "h").nearest(0)
    assert how == ["_Made", "_Kept", "_Kept"]


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "no file of that kind": lambda path: path.write_bytes(b"\x80\x04pickle"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "fewer rows": lambda path: again(path, lambda kept: {"halves": kept["halves"][:-1]}),
    "another type": lambda path: again(
        path, lambda kept: {"halves": kept["halves"].astype(np.float32)}
    ),
    "no halves": lambda path: again(path, lambda kept: {"other": kept["halves"]}),
    "no scale": lambda path: again(path, lambda kept: {"scale": np.zeros((), np.float32)}),
    "a scale that is no number": lambda path: again(
        path, lambda kept: {"scale": np.array(np.nan, np.float32)}
    ),
}


def again(path, change) -> None:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        about = file.metadata()
    kept = load_file(path)
    changed = change(kept)
    if "other" in changed:
        del kept["halves"]
    save_file(kept | changed, path, about)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_copies_are_made_anew(tmp_path, large, monkeypatch, damage):
    gal = gallery(tmp_path / "g", vectors())
    first = gal.nearest(0, 10)
    DAMAGES[damage](tmp_path / "g" / FILE)
    how = spied(monkeypatch)
    found = sc.Gallery.open(tmp_path / "g").nearest(0, 10)
    assert how == ["_Made", "_Kept"] and found.index.tolist() == first.index.tolist()


def test_copies_that_are_no_numbers_do_no_harm(tmp_path, large):
    gallery(tmp_path / "g", vectors()).nearest(0)
    again(tmp_path / "g" / FILE, lambda kept: {"halves": np.full_like(kept["halves"], np.nan)})
    found = sc.Gallery.open(tmp_path / "g").nearest(0, 10)
    assert len(found.index) <= 10 and np.isfinite(found.dissimilarity).all()


def test_where_nothing_can_be_written_it_is_made_each_time(tmp_path, large, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(neighbours, "save_file", full)
    how = spied(monkeypatch)
    gal = gallery(tmp_path / "g", vectors())
    assert (
        len(gal.nearest(0, 10).index) == len(sc.Gallery.open(tmp_path / "g").nearest(0).index) * 2
    )
    assert how == ["_Made", "_Made"]
    assert sorted(p.suffix for p in (tmp_path / "g").iterdir()) == [".json"] + [".safetensors"] * 7


def test_only_candidates_are_read_in_full_precision(tmp_path, large, monkeypatch):
    gallery(tmp_path / "g", vectors()).nearest(0)
    gal, asked = sc.Gallery.open(tmp_path / "g"), []
    read = type(gal._rows).read
    monkeypatch.setattr(
        type(gal._rows), "read", lambda *a: (asked.append(a[3] - a[2]), read(*a))[1]
    )
    gal.nearest(0, 5)
    assert sum(asked) <= 1 + 4 * 6 + 100 and max(asked) == 1
