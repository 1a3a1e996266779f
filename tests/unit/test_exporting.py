"""Networks as ONNX files and as what pages load: the same numbers, or a clear refusal."""

from __future__ import annotations

import gzip
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import siamcam_lib as sc
from siamcam_lib import exporting, npm, portable
from siamcam_lib.cli.explain import described
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import GalleryError, ModelError
from siamcam_lib.exporting import export_onnx
from siamcam_lib.widgets import own


class Small(nn.Module):
    """A backbone of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


class Unfaithful(Small):
    """Gives something else when it is exported than when it runs."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = super().forward(images)
        return found * 1.01 if torch.compiler.is_exporting() else found


class Attending(nn.Module):
    """A head that does more than pool and project."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Small()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(images)
        weight = (
            maps.mean(1, keepdim=True).flatten(2).softmax(-1).view(len(maps), 1, *maps.shape[2:])
        )
        return (maps * weight).sum(dim=(2, 3))


def small_net(**options: object) -> sc.SiameseNet:
    torch.manual_seed(0)
    return sc.SiameseNet(Small(), embed_dim=5, image_size=32, **options)


def run(file, **given):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in given.items()})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    net = small_net()
    return net, export_onnx(net, tmp_path_factory.mktemp("onnx") / "new")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two pictures, their explanation, and its file as `siamcam explain` writes it."""
    folder = tmp_path_factory.mktemp("record")
    images = sc.datasets.load("scenes/flowers", n=10)
    files = folder / "a.png", folder / "b.png"
    for k, file in enumerate(files):
        images.image(k).crop((0, 0, 200, 120 + 40 * k)).save(file)
    net = small_net()
    found = sc.explain(net, *files)
    record = json.loads(json.dumps(described(found, files, net, None)))
    return files, found, record


class TestExport:
    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_any_number_of_images_gives_what_pytorch_gives(self, done, count):
        net, files = done
        pixels = torch.rand(count, 3, 32, 32)
        (maps,) = run(files.backbone, pixels=pixels)
        projected, embedding = run(files.head, maps=torch.from_numpy(maps))
        seen = as_explainable(net).look(pixels)
        truth = seen.project()
        np.testing.assert_allclose(maps, seen.maps, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(projected, truth.maps, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(embedding, truth.embedding, rtol=1e-4, atol=1e-6)

    def test_a_score_follows_from_the_head_s_metadata(self, done):
        net, files = done
        pixels = torch.rand(2, 3, 32, 32)
        (maps,) = run(files.backbone, pixels=pixels)
        _, e = run(files.head, maps=torch.from_numpy(maps))
        about = {p.key: p.value for p in onnx.load(files.head).metadata_props}
        how = json.loads(about["settings"])
        unit = e / np.linalg.norm(e, axis=1, keepdims=True) if how["unit"] else e
        z = how["slope"] * np.linalg.norm(unit[0] - unit[1]) + how["offset"]
        with torch.no_grad():
            y = net.eval()(pixels[:1], pixels[1:]).item()
        assert 1 / (1 + np.exp(-z)) == pytest.approx(y, abs=1e-5)
        assert about["format"] == exporting.FORMAT
        assert json.loads(about["threshold"]) == net.threshold
        assert about["digest"] == as_explainable(net).digest()

    def test_errors_are_told_and_small(self, done):
        assert set(done[1].error) == {"maps", "projected", "embedding"}
        assert max(done[1].error.values()) < 1e-5

    @pytest.mark.parametrize("name", ["backbone", "head"])
    def test_files_hold_no_path_of_this_machine(self, done, name):
        model = onnx.load(getattr(done[1], name))
        onnx.checker.check_model(model)
        assert [n for n in model.graph.node if n.metadata_props or n.doc_string] == []
        assert b".py" not in getattr(done[1], name).read_bytes()

    def test_the_network_is_left_as_it_was(self, tmp_path):
        net = small_net().train()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        export_onnx(net, tmp_path)
        assert net.training
        assert all(p.requires_grad for p in net.projection.parameters())
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)

    def test_an_embedder_s_backbone_ends_at_its_layer(self, tmp_path):
        torch.manual_seed(0)
        model = nn.Sequential(
            Small(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4), nn.ReLU()
        )
        embedder = sc.embedder.Embedder(model, "0.body", image_size=32)
        files = export_onnx(embedder, tmp_path)
        pixels = torch.rand(2, 3, 32, 32)
        (maps,) = run(files.backbone, pixels=pixels)
        projected, e = run(files.head, maps=torch.from_numpy(maps))
        truth = embedder.look(pixels).project()
        np.testing.assert_allclose(projected, truth.maps, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(e, truth.embedding, rtol=1e-4, atol=1e-6)

    def test_what_differs_is_refused_and_nothing_is_written(self, tmp_path):
        net = sc.SiameseNet(Unfaithful(), embed_dim=5, image_size=32)
        with pytest.raises(ModelError, match=r"differs from PyTorch's: maps by 0\.01.*Nothing was"):
            export_onnx(net, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_another_head_is_refused(self, tmp_path):
        embedder = sc.embedder.Embedder(Attending(), "backbone", image_size=32)
        with pytest.raises(ModelError, match="does more than average over space"):
            export_onnx(embedder, tmp_path)

    def test_a_folder_that_cannot_be_written_is_told(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ModelError, match="cannot be written to"):
            export_onnx(small_net(), tmp_path / "file" / "out")


class TestOffer:
    def test_says_all_that_a_page_needs(self):
        net = small_net(normalize=False)
        made = portable.offer(net, "mine")
        about = made.about
        assert (about["units"], about["channels"], about["side"], about["relu"]) == (5, 6, 32, True)
        assert about["how"]["comparison"] == "siamese"
        assert about["how"]["unit"] is False
        assert about["digest"] == as_explainable(net).digest()
        weight = np.frombuffer(made.head, "<f2", 30).reshape(5, 6)
        bias = np.frombuffer(made.head[60:], "<f4")
        np.testing.assert_allclose(weight, net.projection.weight.detach(), rtol=1e-3, atol=1e-7)
        np.testing.assert_array_equal(bias, net.projection.bias.detach())

    def test_networks_that_share_a_backbone_share_its_file(self):
        one, two = (portable.offer(sc.SiameseNet(image_size=96), n) for n in ("one", "two"))
        plain = portable.offer(sc.Embedder.imagenet(image_size=96), "plain")
        larger = portable.offer(sc.SiameseNet(image_size=128), "larger")
        keys = [made.about["backbone"] for made in (one, two, plain, larger)]
        assert keys[0] == keys[1] == keys[2] != keys[3]
        assert one.source == plain.source == "efficientnet_lite0"
        assert plain.head == b""

    def test_a_changed_backbone_is_another_one(self):
        net = sc.SiameseNet(image_size=96)
        with torch.no_grad():
            next(net.backbone.parameters())[0, 0, 0, 0] += 1e-3
        changed = portable.offer(net, "tuned")
        same = portable.offer(sc.SiameseNet(image_size=96), "same")
        assert changed.source is None
        assert changed.about["backbone"] != same.about["backbone"]
        shown, kept = changed._repr_mimebundle_()
        assert kept == {}
        assert "cannot offer" in shown["text/markdown"]

    def test_travels_through_a_notebook(self):
        made = portable.offer(sc.SiameseNet(image_size=96), "<b>mine</b>")
        output = json.loads(json.dumps(made._repr_mimebundle_()[1][portable.KEPT]))
        back = portable.read(output)
        assert (back.name, back.about, back.head) == (made.name, made.about, made.head)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda o: o.pop("head"),
            lambda o: o.update(head="not base64!"),
            lambda o: o.update(head=o["head"][:400]),
            lambda o: o.update(source=3),
            lambda o: o["about"].update(how={"comparison": "angle"}),
            lambda o: o["about"].pop("units"),
            lambda o: o.update(about=[]),
        ],
    )
    def test_a_spoilt_output_is_refused(self, spoil):
        _, kept = portable.offer(sc.SiameseNet(image_size=96), "mine")._repr_mimebundle_()
        told = json.loads(json.dumps(kept[portable.KEPT]))
        spoil(told)
        with pytest.raises(GalleryError):
            portable.read(told)

    def test_a_comparison_of_the_reader_s_own_is_refused(self):
        def halved(e1: torch.Tensor, e2: torch.Tensor) -> torch.Tensor:
            return sc.embedder.cosine(e1, e2) / 2

        embedder = sc.Embedder.imagenet(image_size=96, comparison=halved)
        with pytest.raises(GalleryError, match="which a page cannot compute"):
            portable.offer(embedder, "halved")


class TestBundle:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        """No network: the runtime is a stand-in."""
        monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path / "cache"))

        def place(package, target, cache=None):
            files = [
                target / f"{kind}.{end}" for kind in portable.RUNTIMES for end in ("mjs", "wasm")
            ]
            for file in files:
                file.write_bytes(file.name.encode())
            return files

        monkeypatch.setattr(npm, "place", place)
        return tmp_path / "cache" / "models"

    def test_every_file_is_named_with_its_size_and_digest(self, cache):
        net = small_net()
        manifest, files = portable.bundle([portable.offer(net, "one")])
        (model,) = manifest["models"]
        parts = [
            *manifest["runtimes"]["wasm"].values(),
            *manifest["backbones"].values(),
            model["head"],
        ]
        assert sorted(p["file"] for p in parts) == sorted(files)
        for part in parts:
            data = files[part["file"]]
            assert part["bytes"] == len(data)
            assert part["sha256"][:16] in part["file"]
        graph = onnx.load_from_string(
            gzip.decompress(files[manifest["backbones"][model["backbone"]]["file"]])
        )
        assert [i.name for i in graph.graph.input] == ["pixels"]
        assert (
            gzip.decompress(files[manifest["runtimes"]["wasm"]["machine"]["file"]]) == b"wasm.wasm"
        )

    def test_the_same_models_give_the_same_files(self, cache):
        one = portable.bundle([portable.offer(small_net(), "one")])
        for file in cache.iterdir():
            file.unlink()
        assert portable.bundle([portable.offer(small_net(), "one")]) == one

    def test_a_spoilt_cache_is_made_again(self, cache):
        first = portable.bundle([portable.offer(small_net(), "one")])
        for file in cache.iterdir():
            file.write_bytes(file.read_bytes()[:-9])
        assert portable.bundle([portable.offer(small_net(), "one")]) == first

    def test_two_models_of_one_name_are_refused(self, cache):
        one = portable.offer(small_net(), "one")
        with pytest.raises(GalleryError, match="Two models are called 'one'"):
            portable.bundle([one, one])

    def test_a_folder_holds_what_its_script_announces_and_no_more(self, cache, tmp_path):
        folder = tmp_path / "models"
        folder.mkdir()
        (folder / "backbone-of-yesterday.bin").write_bytes(b"old")
        script = own.write(folder, [portable.offer(small_net(), "</script><b>")])
        text = script.read_text("utf-8")
        assert "</script>" not in text
        told = json.loads(text.rpartition("announce(")[2].partition(");\n")[0])
        assert told["models"][0]["name"] == "</script><b>"
        named = [p["file"] for kind in told["runtimes"].values() for p in kind.values()]
        named += [p["file"] for p in told["backbones"].values()] + [
            told["models"][0]["head"]["file"]
        ]
        assert sorted(f.name for f in folder.iterdir()) == sorted([*named, "models.js"])

    def test_an_offer_from_a_notebook_needs_the_backbone_it_was_made_with(self, cache, monkeypatch):
        made = portable.offer(sc.SiameseNet(image_size=96), "one")
        back = portable.read(made._repr_mimebundle_()[1][portable.KEPT])
        other = portable.Offer(
            back.name, back.about | {"backbone": "0" * 16}, back.head, back.source
        )
        with pytest.raises(GalleryError, match="run its chapter again"):
            portable.bundle([other])


class TestRecord:
    def put(self, folder, record):
        file = folder / "explanation.json"
        file.write_text(json.dumps(record), encoding="utf-8")
        return file

    def test_is_read_as_it_was_written(self, written, tmp_path):
        files, found, record = written
        read = sc.Explanation.open(self.put(tmp_path, record), *files)
        for name in ("dissimilarity", "threshold", "decision", "method", "polarity", "blank"):
            assert getattr(read, name) == getattr(found, name)
        for kind in ("raw", "factual", "counterfactual"):
            for mine, truth in zip(getattr(read, kind), getattr(found, kind), strict=True):
                np.testing.assert_array_equal(mine, truth)
        assert read._repr_png_() == found._repr_png_()

    def test_without_pictures_all_but_drawing_works(self, written, tmp_path):
        _, found, record = written
        read = sc.Explanation.open(self.put(tmp_path, record))
        assert read.factual[0].shape == found.factual[0].shape
        with pytest.raises(sc.errors.ExplanationError, match="holds no pictures; to draw it give"):
            read.plot()

    def test_another_picture_is_refused(self, written, tmp_path):
        files, _, record = written
        with pytest.raises(sc.errors.ExplanationError, match=r"is not the picture .*'.*b\.png'"):
            sc.Explanation.open(self.put(tmp_path, record), files[0], files[0])

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda r: r.update(format="other"),
            lambda r: r.update(version=2),
            lambda r: r.pop("raw"),
            lambda r: r["raw"]["a"].update(shape=[7]),
            lambda r: r["raw"]["a"].update(shape=[10**6, 10**6]),
            lambda r: r["raw"]["a"].update(data="AAAA"),
            lambda r: r["raw"]["b"].update(data="!"),
            lambda r: r["raw"]["b"].update(kind="object"),
            lambda r: r["images"]["a"].update(width=10**9, height=10**9),
            lambda r: r["images"]["a"].update(width=True),
            lambda r: r["images"].update(a=None),
            lambda r: r.update(dissimilarity=7),
            lambda r: r.update(dissimilarity="x"),
            lambda r: r.update(threshold=0),
            lambda r: r.update(polarity="up"),
            lambda r: r.update(method=3),
        ],
    )
    def test_a_spoilt_file_is_refused(self, written, tmp_path, spoil):
        record = json.loads(json.dumps(written[2]))
        spoil(record)
        with pytest.raises(sc.errors.ExplanationError):
            sc.Explanation.open(self.put(tmp_path, record))

    @pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{", "\xff", "null"])
    def test_what_is_no_record_is_refused(self, tmp_path, text):
        file = tmp_path / "x.json"
        file.write_text(text, encoding="latin-1")
        with pytest.raises(sc.errors.ExplanationError, match="is no explanation"):
            sc.Explanation.open(file)
        with pytest.raises(sc.errors.ExplanationError, match="is no explanation"):
            sc.Explanation.open(tmp_path / "missing.json")
