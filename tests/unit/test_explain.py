"""`sc.explain`: every kind of input, both polarities, the network left alone, errors, files."""

from __future__ import annotations

import io
import json
import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import siamcam_lib as sc
from siamcam_lib.errors import DataNotFoundError, ExplanationError, ImageError


def build(seed: int = 0, *, normalize: bool = True, batch_norm: bool = False) -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 12, 3, stride=8)]
        if batch_norm:
            layers += [nn.BatchNorm2d(12), nn.Dropout(0.5)]
        net = sc.SiameseNet(nn.Sequential(*layers), 10, normalize=normalize, image_size=48)
        with torch.no_grad():
            net.projection.weight.normal_()
            net.output.bias.fill_(-0.5)
    net.threshold = 0.5
    return net.eval()


def picture(seed: int, height: int, width: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def net() -> sc.SiameseNet:
    return build()


@pytest.fixture
def a() -> Image.Image:
    return picture(1, 40, 60)


@pytest.fixture
def b() -> Image.Image:
    return picture(2, 75, 33)


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def equal(one: sc.Explanation, two: sc.Explanation, rtol: float = 0.0) -> bool:
    """Whether two explanations say the same; to the last bit where `rtol` is 0."""
    kinds = ("raw", "factual", "counterfactual")
    maps = [(getattr(one, k)[i], getattr(two, k)[i]) for k in kinds for i in (0, 1)]
    same = all(
        x.shape == y.shape and np.allclose(x, y, rtol=rtol, atol=rtol * np.abs(x).max())
        for x, y in maps
    )
    close = one.dissimilarity == pytest.approx(two.dissimilarity, rel=rtol or 1e-15)
    return same and close and one.decision == two.decision and one.threshold == two.threshold


# --- what comes out -------------------------------------------------------------------------------


class TestResult:
    @pytest.mark.parametrize("normalize", [False, True])
    def test_score_is_that_of_the_network(self, a, b, normalize):
        net = build(1, normalize=normalize)
        ex = sc.explain(net, a, b)
        with torch.no_grad():
            y = net(net.to_tensor([a]), net.to_tensor([b]))
        assert ex.dissimilarity == pytest.approx(float(y), rel=1e-5)
        assert ex.similarity == 1 - ex.dissimilarity
        assert ex.threshold == net.threshold
        assert isinstance(ex.dissimilarity, float)

    def test_maps_have_the_promised_form(self, net, a, b):
        ex = sc.explain(net, a, b)
        for maps in (ex.factual, ex.counterfactual):
            assert [m.shape for m in maps] == [(40, 60), (75, 33)]  # (H, W) of each image
        assert [m.shape for m in ex.raw] == [(6, 6), (6, 6)]
        for m in (*ex.raw, *ex.factual, *ex.counterfactual):
            assert isinstance(m, np.ndarray) and m.dtype == np.float32 and np.isfinite(m).all()
        assert all((m >= 0).all() for m in (*ex.factual, *ex.counterfactual))
        assert all((m > 0).any() and (m < 0).any() for m in ex.raw)

    @pytest.mark.parametrize("normalize", [False, True])
    def test_raw_maps_are_autograds(self, a, b, normalize):
        net = build(2, normalize=normalize)
        kept = []
        hook = net.backbone.register_forward_hook(lambda module, given, out: kept.append(out))
        y = net(net.to_tensor([a]), net.to_tensor([b]))
        hook.remove()
        (gradient,) = torch.autograd.grad((1 - y).sum(), kept[0])
        truth = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0].detach()).sum(dim=1)
        for raw, expected in zip(sc.explain(net, a, b).raw, truth, strict=True):
            np.testing.assert_allclose(raw, expected, atol=1e-5 * float(expected.abs().max()))

    def test_no_pixel_speaks_for_both(self, net, a, b):
        ex = sc.explain(net, a, b)
        for f, c in zip(ex.factual, ex.counterfactual, strict=True):
            assert not ((f > 0) & (c > 0)).any()

    def test_heatmaps_are_the_two_halves_of_the_stretched_raw_map(self, net, a, b):
        ex = sc.explain(net, a, b)
        sign = 1 if ex.decision == "similar" else -1
        for image, raw, f, c in zip((a, b), ex.raw, ex.factual, ex.counterfactual, strict=True):
            full = nn.functional.interpolate(
                torch.from_numpy(raw)[None, None], size=image.size[::-1],
                mode="bilinear", align_corners=False,
            )[0, 0].numpy()  # fmt: skip
            np.testing.assert_array_equal(f - c, sign * full)

    def test_swapping_the_images_swaps_the_maps(self, net, a, b):
        forth, back = sc.explain(net, a, b), sc.explain(net, b, a)
        assert forth.dissimilarity == pytest.approx(back.dissimilarity, rel=1e-6)
        for kind in ("raw", "factual", "counterfactual"):
            for one, two in zip(getattr(forth, kind), reversed(getattr(back, kind)), strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-7)

    def test_images_are_kept_as_rgb(self, net, a, b):
        ex = sc.explain(net, a.convert("L"), b)
        assert [image.mode for image in ex.images] == ["RGB", "RGB"]
        assert [image.size for image in ex.images] == [(60, 40), (33, 75)]

    def test_repeats_to_the_last_bit(self, net, a, b):
        assert equal(sc.explain(net, a, b), sc.explain(net, a, b))

    def test_method_is_named(self, net, a, b):
        assert (
            sc.explain(net, a, b).method
            == sc.explain(net, a, b, method="gradcam").method
            == "gradcam"
        )

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
    def test_tiny_and_long_images(self, net, a, size):
        ex = sc.explain(net, picture(3, *size), a)
        assert ex.factual[0].shape == size and np.isfinite(ex.factual[0]).all()

    def test_repr_says_the_decision(self, net, a, b):
        ex = sc.explain(net, a, b, threshold=0.25)
        assert repr(ex) == (
            f"Explanation({ex.decision}: dissimilarity {ex.dissimilarity:.3f}, dissimilar from "
            "0.250 on, gradcam)"
        )

    def test_cannot_be_changed(self, net, a, b):
        with pytest.raises(FrozenInstanceError):
            sc.explain(net, a, b).threshold = 0.1


def test_relu_comes_after_stretching():
    """[1, −1] over four pixels: 1, ½, −½, −1. Cut first, it would be 1, ¾, ¼, 0."""
    from importlib import import_module

    stretch = import_module("siamcam_lib.explanation").stretch
    full = stretch(torch.tensor([[1.0, -1.0]]), (4, 2))
    np.testing.assert_allclose(full, [[1, 0.5, -0.5, -1]] * 2)


# --- what goes in ---------------------------------------------------------------------------------


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


FORMS = {
    "PIL image": lambda image, path: image,
    "path": lambda image, path: path,
    "str": lambda image, path: str(path),
    "bytes": lambda image, path: path.read_bytes(),
    "open file": lambda image, path: io.BytesIO(path.read_bytes()),
    "uint8 array": lambda image, path: np.array(image),
    "float array": lambda image, path: np.array(image) / 255,
    "float32 array": lambda image, path: (np.array(image) / 255).astype(np.float32),
    "read-only array": lambda image, path: np.asarray(image),
    "uint8 tensor": lambda image, path: torch.from_numpy(np.array(image)).permute(2, 0, 1),
    "float tensor": lambda image, path: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
    "tensor with gradient": lambda image, path: (
        torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    ).requires_grad_(),
}


class TestInput:
    @pytest.fixture
    def path(self, a, tmp_path):
        place = tmp_path / "ein Bild — 写真 0.png"  # spaces and letters of several scripts
        place.write_bytes(as_png(a))
        return place

    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_says_the_same(self, net, a, b, path, form):
        given = FORMS[form](a, path)
        assert equal(sc.explain(net, given, b), sc.explain(net, a, b))

    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_as_partner(self, net, a, b, path, form):
        assert equal(sc.explain(net, b, FORMS[form](a, path)), sc.explain(net, b, a))

    @pytest.mark.parametrize("kind", [bytearray, memoryview])
    def test_other_bytes(self, net, a, b, path, kind):
        assert equal(sc.explain(net, kind(path.read_bytes()), b), sc.explain(net, a, b))

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
    def test_other_modes_are_made_rgb(self, net, a, b, mode):
        ex = sc.explain(net, a.convert(mode), b)
        assert ex.images[0].mode == "RGB" and ex.factual[0].shape == (40, 60)

    def test_an_upright_photograph_gets_an_upright_map(self, net, a, b, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        a.save(tmp_path / "turned.png", exif=exif)
        ex = sc.explain(net, tmp_path / "turned.png", b)
        assert ex.images[0].size == (40, 60) and ex.factual[0].shape == (60, 40)

    def test_inputs_are_left_alone(self, net, b):
        array = np.random.default_rng(0).random((20, 30, 3))
        tensor = torch.rand(3, 20, 30)
        before = array.copy(), tensor.clone()
        sc.explain(net, array, tensor)
        assert np.array_equal(array, before[0]) and torch.equal(tensor, before[1])

    @pytest.mark.real
    def test_photographs_by_path(self, net, data_root):
        one, two = sorted((data_root / "skin_cancer").glob("*/*.jpg"))[:2]  # spaces in their names
        ex = sc.explain(net, str(one), two)
        assert ex.factual[0].shape == Image.open(one).size[::-1]


class TestBatch:
    @pytest.fixture
    def lefts(self):
        return [picture(k, 30 + k, 50 - k) for k in range(4)]

    @pytest.fixture
    def rights(self):
        return [picture(10 + k, 44, 20 + 3 * k) for k in range(4)]

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_is_its_single_pairs(self, net, lefts, rights, kind):
        found = sc.explain(net, kind(lefts), kind(rights))
        assert isinstance(found, list) and len(found) == 4
        for ex, left, right in zip(found, lefts, rights, strict=True):
            assert equal(ex, sc.explain(net, left, right), rtol=1e-4)

    def test_each_pair_has_a_decision_of_its_own(self, net, lefts, rights):
        scores = [ex.dissimilarity for ex in sc.explain(net, lefts, rights)]
        between = float(np.sort(scores)[1:3].mean())
        found = sc.explain(net, lefts, rights, threshold=between)
        assert [ex.decision for ex in found] == [
            "dissimilar" if y >= between else "similar" for y in scores
        ]
        assert len({ex.decision for ex in found}) == 2

    def test_stacked_arrays_and_tensors(self, net):
        images = [picture(k, 32, 24) for k in range(6)]
        array = np.stack([np.array(x) for x in images])  # (6, H, W, 3)
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2) / 255  # (6, 3, H, W)
        expected = sc.explain(net, images[:3], images[3:])
        for a, b in ((array[:3], array[3:]), (tensor[:3], tensor[3:]), (array[:3], tensor[3:])):
            found = sc.explain(net, a, b)
            assert len(found) == 3
            assert all(equal(*x) for x in zip(found, expected, strict=True))

    def test_forms_may_be_mixed(self, net, lefts, rights, tmp_path):
        (tmp_path / "x.png").write_bytes(as_png(lefts[0]))
        mixed = [tmp_path / "x.png", np.array(lefts[1]), lefts[2], str(tmp_path / "x.png")]
        found = sc.explain(net, mixed, rights)
        assert equal(found[0], sc.explain(net, lefts[0], rights[0]), rtol=1e-4)
        assert equal(found[3], sc.explain(net, lefts[0], rights[3]), rtol=1e-4)

    def test_one_pair_in_a_batch_stays_a_list(self, net, a, b):
        (found,) = sc.explain(net, [a], [b])
        assert equal(found, sc.explain(net, a, b))

    def test_one_image_and_a_batch_of_one(self, net, a, b):
        assert [equal(ex, sc.explain(net, a, b)) for ex in sc.explain(net, a, [b])] == [True]

    @pytest.mark.parametrize("count", [1, 2, 5, 8])
    def test_identical_images_are_blank_anywhere_in_a_batch(self, lefts, rights, count):
        """Their two places in the batch must not let rounding make a difference."""
        for normalize in (False, True):
            net = build(3, normalize=normalize)
            left = (lefts + rights)[:count]
            right = [*(rights + lefts)[: count - 1], left[-1]]
            assert sc.explain(net, left, right)[-1].blank["factual"] == (True, True)


# --- the decision and its polarity ----------------------------------------------------------------


class TestPolarity:
    @pytest.mark.parametrize("polarity", ["decision", "paper"])
    @pytest.mark.parametrize("offset", [-1e-6, 1e-6])
    def test_what_is_factual(self, net, a, b, polarity, offset):
        y = sc.explain(net, a, b).dissimilarity
        ex = sc.explain(net, a, b, threshold=y - offset, polarity=polarity)
        assert ex.decision == ("dissimilar" if offset > 0 else "similar")
        assert ex.polarity == polarity
        for_similar = polarity == "decision" and ex.decision == "similar"
        for raw, factual in zip(ex.raw, ex.factual, strict=True):  # raw: positive for similarity
            peak = np.unravel_index(factual.argmax(), factual.shape)
            place = tuple(int(p * 6 / n) for p, n in zip(peak, factual.shape, strict=True))
            assert (raw[place] > 0) == for_similar

    def test_on_the_threshold_is_dissimilar(self, net, a, b):
        y = sc.explain(net, a, b).dissimilarity
        assert sc.explain(net, a, b, threshold=y).decision == "dissimilar"

    def test_paper_and_decision_agree_on_dissimilar_pairs(self, net, a, b):
        ours, paper = (
            sc.explain(net, a, b, threshold=1e-9, polarity=p) for p in ("decision", "paper")
        )
        assert ours.decision == "dissimilar" and equal(ours, paper)

    def test_paper_and_decision_are_swapped_on_similar_pairs(self, net, a, b):
        ours, paper = (
            sc.explain(net, a, b, threshold=1 - 1e-9, polarity=p) for p in ("decision", "paper")
        )
        assert ours.decision == paper.decision == "similar"
        for i in (0, 1):
            np.testing.assert_array_equal(ours.factual[i], paper.counterfactual[i])
            np.testing.assert_array_equal(ours.counterfactual[i], paper.factual[i])
            np.testing.assert_array_equal(ours.raw[i], paper.raw[i])  # has no polarity

    def test_the_networks_threshold_is_the_default(self, net, a, b):
        net.threshold = 0.123
        assert sc.explain(net, a, b).threshold == 0.123
        assert sc.explain(net, a, b, threshold=0.9).threshold == 0.9
        assert net.threshold == 0.123


class TestBlank:
    @pytest.mark.parametrize("normalize", [False, True])
    def test_identical_images(self, a, normalize):
        ex = sc.explain(build(1, normalize=normalize), a, a.copy())
        assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}
        assert all((m == 0).all() for m in (*ex.raw, *ex.factual, *ex.counterfactual))

    @pytest.mark.parametrize("normalize", [False, True])
    def test_identical_images_where_rounding_depends_on_the_place(self, a, b, normalize):
        """Real backbones do this: their kernels treat places of a batch in different blocks."""

        class Uneven(nn.Conv2d):
            def forward(self, x):
                place = torch.arange(len(x)).view(-1, 1, 1, 1)
                return super().forward(x) * (1 + 2.0**-23 * (place % 3))

        net = build(1, normalize=normalize)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net.backbone = Uneven(3, 12, 3, stride=8)
        ex = sc.explain(net, [b, a], [a, a])[1]
        assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}

    def test_ordinary_images(self, net, a, b):
        ex = sc.explain(net, a, b)
        assert ex.blank == {"factual": (False, False), "counterfactual": (False, False)}

    def test_all_units_off(self, a, b):
        net = build(1)
        with torch.no_grad():
            net.projection.bias.fill_(-1e6)
        assert sc.explain(net, a, b).blank["factual"] == (True, True)

    @pytest.mark.parametrize("bias", [-500.0, 500.0])
    def test_a_saturated_sigmoid_is_not_blank(self, a, b, bias):
        net = build(1)
        calm = sc.explain(net, a, b)
        with torch.no_grad():
            net.output.bias.fill_(bias)
        ex = sc.explain(net, a, b)
        assert ex.blank == {"factual": (False, False), "counterfactual": (False, False)}
        for one, two in zip(calm.raw, ex.raw, strict=True):
            np.testing.assert_allclose(one / np.abs(one).max(), two / np.abs(two).max(), atol=1e-5)

    def test_the_figure_says_so(self, net, a):
        texts = [t.get_text() for axis in sc.explain(net, a, a).plot().axes for t in axis.texts]
        assert sum("blank" in text for text in texts) == 4


# --- the network is left as it was ----------------------------------------------------------------


class TestNetwork:
    @pytest.mark.parametrize("training", [False, True])
    def test_mode(self, a, b, training):
        net = build(batch_norm=True).train(training)
        sc.explain(net, a, b)
        assert {module.training for module in net.modules()} == {training}

    def test_mode_of_each_part(self, a, b):
        net = build(batch_norm=True).train()
        net.backbone.eval()  # as one does with frozen batch normalisation
        before = [module.training for module in net.modules()]
        sc.explain(net, a, b)
        assert [module.training for module in net.modules()] == before

    def test_mode_after_a_failure(self, a, b):
        net = build(batch_norm=True).train()
        net.backbone.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sc.explain(net, a, b)
        assert net.training and net.backbone.training

    def test_explains_in_evaluation_mode(self, a, b):
        net = build(batch_norm=True)
        expected = sc.explain(net, a, b)
        assert equal(sc.explain(net.train(), a, b), expected)  # no dropout, no batch statistics

    def test_weights_statistics_and_gradients(self, a, b):
        net = build(batch_norm=True).train()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        sc.explain(net, a, b)
        after = net.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert all(p.requires_grad and p.grad is None for p in net.parameters())
        assert torch.is_grad_enabled()

    def test_frozen_weights_stay_frozen(self, a, b):
        net = build()
        net.requires_grad_(False)
        net.projection.weight.requires_grad_(True)
        sc.explain(net, a, b)
        assert [n for n, p in net.named_parameters() if p.requires_grad] == ["projection.weight"]

    def test_leaves_no_hooks(self, net, a, b):
        sc.explain(net, a, b)
        assert not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules()
        )

    def test_each_image_passes_the_backbone_once(self, net):
        sizes = []
        net.backbone.register_forward_hook(lambda module, given, out: sizes.append(len(out)))
        sc.explain(net, [picture(k, 20, 20) for k in range(3)], [picture(9, 30, 30)] * 3)
        assert sizes == [4]  # six places, four pictures

    def test_can_still_be_trained_afterwards(self, net, a, b):
        sc.explain(net, a, b)
        net(net.to_tensor([a]), net.to_tensor([b])).sum().backward()
        assert net.projection.weight.grad.abs().sum() > 0

    def test_under_no_grad_and_inference_mode(self, net, a, b):
        expected = sc.explain(net, a, b)
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                assert equal(sc.explain(net, a, b), expected)

    def test_double_precision(self, a, b):
        single, double = sc.explain(build(), a, b), sc.explain(build().double(), a, b)
        assert double.raw[0].dtype == np.float32
        assert equal(single, double, rtol=1e-4)


# --- bad input ------------------------------------------------------------------------------------


class TestErrors:
    @pytest.mark.parametrize("option", ["method", "polarity"])
    @pytest.mark.parametrize("value", ["saliency", "", None, 3, "GradCAM"])
    def test_unknown_name(self, net, a, b, option, value):
        with pytest.raises(ExplanationError, match=f"No {option} is called") as error:
            sc.explain(net, a, b, **{option: value})
        assert "gradcam" in str(error.value) or "decision, paper" in str(error.value)

    @pytest.mark.parametrize(
        "value", [0, 1, 0.0, 1.0, -0.1, 1.5, 50, float("nan"), float("inf"), True, False]
    )
    def test_threshold_out_of_range(self, net, a, b, value):
        with pytest.raises(ExplanationError, match="strictly between 0 and 1"):
            sc.explain(net, a, b, threshold=value)

    @pytest.mark.parametrize("value", ["0.5", [0.5], {}])
    def test_threshold_that_is_no_number(self, net, a, b, value):
        with pytest.raises(ExplanationError):
            sc.explain(net, a, b, threshold=value)

    @pytest.mark.parametrize(
        "empty", [[], (), np.zeros((0, 8, 8, 3)), torch.zeros(0, 3, 8, 8)],
        ids=["list", "tuple", "array", "tensor"],
    )  # fmt: skip
    def test_empty_batch(self, net, empty):
        with pytest.raises(ExplanationError, match="at least one; 0 and 0"):
            sc.explain(net, empty, empty)

    @pytest.mark.parametrize(("left", "right"), [(2, 3), (1, 0), (0, 1), (3, 1)])
    def test_lengths_differ(self, net, a, b, left, right):
        with pytest.raises(ExplanationError, match=f"{left} and {right} were given"):
            sc.explain(net, [a] * left, [b] * right)

    def test_one_image_against_several(self, net, a, b):
        with pytest.raises(ExplanationError, match="1 and 2 were given"):
            sc.explain(net, a, [b, b])

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 255.0])
    @pytest.mark.parametrize("side", [0, 1])
    def test_tensor_with_impossible_values(self, net, a, value, side):
        bad = torch.rand(3, 20, 20)
        bad[1, 2, 3] = value
        with pytest.raises(ImageError):
            sc.explain(net, *((bad, a) if side == 0 else (a, bad)))

    @pytest.mark.parametrize(
        "value",
        [
            None, 3, 0.5, object(), {"a": 1}, np.zeros(5), np.zeros((2, 2, 7)), torch.zeros(3),
            torch.zeros(5, 8, 8), torch.zeros(3, 0, 8), np.zeros((8, 8, 3), np.int64),
            np.zeros((1, 1, 8, 8, 3)), b"no image", np.array("text"), {1, 2},
        ],
        ids=lambda value: repr(value).partition(" at 0x")[0],  # no address: the same in any process
    )  # fmt: skip
    def test_no_image(self, net, a, value):
        with pytest.raises(ImageError):
            sc.explain(net, value, a)

    def test_no_image_within_a_batch(self, net, a):
        with pytest.raises(ImageError):
            sc.explain(net, [a, None], [a, a])
        with pytest.raises(ImageError):
            sc.explain(net, [a], [[a]])

    def test_missing_file_is_named(self, net, a, tmp_path):
        with pytest.raises(DataNotFoundError, match="nowhere.jpg"):
            sc.explain(net, a, tmp_path / "nowhere.jpg")

    @pytest.mark.parametrize("content", [b"", b"not an image", as_png(picture(0, 50, 50))[:300]],
                             ids=["empty", "text", "truncated"])  # fmt: skip
    def test_bad_file_is_named(self, net, a, tmp_path, content):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ImageError, match="bad.png"):
            sc.explain(net, tmp_path / "bad.png", a)

    def test_folder_instead_of_file(self, net, a, tmp_path):
        with pytest.raises(ImageError):
            sc.explain(net, tmp_path, a)

    def test_an_error_leaves_the_network_alone(self, net, a):
        net.train()
        with pytest.raises(ImageError):
            sc.explain(net, a, None)
        assert net.training

    @pytest.mark.parametrize("part", ["projection", "output"])
    def test_damaged_weights(self, net, a, b, part):
        with torch.no_grad():
            getattr(net, part).weight.fill_(float("nan"))
        with pytest.raises(ExplanationError):
            sc.explain(net, a, b)

    def test_no_network(self, a, b):
        with pytest.raises(ExplanationError):
            sc.explain("weights.safetensors", a, b)


# --- figure and files -----------------------------------------------------------------------------


class TestPlot:
    def test_is_a_figure_of_both_images(self, net, a, b):
        figure = sc.explain(net, a, b).plot()
        *panels, _ = figure.axes  # the last is the key
        assert isinstance(figure, Figure) and len(panels) == 6
        assert all(axis.images for axis in panels)

    @pytest.mark.parametrize("polarity", ["decision", "paper"])
    @pytest.mark.parametrize("threshold", [1e-6, 1 - 1e-6])
    def test_titles_say_what_a_map_speaks_for(self, net, a, b, polarity, threshold):
        ex = sc.explain(net, a, b, polarity=polarity, threshold=threshold)
        titles = [axis.get_title() for axis in ex.plot().axes[:3]]
        factual = "dissimilar" if polarity == "paper" else ex.decision
        other = {"similar": "dissimilar", "dissimilar": "similar"}[factual]
        assert f"judged {ex.decision}" in titles[0]
        assert "counter" not in titles[1] and f"“{factual}”" in titles[1]
        assert "counterfactual" in titles[2] and f"“{other}”" in titles[2]

    def test_can_be_drawn(self, net, a, b):
        file = io.BytesIO()
        sc.explain(net, a, b).plot(shared_scale=False).savefig(file, format="png")
        assert Image.open(file).size[0] > 100


class TestSave:
    FILES = (
        "counterfactual_a.png", "counterfactual_b.png", "explanation.png", "factual_a.png",
        "factual_b.png", "maps.npz", "scores.json",
    )  # fmt: skip

    def test_writes_readable_files(self, net, a, b, tmp_path):
        ex = sc.explain(net, a, b)
        folder = ex.save(tmp_path / "out" / "näme with space")
        assert folder == tmp_path / "out" / "näme with space"
        assert tuple(sorted(p.name for p in folder.iterdir())) == self.FILES

        with np.load(folder / "maps.npz", allow_pickle=False) as maps:
            assert len(maps.files) == 6
            for kind in ("raw", "factual", "counterfactual"):
                for i, side in enumerate("ab"):
                    np.testing.assert_array_equal(maps[f"{kind}_{side}"], getattr(ex, kind)[i])

        record = json.loads((folder / "scores.json").read_text("utf-8"))
        for name in ("dissimilarity", "similarity", "decision", "threshold", "method", "polarity"):
            assert record[name] == getattr(ex, name)
        assert record["blank"] == {"factual": [False, False], "counterfactual": [False, False]}
        assert record["versions"]["siamcam_lib"] == sc.__version__

        with Image.open(folder / "explanation.png") as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 300
        for kind in ("factual", "counterfactual"):
            for i, side in enumerate("ab"):
                with Image.open(folder / f"{kind}_{side}.png") as laid:
                    assert laid.size == ex.images[i].size
                    red, _, blue = np.moveaxis(np.asarray(laid, dtype=int), 2, 0)
                    coloured = red != blue
                # what is grey is the picture, what is coloured the map
                hot = getattr(ex, kind)[i] > 0.1 * ex.top
                assert coloured[hot].mean() > 0.95
                assert not coloured[getattr(ex, kind)[i] == 0].any()

    def test_a_folder_that_cannot_be_written(self, net, a, b, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ExplanationError, match="choose another folder"):
            sc.explain(net, a, b).save(tmp_path / "file" / "folder")

    def test_takes_a_string_and_writes_again(self, net, a, b, tmp_path):
        sc.explain(net, a, b).save(str(tmp_path / "x"))
        later = sc.explain(net, b, a)
        later.save(str(tmp_path / "x"))
        with np.load(tmp_path / "x" / "maps.npz") as maps:
            np.testing.assert_array_equal(maps["raw_a"], later.raw[0])
        assert len(list((tmp_path / "x").iterdir())) == len(self.FILES)

    def test_closes_its_figure(self, net, a, b, tmp_path):
        before = plt.get_fignums()
        sc.explain(net, a, b).save(tmp_path)
        assert plt.get_fignums() == before

    def test_blank_maps_are_saved_too(self, net, a, tmp_path):
        sc.explain(net, a, a).save(tmp_path)
        record = json.loads((tmp_path / "scores.json").read_text("utf-8"))
        assert record["blank"] == {"factual": [True, True], "counterfactual": [True, True]}

    @pytest.mark.parametrize(
        ("broken", "file"),
        [("numpy.savez_compressed", "maps.npz"),
         ("matplotlib.figure.Figure.savefig", "explanation.png"),
         ("pathlib.Path.write_text", "scores.json")],
    )  # fmt: skip
    def test_a_cut_short_write_leaves_the_old_file(
        self, net, a, b, tmp_path, monkeypatch, broken, file
    ):
        sc.explain(net, a, b).save(tmp_path)
        before = (tmp_path / file).read_bytes()

        def full(target, *args, **kwargs):
            for place in (target, *args[:1]):
                if isinstance(place, Path):
                    place.write_bytes(b"half")
                elif hasattr(place, "write"):
                    place.write(b"half")
            raise OSError("No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(broken, full)
            with pytest.raises(ExplanationError, match="No space"):
                sc.explain(net, b, a).save(tmp_path)
        assert (tmp_path / file).read_bytes() == before
        assert len(list(tmp_path.iterdir())) == len(self.FILES)  # and no half file beside it

    @pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
    def test_files_can_be_read_by_others(self, net, a, b, tmp_path):
        folder = sc.explain(net, a, b).save(tmp_path)
        assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o644"}
