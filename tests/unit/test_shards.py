"""Shards: what is written is read again row by row, and whatever is damaged is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from siamcam_lib.errors import GalleryError
from siamcam_lib.shards import FORMAT, KINDS, TABLE, Shards, ShardWriter, blocks, half

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
ABOUT = {
    "threshold": 0.5, "shape": [3, 2, 2], "digest": "0" * 64,
    "settings": {"comparison": "siamese", "unit": True, "slope": 1.0, "offset": 0.0},
}  # fmt: skip
DAMAGED = "make .* again"


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "maps": random.normal(size=(count, 3, 2, 2)).astype(np.float16),
        "scale": random.random(count).astype(np.float32),
        "embedding": random.normal(size=(count, 3)).astype(np.float32),
        "size": random.integers(1, 99, (count, 2)).astype(np.int32),
        "key": random.integers(0, 256, (count, 2, 16), np.uint8),
    }


def write(folder: Path, count: int = 10, per_shard: int = 4, piece: int = 3) -> dict:
    """A gallery of `count` rows, handed over in pieces; gives what was handed over."""
    whole, writer = rows(count), ShardWriter(folder, per_shard)
    for start, stop in blocks(count, piece):
        writer.add({kind: values[start:stop] for kind, values in whole.items()})
    writer.close(ABOUT)
    return whole


def edit(folder: Path, **changes) -> None:
    """Change entries of the table; those changed to `...` are taken out."""
    table = json.loads((folder / TABLE).read_text()) | changes
    (folder / TABLE).write_text(json.dumps({k: v for k, v in table.items() if v is not ...}))


# --- writing and reading --------------------------------------------------------------------------


class TestRoundTrip:
    @PROPERTY
    @given(
        count=st.integers(1, 23), per_shard=st.integers(1, 25), piece=st.integers(1, 25),
        data=st.data(),
    )  # fmt: skip
    def test_any_rows_of_any_shards(self, tmp_path_factory, count, per_shard, piece, data):
        folder = tmp_path_factory.mktemp("gallery")
        whole = write(folder, count, per_shard, piece)
        found = Shards(folder)
        assert len(found) == found.table["images"] == count
        assert len(found.table["shards"]) == -(-count // per_shard)
        for name, count_here in zip(found.table["shards"], found._ends, strict=True):
            assert len(load_file(folder / name)["size"]) <= per_shard and count_here <= count
        start = data.draw(st.integers(0, count - 1))
        stop = data.draw(st.integers(start + 1, count))
        for kind, dtype in KINDS.items():
            part = found.read(kind, start, stop)
            assert part.dtype == dtype
            np.testing.assert_array_equal(part, whole[kind][start:stop])

    def test_every_single_row(self, tmp_path):
        whole = write(tmp_path, 10, 3)
        found = Shards(tmp_path)
        for kind in KINDS:
            for i in range(10):
                np.testing.assert_array_equal(found.read(kind, i, i + 1), whole[kind][i : i + 1])

    def test_files(self, tmp_path):
        write(tmp_path, 10, 4)
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            TABLE, *(f"shard-0000{k}.safetensors" for k in range(3))
        ]  # fmt: skip
        table = json.loads((tmp_path / TABLE).read_text())
        assert table["format"] == FORMAT and table["images"] == 10
        assert table | ABOUT == table

    def test_whole_shards_are_written_on_the_way(self, tmp_path):
        """Nothing but less than one shard waits in memory."""
        writer = ShardWriter(tmp_path, 4)
        for k in range(11):
            writer.add(rows(1, seed=k))
            assert len(writer.names) == (k + 1) // 4
            assert sum(len(part["size"]) for part in writer._waiting) == (k + 1) % 4
        assert not (tmp_path / TABLE).exists()  # written last: an unfinished gallery is none
        with pytest.raises(GalleryError, match="There is no gallery"):
            Shards(tmp_path)

    def test_one_large_piece_makes_many_shards(self, tmp_path):
        writer = ShardWriter(tmp_path, 4)
        writer.add(rows(11))
        assert len(writer.names) == 2
        writer.close(ABOUT)
        assert len(Shards(tmp_path)) == 11

    def test_rows_of_other_types_are_stored_as_promised(self, tmp_path):
        whole, writer = rows(3), ShardWriter(tmp_path)
        writer.add({k: v.astype(np.float64) for k, v in whole.items()})
        writer.close(ABOUT)
        for kind, dtype in KINDS.items():
            assert Shards(tmp_path).read(kind, 0, 3).dtype == dtype

    @pytest.mark.parametrize("kind", ["embedding", "key"])
    def test_tables_of_other_rows_differ(self, tmp_path, kind):
        tables = []
        for name, change in (("one", 0), ("two", 1), ("again", 0)):
            writer, whole = ShardWriter(tmp_path / name, 4), rows(10)
            whole[kind][7] += whole[kind].dtype.type(change)
            writer.add(whole)
            writer.close(ABOUT)
            tables.append((tmp_path / name / TABLE).read_text())
        assert tables[0] == tables[2] != tables[1]

    @pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
    def test_files_can_be_read_by_others(self, tmp_path):
        write(tmp_path)
        assert {oct(p.stat().st_mode & 0o777) for p in tmp_path.iterdir()} == {"0o644"}

    def test_a_folder_of_many_words(self, tmp_path):
        folder = tmp_path / "a b" / "写真 — ö"
        write(folder)
        assert len(Shards(folder)) == len(Shards(str(folder))) == 10


@PROPERTY
@given(count=st.integers(0, 50), size=st.integers(1, 60))
def test_blocks_cover_everything_once(count, size):
    found = list(blocks(count, size))
    assert [i for start, stop in found for i in range(start, stop)] == list(range(count))
    assert all(0 < stop - start <= size for start, stop in found)


# --- half precision -------------------------------------------------------------------------------


class TestHalf:
    @PROPERTY
    @given(
        hnp.arrays(
            np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)),
            elements=st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False),
        )
    )  # fmt: skip
    def test_error_is_within_the_bound(self, maps):
        """|P − P̃| ≤ 2⁻¹¹ max|P|: half precision has 11 bits, and nothing is above 1."""
        small, scale = half(maps)
        assert small.dtype == np.float16 and scale.dtype == np.float32
        largest = np.abs(maps).max(axis=(1, 2))
        np.testing.assert_array_equal(scale, largest)
        back = small.astype(np.float64) * scale[:, None, None]
        gap = np.abs(back - maps.astype(np.float64))
        assert (gap <= 2.0**-11 * largest[:, None, None]).all()
        assert (np.abs(small) <= 1).all()

    def test_the_bound_is_not_generous(self):
        """Values just below 1 lie 2⁻¹¹ apart: half of that is reached, so 2⁻¹³ would be broken."""
        maps = np.linspace(0.5, 1, 4097, dtype=np.float32)[None]
        small, scale = half(maps)
        gap = np.abs(small.astype(np.float64) * scale - maps).max()
        assert 2.0**-13 < gap <= 2.0**-12

    def test_the_largest_value_is_kept_to_the_last_bit(self):
        maps = np.array([[0.1, -3.7], [1e-30, 2e-30], [0, 0]], np.float32)
        small, scale = half(maps)
        back = small.astype(np.float32) * scale[:, None]
        assert back[0, 1] == maps[0, 1] and back[1, 1] == maps[1, 1]
        assert (small[2] == 0).all() and scale[2] == 0  # a blank map stays blank, not NaN

    def test_a_dim_image_keeps_as_many_digits_as_a_bright_one(self):
        """Without a scale of its own, values of 1e-9 would all be 0 in half precision."""
        maps = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
        maps[1] = maps[0] * np.float32(2.0**-30)
        small, scale = half(maps)
        np.testing.assert_array_equal(small[0], small[1])
        assert scale[1] == scale[0] * 2.0**-30


# --- what cannot be written -----------------------------------------------------------------------


class TestWriterErrors:
    def test_a_folder_that_holds_a_gallery(self, tmp_path):
        write(tmp_path)
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        with pytest.raises(GalleryError, match="holds a gallery already"):
            ShardWriter(tmp_path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_file_in_the_way(self, tmp_path, place):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(GalleryError, match="cannot be written .*choose another folder"):
            write(tmp_path / place)
        assert (tmp_path / "file").read_text() == "in the way"

    @pytest.mark.parametrize("broken", ["siamcam_lib.shards.save_file", "os.replace"])
    def test_a_full_disk_leaves_no_gallery(self, tmp_path, monkeypatch, broken):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(broken, full)
        with pytest.raises(GalleryError, match="No space left"):
            write(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_at_the_last_moment(self, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        writer = ShardWriter(tmp_path, 4)
        writer.add(rows(4))
        monkeypatch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(GalleryError, match="No space left"):
            writer.close(ABOUT)
        with pytest.raises(GalleryError, match="There is no gallery"):
            Shards(tmp_path)

    def test_a_gallery_can_be_made_where_one_was_interrupted(self, tmp_path):
        ShardWriter(tmp_path, 2).add(rows(7))  # and no table
        whole = write(tmp_path, 3, 4)
        np.testing.assert_array_equal(Shards(tmp_path).read("maps", 0, 3), whole["maps"])


# --- what cannot be read --------------------------------------------------------------------------


class TestReaderErrors:
    @pytest.fixture
    def folder(self, tmp_path):
        write(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("place", ["nowhere", "shard-00000.safetensors"])
    def test_no_gallery(self, folder, place):
        with pytest.raises(GalleryError, match=r"There is no gallery in .*Gallery.embed\("):
            Shards(folder / place)

    @pytest.mark.parametrize(
        "content",
        [
            b"", b"{", b"not json", b"[]", b"null", b"3", b'"text"', b"{}", b"\xff\xfe",
            b'{"format": "siamcam-gallery-0"}', b'{"format": "siamcam-gallery-2", "shards": ["x"]}',
        ],
    )  # fmt: skip
    def test_a_wrong_table(self, folder, content):
        (folder / TABLE).write_bytes(content)
        with pytest.raises(GalleryError, match="gallery.json is damaged or not of this library"):
            Shards(folder)

    @pytest.mark.parametrize(
        "changes",
        [
            {"format": "another"}, {"format": None}, {"format": ...}, {"shards": ...},
            {"shards": []}, {"shards": None}, {"shards": 5}, {"shards": [5]}, {"shards": {}},
            {"shards": ["../shard-00000.safetensors"]}, {"shards": ["/shard-00000.safetensors"]},
            {"settings": ...}, {"settings": None}, {"settings": []},
        ],
        ids=repr,
    )  # fmt: skip
    def test_a_wrong_entry(self, folder, changes):
        edit(folder, **changes)
        with pytest.raises(GalleryError, match="damaged or not of this library"):
            Shards(folder)

    @pytest.mark.parametrize(
        "changes",
        [
            {"images": ...}, {"threshold": ...}, {"threshold": "0.5"}, {"threshold": None},
            {"threshold": 3}, {"threshold": -1.0}, {"shape": ...}, {"shape": 7}, {"shape": [3, 2]},
            {"shape": [3, 4, 1]}, {"shape": ["a", 2, 2]}, {"digest": ...}, {"digest": 3},
            {"settings": {}}, {"settings": {"comparison": 3}},
            {"settings": {"comparison": "siamese"}},
            {"settings": ABOUT["settings"] | {"slope": "steep"}},
            {"settings": ABOUT["settings"] | {"slope": float("nan")}},
            {"settings": ABOUT["settings"] | {"offset": -float("inf")}},
        ],
        ids=repr,
    )  # fmt: skip
    def test_a_wrong_entry_that_is_found_late(self, folder, changes):
        edit(folder, **changes)
        with pytest.raises(GalleryError, match="damaged"):
            Shards(folder)

    def test_an_older_version(self, folder):
        edit(folder, format="siamcam-gallery-1")
        for call in (Shards, ShardWriter):
            with pytest.raises(GalleryError, match="older version .*delete it and make it again"):
                call(folder)

    @pytest.mark.parametrize("images", [9, 11, 0, -1, "10", None, 10.5])
    def test_another_number_of_images(self, folder, images):
        edit(folder, images=images)
        with pytest.raises(GalleryError, match=f"holds 10 images, its table says {images}"):
            Shards(folder)

    @pytest.mark.parametrize("name", ["", ".", ".."])
    def test_a_folder_in_the_place_of_a_shard(self, folder, name):
        edit(folder, shards=[name])
        with pytest.raises(GalleryError):
            Shards(folder)

    @pytest.mark.parametrize("shard", [0, 1, 2])
    def test_a_missing_shard_is_named(self, folder, shard):
        name = f"shard-0000{shard}.safetensors"
        (folder / name).unlink()
        with pytest.raises(GalleryError, match=f"{name} is damaged or missing .*{DAMAGED}"):
            Shards(folder)

    @pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.7, 0.999])
    def test_a_truncated_shard(self, folder, share):
        path = folder / "shard-00001.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(GalleryError, match=f"shard-00001.safetensors is damaged .*{DAMAGED}"):
            Shards(folder)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda b: b + b"more",
            lambda b: b"\xff" * 8 + b[8:],
            lambda b: struct.pack("<Q", 10**12) + b[8:],
            lambda b: b[:8] + b"}" + b[9:],
            lambda b: b.replace(b"F16", b"F99"),
            lambda b: b.replace(b'"maps"', b'"mops"'),
            lambda b: b[:8] + b[8:].replace(b"[4,3,2,2]", b"[4,3,2,9]"),
            lambda b: b"\x80\x04\x95" + b[3:],
            lambda b: bytes(len(b)),
        ],
    )  # fmt: skip
    def test_a_damaged_shard(self, folder, damage):
        path = folder / "shard-00001.safetensors"
        before = path.read_bytes()
        path.write_bytes(damage(before))
        assert path.read_bytes() != before
        with pytest.raises(GalleryError, match="shard-00001.safetensors is damaged"):
            Shards(folder)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_shard_without_all_kinds(self, folder, kind):
        path = folder / "shard-00000.safetensors"
        save_file({k: v for k, v in load_file(path).items() if k != kind}, path)
        with pytest.raises(GalleryError, match="shard-00000.safetensors is damaged"):
            Shards(folder)

    def test_a_shard_with_more(self, folder):
        path = folder / "shard-00000.safetensors"
        save_file(load_file(path) | {"more": np.zeros(4)}, path)
        with pytest.raises(GalleryError, match="it holds"):
            Shards(folder)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("how", ["a row less", "another type", "another width"])
    def test_a_shard_of_other_shapes(self, folder, kind, how):
        path = folder / "shard-00001.safetensors"
        content = load_file(path)
        if how == "another width" and content[kind].ndim == 1:
            content[kind] = content[kind][:, None]
        else:
            content[kind] = np.ascontiguousarray(
                {
                    "a row less": content[kind][:-1],
                    "another type": content[kind].astype(np.float64),
                    "another width": content[kind].repeat(2, axis=-1),
                }[how]
            )
        save_file(content, path)
        with pytest.raises(GalleryError, match="damaged"):
            Shards(folder)
