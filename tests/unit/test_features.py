"""Pooled features: computed once, found again, never another picture's or network's."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms import v2

from siamcam_lib.cache import FeatureCache
from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import CacheError, DataError, SiamcamError
from siamcam_lib.features import Looks, View, _rotated, pooled_features
from siamcam_lib.model import SiameseNet


class Counting(nn.Module):
    """A small backbone that counts the images it sees and can fail at a given one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 8, stride=8), nn.BatchNorm2d(5)
        self.seen, self.fails_after = 0, None

    def forward(self, x):
        if self.fails_after is not None and self.seen + len(x) > self.fails_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        return self.norm(self.conv(x)).relu()


@dataclass(frozen=True)
class Noise:
    """Random pictures, each known by its seed; `contents` may say otherwise."""

    origin: str = "folder"
    contents: dict[str, int] = field(default_factory=dict)

    def image(self, item):
        random = np.random.default_rng(self.contents.get(item, int(item)))
        return Image.fromarray(random.integers(0, 256, (30, 44, 3), np.uint8))

    def masks(self, item):
        return {}

    def digest(self, item):
        return f"seed {self.contents.get(item, int(item))}"


def images(n: int = 10, contents: dict[str, int] | None = None) -> ImageSet:
    items, source = tuple(map(str, range(n))), Noise(contents=contents or {})
    return ImageSet("noise", ("a", "b"), items, np.arange(n) % 2, np.arange(n), source)


def network(size: int = 32, backbone: nn.Module | None = None) -> SiameseNet:
    torch.manual_seed(0)
    net = SiameseNet(backbone or Counting(), embed_dim=4, image_size=size)
    net.backbone.seen = 0  # the constructor looks at one image
    return net


@pytest.fixture
def cache(tmp_path) -> FeatureCache:
    return FeatureCache(tmp_path / "features.sqlite")


def features(net, pictures, cache, **options):
    return pooled_features(net, pictures, cache=cache, progress=False, **options)


def test_the_bar_shows_a_hostile_name_harmlessly(cache, capsys):
    pooled_features(network(), replace(images(), name="a\x1b[2Jb\u202e"), cache=cache)
    told = capsys.readouterr().err
    assert "features of a�[2Jb�" in told and "\x1b[2J" not in told


class TestValues:
    def test_they_are_the_means_of_the_feature_maps(self, cache):
        net, data = network(), images(7)
        found = features(net, data, cache, batch_size=3)
        with torch.no_grad():
            direct = net.eval().feature_maps(net.to_tensor([data.image(i) for i in range(7)]))
        torch.testing.assert_close(found, direct.mean(dim=(2, 3)), rtol=1e-5, atol=1e-6)
        assert found.dtype == torch.float32
        assert found.device.type == "cpu"

    def test_the_mirrored_view_is_the_mirror_image(self, cache):
        net, data = network(), images(4)
        found = features(net, data, cache, view="mirrored")
        with torch.no_grad():
            flipped = net.to_tensor([ImageOps.mirror(data.image(i)) for i in range(4)])
            direct = net.eval().feature_maps(flipped).mean(dim=(2, 3))
        torch.testing.assert_close(found, direct, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, features(net, data, cache))

    def test_neither_batch_size_nor_order_matters(self, cache, tmp_path):
        net, data = network(), images(9)
        one = features(net, data, cache, batch_size=4)
        order = np.array([3, 8, 0, 5])
        other = features(net, data.subset(order), FeatureCache(tmp_path / "b"), batch_size=1)
        torch.testing.assert_close(one[order], other, rtol=1e-5, atol=1e-6)
        assert torch.equal(features(net, data.subset(order), cache), one[order])

    def test_they_can_be_learned_from(self, cache):
        net = network()
        loss = net.embed_pooled(features(net, images(4), cache)).sum()
        loss.backward()  # a tensor made under inference_mode would raise
        assert net.projection.weight.grad is not None

    @pytest.mark.parametrize("training", [True, False])
    def test_the_network_is_left_as_it_was(self, cache, training):
        net = network().train(training)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        features(net, images(), cache)
        assert net.training == net.backbone.norm.training == training
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class TestCache:
    def test_what_is_known_is_not_computed_again(self, cache):
        net, data = network(), images(10)
        first = features(net, data, cache)
        assert net.backbone.seen == 10
        again = features(net, data, FeatureCache(cache.path))  # as another process would
        assert net.backbone.seen == 10
        assert torch.equal(first, again)

    def test_only_what_is_missing_is_computed(self, cache):
        net = network()
        features(net, images(10).subset([2, 3, 7]), cache)
        features(net, images(10), cache)
        assert net.backbone.seen == 10

    def test_copies_are_computed_once(self, cache):
        net = network()
        found = features(net, images(6, {"4": 0, "5": 0}), cache)
        assert net.backbone.seen == 4
        assert torch.equal(found[0], found[4])
        assert torch.equal(found[0], found[5])
        assert not torch.equal(found[0], found[1])

    def test_a_changed_picture_is_computed_anew(self, cache):
        net = network()
        before = features(net, images(5), cache)
        after = features(net, images(5, {"3": 77}), cache)
        assert net.backbone.seen == 6
        assert (before != after).any(dim=1).tolist() == [False, False, False, True, False]

    @pytest.mark.parametrize("tensor", ["conv.weight", "conv.bias", "norm.running_var"])
    def test_any_change_of_the_backbone_counts(self, cache, tensor):
        net = network()
        before = features(net, images(3), cache)
        with torch.no_grad():
            changed = net.backbone.state_dict()[tensor]
            changed[(0,) * changed.ndim] += 1e-3
        after = features(net, images(3), cache)
        assert net.backbone.seen == 6
        assert not torch.equal(before, after)

    def test_image_size_normalisation_and_view_count(self, cache):
        backbone = Counting()
        net = network(32, backbone)
        features(net, images(2), cache)
        features(net, images(2), cache, view="mirrored")
        features(network_like(net, size=40), images(2), cache)
        shifted = network_like(net, size=32)
        shifted.mean += 0.1
        features(shifted, images(2), cache)
        assert backbone.seen == 8

    def test_projection_and_threshold_do_not_count(self, cache):
        net = network()
        features(net, images(3), cache)
        net.projection.reset_parameters()
        net.threshold = 0.3
        features(net, images(3), cache)
        assert net.backbone.seen == 3

    def test_an_interruption_keeps_the_finished_batches(self, cache, monkeypatch):
        monkeypatch.setattr(os, "getpid", lambda: 0)  # begins with the first batch
        net, data = network(), images(10)
        net.train()
        net.backbone.fails_after = 7
        with pytest.raises(KeyboardInterrupt):
            features(net, data, cache, batch_size=3)
        assert net.backbone.seen == 6
        assert net.training, "the mode is restored all the same"
        net.backbone.fails_after = None
        found = features(net, data, cache, batch_size=3)
        assert net.backbone.seen == 10
        fresh = network()
        other = FeatureCache(cache.path.with_name("other"))
        torch.testing.assert_close(found, features(fresh, data, other))

    def test_the_default_is_the_users_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path / "mine"))
        net = network()
        for _ in range(2):
            pooled_features(net, images(2), progress=False)
        assert net.backbone.seen == 2
        assert (tmp_path / "mine" / "features.sqlite").is_file()


def network_like(net: SiameseNet, size: int) -> SiameseNet:
    """The same backbone in a network of another size, with the count kept."""
    seen = net.backbone.seen
    other = SiameseNet(net.backbone, embed_dim=4, image_size=size)
    net.backbone.seen = seen
    return other


class TestStore:
    def test_vectors_come_back_bit_for_bit(self, cache):
        vectors = {
            "ünï/code key": np.array([1e-38, -0.0, np.pi, np.inf, np.nan], np.float32),
            "empty": np.empty(0, np.float32),
            "strided": np.arange(10, dtype=np.float64)[::2],
        }
        cache.put(vectors)
        found = cache.get([*vectors, "unknown"])
        assert found.keys() == vectors.keys()
        for key, value in vectors.items():
            assert found[key].tobytes() == value.astype(np.float32).tobytes()

    def test_the_last_value_counts(self, cache):
        cache.put({"key": np.zeros(2, np.float32)})
        cache.put({"key": np.ones(3, np.float32)})
        assert cache.get(["key"])["key"].tolist() == [1, 1, 1]

    def test_all_or_none_are_stored(self, cache):
        cache.put({"old": np.zeros(1, np.float32)})

        class Cut(dict):
            def items(self):
                yield "first", np.ones(1, np.float32)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.put(Cut())
        assert cache.get(["old", "first"]).keys() == {"old"}

    def test_several_writers_lose_nothing(self, cache):
        def write(k):
            FeatureCache(cache.path).put({f"{k}": np.full(4, k, np.float32)})

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(30)))
        found = cache.get(map(str, range(30)))
        assert [found[str(k)][0] for k in range(30)] == list(range(30))

    def test_no_file_is_made_by_the_name_alone(self, cache):
        assert not cache.path.exists()

    @pytest.mark.parametrize(
        "content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 500]
    )
    def test_a_damaged_file_is_named_and_left_alone(self, cache, content):
        cache.path.write_bytes(content)
        with pytest.raises(CacheError, match=r"features\.sqlite.*delete it"):
            features(network(), images(2), cache)
        assert cache.path.read_bytes() == content

    def test_a_truncated_database_is_told_or_still_whole(self, cache):
        cache.put({f"{k}": np.full(500, k, np.float32) for k in range(20)})
        cache.path.write_bytes(cache.path.read_bytes()[:6000])
        with pytest.raises(CacheError, match=r"features\.sqlite"):
            cache.get(map(str, range(20)))

    def test_a_foreign_database_is_told(self, cache):
        with sqlite3.connect(cache.path) as connection:
            connection.execute("CREATE TABLE features (something TEXT)")
        connection.close()
        with pytest.raises(CacheError):
            cache.get(["key"])

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CacheError, match="SIAMCAM_CACHE"):
            FeatureCache(tmp_path / "file" / "features.sqlite").get(["key"])

    def test_a_file_that_cannot_be_written_is_told(self, cache, monkeypatch):
        def refuse(*args, **options):
            raise sqlite3.OperationalError("attempt to write a readonly database")

        monkeypatch.setattr(sqlite3, "connect", refuse)  # root may write everywhere
        with pytest.raises(CacheError, match="readonly.*SIAMCAM_CACHE"):
            cache.put({"key": np.ones(1, np.float32)})

    def test_the_error_is_of_the_librarys_own_kind(self):
        assert issubclass(CacheError, SiamcamError)
        assert issubclass(CacheError, OSError)


class Meanwhile:
    """A cache that is empty when first asked, and full of another process's work afterwards."""

    def __init__(self, cache: FeatureCache) -> None:
        self.cache, self.asked = cache, 0

    def get(self, keys):
        self.asked += 1
        return {} if self.asked == 1 else self.cache.get(keys)

    def put(self, rows):
        self.cache.put(rows)


class TestTwoProcesses:
    def test_what_another_has_computed_meanwhile_is_taken(self, cache):
        net, data = network(), images(10)
        found = features(net, data, cache)
        seen = net.backbone.seen
        again = features(net, data, Meanwhile(cache))
        assert net.backbone.seen == seen
        torch.testing.assert_close(again, found, rtol=0, atol=0)

    def test_they_begin_at_different_places_and_leave_nothing_out(self):
        parts = list(range(8))
        orders = [_rotated(parts, process) for process in range(4000, 4004)]
        assert all(sorted(order) == parts for order in orders)
        assert len({order[0] for order in orders}) == 4
        assert _rotated([], 1) == []

    def test_the_order_changes_nothing(self, cache, tmp_path, monkeypatch):
        net, data, found = network(), images(10), []
        for process in (1, 2, 3):
            monkeypatch.setattr(os, "getpid", lambda process=process: process)
            own = FeatureCache(tmp_path / f"{process}.sqlite")
            found.append(pooled_features(net, data, cache=own, batch_size=3, progress=False))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


class TestViews:
    def test_is_the_changed_picture_and_each_has_its_own_change(self, cache):
        net, data = network(), images(6)
        view = View(v2.ColorJitter(brightness=(0.2, 1.0)))
        found = features(net, data, cache, view=view)
        factors = []
        for i in range(6):
            changed = view(data.image(i), data.digest(i))
            factors.append(np.mean(changed) / np.mean(data.image(i)))
            alone = ImageSet(
                "one", ("a",), ("0",), np.zeros(1, int), np.zeros(1, int), Fixed(changed)
            )
            torch.testing.assert_close(features(net, alone, cache)[0], found[i])
        assert np.ptp(factors) > 0.1

    def test_is_computed_once_and_drawn_alike_in_any_order(self, cache):
        net, data = network(), images(6)
        view = View(v2.RandomResizedCrop(20))
        found = features(net, data, cache, view=view)
        seen = net.backbone.seen
        again = features(net, data.subset([3, 1]), cache, view=View(v2.RandomResizedCrop(20)))
        assert net.backbone.seen == seen
        torch.testing.assert_close(again, found[[3, 1]], rtol=0, atol=0)

    def test_other_draws_and_transforms_are_other_views(self, cache):
        net, data = network(), images(4)
        views = ["plain", View(v2.RandomRotation(90)), View(v2.RandomRotation(90), 1),
                 View(v2.RandomRotation(80))]  # fmt: skip
        found = [features(net, data, cache, view=view) for view in views]
        for i, one in enumerate(found):
            assert not any(torch.equal(one, other) for other in found[i + 1 :])

    def test_leaves_the_reader_s_random_numbers_alone(self, cache):
        net = network()
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        features(net, images(2), cache, view=View(v2.RandomRotation(90)))
        torch.testing.assert_close(torch.rand(3), expected)

    def test_refuses_what_is_no_view(self, cache):
        with pytest.raises(DataError, match="no view 'turned'"):
            features(network(), images(2), cache, view="turned")
        with pytest.raises(DataError, match="gives a PIL image, not Image"):
            features(network(), images(2), cache, view=View(v2.ToImage()))


@dataclass(frozen=True)
class Fixed:
    """One picture."""

    picture: Image.Image
    origin: str = "folder"

    def image(self, item):
        return self.picture

    def masks(self, item):
        return {}

    def digest(self, item):
        return str(hash(self.picture.tobytes()))


class TestLooks:
    PICTURES = [images(8).image(k) for k in range(8)]

    def test_they_are_the_feature_maps(self):
        net = network()
        truth = net.eval().look(net.to_tensor(self.PICTURES))
        torch.testing.assert_close(Looks()(net, self.PICTURES), truth, rtol=1e-6, atol=1e-6)

    def test_heads_share_them_and_each_picture_is_looked_at_once(self):
        body, looks = Counting(), Looks()
        one, other = network(backbone=body), network(backbone=body)
        torch.nn.init.normal_(other.projection.weight)
        first = looks(one, [*self.PICTURES[:5], self.PICTURES[0]])
        again = looks(other, self.PICTURES[:6])
        assert body.seen == len(looks) == 6
        assert torch.equal(again[:5], first[:5]) and torch.equal(first[0], first[5])

    def test_another_backbone_or_size_looks_anew(self):
        net, looks = network(), Looks()
        looks(net, self.PICTURES)
        with torch.no_grad():
            net.backbone.conv.bias.add_(1)
        changed = looks(net, self.PICTURES)
        torch.testing.assert_close(changed, net.eval().look(net.to_tensor(self.PICTURES)))
        assert looks(network(48), self.PICTURES).shape[2:] == (6, 6)
        assert len(looks) == 24

    def test_gradients_may_be_taken_of_what_follows(self):
        maps = Looks()(network(), self.PICTURES).requires_grad_(True)
        maps.square().sum().backward()
        torch.testing.assert_close(maps.grad, 2 * maps.detach())
