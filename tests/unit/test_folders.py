"""A folder of class folders becomes an image set, or every fault in it is reported by name."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from siamcam_lib.datasets import folders
from siamcam_lib.datasets import images as reader
from siamcam_lib.datasets.folders import FolderSource, load_folder
from siamcam_lib.errors import DataError, DataNotFoundError, ImageError


def picture(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(path, "PNG")
    return path


@pytest.fixture
def pets(tmp_path) -> Path:
    root = tmp_path / "pets"
    for i, item in enumerate(["dog/b.png", "dog/a.png", "cat/1.png", "cat/2.png", "cat/old/3.png"]):
        picture(root / item, i)
    return root


def test_items_labels_and_groups(pets):
    images = load_folder(pets)
    assert images.name == "pets" and images.origin == "folder" and images.notes == ()
    assert images.classes == ("cat", "dog")
    assert images.items == ("cat/1.png", "cat/2.png", "cat/old/3.png", "dog/a.png", "dog/b.png")
    assert images.labels.tolist() == [0, 0, 0, 1, 1] and images.labels.dtype == np.int64
    assert images.groups.tolist() == [0, 1, 2, 3, 4] and images.groups.dtype == np.int64
    assert images.counts() == {"cat": 3, "dog": 2}
    assert images.image(3).getpixel((0, 0)) == (1, 0, 0)
    assert images.masks(0) == {}


def test_name_origin_and_classes_can_be_given(pets):
    picture(pets / "ant" / "1.png")
    images = load_folder(str(pets), name="mine", origin="photographs", classes=["dog", "cat"])
    assert (images.name, images.origin, images.classes) == ("mine", "photographs", ("dog", "cat"))
    assert images.counts() == {"dog": 2, "cat": 3}
    with pytest.raises(DataError, match="no class folder bird"):
        load_folder(pets, classes=["dog", "bird"])


def test_few_pictures_wait_for_their_check_at_a_time(tmp_path, monkeypatch):
    for k in range(20):
        picture(tmp_path / "ab"[k % 2] / f"{k}.png")
    (tmp_path / "a" / "18.png").write_bytes(b"damaged")
    handed = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *task):
            handed.append(task)
            return super().submit(*task)

    def watched(faults, **_):
        for done, fault in enumerate(faults):
            assert len(handed) <= done + 3
            yield fault

    monkeypatch.setattr(folders, "_AT_ONCE", 3)
    monkeypatch.setattr(folders, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(folders, "tqdm", watched)
    with pytest.raises(ImageError, match="1 picture in .*18.png"):
        load_folder(tmp_path)
    assert len(handed) == 20


def test_a_single_dot_gives_a_name(pets, monkeypatch):
    monkeypatch.chdir(pets)
    assert load_folder(".").name == "pets"


def test_unicode_and_spaces_in_names(tmp_path):
    for folder in ("weiße Blüten", "赤い 花"):
        for file in ("mit Leerzeichen .png", "花 №1.png"):
            picture(tmp_path / folder / file)
    images = load_folder(tmp_path)
    assert len(images) == 4 and "赤い 花/花 №1.png" in images.items
    assert images.image(0).size == (8, 6) and len(images.fingerprint()) == 64


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows such names")
def test_name_that_is_no_text_is_reported(pets):
    os.rename(picture(pets / "cat" / "x.png"), os.fsencode(pets / "cat") + b"/\xff.png")
    with pytest.raises(ImageError, match="not UTF-8"):
        load_folder(pets)
    images = load_folder(pets, on_bad="skip")
    assert len(images) == 5 and "not UTF-8" in images.notes[0]
    images.fingerprint()


def test_hidden_files_litter_and_capitals(pets):
    picture(pets / "cat" / ".hidden.png")
    picture(pets / ".git" / "x.png")
    picture(pets / "__MACOSX" / "x.png")
    picture(pets / "cat" / ".thumbs" / "x.png")
    picture(pets / "cat" / "LOUD.PNG")
    images = load_folder(pets)
    assert images.classes == ("cat", "dog") and images.notes == ()
    assert "cat/LOUD.PNG" in images.items and len(images) == 6


def test_a_suffix_may_name_another_image_format(pets):
    picture(pets / "cat" / "really-a-png.jpg")
    assert "cat/really-a-png.jpg" in load_folder(pets).items


def test_files_that_are_left_out_are_noted(pets):
    picture(pets / "cat" / "unnamed")
    (pets / "dog" / "README.txt").write_text("about dogs")
    picture(pets / "loose.png")
    (pets / "index.csv").write_text("x")
    images = load_folder(pets)
    assert len(images) == 5
    notes = " ".join(images.notes)
    assert "1 image outside the class folders" in notes
    assert "no image suffix: cat/unnamed" in notes
    assert "1 other file left out" in notes and "README" not in notes


# --- links --------------------------------------------------------------------------------------


def test_links_that_loop_are_survived(pets):
    (pets / "cat" / "round").symlink_to(pets / "cat", target_is_directory=True)
    (pets / "cat" / "up").symlink_to(pets, target_is_directory=True)
    (pets / "cat" / "across").symlink_to(pets / "dog", target_is_directory=True)
    (pets / "whole").symlink_to("..", target_is_directory=True)
    (pets / "itself").symlink_to("itself")
    images = load_folder(pets)
    assert images.counts() == {"cat": 3, "dog": 2}
    assert images.notes == ("Links that lead back up left out: whole.",)


def test_linked_folders_and_files_are_followed(pets, tmp_path):
    picture(tmp_path / "elsewhere" / "a.png")
    picture(tmp_path / "birds" / "b.png")
    (pets / "cat" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (pets / "dog" / "c.png").symlink_to(tmp_path / "birds" / "b.png")
    (pets / "bird").symlink_to(tmp_path / "birds", target_is_directory=True)
    assert load_folder(pets).counts() == {"bird": 1, "cat": 4, "dog": 3}


def test_link_to_nothing_is_a_bad_picture(pets):
    (pets / "cat" / "lost.png").symlink_to(pets / "gone.png")
    (pets / "cat" / "round.png").symlink_to("round.png")
    with pytest.raises(ImageError, match=r"2 pictures .*lost\.png.*round\.png"):
        load_folder(pets)


# --- bad files ----------------------------------------------------------------------------------


@pytest.fixture
def spoilt(pets) -> Path:
    (pets / "cat" / "empty.jpg").touch()
    (pets / "cat" / "letter.jpg").write_text("Dear Sir or Madam")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pets / "dog" / "half.jpg")
    data = (pets / "dog" / "half.jpg").read_bytes()
    (pets / "dog" / "half.jpg").write_bytes(data[: len(data) // 2])
    return pets


def test_bad_pictures_are_all_named(spoilt):
    with pytest.raises(ImageError, match="3 pictures") as caught:
        load_folder(spoilt)
    for name in ("empty.jpg", "letter.jpg", "half.jpg"):
        assert name in str(caught.value)
    assert 'on_bad="skip"' in str(caught.value)


def test_bad_pictures_are_skipped_when_asked_and_noted(spoilt):
    images = load_folder(spoilt, on_bad="skip")
    assert images.counts() == {"cat": 3, "dog": 2}
    assert images.groups.tolist() == [0, 1, 2, 3, 4]
    (note,) = images.notes
    assert "3 unreadable pictures left out" in note
    assert all(name in note for name in ("empty.jpg", "letter.jpg", "half.jpg"))


def test_header_check_leaves_truncation_to_the_reading(spoilt):
    images = load_folder(spoilt, on_bad="skip", check="header")
    assert images.counts() == {"cat": 3, "dog": 3}
    with pytest.raises(ImageError, match=r"half\.jpg is damaged or truncated"):
        images.image(images.items.index("dog/half.jpg"))


def test_long_lists_are_cut(pets):
    for i in range(30):
        (pets / "cat" / f"bad{i:02}.png").touch()
    with pytest.raises(ImageError, match="30 pictures.*And 10 more"):
        load_folder(pets)


def test_too_large_pictures_are_bad(pets):
    with pytest.raises(ImageError, match="5 pictures.*limit of 10"):
        load_folder(pets, max_pixels=10)


def test_unknown_options(pets):
    with pytest.raises(DataError, match="on_bad"):
        load_folder(pets, on_bad="ignore")
    with pytest.raises(DataError, match="check"):
        load_folder(pets, check="yes")


# --- folders of the wrong shape -----------------------------------------------------------------


def test_missing_folder(tmp_path):
    with pytest.raises(DataNotFoundError, match="nowhere"):
        load_folder(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"x\.png is a file"):
        load_folder(picture(tmp_path / "x.png"))


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        load_folder(tmp_path)


def test_no_class_folders(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    with pytest.raises(DataError, match="no class folders, only 2 loose images"):
        load_folder(tmp_path)


def test_one_class(tmp_path):
    picture(tmp_path / "only" / "a.png")
    with pytest.raises(DataError, match="only one class, 'only'"):
        load_folder(tmp_path)


def test_class_folder_without_image(pets):
    (pets / "eel").mkdir()
    (pets / "eel" / "README.txt").write_text("none yet")
    with pytest.raises(DataError, match="without a readable image: eel"):
        load_folder(pets)


def test_class_whose_pictures_are_all_bad(pets):
    (pets / "eel").mkdir()
    (pets / "eel" / "a.png").touch()
    with pytest.raises(DataError, match="without a readable image: eel"):
        load_folder(pets, on_bad="skip")


def test_single_image_class_is_noted(pets):
    picture(pets / "eel" / "a.png")
    images = load_folder(pets)
    assert images.counts()["eel"] == 1
    assert images.notes == ("1 class of a single image can serve only in dissimilar pairs: eel.",)


def test_one_image_in_every_class(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "1.png")
    with pytest.raises(DataError, match="no similar pair"):
        load_folder(tmp_path)


def test_folder_without_permission(pets, monkeypatch):
    scandir = os.scandir

    # Taking the permission away would not stop a test that runs as root.
    def forbidding(path):
        if Path(path).name == "old":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    with pytest.raises(DataError, match="old cannot be read.*Permission denied"):
        load_folder(pets)


# --- the source ---------------------------------------------------------------------------------


def test_digest_is_that_of_the_bytes_and_follows_them(pets):
    source = FolderSource(pets)
    path = pets / "cat" / "1.png"
    first = source.digest("cat/1.png")
    assert first == hashlib.sha256(path.read_bytes()).hexdigest()
    picture(path, 200)
    os.utime(path, ns=(1, 1))  # some clocks are too coarse to tell two writes apart
    assert source.digest("cat/1.png") == hashlib.sha256(path.read_bytes()).hexdigest() != first


def test_digests_of_many_files_take_little_memory(tmp_path):
    """Names are the image set's; a changed file's digest takes the place of the old one."""
    source, items = FolderSource(tmp_path), [f"{k}.png" for k in range(500)]
    for text in ("old", "newer"):
        for item in items:
            (tmp_path / item).write_text(text)
        tracemalloc.start()
        for item in items:
            source.digest(item)
        taken = tracemalloc.get_traced_memory()[0] / len(items)
        tracemalloc.stop()
        assert taken < 200, text
    assert len(source._digests) == len(items)


def test_digest_reads_an_unchanged_file_once(pets, monkeypatch):
    source = FolderSource(pets)
    first = source.digest("cat/1.png")
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert source.digest("cat/1.png") == first


def test_a_file_that_went_away_is_named(pets):
    images = load_folder(pets)
    (pets / "cat" / "1.png").unlink()
    with pytest.raises(DataNotFoundError, match=r"1\.png"):
        images.image(0)
    with pytest.raises(DataNotFoundError, match=r"1\.png"):
        images.digest(0)


def test_fingerprint_follows_the_contents_only(pets):
    before = load_folder(pets).fingerprint()
    (pets / "cat" / "1.png").touch()
    assert load_folder(pets).fingerprint() == before
    picture(pets / "cat" / "1.png", 99)
    assert load_folder(pets).fingerprint() != before


def test_set_survives_pickling_and_new_groups(pets):
    # Data-loader workers get a pickled copy.
    images = dataclasses.replace(load_folder(pets), groups=np.array([0, 0, 0, 1, 1]))
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(copy.image(4), images.image(4))
    assert copy.fingerprint() == images.fingerprint()


def test_nothing_is_decoded_before_it_is_asked_for(pets, monkeypatch):
    monkeypatch.setattr(reader, "read", lambda *a, **k: pytest.fail("read"))
    assert len(load_folder(pets)) > 0
