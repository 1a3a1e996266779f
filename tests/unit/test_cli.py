"""The command `siamcam`: what it writes and prints is the library's, and its exit codes mean it."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

import siamcam_lib as sc
from siamcam_lib import backbones
from siamcam_lib.cli import main
from siamcam_lib.cli.explain import FILES
from siamcam_lib.cli.frame import loaded, writable
from siamcam_lib.cli.gallery import evenly, why_fewer
from siamcam_lib.cli.network import network
from siamcam_lib.datasets import catalogue
from siamcam_lib.embedder import UNCALIBRATED
from siamcam_lib.errors import ModelError
from siamcam_lib.model import SiameseNet
from siamcam_lib.processes import Processes

HOSTILE = "<img src=x onerror=alert(1)>.png"
COMMANDS = ("explain", "train", "evaluate", "gallery", "embed", "fetch", "book")


def siamcam(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def fine(*words: object) -> Result:
    result = siamcam(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(*words: object) -> str:
    """What is told where the library refuses: one line on stderr, nothing on stdout."""
    result = siamcam(*words)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert isinstance(result.exception, SystemExit)  # anything else would be a traceback
    told = result.stderr.removesuffix("\n").splitlines()
    assert told[-1].startswith("Error: ") and "Traceback" not in result.stderr
    return told[-1]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIAMCAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A hundred small pictures in five class folders, one with a hostile name."""
    folder = tmp_path_factory.mktemp("my photos")
    images = sc.datasets.load("scenes/flowers", n=100, size=64)
    for i in range(len(images)):
        place = folder / images.classes[images.labels[i]]
        place.mkdir(exist_ok=True)
        images.image(i).save(place / f"{i}.png")
    first = sorted(folder.glob("*/*.png"))[0]
    first.rename(first.with_name(HOSTILE))
    return folder


@pytest.fixture(scope="module")
def pair(photos) -> list[Path]:
    return [next(photos.glob("*/<*")), sorted(photos.glob("*/*.png"))[-1]]


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> tuple[Path, dict]:
    """A model, and what the command said of it."""
    path = tmp_path_factory.mktemp("models") / "new" / "model.safetensors"
    words = ("--image-size", 64, "--epochs", 2, "--seed", 1, "--json")
    return path, json.loads(fine("train", photos, "-o", path, *words).stdout)


@pytest.fixture(scope="module")
def embedded(photos, trained, tmp_path_factory) -> Path:
    """A gallery of all pictures, in four shards."""
    out = tmp_path_factory.mktemp("galleries") / "new" / "g"
    words = ("-o", out, "--model", trained[0], "--shard", 32, "--json")
    told = json.loads(fine("embed", photos, *words).stdout)
    assert (told["count"], told["looked_at"], told["shards"]) == (100, 100, 4)
    assert (told["gallery"], told["processes"], told["calibrated"]) == (str(out), 1, True)
    return out


@pytest.fixture
def model(trained) -> Path:
    return trained[0]


def raw(found: dict) -> np.ndarray:
    """A map as the documentation of the file says it is read."""
    return np.frombuffer(base64.b64decode(found["data"]), "<f4").reshape(found["shape"])


class TestHelp:
    def test_lists_every_command(self):
        told = fine("--help").stdout
        assert [name for name in COMMANDS if f"  {name} " not in told] == []

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_has_an_example_and_json(self, command):
        told = fine(command, "--help").stdout
        assert f"  siamcam {command} " in told.partition("Example")[2] and "--json" in told

    def test_of_a_command_needs_no_part_of_the_library(self, root):
        script = (
            "import sys; from siamcam_lib.cli import main;"
            "main(['train', '--help'], standalone_mode=False);"
            "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
        )
        assert "siamcam train photos" in done.stdout
        heavy = {"torch", "numpy", "matplotlib", "PIL", "pandas", "sklearn", "tqdm"}
        assert heavy.isdisjoint(done.stderr.split())

    def test_the_script_is_this_command(self, root):
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
        module, _, name = project["scripts"]["siamcam"].partition(":")
        assert getattr(import_module(module), name) is main

    @pytest.mark.slow
    def test_the_package_runs_as_a_module(self, root):
        command = [sys.executable, "-m", "siamcam_lib", "--version"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout == f"siamcam, version {sc.__version__}\n"


class TestExplain:
    def test_at_once_by_the_angle_of_imagenet_features(self, pair, tmp_path):
        result = fine("explain", *pair, "-o", tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
        warning, *steps = result.stderr.splitlines()
        assert "not calibrated" in warning and "not calibrated" in result.stdout
        assert steps == ["explaining by gradcam", "writing 3 files"]
        record = json.loads((tmp_path / "out" / FILES[1]).read_text("utf-8"))
        found = backbones.create("efficientnet_lite0")
        pixels = np.stack([np.array(Image.open(p).resize((224, 224), Image.BICUBIC)) for p in pair])
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (found.mean, found.std))
        with torch.inference_mode():
            e1, e2 = found.module.eval()((scaled - mean) / std).mean(dim=(2, 3)).double()
        cosine = (e1 @ e2 / e1.norm() / e2.norm()).item()
        assert record["dissimilarity"] == pytest.approx((1 - cosine) / 2, abs=1e-5)
        assert record["threshold"] == UNCALIBRATED
        assert record["model"]["file"] is None and record["model"]["calibrated"] is False

    def test_the_record_is_that_of_the_library(self, pair, model, tmp_path):
        out = tmp_path / "out"
        told = json.loads(fine("explain", *pair, "-o", out, "--model", model, "--json").stdout)
        record = json.loads((out / FILES[1]).read_text("utf-8"))
        assert told == record | {"written": [str(out / name) for name in FILES]}
        net = sc.SiameseNet.load(model)
        ex = sc.explain(net, *pair)
        assert record["dissimilarity"] == pytest.approx(ex.dissimilarity, abs=1e-9)
        assert (record["threshold"], record["decision"]) == (net.threshold, ex.decision)
        assert (record["format"], record["version"]) == ("siamcam-explanation", 1)
        assert record["model"]["calibrated"] is True
        for k, side in enumerate("ab"):
            assert np.abs(raw(record["raw"][side]) - ex.raw[k]).max() <= 1e-6 * np.abs(ex.raw).max()
            about = record["images"][side]
            assert about["file"] == str(pair[k]) and (about["width"], about["height"]) == (64, 64)
            assert about["sha256"] == hashlib.sha256(pair[k].read_bytes()).hexdigest()

    @pytest.mark.parametrize("method", ["gradcam", "shared"])
    def test_picture_and_page(self, pair, model, tmp_path, method):
        fine("explain", *pair, "-o", tmp_path, "--model", model, "--method", method)
        with Image.open(tmp_path / FILES[0]) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
        page = (tmp_path / FILES[2]).read_text("utf-8")
        assert "&lt;img src=x onerror=alert(1)&gt;.png" in page and "<img src=x" not in page
        assert str(pair[0].parent) not in page, "a page that is sent on tells no folders"
        assert ("<script" in page) == (method == "gradcam")

    def test_a_name_that_is_no_unicode(self, pair, model, tmp_path):
        odd = tmp_path / os.fsdecode(b"\xff.png")
        try:
            shutil.copy(pair[0], odd)
        except OSError:
            pytest.skip("this file system takes Unicode names only")
        for method in ("gradcam", "shared"):
            words = ("--model", model, "--method", method, "--json")
            told = json.loads(fine("explain", odd, pair[1], "-o", tmp_path, *words).stdout)
            assert told["images"]["a"]["file"] == str(odd)
            assert "�.png" in (tmp_path / FILES[2]).read_text("utf-8")


class TestTrain:
    def test_the_record_is_that_of_the_library(self, trained, photos):
        path, told = trained
        net = sc.SiameseNet.load(path)
        assert net.threshold == told["threshold"] and net.image_size == 64
        parts = sc.pairs.split(sc.datasets.load(photos), 1)
        assert told["parts"] == {name: len(getattr(parts, name)) for name in told["parts"]}
        report = sc.evaluate(net, sc.pairs.sample(parts.test, 1), seed=1, progress=False)
        assert {name: m["value"] for name, m in told["metrics"].items()} == dict(report)
        assert {name: (m["low"], m["high"]) for name, m in told["metrics"].items()} == (
            report.intervals
        )

    def test_the_same_seed_gives_the_same_network(self, trained, photos, tmp_path):
        words = ("--image-size", 64, "--epochs", 2, "--seed", 1)
        result = fine("train", photos, "-o", tmp_path / "again.safetensors", *words)
        first, again = (load_file(p) for p in (trained[0], tmp_path / "again.safetensors"))
        assert set(first) == set(again) and all(torch.equal(first[k], again[k]) for k in first)
        assert "accuracy" in result.stdout and "[" in result.stdout

    def test_in_a_log_each_step_and_each_epoch_has_a_line(self, photos, tmp_path):
        words = ("--image-size", 64, "--epochs", 2, "--seed", 1)
        told = fine("train", photos, "-o", tmp_path / "m.safetensors", *words).stderr
        number = r"[\d.]+"
        steps = [
            "splitting 100 images",
            r"features of \d+ training images, view 1 of 2",
            r"features of \d+ training images, view 2 of 2",
            r"features of \d+ validation images",
            "training",
            f"epoch 1 of 2: loss {number}, validation AUC {number}, {number} s",
            f"epoch 2 of 2: loss {number}, validation AUC {number}, {number} s",
            r"judging \d+ test images",
        ]
        assert re.fullmatch("".join(f"{line}\n" for line in steps), told), told

    @pytest.mark.parametrize(
        ("words", "looks", "size"),
        [(("--looks", 5), 5, 320), (("--looks", 5, "--image-size", 64), 5, 64), ((), 1, 224)],
    )
    def test_a_network_looks_as_often_as_asked(
        self, photos, tmp_path, monkeypatch, words, looks, size
    ):
        made = []

        def noted(*given, **options):
            made.append(SiameseNet(*given, **options))
            raise ModelError("seen enough")  # the training itself is tested above

        monkeypatch.setattr("siamcam_lib.SiameseNet", noted)
        assert "seen enough" in refused("train", photos, "-o", tmp_path / "m.safetensors", *words)
        assert (made[0].looks, made[0].image_size) == (looks, size)

    def test_too_few_pictures_are_told_before_any_training(self, pair, tmp_path):
        for name in "xy":
            (tmp_path / "few" / name).mkdir(parents=True)
            for k in range(2):
                shutil.copy(pair[k], tmp_path / "few" / name / f"{k}.png")
        told = refused("train", tmp_path / "few", "-o", tmp_path / "m.safetensors")
        assert "'few' has too few images: 2 of 'x', 2 of 'y'. Two classes need 14" in told
        assert not (tmp_path / "m.safetensors").exists()


class TestEvaluate:
    def test_page_and_record(self, photos, model, tmp_path):
        page = tmp_path / "new" / "report.html"
        words = ("--model", model, "-o", page)
        told = json.loads(fine("evaluate", photos, *words, "--json").stdout)
        images, net = sc.datasets.load(photos), sc.SiameseNet.load(model)
        report = sc.evaluate(net, sc.pairs.sample(images, 0), progress=False)
        assert {name: m["value"] for name, m in told["metrics"].items()} == dict(report)
        assert (told["page"], told["model"]) == (str(page), str(model))
        text = page.read_text("utf-8")
        assert "<h1>Report on my photos" in text and "<img src=x" not in text
        said = fine("evaluate", photos, *words).stdout
        assert str(report) in said
        for check in told["checks"]:
            assert (check["advice"] in said) == check["fires"]


class TestGallery:
    def test_page(self, photos, model, tmp_path):
        page = tmp_path / "explorer.html"
        words = ("--model", model, "-o", page, "--most", 12, "--json")
        told = json.loads(fine("gallery", photos, *words).stdout)
        assert (told["shown"], told["of"], told["calibrated"]) == (12, 100, True)
        assert told["why_fewer"] == "--most is 12, drawn evenly from the classes"
        text = page.read_text("utf-8")
        assert "<script" in text and "<img" not in text and "(12 of 100 pictures)" in text

    def test_without_a_model_it_says_so(self, photos, tmp_path):
        result = fine("gallery", photos, "-o", tmp_path / "explorer.html", "--most", 5)
        assert "not calibrated" in result.stderr
        assert "shows 5 of 100 pictures: --most is 5, drawn evenly" in result.stdout

    def test_more_than_a_page_shows_are_not_looked_at(self, photos, model, tmp_path, monkeypatch):
        pair = import_module("siamcam_lib.widgets.pair")
        page = tmp_path / "explorer.html"
        words = ("gallery", photos, "-o", page, "--model", model, "--most", 1000)
        monkeypatch.setattr(pair, "MOST", 8)
        result = fine(*words)
        assert "shows 8 of 100 pictures: a page shows 8 at most, drawn evenly" in result.stdout
        assert result.stderr.splitlines() == ["looking at 8 of 100 pictures", "writing the page"]
        monkeypatch.setattr(pair, "STATE_LIMIT", 20_000)
        told = fine(*words).stdout
        assert int(re.search(r"shows (\d) of 100 pictures: no more fit into the", told)[1]) < 8

    def test_where_all_are_shown_there_is_no_reason(self):
        assert why_fewer(9, 9, 9, 60) is None

    @pytest.mark.parametrize("most", [2, 5, 23, 1000])
    def test_takes_evenly_from_the_classes(self, most):
        images = sc.datasets.load("scenes/flowers", n=100)
        images = images.subset(np.flatnonzero((images.labels != 0) | (np.arange(100) < 10)))
        chosen = evenly(images, most, seed=0)
        counts = np.bincount(images.labels[chosen], minlength=5)
        every = np.bincount(images.labels, minlength=5)
        assert len(set(chosen)) == min(most, len(images)) and chosen == sorted(chosen)
        left = counts[counts < every]  # classes that have more to give
        assert not len(left) or left.max() - left.min() <= 1
        assert chosen == evenly(images, most, seed=0)


class TestEmbed:
    def test_the_gallery_is_that_of_the_library(self, embedded, photos, model):
        net, images = sc.SiameseNet.load(model), sc.datasets.load(photos)
        found = sc.Gallery.open(embedded, net, images)
        truth = sc.Gallery.embed(net, images, progress=False)
        np.testing.assert_allclose(found.embeddings, truth.embeddings, rtol=1e-4, atol=1e-5)
        assert found.nearest(3, 5).index.tolist() == truth.nearest(3, 5).index.tolist()

    def test_called_again_it_takes_up_what_is_missing(self, embedded, photos, model):
        words = ("embed", photos, "-o", embedded, "--model", model, "--shard", 32)
        assert "holds 100 pictures; 0 of them were looked at" in fine(*words).stdout
        (embedded / "shard-00003.safetensors").unlink()
        assert "holds 100 pictures; 4 of them were looked at" in fine(*words).stdout

    def test_another_network_and_other_settings_are_refused(self, embedded, photos, model):
        words = ("embed", photos, "-o", embedded)
        assert "other network" in refused(*words, "--shard", 32)
        assert "other images_per_shard" in refused(*words, "--model", model)

    def test_places_that_cannot_be_written(self, photos, tmp_path):
        (tmp_path / "file").write_text("in the way")
        assert "is a file" in refused("embed", photos, "-o", tmp_path / "file")

    def test_unreadable_pictures_are_left_out_if_asked(self, photos, tmp_path):
        folder, out = tmp_path / "spoilt", tmp_path / "g"
        for place in sorted(photos.glob("*/*.png"))[::6]:
            (folder / place.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(place, folder / place.parent.name)
        whole = len(list(folder.glob("*/*.png")))
        cut, empty = folder / "Tulip" / "cut.png", folder / "Tulip" / "empty.png"
        cut.write_bytes(next(photos.glob("Tulip/*.png")).read_bytes()[:-500])
        empty.touch()
        told = refused("embed", folder, "-o", out)
        assert "Tulip/empty.png" in told and "--skip-unreadable" in told
        found = fine("embed", folder, "-o", out, "--skip-unreadable", "--json")
        assert json.loads(found.stdout)["count"] == whole == len(sc.Gallery.open(out))
        assert "Tulip/empty.png" in found.stderr and "Tulip/cut.png" in found.stderr

    def test_also_of_a_set_that_has_a_name(self, photos, tmp_path, monkeypatch):
        """A manifest proves bytes; what somebody published may be broken all the same."""
        for name in catalogue.SETS["flowers"].classes:
            (tmp_path / "flowers" / name).mkdir(parents=True)
        for number, place in enumerate(sorted(photos.glob("*/*.png"))[::6]):
            shutil.copy(place, tmp_path / "flowers" / place.parent.name / f"{number}.png")
        cut = tmp_path / "flowers" / "Tulip" / "cut.png"
        cut.write_bytes(next(photos.glob("Tulip/*.png")).read_bytes()[:-500])
        monkeypatch.setenv("SIAMCAM_DATA", str(tmp_path))
        words = ("embed", "flowers", "-o", tmp_path / "g", "--json", "--skip-unreadable")
        found = fine(*words)
        assert json.loads(found.stdout)["count"] == number + 1
        assert "Tulip/cut.png" in found.stderr

    def test_a_gallery_is_no_folder_of_pictures(self, embedded, model, tmp_path):
        told = refused("gallery", embedded, "-o", tmp_path / "out.html", "--model", model)
        assert "it is a gallery" in told and "put the images of each class" in told

    def test_processes_that_cannot_work_together(self, photos, model, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("WORLD_SIZE", "two")
        told = refused("embed", photos, "-o", tmp_path / "g", "--model", model)
        assert "torchrun --nproc-per-node=N" in told


def stopped(*_, **__):
    raise KeyboardInterrupt


class TestNotes:
    @pytest.fixture
    def odd(self, pair, tmp_path) -> Path:
        """A folder of which a picture is left out, whose name would clear the screen."""
        for k in range(4):
            (tmp_path / "odd" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
            shutil.copy(pair[0], tmp_path / "odd" / "ab"[k % 2] / f"{k}.png")
        shutil.copy(pair[0], tmp_path / "odd" / "a" / "\x1b[2J\u202e\nforged")
        return tmp_path / "odd"

    @pytest.mark.parametrize("command", ["train", "evaluate", "gallery"])
    def test_what_is_left_out_is_said_harmlessly(self, command, odd, model, tmp_path, monkeypatch):
        for owner, work in (
            (sc.pairs, "split"),
            (import_module("siamcam_lib.report"), "audit"),
            (sc.Gallery, "embed"),
        ):
            monkeypatch.setattr(owner, work, stopped)
        words = [] if command == "train" else ["--model", model]
        result = siamcam(command, odd, "-o", tmp_path / "out", *words)
        note, *rest = result.stderr.splitlines()
        assert "1 image left out" in note and note.isprintable() and "a/�[2J��forged" in note
        assert (result.exit_code, rest[1:]) == (130, ["", "Stopped."])  # after the step's line

    def test_are_said_by_the_first_process_alone(self, odd, monkeypatch, capsys):
        for rank in range(2):
            ours = Processes(2, rank, 2, None)
            monkeypatch.setattr(sc.processes, "processes", lambda ours=ours: ours)
            assert len(loaded(str(odd))) == 4 and network(None).threshold == UNCALIBRATED
            told = capsys.readouterr().err
            assert ("left out" in told, "not calibrated" in told) == (not rank, not rank)

    def test_a_class_s_name_forges_no_line(self, photos, model, tmp_path, monkeypatch):
        check = SimpleNamespace(advice="Look at a\nb\u2028c.", fires=True)
        found = SimpleNamespace(
            report="good", checks=[check], record=dict, to_html=lambda path: None
        )
        monkeypatch.setattr(import_module("siamcam_lib.report"), "audit", lambda *a, **k: found)
        page = tmp_path / "out.html"
        told = fine("evaluate", photos, "--model", model, "-o", page).stdout
        assert told.split("\n") == ["good", "- Look at a�b�c.", f"{page} is written", ""]


class TestFetchAndBook:
    def test_fetch_hands_on(self, monkeypatch, tmp_path):
        asked = []

        def fetch(name, **options):
            print("loading")
            asked.append((name, options["home"]))
            return tmp_path / name

        monkeypatch.setattr(sc.datasets, "fetch", fetch)
        result = fine("fetch", "flowers", "--home", tmp_path, "--json")
        assert json.loads(result.stdout) == {"name": "flowers", "folder": str(tmp_path / "flowers")}
        assert asked == [("flowers", tmp_path)]
        assert result.stderr == "fetching and verifying flowers\nloading\n"

    def test_book_hands_on(self, monkeypatch, tmp_path):
        asked = []
        book = import_module("siamcam_lib.book.__main__")
        monkeypatch.setattr(book, "run_chapters", lambda *a, **k: asked.append((a, k)))
        monkeypatch.setattr(book, "build", lambda *a: asked.append(a))
        monkeypatch.setattr(book, "summary", lambda stage: "what was run")
        words = ("--root", tmp_path, "--data", "--odd", "--profile", "full", "--seed", 3)
        fine("book", *words)
        (places, options), built = asked
        assert places == (tmp_path, tmp_path / "_build" / "stage")
        assert (options["data"], options["profile"], options["seed"]) == ("--odd", "full", 3)
        assert built[2] == tmp_path / "_build" / "html"

    def test_a_folder_without_a_book(self, tmp_path):
        result = siamcam("book", "--root", tmp_path)
        assert (result.exit_code, result.stdout) == (1, "") and "_toc.yml" in result.stderr


class TestRefusals:
    def test_pictures(self, pair, photos, tmp_path):
        (tmp_path / "text.jpg").write_text("no picture")
        out = tmp_path / "out"
        for bad, why in (
            (tmp_path / "missing.jpg", "There is no file"),
            (tmp_path / "text.jpg", "not an image"),
            (photos, "is a folder"),
        ):
            assert why in refused("explain", bad, pair[1], "-o", out)
            assert why in refused("explain", pair[0], bad, "-o", out, "--json")
        assert not out.exists()

    @pytest.mark.parametrize("command", ["train", "evaluate", "gallery"])
    def test_folders(self, command, pair, model, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "loose").mkdir()
        shutil.copy(pair[0], tmp_path / "loose")
        (tmp_path / "one" / "class").mkdir(parents=True)
        (tmp_path / "broken" / "x").mkdir(parents=True)
        (tmp_path / "broken" / "y").mkdir(parents=True)
        (tmp_path / "broken" / "x" / "1.png").write_bytes(pair[0].read_bytes()[:200])
        words = ["-o", tmp_path / "out", *([] if command == "train" else ["--model", model])]
        for name, why in (
            ("missing", "There is no folder"),
            ("empty", "is empty"),
            ("loose", "no class folders"),
            ("one", "only one class"),
            ("broken", "cannot be read"),
        ):
            assert why in refused(command, tmp_path / name, *words)
        assert "is a file" in refused(command, pair[0], *words)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "words",
        ["explain a b", "train a", "embed a",
         *(f"{command} . --model m" for command in ("explain .", "embed", "gallery", "evaluate"))],
    )  # fmt: skip
    def test_a_wrong_path_is_told_before_torch_is_loaded(self, words, root, tmp_path):
        words = [*words.split(), "-o", tmp_path / "out"]
        code = (
            "import sys; from siamcam_lib.cli import main\n"
            "try: main()\n"
            "finally: sys.exit('torch' in sys.modules and 3)"
        )
        command = [sys.executable, "-c", code, *map(str, words)]
        own = os.environ | {"PYTHONPATH": str(root)}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=own)
        assert ended.stderr.startswith("Error: There is no "), ended.stderr
        assert ended.returncode == 0

    def test_models(self, pair, photos, tmp_path):
        (tmp_path / "text").write_text("no model")
        (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
        for name in ("text", "pickle", "missing"):
            words = ("--model", tmp_path / name, "-o", tmp_path / "out")
            refused("explain", *pair, *words)
            refused("evaluate", photos, *words)
            refused("gallery", photos, *words)
        assert not (tmp_path / "out").exists()

    def test_methods(self, pair, model, tmp_path):
        words = ("-o", tmp_path / "out", "--model", model, "--method")
        assert "Did you mean 'gradcam'" in refused("explain", *pair, *words, "gradcm")
        assert "learns from" in refused("explain", *pair, *words, "centred")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("command", ["train", "evaluate", "gallery"])
    def test_places_that_cannot_be_written(self, command, photos, model, tmp_path, monkeypatch):
        # told before any work: not even the pictures are looked at
        monkeypatch.setattr(sc.datasets, "load", lambda *_: pytest.fail("the work has begun"))
        (tmp_path / "file").write_text("in the way")
        words = [] if command == "train" else ["--model", model]
        for place, why in (
            (tmp_path, "is a folder"),
            (tmp_path / "file" / "deep" / "out", "is a file"),
            (tmp_path / ("long" * 100), "too long"),
        ):
            assert why in refused(command, photos, "-o", place, *words)

    @pytest.mark.parametrize(
        ("command", "name", "better", "kind"),
        [
            ("train", "model.pt", "model.safetensors", "weights (safetensors)"),
            ("train", "a model.v2.pth", "a model.v2.safetensors", "weights (safetensors)"),
            ("train", "model.h5", "model.h5.safetensors", "weights (safetensors)"),
            ("train", "rate.0.01", "rate.0.01.safetensors", "weights (safetensors)"),
            ("evaluate", "r.txt", "r.html", "a page (HTML)"),
            ("gallery", "e.PDF", "e.html", "a page (HTML)"),
        ],
    )
    def test_names_that_would_mislead(
        self, command, name, better, kind, photos, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(sc.datasets, "load", lambda *_: pytest.fail("the work has begun"))
        (tmp_path / "m").touch()
        words = [] if command == "train" else ["--model", tmp_path / "m"]
        told = refused(command, photos, "-o", tmp_path / "new" / name, *words)
        assert f"{name} is no name for {kind}, which is what is written: call it {better}," in told
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("name", ["model", ".model", "model.SafeTensors", "model.safetensors"])
    def test_names_that_do_not_mislead_are_taken_as_they_are(self, name, tmp_path):
        assert writable(tmp_path / name, "weights", ".safetensors") == tmp_path / name

    @pytest.mark.parametrize("name", ["r.html", "r.HTM", "r"])
    def test_so_are_those_of_pages(self, name, tmp_path):
        assert writable(tmp_path / name, "a page", ".html", ".htm") == tmp_path / name

    def test_without_an_extension_the_file_has_the_name_that_was_given(
        self, photos, model, tmp_path
    ):
        words = ("--model", model, "--most", 3, "--json")
        told = json.loads(fine("gallery", photos, "-o", tmp_path / "page", *words).stdout)
        assert told["page"] == str(tmp_path / "page") and os.listdir(tmp_path) == ["page"]

    def test_a_folder_called_like_a_page(self, pair, tmp_path):
        told = refused("explain", *pair, "-o", tmp_path / "out.html")
        assert "is to be a folder" in told and "call it out." in told
        assert not list(tmp_path.iterdir())

    def test_an_explanation_that_cannot_be_written(self, pair, tmp_path):
        assert "is a file" in refused("explain", *pair, "-o", pair[0])
        (tmp_path / FILES[2]).mkdir()
        assert "is a folder" in refused("explain", *pair, "-o", tmp_path)

    def test_a_disk_that_is_full(self, monkeypatch):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(sc.datasets, "fetch", full)
        assert "No space left" in refused("fetch", "flowers")

    def test_unknown_sets(self):
        assert "Known are" in refused("fetch", "nothing")
        assert "Known are" in refused("train", "nothing", "-o", "out")


class TestOtherExitCodes:
    @pytest.mark.parametrize(
        "words",
        [
            ["nonsense"],
            ["explain", "a.jpg"],
            ["explain", "a.jpg", "b.jpg"],
            ["train", "photos", "-o", "m", "--seed", "-1"],
            ["train", "photos", "-o", "m", "--epochs", "0"],
            ["evaluate", "photos", "-o", "r.html"],
            ["gallery", "photos", "-o", "e.html", "--most", "1"],
            ["embed", "photos"],
            ["embed", "photos", "-o", "g", "--shard", "0"],
            ["book", "--profile", "slow"],
        ],
    )
    def test_wrong_usage_is_2(self, words):
        result = siamcam(*words)
        assert (result.exit_code, result.stdout) == (2, "") and "Usage:" in result.stderr

    def test_ctrl_c_is_130(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(sc, "fit", stopped)
        words = ("train", photos, "-o", tmp_path / "m.safetensors", "--image-size", 64)
        result = siamcam(*words)
        assert (result.exit_code, result.stdout) == (130, "") and "Stopped" in result.stderr
        assert not (tmp_path / "m.safetensors").exists()
