"""ONNX Runtime for installed backbones: PyTorch's numbers, and only where PyTorch is not needed."""

from __future__ import annotations

import copy
import gzip
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import siamcam_lib as sc
from siamcam_lib import engine as engines
from siamcam_lib import files, onnx_files
from siamcam_lib.engine import LEAST, engine
from siamcam_lib.errors import ModelError


@pytest.fixture(scope="module")
def net() -> sc.SiameseNet:
    return sc.SiameseNet(image_size=LEAST).eval()


@pytest.fixture
def own(net) -> sc.SiameseNet:
    """A copy that a test may change."""
    return copy.deepcopy(net)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return onnx_files.pictures(LEAST, 9)


@pytest.fixture
def nothing_kept():
    """No export is in memory, before and after."""
    engines._engine.cache_clear()
    yield
    engines._engine.cache_clear()


def by_torch(net: sc.SiameseNet, pictures: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return net.feature_maps(pictures)


def test_it_sees_what_pytorch_sees(net, pictures):
    assert engine(net, LEAST) is not None
    far = (net.look(pictures) - by_torch(net, pictures)).abs().max()
    assert 0 < far < 1e-5 * by_torch(net, pictures).abs().max()


def test_a_picture_is_seen_alike_in_any_company(net, pictures):
    together = net.look(pictures)
    for count in (1, 2, 5):
        assert torch.equal(net.look(pictures[:count]), together[:count])
    assert torch.equal(net.look(pictures.flip(0)), together.flip(0))


def test_a_network_that_was_saved_and_opened_has_it(net, tmp_path):
    net.save(tmp_path / "net.safetensors")
    assert engine(sc.SiameseNet.load(tmp_path / "net.safetensors").eval(), LEAST) is not None


def test_explanations_are_those_of_pytorch(net, pictures, monkeypatch):
    a, b = (sc.datasets.load("scenes/flowers", n=10).image(k) for k in (0, 1))
    quick = sc.explain(net, a, b)
    monkeypatch.setattr("siamcam_lib.model.engine", lambda *_: None)
    plain = sc.explain(net, a, b)
    assert quick.similarity == pytest.approx(plain.similarity, abs=1e-6)
    for ours, theirs in zip(quick.raw, plain.raw, strict=True):
        assert abs(ours - theirs).max() < 1e-4 * abs(theirs).max()


class TestPyTorchIsNeeded:
    """Where it is, nothing else is asked."""

    def test_for_a_changed_weight(self, own, pictures):
        before = own.look(pictures)
        last = [p for p in own.backbone.parameters() if p.ndim == 4][-1]
        kept = last.detach().clone()
        last.data.mul_(2)  # behind autograd's back
        assert engine(own, LEAST) is None
        truth = by_torch(own, pictures)  # with several threads it is rounded otherwise
        assert (own.look(pictures) - truth).abs().max() < 1e-4 * truth.abs().max()
        assert (own.look(pictures) - before).abs().max() > 1e-3
        last.data.copy_(kept)
        assert torch.equal(own.look(pictures), before)

    def test_for_a_changed_running_mean(self, own):
        next(b for name, b in own.backbone.named_buffers() if "mean" in name).add_(1)
        assert engine(own, LEAST) is None

    def test_for_another_stride(self, own, pictures):
        own.backbone.conv_stem.stride = (1, 1)
        assert engine(own, LEAST) is None
        assert own.look(pictures).shape[-1] == 2 * by_torch(own, pictures[:, :, ::2, ::2]).shape[-1]

    def test_for_another_scaling(self, own, pictures):
        own.mean.add_(0.1)
        assert engine(own, LEAST) is None
        assert torch.equal(own.look(pictures[:2]), by_torch(own, pictures[:2]))

    def test_for_hooks(self, own, pictures):
        seen = []
        hook = own.backbone.conv_head.register_forward_hook(lambda *given: seen.append(given))
        own.look(pictures)
        assert seen
        hook.remove()
        assert engine(own, LEAST) is not None

    def test_for_training(self, own):
        assert engine(own.train(), LEAST) is None

    def test_for_double_precision(self, own, pictures):
        assert engine(own.double(), LEAST) is None
        assert own.look(pictures.double()).dtype == torch.float64

    def test_for_pictures_that_are_not_square(self, net, pictures):
        assert net.look(pictures[..., : LEAST - 32]).shape[-2:] == (5, 4)

    def test_for_small_pictures(self, net):
        assert engine(net, LEAST - 1) is None

    @pytest.mark.parametrize("given", [{"pretrained": False}, {"backbone": "resnet18"}])
    def test_for_other_backbones(self, given):
        given = {"pretrained": False} | given
        assert engine(sc.SiameseNet(**given).eval(), LEAST) is None

    def test_for_an_export_that_fails(self, net, pictures, nothing_kept, monkeypatch):
        def fail(*_):
            raise ModelError("no exporter")

        monkeypatch.setattr(engines, "packed", fail)
        assert engine(net, LEAST) is None
        assert net.look(pictures).shape == by_torch(net, pictures).shape


class TestCheck:
    """An export that gives something else is no export."""

    @pytest.mark.parametrize("given", [torch.nan, 2.0])
    def test_what_differs_is_refused(self, monkeypatch, given):
        class Session:
            def run(self, names, feed):
                return [np.full((len(feed["x"]), 2), given, np.float32)]

        monkeypatch.setattr(onnx_files, "session", lambda model: Session())
        x = torch.ones(3, 2)
        with pytest.raises(ModelError, match="differs from PyTorch's"):
            onnx_files.check(b"", {"x": x}, {"y": x}, 1e-4)
        with pytest.raises(ModelError, match="differs from PyTorch's"):
            onnx_files.check(b"", {"x": x}, {"y": torch.full((3, 1), given)}, 1e-4)

    def test_a_layer_that_works_otherwise_is_another_file(self, own):
        before = onnx_files.digest(own.backbone, LEAST)
        assert onnx_files.digest(own, LEAST) != before  # it has more layers
        own.backbone.conv_stem.stride = (1, 1)
        assert onnx_files.digest(own.backbone, LEAST) != before

    def test_nothing_is_nothing_packed(self):
        assert onnx_files.unzips(gzip.compress(b"x")) and not onnx_files.unzips(b"")


class TestKept:
    """An export is dear, so it is made once."""

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, net) -> bytes:
        return onnx_files.exported(
            onnx_files.Normalised(net.backbone, net.mean, net.std).eval(),
            onnx_files.pictures(LEAST), "pixels", ["maps"],
        )  # fmt: skip

    @pytest.fixture
    def cache(self, tmp_path, monkeypatch, nothing_kept, model):
        monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path / "cache"))
        made = []
        monkeypatch.setattr(onnx_files, "exported", lambda *_: made.append(1) or model)
        return tmp_path / "cache", made

    def test_a_second_process_takes_it_and_a_damaged_one_is_made_anew(self, net, cache):
        folder, made = cache
        for asked, expected in (("first", 1), ("again", 1)):
            assert engine(net, LEAST) is not None, asked
            assert len(made) == expected
            engines._engine.cache_clear()
        (file,) = folder.glob("models/*.onnx.gz")
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert engine(net, LEAST) is not None
        assert len(made) == 2
        assert file.read_bytes() == whole

    @pytest.mark.parametrize("side", [224, 320])
    def test_another_size_is_made_of_it_and_sees_what_pytorch_sees(self, net, cache, side):
        _, made = cache
        assert engine(net, LEAST) is not None
        large = onnx_files.pictures(side, 2)
        truth = by_torch(net, large)
        far = (engine(net, side)(large) - truth).abs().max()
        assert len(made) == 1
        assert 0 < far < 1e-5 * truth.abs().max()

    def test_where_it_does_not_do_for_another_size_that_is_exported(self, net, cache, monkeypatch):
        _, made = cache
        wrong = onnx_files.resized
        monkeypatch.setattr(onnx_files, "resized", lambda model, side: wrong(model, side + 32))
        with pytest.raises(ModelError, match="does not run"):  # the stub gives one for LEAST again
            onnx_files.packed(
                onnx_files.Normalised(net.backbone, net.mean, net.std).eval(), 224, "other"
            )
        assert len(made) == 2

    def test_without_a_cache_it_is_made_in_memory(self, net, cache, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("no folder")
        monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path / "file" / "cache"))
        assert engine(net, LEAST) is not None


def test_nobody_keeps_a_record_of_its_use(tmp_path):
    """ONNX Runtime would, in the home of whoever imports it."""
    code = (
        "import siamcam_lib as sc, torch\n"
        "net = sc.SiameseNet(image_size=160).eval()\n"
        "assert net.look(torch.zeros(1, 3, 160, 160)).shape[-1] == 5\n"
        "import sys; assert 'onnxruntime' in sys.modules"
    )
    home = {"HOME": str(tmp_path), "SIAMCAM_CACHE": str(files.cache_home())}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | home)
    assert [p for p in tmp_path.rglob("*") if "onnx" in p.name.lower()] == []
