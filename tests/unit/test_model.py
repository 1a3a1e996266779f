"""The network: every step against the formula, one backbone call a pair, files that are safe."""

from __future__ import annotations

import io
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import siamcam_lib as sc
from siamcam_lib import model as module_under_test
from siamcam_lib.errors import ModelError

NAME = "test_efficientnet"  # timm's network for tests: builds in no time, needs no download


class Small(nn.Module):
    """(B, 3, H, W) → (B, 5, H/8, W/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 8, stride=8)

    def forward(self, x):
        return torch.relu(self.conv(x))


def small(normalize: bool = True, embed_dim: int = 7) -> sc.SiameseNet:
    torch.manual_seed(0)
    return sc.SiameseNet(Small(), embed_dim=embed_dim, normalize=normalize, image_size=32).eval()


def batch(n: int = 4, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def named() -> sc.SiameseNet:
    torch.manual_seed(0)
    return sc.SiameseNet(NAME, embed_dim=6, image_size=64, pretrained=False).eval()


class TestForward:
    @pytest.mark.parametrize("normalize", [True, False])
    def test_it_is_the_formula(self, normalize):
        net = small(normalize).double()
        with torch.no_grad():
            net.output.weight.fill_(3.0)
            net.output.bias.fill_(-0.5)
        a, b = batch(seed=1).double(), batch(seed=2).double()
        found = net(a, b).detach().numpy()
        kernel, shift = (p.detach().numpy() for p in net.backbone.conv.parameters())
        weight, bias = (p.detach().numpy() for p in net.projection.parameters())
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        for k in range(4):
            e = []
            for image in (a[k].numpy(), b[k].numpy()):
                x = (image - mean[:, None, None]) / std[:, None, None]
                tiles = x.reshape(3, 4, 8, 4, 8)  # channel, tile, row, tile, column
                maps = np.einsum("oxij,xpiqj->opq", kernel, tiles) + shift[:, None, None]
                g = np.maximum(maps, 0).mean(axis=(1, 2))
                vector = np.maximum(weight @ g + bias, 0)
                e.append(vector / np.sqrt(vector @ vector) if normalize else vector)
            d = math.sqrt(sum((p - q) ** 2 for p, q in zip(*e, strict=True)))
            # the buffers of mean and std were stored in float32
            assert found[k] == pytest.approx(1 / (1 + math.exp(-(3 * d - 0.5))), rel=1e-5)

    def test_shapes_and_ranges(self):
        net, x = small(), batch(6)
        maps = net.feature_maps(x)
        assert maps.shape == (6, 5, 4, 4)
        pooled = maps.mean(dim=(2, 3))
        assert net.activation(pooled).shape == net.embed(x).shape == (6, 7)
        torch.testing.assert_close(net.embed_pooled(pooled), net.embed(x))
        y = net(x, x.flip(0))
        assert y.shape == (6,)
        assert ((y > 0) & (y < 1)).all()

    def test_any_size_of_image_is_taken(self):
        assert small()(batch(2, size=40), batch(2, 1, size=40)).shape == (2,)

    def test_the_backbone_sees_both_images_in_one_call(self):
        net, seen = small(), []
        net.backbone.register_forward_hook(lambda _, given, made: seen.append(given[0]))
        a, b = batch(3, 1), batch(3, 2)
        net(a, b)
        assert len(seen) == 1
        torch.testing.assert_close(seen[0], (torch.cat([a, b]) - net.mean) / net.std)

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10**6), normalize=st.booleans())
    def test_the_score_is_symmetric_and_zero_on_the_diagonal(self, seed, normalize):
        net = small(normalize)
        a, b = batch(2, seed), batch(2, seed + 1)
        with torch.no_grad():
            torch.testing.assert_close(net(a, b), net(b, a), rtol=0, atol=1e-6)
            e = net.embed(torch.cat([a, a]))
            # the place of an image in its batch may change the last bit of what is computed
            assert net.distance(e[:2], e[2:]).max() < 1e-6
            assert net.distance(e, e.clone()).tolist() == [0, 0, 0, 0]
            assert torch.equal(net.distance(e[:1], e[1:2]), net.distance(e[1:2], e[:1]))

    def test_identical_images_have_zero_and_finite_gradients(self):
        e1 = torch.rand(3, 7, requires_grad=True)
        e2 = e1.detach().clone().requires_grad_()
        distance = sc.SiameseNet.distance(e1, e2)
        distance.sum().backward()
        assert distance.tolist() == [0, 0, 0]
        assert not e1.grad.any()
        assert not e2.grad.any()
        net, x = small(), batch(2)
        net(x, x).sum().backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(g).all() for g in gradients)

    def test_other_gradients_agree_with_differences(self):
        e1, e2 = torch.rand(2, 3, 5, dtype=torch.float64).requires_grad_().unbind()
        assert torch.autograd.gradcheck(sc.SiameseNet.distance, (e1, e2))

    def test_unit_length_or_not(self):
        x = batch(5)
        unit, plain = small(True).embed(x), small(False).embed(x)
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(unit, plain / plain.norm(dim=1, keepdim=True))
        assert (plain.norm(dim=1) - 1).abs().min() > 1e-3

    def test_an_embedding_without_an_active_unit_is_zero_and_no_nan(self):
        net = small()
        with torch.no_grad():
            net.projection.bias.fill_(-1e3)
        x = batch(2)
        assert not net.embed(x).any()
        y = net(x, x.flip(0))
        y.sum().backward()
        assert torch.isfinite(y).all()
        assert torch.isfinite(net.projection.weight.grad).all()

    def test_far_distances_do_not_break_the_sigmoid(self):
        y = small().dissimilarity(torch.tensor([0.0, 1e30]))
        assert y.tolist() == [0.5, 1.0]

    def test_pictures_become_tensors_as_pillow_resizes_them(self):
        random = np.random.default_rng(0)
        pictures = [
            Image.fromarray(random.integers(0, 256, shape, np.uint8))
            for shape in ((20, 50, 3), (300, 40, 3))
        ]
        found = small().to_tensor(pictures)
        assert found.shape == (2, 3, 32, 32)
        assert found.dtype == torch.float32
        assert 0 <= found.min() < found.max() <= 1
        for tensor, picture in zip(found, pictures, strict=True):
            expected = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)) / 255
            np.testing.assert_allclose(tensor.permute(1, 2, 0), expected, atol=1e-7)

    def test_the_whole_picture_is_kept(self):
        pixels = np.zeros((10, 90, 3), np.uint8)
        pixels[:, :9], pixels[:, -9:] = (255, 0, 0), (0, 0, 255)
        tensor = small().to_tensor([Image.fromarray(pixels)])[0]
        assert tensor[0, :, 0].min() > 0.9
        assert tensor[2, :, -1].min() > 0.9


class TestSettings:
    @pytest.mark.parametrize("value", [0, -1, 1.5, "8", None])
    @pytest.mark.parametrize("name", ["embed_dim", "image_size"])
    def test_sizes_are_positive_whole_numbers(self, name, value):
        with pytest.raises(ModelError, match=f"{name} must be a positive whole number"):
            sc.SiameseNet(Small(), **{name: value})

    def test_they_can_be_read_again(self):
        net = small(normalize=False)
        assert (net.normalize, net.image_size, net.threshold) == (False, 32, 0.5)
        assert net.device == torch.device("cpu")

    @pytest.mark.parametrize("value", [0, 1, -0.1, 1.1, math.nan, math.inf])
    def test_a_threshold_lies_inside(self, value):
        net = small()
        with pytest.raises(ModelError, match="strictly between 0 and 1"):
            net.threshold = value
        assert net.threshold == 0.5

    def test_a_threshold_is_kept_in_full(self):
        net = small()
        net.threshold = 0.123456789012345
        assert net.threshold == 0.123456789012345


def tampered(net: sc.SiameseNet, path: Path, config=None, metadata=None, tensors=None) -> Path:
    """The file of `net` with its configuration, metadata or tensors exchanged."""
    net.save(path)
    with safe_open(path, framework="pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        notes = dict(file.metadata())
    if config is not None:
        whole = json.loads(notes["config"])
        notes["config"] = config if isinstance(config, str) else json.dumps(whole | config)
    save_file(stored | (tensors or {}), path, metadata=notes if metadata is None else metadata)
    return path


class TestFiles:
    @pytest.mark.parametrize("normalize", [True, False])
    def test_what_is_saved_is_loaded_bit_for_bit(self, tmp_path, normalize):
        torch.manual_seed(3)
        net = sc.SiameseNet(NAME, 6, normalize=normalize, image_size=64, pretrained=False)
        net(batch(4, size=64), batch(4, 1, size=64))  # in training mode: statistics have moved
        net.threshold = 1 / 3
        net.save(tmp_path / "modèle 1.safetensors")
        again = sc.SiameseNet.load(tmp_path / "modèle 1.safetensors")
        before, after = net.state_dict(), again.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert again.config == net.config
        assert again.threshold == 1 / 3
        assert not again.training
        with torch.no_grad():
            a, b = batch(4, 2, size=64), batch(4, 3, size=64)
            assert torch.equal(net.eval()(a, b), again(a, b))

    def test_the_trained_default_survives_too(self, tmp_path):
        net = sc.SiameseNet(image_size=64).eval()
        net.save(tmp_path / "m.safetensors")
        with torch.no_grad():
            a, b = batch(1, size=64), batch(1, 1, size=64)
            assert torch.equal(net(a, b), sc.SiameseNet.load(tmp_path / "m.safetensors")(a, b))

    def test_a_backbone_of_ones_own_is_given_again(self, tmp_path):
        net, path = small(), tmp_path / "m.safetensors"
        net.save(path)
        with pytest.raises(ModelError, match="backbone=module"):
            sc.SiameseNet.load(path)
        again = sc.SiameseNet.load(path, backbone=Small())
        assert torch.equal(again(batch(), batch(4, 1)), net(batch(), batch(4, 1)))

    def test_one_tensor_under_two_names(self, tmp_path):
        both = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), nn.Conv2d(3, 3, 3, stride=2))
        both[1].weight = both[0].weight
        net = sc.SiameseNet(both, 4, image_size=32).eval()
        net.save(tmp_path / "m.safetensors")
        other = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), nn.Conv2d(3, 3, 3, stride=2))
        again = sc.SiameseNet.load(tmp_path / "m.safetensors", backbone=other)
        a, b = batch(2, size=32), batch(2, 1, size=32)
        assert torch.equal(again(a, b), net(a, b))

    def test_equal_networks_give_equal_files(self, tmp_path, named):
        """The order of safetensors' entries is drawn by lot, anew for each file."""
        for k in range(12):
            named.save(tmp_path / f"{k}.safetensors")
        again = sc.SiameseNet.load(tmp_path / "0.safetensors")
        again.config = dict(reversed(again.config.items()))
        again.save(tmp_path / "again.safetensors")
        assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1

    @pytest.mark.slow
    def test_they_do_so_in_every_process(self, tmp_path, root):
        script = (
            "import sys; from siamcam_lib.model import SiameseNet\n"
            "net = SiameseNet.load(sys.argv[1])\n"
            "for path in sys.argv[2:]: net.save(path)"
        )
        paths = [tmp_path / f"{k}.safetensors" for k in range(4)]
        sc.SiameseNet(NAME, 6, image_size=64, pretrained=False, looks=5).save(paths[0])
        subprocess.run([sys.executable, "-c", script, *paths], check=True, cwd=root)
        assert len({path.read_bytes() for path in paths}) == 1

    def test_a_file_of_an_earlier_version_is_read(self, tmp_path, named):
        """There the format was an entry of its own."""
        notes = {"format": "siamcam-1", "config": json.dumps(named.config)}
        again = sc.SiameseNet.load(tampered(named, tmp_path / "m", metadata=notes))
        assert again.config == named.config
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in named.state_dict().items())
        notes["format"] = "siamcam-0"
        with pytest.raises(ModelError, match="format 'siamcam-0', expected 'siamcam-1'"):
            sc.SiameseNet.load(tampered(named, tmp_path / "m", metadata=notes))

    def test_a_save_that_fails_leaves_the_old_file(self, tmp_path, named, monkeypatch):
        path = tmp_path / "m.safetensors"
        named.save(path)
        before = path.read_bytes()

        def cut(tensors, place, metadata):
            Path(place).write_bytes(b"half")
            raise OSError("no space left on device")

        monkeypatch.setattr(module_under_test, "save_file", cut)
        with pytest.raises(ModelError, match="cannot be written"):
            named.save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_saving_does_not_disturb_training(self, tmp_path, named):
        named.train()
        named.save(tmp_path / "m.safetensors")
        assert named.training
        assert all(p.requires_grad for p in named.parameters())


class TestBadFiles:
    def check_refused(self, path, expected) -> None:
        with pytest.raises(ModelError, match=expected) as told:
            sc.SiameseNet.load(path)
        assert path.name in str(told.value), "the message names the file"

    def test_missing(self, tmp_path):
        self.check_refused(tmp_path / "none.safetensors", "There is no weights file")

    def test_a_folder(self, tmp_path):
        self.check_refused(tmp_path, "There is no weights file")

    @pytest.mark.parametrize(
        "content", [b"", b"\0", b"{}", b"not weights at all " * 50, b"\xff" * 64, b"\x80\x04N."]
    )
    def test_other_bytes(self, tmp_path, content):
        (tmp_path / "f").write_bytes(content)
        self.check_refused(tmp_path / "f", "no safetensors file")

    def test_a_picture(self, tmp_path):
        Image.new("RGB", (40, 40)).save(tmp_path / "f.png")
        self.check_refused(tmp_path / "f.png", "no safetensors file")

    @pytest.mark.parametrize("keep", [4, 100, 0.5, -1])
    def test_truncated(self, tmp_path, named, keep):
        path = tmp_path / "f"
        named.save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
        self.check_refused(path, "no safetensors file")

    def test_a_pickled_state_is_refused_by_name(self, tmp_path, named):
        torch.save(named.state_dict(), tmp_path / "f.pth")
        self.check_refused(tmp_path / "f.pth", "pickled checkpoints.*refused")

    @pytest.mark.parametrize("archive", [False, True])
    def test_a_pickle_is_never_run(self, tmp_path, archive):
        marker = tmp_path / "it ran"

        class Payload:
            def __reduce__(self):
                return Path.touch, (marker,)

        path = tmp_path / "f.safetensors"
        if archive:
            torch.save({"projection.weight": Payload()}, path)
        else:
            path.write_bytes(pickle.dumps(Payload()))
        self.check_refused(path, "no safetensors file")
        assert not marker.exists()
        if not archive:
            pickle.load(io.BytesIO(path.read_bytes()))
            assert marker.exists(), "the payload would have worked"

    @pytest.mark.parametrize(
        "metadata",
        [
            None,
            {},
            {"format": "pt"},
            {"format": "siamcam-1"},
            {"format": "siamcam-99", "config": "{}"},
            {"config": '{"format": "siamcam-99"}'},
            {"config": '{"format": "siamcam-1"}'},
        ],
    )
    def test_safetensors_of_others(self, tmp_path, metadata):
        save_file({"weight": torch.ones(2)}, tmp_path / "f", metadata=metadata)
        self.check_refused(tmp_path / "f", "was not written by SiameseNet.save")

    @pytest.mark.parametrize(
        "config",
        ["", "{", "null", "5", "[]", '"text"', "{}", '{"backbone": "resnet18"}',
         '["backbone", "embed_dim", "normalize", "image_size", "more"]'],
    )  # fmt: skip
    def test_a_configuration_that_is_none(self, tmp_path, named, config):
        file = tampered(named, tmp_path / "f", config)
        self.check_refused(file, "was not written by SiameseNet.save")

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"backbone": "test_resnet"}, "does not fit the backbone 'test_resnet'"),
            ({"embed_dim": 7}, "embed_dim 7 is not that of its tensors"),
        ],
    )
    def test_another_architecture(self, tmp_path, named, config, expected):
        self.check_refused(tampered(named, tmp_path / "f", config), expected)

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"backbone": "resnet5O"}, "No backbone is called"),
            ({"embed_dim": -6}, "embed_dim -6 is not that of its tensors"),
            ({"embed_dim": "6"}, "embed_dim '6' is not that of its tensors"),
            ({"image_size": 0.5}, "image_size must be"),
        ],
    )
    def test_settings_that_cannot_be(self, tmp_path, named, config, expected):
        with pytest.raises(ModelError, match=expected):
            sc.SiameseNet.load(tampered(named, tmp_path / "f", config))

    @pytest.mark.parametrize(
        "config",
        [{"backbone": 5}, {"backbone": None}, {"backbone": ["resnet18"]}, {"embed_dim": 10**13}],
    )
    def test_settings_of_the_wrong_kind_or_size(self, tmp_path, named, config):
        with pytest.raises(ModelError):
            sc.SiameseNet.load(tampered(named, tmp_path / "f", config))

    def test_a_list_of_the_right_names(self, tmp_path, named):
        names = '["backbone", "embed_dim", "normalize", "image_size"]'
        with pytest.raises(ModelError):
            sc.SiameseNet.load(tampered(named, tmp_path / "f", names))

    def test_a_tensor_too_many_or_of_another_shape(self, tmp_path, named):
        for extra in ({"more": torch.ones(2)}, {"projection.weight": torch.ones(6, 5)}):
            self.check_refused(tampered(named, tmp_path / "f", tensors=extra), "1 tensors differ")

    @pytest.mark.parametrize("value", [7.0, math.nan])
    def test_a_threshold_outside(self, tmp_path, named, value):
        extra = {"_threshold": torch.tensor(value, dtype=torch.float64)}
        with pytest.raises(ModelError, match="between 0 and 1"):
            sc.SiameseNet.load(tampered(named, tmp_path / "f", tensors=extra))

    def test_a_bad_file_leaves_the_callers_backbone_alone(self, tmp_path):
        small().save(tmp_path / "f")
        other = Small()
        before = other.conv.weight.clone()
        tensors = {"projection.bias": torch.ones(5)}
        with pytest.raises(ModelError):
            sc.SiameseNet.load(tampered(small(), tmp_path / "f", tensors=tensors), backbone=other)
        assert torch.equal(other.conv.weight, before)


# --- several threads ------------------------------------------------------------------------------


@pytest.fixture
def threads():
    """Says how many threads torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 13])
def test_a_look_in_several_threads_gives_the_same_bits(threads, count):
    net = sc.SiameseNet("resnet18", pretrained=False, image_size=64).eval()
    images = torch.rand(count, 3, 64, 64)
    threads(1)
    alone = net.look(images)
    threads(3)
    together = net.look(images)
    assert torch.get_num_threads() == 3
    if count > 4:  # a single part has all threads to itself, and rounds as it likes
        assert torch.equal(alone, together)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert together.is_inference()


def test_what_goes_wrong_in_a_thread_is_heard_and_leaves_no_trace(threads):
    net = sc.SiameseNet("resnet18", pretrained=False, image_size=64).eval()
    threads(3)
    with pytest.raises(RuntimeError, match="size of tensor"):
        net.look(torch.rand(9, 4, 64, 64))
    assert torch.get_num_threads() == 3
