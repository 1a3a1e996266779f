"""A gallery on disk: whatever interrupts it, the next call finishes it, nothing is done twice."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn

import siamcam_lib as sc
from siamcam_lib import embedding, looking, shards
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import GalleryError, ImageError
from siamcam_lib.looking import Pictures, Source, decoded, repeated
from siamcam_lib.shards import KINDS, TABLE, Shards

N, PER, BATCH = 11, 4, 2


class Uneven(nn.Conv2d):
    """Rounds by the place in the batch, as kernels of real backbones do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(x)).view(-1, 1, 1, 1)
        return super().forward(x) * (1 + 2.0**-23 * (place % 3))


def network(seed: int = 0, embed: int = 8) -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return sc.SiameseNet(Uneven(3, 6, 5, stride=6), embed, image_size=40).eval()


def picture(seed: int, side: int = 30) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (side, side + seed % 5, 3), dtype=np.uint8))


def photos(folder: Path, count: int = N) -> list[Path]:
    """Files of pictures; the last but one shows the same as the first, at another place."""
    folder.mkdir(parents=True)
    paths = [folder / f"{k:04d}.png" for k in range(count)]
    for k, path in enumerate(paths):
        picture(0 if k == count - 2 else k).save(path)
    return paths


def embed(folder: Path, images, net=None, per: int = PER, batch: int = BATCH) -> int:
    """How many images this call looked at."""
    done = embedding.embed(
        folder, as_explainable(net or network()), Pictures(images),
        batch_size=batch, images_per_shard=per, progress=False,
    )  # fmt: skip
    assert (done.images, done.processes, done.first) == (len(images), 1, True)
    return done.looked_at


def rows(folder: Path) -> dict[str, bytes]:
    """Everything that a gallery holds."""
    found = Shards(folder)
    return {kind: found.read(kind, 0, len(found)).tobytes() for kind in KINDS}


def written(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.suffix == ".safetensors"}


@pytest.fixture
def paths(tmp_path):
    return photos(tmp_path / "photos")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    embed(folder / "g", photos(folder / "photos"))
    return rows(folder / "g")


# --- what is written ------------------------------------------------------------------------------


def test_rows_are_those_of_the_network_picture_by_picture(tmp_path, paths):
    net = network()
    assert embed(tmp_path / "g", paths, net) == N
    found = sc.Gallery.open(tmp_path / "g", net, paths)
    for i, path in enumerate(paths):
        seen = as_explainable(net).see([Image.open(path)]).project()
        np.testing.assert_allclose(found.embeddings[i], seen.embedding[0], rtol=1e-5, atol=1e-6)
        largest = seen.maps.abs().max()
        assert (found.maps(i, i + 1)[0] - seen.maps[0]).abs().max() <= 2.0**-10 * largest


def test_the_same_picture_has_the_same_row_in_another_shard_and_another_file(tmp_path, paths):
    shutil.copy(paths[1], paths[4])  # a copy, and the same pixels in another file
    Image.open(paths[0]).save(paths[-2], compress_level=0)
    assert paths[0].read_bytes() != paths[-2].read_bytes()
    embed(tmp_path / "g", paths)
    found = Shards(tmp_path / "g")
    for one, two in ((1, 4), (0, N - 2)):
        for kind in ("maps", "scale", "embedding"):
            assert (found.read(kind, one, one + 1) == found.read(kind, two, two + 1)).all()
    gal = sc.Gallery.open(tmp_path / "g")
    assert gal.explain(0, N - 2).blank["factual"] == (True, True)


def test_looks_serve_galleries_in_memory(tmp_path, paths):
    with pytest.raises(GalleryError, match="leave out looks or folder"):
        sc.Gallery.embed(network(), paths, folder=tmp_path / "g", looks=sc.features.Looks())


def test_a_network_in_training_is_left_so(tmp_path, paths):
    net = network().train()
    embed(tmp_path / "g", paths, net)
    assert all(module.training for module in net.modules())
    assert not any(p.grad is not None for p in net.parameters())


# --- interrupted and taken up ---------------------------------------------------------------------


def test_a_finished_gallery_is_not_looked_at_again(tmp_path, paths, monkeypatch):
    assert embed(tmp_path / "g", paths) == N
    before = written(tmp_path / "g")
    monkeypatch.setattr(embedding, "look", None)  # whoever looks, fails
    assert embed(tmp_path / "g", paths) == 0
    assert written(tmp_path / "g") == before


def interrupted(act, monkeypatch, number: int) -> None:
    """Have `act()` called instead of look `number`."""
    known, count = embedding.look, iter(range(10**9))
    monkeypatch.setattr(embedding, "look", lambda *a: act() if next(count) == number else known(*a))


def stop():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("number", "kept"), [(0, 0), (1, 0), (2, 4), (3, 4), (4, 8)])
def test_after_an_interruption_finished_shards_are_kept(
    tmp_path, paths, monkeypatch, undisturbed, number, kept
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(stop, patch, number)
        embed(tmp_path / "g", paths)
    with pytest.raises(GalleryError, match="There is no gallery"):
        Shards(tmp_path / "g")
    before = written(tmp_path / "g")
    assert len(before) == kept // PER
    assert embed(tmp_path / "g", paths) == N - kept
    after = written(tmp_path / "g")
    assert {k: after[k] for k in before} == before  # and not written again
    assert rows(tmp_path / "g") == undisturbed


def test_several_interruptions(tmp_path, paths, monkeypatch, undisturbed):
    for number in (3, 0, 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupted(stop, patch, number)
            embed(tmp_path / "g", paths)
    assert embed(tmp_path / "g", paths) == N - PER
    assert rows(tmp_path / "g") == undisturbed


MOMENTS = (
    "look 0",
    "look 3",
    "half 0",
    "half 1",
    "half 3",
    "replace 0",
    "replace 2",
    "replace 3",
    "replace 4",
)


def die_at(moment: str) -> None:
    """Have this process killed: before a look, half-way through a write, or before a rename."""
    kind, number = moment.split()
    count = iter(range(10**9))

    def die():
        if next(count) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    look, sync, swap = embedding.look, os.fsync, os.replace

    def cut(handle):
        if next(count) == int(number):
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    if kind == "look":
        embedding.look = lambda *a: (die(), look(*a))[1]
    elif kind == "half":
        os.fsync = cut
    else:
        os.replace = lambda *a: (die(), swap(*a))[1]


def be_killed(root: Path) -> None:
    """In a process of its own: for each moment, a child that embeds until it is killed."""
    torch.set_num_threads(1)  # a child has no threads but its own
    embed(root / "first", sorted((root / "photos").iterdir()))  # all that is loaded late
    ended = {}
    for moment in MOMENTS:
        child = os.fork()
        if child == 0:
            die_at(moment)
            embed(root / moment, sorted((root / "photos").iterdir()))
            os._exit(0)
        ended[moment] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (root / "ended.json").write_text(json.dumps(ended))


def script(task: str, root: Path) -> None:
    """Run this file in a process of its own."""
    command = [sys.executable, __file__, task, str(root)]
    with open(root / "said.txt", "w") as said:
        done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, timeout=500)
    assert done.returncode == 0, (root / "said.txt").read_text()[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment_and_called_again_it_ends_the_same(tmp_path, paths, undisturbed):
    script("be_killed", tmp_path)
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert ended == dict.fromkeys(MOMENTS, -signal.SIGKILL)
    for moment in MOMENTS:
        before = written(tmp_path / moment)
        kept = sum(len(load_file(tmp_path / moment / name)["size"]) for name in before)
        for left in (tmp_path / moment).glob(".*.part"):
            os.utime(left, (0, 0))  # long ago
        assert embed(tmp_path / moment, paths) == N - kept, moment
        assert rows(tmp_path / moment) == undisturbed, moment
        left = [p.name for p in (tmp_path / moment).iterdir() if p.name.startswith(".")]
        assert left == [], moment


# --- a disk that is full --------------------------------------------------------------------------


WRITES = [  # three shards, one of them again for the picture that comes twice, and the table
    *((shards, "save_file", number) for number in range(4)),
    (Path, "write_text", 0),
    *((os, name, number) for name in ("fsync", "replace") for number in range(5)),
]


@pytest.mark.parametrize(("where", "name", "number"), WRITES)
def test_a_full_disk_leaves_nothing_half(
    tmp_path, paths, monkeypatch, undisturbed, where, name, number
):
    known, count = getattr(where, name), iter(range(10**9))

    def full(*args, **options):
        if next(count) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return known(*args, **options)

    monkeypatch.setattr(where, name, full)
    with pytest.raises(GalleryError, match="No space left"):
        embed(tmp_path / "g", paths)
    monkeypatch.undo()
    assert not (tmp_path / "g" / TABLE).exists()
    assert [p.name for p in (tmp_path / "g").iterdir() if p.name.startswith(".")] == []
    kept = sum(len(load_file(tmp_path / "g" / one)["size"]) for one in written(tmp_path / "g"))
    assert kept == (N if name == "write_text" else min(number * PER, N))
    assert embed(tmp_path / "g", paths) == N - kept
    assert rows(tmp_path / "g") == undisturbed


# --- what has changed since -----------------------------------------------------------------------


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("changed", [1, 5])
def test_a_changed_picture_costs_its_shard_and_no_other(
    tmp_path, paths, monkeypatch, finished, changed
):
    if finished:
        embed(tmp_path / "g", paths)
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupted(stop, patch, 4)
            embed(tmp_path / "g", paths)
    before = written(tmp_path / "g")
    picture(99).save(paths[changed])
    assert embed(tmp_path / "g", paths) == PER + (0 if finished else 3)
    after = written(tmp_path / "g")
    name = shards.shard_name(changed // PER)
    assert [k for k in before if after[k] != before[k]] == [name]
    embed(tmp_path / "fresh", paths)
    assert rows(tmp_path / "g") == rows(tmp_path / "fresh")


def test_what_is_being_changed_is_no_gallery(tmp_path, paths, monkeypatch):
    """Killed midway it would hold old rows and new ones."""
    embed(tmp_path / "g", paths)
    picture(99).save(paths[5])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(stop, patch, 0)
        embed(tmp_path / "g", paths)
    with pytest.raises(GalleryError, match="There is no gallery"):
        Shards(tmp_path / "g")
    assert embed(tmp_path / "g", paths) == PER
    assert len(Shards(tmp_path / "g")) == N


SHARD = shards.shard_name(1)
ELSEWHERE = {
    "missing": (lambda folder, other: (folder / SHARD).unlink(), "same folder"),
    "cut": (lambda folder, other: (folder / SHARD).write_bytes(b"cut"), "same folder"),
    "of other pictures": (
        lambda folder, other: shutil.copy(other / SHARD, folder), r"\(other images\)"
    ),
    "of fewer rows": (
        lambda folder, other: shards.write_shard(
            folder, 1, {k: v[:2] for k, v in load_file(folder / SHARD).items()}, metadata(folder)
        ), "same folder"
    ),
}  # fmt: skip


def metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / SHARD, "numpy") as file:
        return file.metadata()


@pytest.mark.parametrize("how", ELSEWHERE)
def test_no_gallery_is_made_of_what_another_process_did_otherwise(
    tmp_path, paths, monkeypatch, undisturbed, how
):
    embed(tmp_path / "other", paths[::-1])
    done, (change, match) = embedding._work, ELSEWHERE[how]
    monkeypatch.setattr(
        embedding, "_work", lambda *a: (done(*a), change(tmp_path / "g", tmp_path / "other"))[0]
    )
    with pytest.raises(GalleryError, match=match):
        embed(tmp_path / "g", paths)
    assert not (tmp_path / "g" / TABLE).exists()
    monkeypatch.undo()
    if how == "of other pictures":
        (tmp_path / "g" / SHARD).unlink()
    assert embed(tmp_path / "g", paths) == PER
    assert rows(tmp_path / "g") == undisturbed


def test_of_a_shard_that_shows_the_same_one_row_is_read(tmp_path, monkeypatch):
    images = [picture(k) for k in range(8)] + [picture(k) for k in range(8)]
    asked, read = [], embedding._Job._read

    def reading(job, number, *kinds, rows=slice(None)):
        found = read(job, number, *kinds, rows=rows)
        asked.append((kinds, len(found[kinds[0]])))
        return found

    monkeypatch.setattr(embedding._Job, "_read", reading)
    embed(tmp_path / "g", images, per=8)
    some = [count for kinds, count in asked if kinds == ("maps", "scale", "embedding")]
    assert some == [1] * 8


def test_a_finished_gallery_may_be_of_a_disk_that_cannot_be_written(tmp_path, paths, monkeypatch):
    embed(tmp_path / "g", paths)

    def readonly(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(shards, "whole_file", readonly)
    assert embed(tmp_path / "g", paths) == 0


def test_only_what_a_killed_call_left_long_ago_is_removed(tmp_path, paths):
    (tmp_path / "g").mkdir()
    old = [".shard-00000.safetensors.a.part", f".{TABLE}.b.part", ".photo.png.c.part"]
    for name in [*old, ".shard-00001.safetensors.d.part"]:
        (tmp_path / "g" / name).write_text("half")
        if name in old:
            os.utime(tmp_path / "g" / name, (0, 0))
    embed(tmp_path / "g", paths)
    left = sorted(p.name for p in (tmp_path / "g").iterdir() if p.name.startswith("."))
    assert left == [".photo.png.c.part", ".shard-00001.safetensors.d.part"]


def test_a_gallery_of_an_older_version_is_called_so(tmp_path, paths):
    folder = sc.Gallery.embed(network(), paths, progress=False).save(tmp_path / "g")
    table = json.loads((folder / TABLE).read_text()) | {"format": "siamcam-gallery-1"}
    (folder / TABLE).write_text(json.dumps(table))
    with pytest.raises(GalleryError, match="older version .*delete it and make it again"):
        embed(folder, paths)


def test_no_picture():
    with pytest.raises(GalleryError, match="needs at least one image"):
        embedding.embed("g", as_explainable(network()), Pictures([]))
    assert not Path("g").exists()


def test_another_batch_size_takes_up(tmp_path, paths):
    embed(tmp_path / "g", paths)
    (tmp_path / "g" / SHARD).unlink()
    assert embed(tmp_path / "g", paths, batch=3) == PER


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_is_no_file_is_not_opened_but_told(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(looking, "open", None, raising=False)  # it would block
    for odd, what in ((tmp_path / "pipe", "not a regular file"), ("a\0b", "cannot be opened")):
        with pytest.raises(ImageError, match=what):
            embed(tmp_path / "g", [odd])


def test_the_command_reads_headers_first(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from siamcam_lib.cli import main

    asked = []
    monkeypatch.setattr(sc.datasets, "load", lambda *a, **options: (asked.append(options), 1 / 0))
    for folder in (str(tmp_path), "flowers"):
        done = CliRunner().invoke(main, ["embed", folder, "-o", str(tmp_path / "g")])
        assert isinstance(done.exception, ZeroDivisionError)
    assert asked == [{"on_bad": "raise", "check": "header"}, {}]


def test_a_damaged_shard_is_made_again(tmp_path, paths, undisturbed):
    embed(tmp_path / "g", paths)
    shard = tmp_path / "g" / "shard-00001.safetensors"
    for damaged in (b"", b"no shard", shard.read_bytes()[:-9]):
        shard.write_bytes(damaged)
        assert embed(tmp_path / "g", paths) == PER
        assert rows(tmp_path / "g") == undisturbed


def test_a_picture_that_cannot_be_read_stops_it_and_is_named(tmp_path, paths, undisturbed):
    good = paths[6].read_bytes()
    paths[6].write_bytes(good[:50])
    with pytest.raises(ImageError, match="0006.png"):
        embed(tmp_path / "g", paths)
    paths[6].write_bytes(good)
    assert embed(tmp_path / "g", paths) == N - PER
    assert rows(tmp_path / "g") == undisturbed


OTHERS = {
    "network": {"net": network(seed=1)},
    "images_per_shard": {"per": 3},
    "images": {"images": lambda paths: [*paths[:-1], paths[0]]},
    "images, a few less": {"images": lambda paths: paths[:-1]},
}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("what", OTHERS)
def test_the_gallery_of_something_else_is_refused(tmp_path, paths, monkeypatch, what, finished):
    with monkeypatch.context() as patch:
        if finished:
            embed(tmp_path / "g", paths)
        else:
            interrupted(stop, patch, 4)
            with pytest.raises(KeyboardInterrupt):
                embed(tmp_path / "g", paths)
    before = {p.name: p.read_bytes() for p in (tmp_path / "g").iterdir()}
    options = {"images": lambda paths: paths} | OTHERS[what]
    holds = "holds a gallery already" if finished else "holds part of another gallery"
    with pytest.raises(GalleryError, match=rf"{holds} \(other {what.partition(',')[0]}\)"):
        embed(tmp_path / "g", options.pop("images")(paths), **options)
    assert {p.name: p.read_bytes() for p in (tmp_path / "g").iterdir()} == before


def test_a_saved_gallery_is_not_written_over(tmp_path, paths):
    sc.Gallery.embed(network(), paths, progress=False).save(tmp_path / "g")
    with pytest.raises(GalleryError, match="holds a gallery already; open it"):
        embed(tmp_path / "g", paths)


def test_pictures_without_names_are_known_by_their_pixels(tmp_path):
    images = [picture(k) for k in range(N)]
    embed(tmp_path / "g", images)
    assert embed(tmp_path / "g", [image.copy() for image in images]) == 0
    images[5] = picture(77)
    assert embed(tmp_path / "g", images) == PER


def test_a_set_is_known_by_its_names_and_files(tmp_path):
    images = sc.datasets.load("scenes/flowers", n=10)
    embed(tmp_path / "g", images)
    assert embed(tmp_path / "g", sc.datasets.load("scenes/flowers", n=10)) == 0
    with pytest.raises(GalleryError, match="other images"):
        embed(tmp_path / "g", images.subset(range(9, -1, -1)))


# --- decoding ahead -------------------------------------------------------------------------------


def test_decoding_is_one_batch_ahead_in_other_threads_and_in_order():
    asked, threads, lock = [], set(), threading.Lock()

    class Asked(Pictures):
        def source(self, i):
            asked.append(i)
            assert threading.current_thread() is threading.main_thread()

            def doing(what):
                with lock:
                    threads.add(threading.current_thread())
                return what

            return Source(lambda: doing(None), lambda: doing(picture(i)))

    found, batches = [], [range(k, k + 3) for k in range(0, 12, 3)]
    for k, batch in enumerate(decoded(Asked([None] * 12), batches, 16)):
        assert len(asked) == min(12, 3 * (k + 2))  # this batch, and the next
        found += batch
    assert threading.main_thread() not in threads
    for i, one in enumerate(found):
        truth = np.array(picture(i).resize((16, 16), Image.Resampling.BICUBIC))
        assert (one.pixels == truth).all() and one.size == picture(i).size
        assert one.picture is None and len(one.key) == 32


def test_whoever_stops_early_leaves_no_thread():
    before = threading.active_count()
    for _ in decoded(Pictures([picture(k) for k in range(30)]), [range(10), range(10, 30)], 16):
        break
    assert threading.active_count() == before


def test_repeated_is_the_first_of_equals():
    random = np.random.default_rng(0)
    keys = random.integers(0, 256, (50, 2, 16), np.uint8)
    shows = random.integers(20, size=50)
    keys[:, 1] = keys[shows, 1]
    keys[shows == 7, 1] = 0  # of which nothing is known
    first = {}
    truth = [(i, first[s]) for i, s in enumerate(shows) if first.setdefault(s, i) != i and s != 7]
    assert list(repeated(keys)) == truth and len(truth) > 20


# --- memory ---------------------------------------------------------------------------------------


def measure(root: Path) -> None:
    """In a process of its own: the most memory that a child takes for few and for many pictures."""
    torch.set_num_threads(1)
    paths = sorted((root / "tiny").iterdir())
    embed(root / "first", paths[:20], network(embed=64), 10, 5)
    peaks = {}
    for count in (500, 4000):
        child = os.fork()
        if child == 0:
            embed(
                root / str(count), [paths[k % 40] for k in range(count)], network(embed=64), 100, 50
            )
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            (root / f"{count}.json").write_text(json.dumps(most))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        peaks[count] = json.loads((root / f"{count}.json").read_text())
    (root / "peaks.json").write_text(json.dumps(peaks))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_memory_is_flat_as_the_collection_grows(tmp_path):
    """3,500 pictures more would be 32 MB of maps, if they were held."""
    photos(tmp_path / "tiny", 40)
    script("measure", tmp_path)
    peaks = json.loads((tmp_path / "peaks.json").read_text())
    print("peak memory in MB:", {k: round(v / 1e6, 1) for k, v in peaks.items()})
    assert abs(peaks["4000"] - peaks["500"]) < 6e6


if __name__ == "__main__":
    {"be_killed": be_killed, "measure": measure}[sys.argv[1]](Path(sys.argv[2]))
