"""Five looks: what is seen, where it lies on the joined map, and that nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import siamcam_lib as sc
from siamcam_lib import onnx_files, training
from siamcam_lib.cache import FeatureCache
from siamcam_lib.concepts import HeldFeatures, feature_maps
from siamcam_lib.crops import SHARE, FiveLooks, _lying
from siamcam_lib.engine import LEAST, engine
from siamcam_lib.errors import ModelError
from siamcam_lib.features import backbone_digest, looks_pooled, pooled_features
from siamcam_lib.onnx_files import Normalised, digest
from siamcam_lib.portable import offer


class Tiles(nn.Module):
    """A backbone whose map is the picture itself, coarser; it counts its calls."""

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(side)
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.pool(x) * self.weight


@pytest.fixture(scope="module")
def images():
    return sc.datasets.load("scenes/flowers", n=100)


def network(looks: int = 5, size: int = 80) -> sc.SiameseNet:
    torch.manual_seed(0)
    return sc.SiameseNet(Tiles(), embed_dim=4, image_size=size, looks=looks).eval()


def pixels(n: int = 2, side: int = 80, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


class TestGrid:
    @settings(max_examples=40, deadline=None)
    @given(
        parts=st.integers(1, 9), places=st.integers(1, 13), start=st.floats(0, 0.6),
        length=st.floats(0.1, 0.4),
    )  # fmt: skip
    def test_shares_are_those_of_a_plain_loop(self, parts, places, start, length):
        found = _lying(parts, start, start + length, places)
        assert found.shape == (places, parts)
        for q in range(parts):
            own = (start + length * q / parts, start + length * (q + 1) / parts)
            for p in range(places):
                share = overlap(own, (p / places, (p + 1) / places)) / (own[1] - own[0])
                assert found[p, q].item() == pytest.approx(share, abs=1e-9)
        torch.testing.assert_close(found.sum(dim=0), torch.ones(parts, dtype=torch.float64))

    @settings(max_examples=25, deadline=None)
    @given(high=st.integers(1, 9), wide=st.integers(1, 9), seed=st.integers(0, 10**6))
    def test_joining_loses_nothing(self, high, wide, seed):
        drawn = torch.Generator().manual_seed(seed)
        maps = [torch.rand(2, 3, high, wide, generator=drawn).double() for _ in range(5)]
        joined = FiveLooks(nn.Identity()).join(maps)
        pooled = torch.stack([own.mean(dim=(2, 3)) for own in maps]).mean(dim=0)
        torch.testing.assert_close(joined.mean(dim=(2, 3)), pooled)

    @pytest.mark.parametrize("which", range(5))
    def test_each_look_lies_where_it_was_taken(self, which):
        maps = [torch.zeros(1, 1, 7, 7) for _ in range(5)]
        maps[which] += 1
        seen = FiveLooks(nn.Identity()).join(maps)[0, 0] > 1e-6
        expected = torch.zeros(10, 10, dtype=torch.bool)
        rows, columns = [
            (slice(0, 10), slice(0, 10)), (slice(0, 7), slice(0, 7)), (slice(0, 7), slice(3, 10)),
            (slice(3, 10), slice(0, 7)), (slice(3, 10), slice(3, 10)),
        ][which]  # fmt: skip
        expected[rows, columns] = True
        assert torch.equal(seen, expected)

    def test_the_middle_weighs_three_times_as_much_as_a_corner(self):
        """As the Flowers chapter says."""
        weight = FiveLooks(nn.Identity()).join([torch.ones(1, 1, 7, 7).double()] * 5)[0, 0]
        assert weight[3:7, 3:7].min() == pytest.approx(weight.max().item())
        for rows in (slice(0, 3), slice(7, 10)):
            for columns in (slice(0, 3), slice(7, 10)):
                ratio = weight.max() / weight[rows, columns]
                assert (ratio - 3).abs().max() < 0.05


class TestLooks:
    def test_corners_are_the_pictures_own_pixels(self):
        x = pixels(side=40)
        _, *corners = FiveLooks(nn.Identity()).cut(x)
        assert round(SHARE * 40) == 28
        for corner, (y, x0) in zip(corners, [(0, 0), (0, 12), (12, 0), (12, 12)], strict=True):
            assert torch.equal(corner, x[:, :, y : y + 28, x0 : x0 + 28])

    def test_the_whole_picture_is_shrunk_by_means_of_pixels(self):
        x = pixels(1, side=10).double()
        whole = FiveLooks(nn.Identity()).cut(x)[0][0, 0]
        for i in range(7):
            for j in range(7):
                rows, columns = ((k * 10 / 7, (k + 1) * 10 / 7) for k in (i, j))
                mean = (
                    sum(
                        x[0, 0, p, q].item()
                        * overlap(rows, (p, p + 1))
                        * overlap(columns, (q, q + 1))
                        for p in range(10)
                        for q in range(10)
                    )
                    / (10 / 7) ** 2
                )
                assert whole[i, j].item() == pytest.approx(mean)

    def test_a_picture_need_not_be_square(self):
        five = FiveLooks(Tiles()).eval()
        assert five(torch.rand(1, 3, 80, 160)).shape == (1, 3, 10, 20)

    def test_a_training_network_looks_once(self):
        five = FiveLooks(Tiles())
        x = pixels()
        assert torch.equal(five.train()(x), five.inner(x))
        five.inner.calls = 0
        five.eval()(x)
        assert five.inner.calls == 5


class TestNetwork:
    def test_it_sees_by_parts_what_it_sees_at_once(self):
        net, x = network(), pixels(9)
        torch.testing.assert_close(net.look(x), net.feature_maps(x))
        assert net.look(x).shape == (9, 3, 10, 10)
        pooled = torch.stack([own.mean(dim=(2, 3)) for own in net.each_look(x)]).mean(dim=0)
        torch.testing.assert_close(net.look(x).mean(dim=(2, 3)), pooled)

    @pytest.mark.parametrize("looks", [0, 2, 3, 5.5, 5.0, np.int64(5), True, "5", [5], None])
    def test_another_number_of_looks_is_refused(self, looks):
        with pytest.raises(ModelError, match="1 or 5 times"):
            sc.SiameseNet(Tiles(), looks=looks)

    def test_it_is_saved_with_its_looks(self, tmp_path):
        net = sc.SiameseNet("resnet18", embed_dim=4, pretrained=False, image_size=64, looks=5)
        net.eval().save(tmp_path / "net.safetensors")
        again = sc.SiameseNet.load(tmp_path / "net.safetensors")
        assert again.looks == 5
        assert torch.equal(again.look(pixels(3, 64)), net.look(pixels(3, 64)))

    def test_one_look_is_saved_as_ever(self, tmp_path):
        net = sc.SiameseNet("resnet18", embed_dim=4, pretrained=False, image_size=64)
        assert (net.looks, "looks" in net.config) == (1, False)

    @pytest.mark.parametrize("looks", [5.0, True, 3, "5", [5], None])
    def test_a_file_with_another_number_of_looks_is_refused_by_name(self, tmp_path, looks):
        path = tmp_path / "net.safetensors"
        net = sc.SiameseNet("resnet18", embed_dim=4, pretrained=False, image_size=64, looks=5)
        net.config["looks"] = looks
        net.save(path)
        with pytest.raises(ModelError, match="net.safetensors.*looks"):
            sc.SiameseNet.load(path)

    def test_a_network_of_one_s_own_is_opened_with_its_backbone(self, tmp_path):
        net, x = network(), pixels(3)
        net.save(tmp_path / "net.safetensors")
        for backbone in (net.backbone, net.backbone.inner):
            again = sc.SiameseNet.load(tmp_path / "net.safetensors", backbone=backbone)
            assert again.looks == 5
            assert torch.equal(again.look(x), net.look(x))

    def test_whoever_listens_to_the_whole_backbone_hears_every_look(self):
        net, x, heard = network(), pixels(9), []
        net.backbone.register_forward_hook(lambda module, given, made: heard.append(len(made)))
        before = network().look(x)
        torch.testing.assert_close(net.look(x), before)
        assert sum(heard) == 9
        net.backbone.register_forward_hook(lambda module, given, made: 0 * made)
        assert not net.look(x).any()

    def test_another_library_explains_the_joined_map(self):
        """captum's Grad-CAM, with the backbone as a whole for its layer, and the closed form."""
        torch.manual_seed(0)
        net = sc.SiameseNet(Tiles(), embed_dim=32, image_size=80, looks=5).eval()
        gains = torch.tensor([[1.0, 0.3, 0.1], [0.2, 1.0, 0.6]])[:, :, None, None]
        x = pixels(seed=1) * gains

        def similarity(both):
            return (1 - net(both[:1], both[1:])).expand(2) / 2  # captum adds up the batch

        theirs = LayerGradCam(similarity, net.backbone).attribute(x)[:, 0].detach()
        projected = sc.gradcam.project(net, net.look(x))
        ours = sc.gradcam.pair_maps(
            net, *(sc.gradcam.Projected(projected.maps[k : k + 1], projected.embedding[k : k + 1])
                   for k in (0, 1)))  # fmt: skip
        assert theirs.abs().max() > 1e-5
        for own, its in zip(ours, theirs, strict=True):
            largest = its.abs().max()
            torch.testing.assert_close(
                own[0].float() / largest, its / largest, atol=1e-3, rtol=1e-3
            )

    @pytest.mark.parametrize("unit", [True, False])
    def test_maps_are_gradients_of_the_joined_map(self, unit):
        """The closed form on five looks against autograd through the joined map."""
        torch.manual_seed(0)
        net = sc.SiameseNet(Tiles(), embed_dim=32, image_size=80, looks=5, normalize=unit).eval()
        gains = torch.tensor([[1.0, 0.3, 0.1], [0.2, 1.0, 0.6]])[:, :, None, None]
        pair = [(255 * x).byte().permute(1, 2, 0).numpy() for x in pixels(seed=1) * gains]
        found = sc.explain(net, *pair)
        pictures = net.to_tensor([sc.datasets.images.as_image(x) for x in pair])
        net.double()
        maps = net.feature_maps(pictures.double()).detach().requires_grad_()
        e = net.embed_pooled(maps.mean(dim=(2, 3)))
        similarity = 1 - net.dissimilarity(net.distance(e[:1], e[1:]))
        (gradient,) = torch.autograd.grad(similarity.sum(), maps)
        truth = (gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).detach().numpy()
        assert np.abs(truth).max() > 1e-4
        for ours, theirs in zip(found.raw, truth, strict=True):
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(truth).max()

    def test_an_installed_backbone_looks_five_times_by_its_engine(self):
        side = round(LEAST / SHARE)
        net = sc.SiameseNet(image_size=side, looks=5).eval()
        assert engine(net, LEAST) is not None
        x = pixels(3, side)
        with torch.inference_mode():
            plain = net.feature_maps(x)
        far = (net.look(x) - plain).abs().max()
        assert 0 < far < 1e-5 * plain.abs().max()
        heard = []
        net.backbone.register_forward_hook(lambda *_: heard.append(1))
        assert engine(net, LEAST) is None
        torch.testing.assert_close(net.look(x), plain)
        assert heard

    def test_its_file_for_pages_is_another_than_that_of_one_look(self):
        keys = set()
        for looks in (1, 5):
            net = sc.SiameseNet("resnet18", pretrained=False, image_size=64, looks=looks).eval()
            net.backbone.load_state_dict({k: v * 0 for k, v in net.backbone.state_dict().items()})
            keys.add(digest(Normalised(net.backbone, net.mean, net.std), 64))
        assert len(keys) == 2

    def test_it_is_exported_whole_and_once(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path / "cache"))
        net = sc.SiameseNet("resnet18", embed_dim=4, pretrained=False, image_size=96, looks=5)
        done = sc.export_onnx(net.eval(), tmp_path / "onnx")
        x = onnx_files.pictures(96, 2)
        (maps,) = onnx_files.session(done.backbone.read_bytes()).run(None, {"pixels": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(maps), net.look(x), atol=1e-4, rtol=1e-4)
        made = []
        monkeypatch.setattr(
            onnx_files, "exported", lambda *given: made.append(given) or done.backbone.read_bytes()
        )
        looking = Normalised(net.backbone, net.mean, net.std).eval()
        assert onnx_files.unzips(onnx_files.packed(looking, 96, "five"))
        assert len(made) == 1

    def test_a_page_is_told_its_looks(self):
        made = offer(sc.SiameseNet(image_size=96, looks=5), "five")
        assert (made.about["looks"], made.source) == (5, "efficientnet_lite0")
        assert offer(sc.SiameseNet(image_size=96), "one").about["looks"] == 1


class TestFeatures:
    def test_they_are_the_mean_of_all_looks(self, images, tmp_path):
        net, cache = network(), FeatureCache(tmp_path / "f.sqlite")
        read = {"cache": cache, "progress": False}
        few = images.subset(range(10))
        each = looks_pooled(net, few, **read)
        assert each.shape == (10, 5, 3)
        torch.testing.assert_close(pooled_features(net, few, **read), each.mean(dim=1))
        x = net.to_tensor([few.image(i) for i in range(10)])
        torch.testing.assert_close(each.mean(dim=1), net.look(x).mean(dim=(2, 3)))

    def test_one_look_and_five_are_not_mistaken_for_each_other(self):
        def named(looks):
            torch.manual_seed(0)
            return sc.SiameseNet("resnet18", pretrained=False, image_size=64, looks=looks)

        one, five, inside = named(1), named(5), named(5)
        inside.backbone = nn.Sequential(inside.backbone)
        digests = [backbone_digest(net) for net in (one, five, inside, named(1))]
        assert digests[0] == digests[3]
        assert len(set(digests)) == 3

    def test_maps_for_concepts_leave_features_that_fit(self, images, monkeypatch, tmp_path):
        monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path))
        net, few = network(), images.subset(range(6))
        maps = feature_maps(net, few)
        net.backbone.inner.calls = 0
        pooled = pooled_features(net, few, progress=False)
        assert net.backbone.inner.calls == 0
        torch.testing.assert_close(maps.float().mean(dim=(2, 3)), pooled, atol=1e-3, rtol=1e-3)

    def test_features_can_be_held_for_it(self, images):
        net, few = network(), images.subset(range(6))
        rows = torch.rand(6, 3)
        held = HeldFeatures(net, few, {"plain": rows})
        torch.testing.assert_close(pooled_features(net, few, cache=held, progress=False), rows)


class TestTraining:
    def test_a_frozen_head_learns_from_every_look(self, images, tmp_path, monkeypatch):
        split = sc.pairs.split(images, seed=0)
        seen = []
        views = training._PooledViews

        def watched(views_, labels):
            seen.append(views_)
            return views(views_, labels)

        monkeypatch.setattr(training, "_PooledViews", watched)
        net, cache = network(), FeatureCache(tmp_path / "f.sqlite")
        recipe = sc.Recipe(2, 16, steps=2)
        sc.fit(net, split, seed=0, recipe=recipe, cache=cache, progress=False)
        assert seen[0].shape == (10, len(split.train), 3)  # plain and mirrored, five looks each
        mirrored = looks_pooled(net, split.train, view="mirrored", cache=cache, progress=False)
        assert torch.equal(seen[0][5:], mirrored.transpose(0, 1))

    def test_fine_tuning_learns_from_single_looks_and_chooses_by_five(self, images):
        split = sc.pairs.split(images, seed=0)
        net = network()
        net.backbone.inner.calls = 0
        recipe = sc.Recipe(1, 16, steps=2, crop_size=56)
        sc.fit(net, split, seed=0, recipe=recipe, finetune=True, progress=False)
        judged = -(-len(split.val) // 64)
        assert net.backbone.inner.calls == 2 + 5 * 2 * judged  # the epoch's end, and calibration
        assert not net.backbone.training
