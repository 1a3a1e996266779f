"""Explainers by superpixels and through a decoder, against hand-computed and brute-force truth."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from captum.attr import KernelShap
from PIL import Image
from torch import nn

import siamcam_lib as sc
from siamcam_lib.decoder import SIDE, Decoder, as_compared, embeddings, train_decoder
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.explainers.explainlfs import ExplainLFS, normalised_difference, relevance
from siamcam_lib.explainers.kernel_shap import KernelSHAP, interleaved
from siamcam_lib.explainers.lime import LIME, crossed, superpixels
from siamcam_lib.explainers.tummala import Tummala
from siamcam_lib.explainers.utkin import Utkin, nearest_prototype, prototypes
from siamcam_lib.explaining import Pairs
from siamcam_lib.model import squares


class Half(nn.Module):
    """Embeds by the mean colour of the left half of a picture, and of nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.map.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x)[..., : x.shape[-1] // 2].mean(dim=(2, 3))


def half(side: int = 32) -> sc.Embedder:
    return sc.Embedder(Half(), "map", comparison="l2", image_size=side, mean=[0] * 3, std=[1] * 3)


def build(seed: int = 0, *, normalize: bool = True, size: int = 16) -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = sc.SiameseNet(nn.Conv2d(3, 12, 8, stride=8), size, normalize=normalize, image_size=48)
        with torch.no_grad():
            net.projection.weight.normal_()
    net.threshold = 0.5
    return net.eval()


def judging(net: sc.SiameseNet, similar: bool) -> sc.SiameseNet:
    net.threshold = 1 - 1e-9 if similar else 1e-9
    return net


def blocks(side: int = 32, seed: int = 0) -> Image.Image:
    """Four plain quarters: superpixels that are easily told apart."""
    colours = np.random.default_rng(seed).permutation(np.linspace(0, 255, 12)).reshape(2, 2, 3)
    return Image.fromarray(np.kron(colours, np.ones((side // 2, side // 2, 1))).astype(np.uint8))


def pairs_of(net, *pictures: Image.Image) -> Pairs:
    """Each picture with the next."""
    return Pairs(as_explainable(net), pictures[:-1], pictures[1:])


@pytest.fixture(scope="module")
def images() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/flowers", n=60)


@pytest.fixture(scope="module")
def decoded(images) -> tuple[sc.SiameseNet, Decoder]:
    net = build()
    return net, train_decoder(net, images, hidden=32, epochs=30, progress=False)


# --- superpixels ----------------------------------------------------------------------------------


class TestSuperpixels:
    def test_they_are_numbered_from_zero_and_follow_colours(self):
        picture = torch.from_numpy(np.array(blocks())).permute(2, 0, 1) / 255
        found = superpixels(picture, 4)
        assert found.unique().tolist() == [0, 1, 2, 3]
        quarters = [found[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
        assert [len(q.unique()) for q in quarters] == [1] * 4

    def test_a_plain_picture_has_them_too(self):
        found = superpixels(torch.full((3, 32, 32), 0.5), 4)
        assert found.min() == 0 and len(found.unique()) == found.max() + 1

    @pytest.mark.parametrize("kind", [LIME, KernelSHAP])
    def test_a_network_that_sees_one_half_has_an_empty_map_on_the_other(self, kind):
        maps = kind(segments=4, samples=60)(pairs_of(half(), blocks(seed=1), blocks(seed=2)))
        left, right = maps[..., :16].abs(), maps[..., 16:].abs()
        assert left.amax(dim=(2, 3)).min() > 0.01
        # Shapley values of pieces that never add anything are zero; a ridge only comes near
        assert right.max() < (1e-7 if kind is KernelSHAP else 0.1 * left.max())

    @pytest.mark.parametrize("kind", [LIME, KernelSHAP])
    def test_the_seed_decides_and_the_batch_does_not(self, kind):
        a, b, c = (blocks(seed=s) for s in (1, 2, 3))
        explainer, net = kind(segments=9, samples=20), build()
        whole = explainer(pairs_of(net, a, b, c), seed=4)
        alone = explainer(pairs_of(net, b, c), seed=4)
        assert torch.allclose(whole[1], alone[0], atol=1e-6 * float(whole.abs().max()))
        assert torch.equal(whole, explainer(pairs_of(net, a, b, c), seed=4))
        assert not torch.allclose(whole, explainer(pairs_of(net, a, b, c), seed=5), atol=1e-4)

    def test_the_callers_random_numbers_are_left_alone(self):
        torch.manual_seed(7)
        want = torch.rand(3)
        torch.manual_seed(7)
        LIME(segments=4, samples=8)(pairs_of(build(), blocks(seed=1), blocks(seed=2)))
        assert torch.equal(torch.rand(3), want)

    @pytest.mark.parametrize("options", [{"segments": 0}, {"samples": 1.5}, {"fill": "pink"}])
    @pytest.mark.parametrize("kind", [LIME, KernelSHAP])
    def test_wrong_settings_are_refused(self, kind, options):
        with pytest.raises(ExplanationError):
            kind(**options)


class TestLIME:
    def test_an_additive_score_is_found_again(self):
        explainer = LIME(samples=200)
        shown = [explainer.draw(n, torch.Generator().manual_seed(n)) for n in (5, 7)]
        w1, w2 = torch.linspace(-1, 1, 5).double(), torch.linspace(2, 3, 7).double()
        scores = (shown[0].double() @ w1)[:, None] + shown[1].double() @ w2
        found = explainer.values(*shown, scores)
        assert torch.allclose(torch.cat(found), torch.cat([w1, w2]), atol=0.01)

    def test_the_first_copy_shows_all_and_the_second_none(self):
        shown = LIME(samples=10).draw(6, torch.Generator().manual_seed(0))
        assert shown.shape == (10, 6) and shown[0].all() and not shown[1].any()
        assert (shown.double().mean(dim=0) == 0.5).all()


# --- Shapley values -------------------------------------------------------------------------------


def brute_force(score, s1: int, s2: int) -> torch.Tensor:
    """Shapley values by their definition, over all sets of pieces; `score` as for LIME."""
    count = s1 + s2
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)))
    worth = dict(zip(map(tuple, every.tolist()), score(*every.split([s1, s2], 1)), strict=True))
    values = torch.zeros(count, dtype=torch.float64)
    for kept, value in worth.items():
        size = int(sum(kept))
        for i in (i for i in range(count) if not kept[i]):
            weight = math.factorial(size) * math.factorial(count - size - 1)
            gain = worth[kept[:i] + (1.0,) + kept[i + 1 :]] - value
            values[i] += weight / math.factorial(count) * gain
    return values


class TestShapley:
    def game(self, s1: int, s2: int):
        """A score with interactions within and between two pictures, of their copies."""
        generator = torch.Generator().manual_seed(s1 + 10 * s2)
        a, b = (torch.randn(s, 4, generator=generator).double() for s in (s1, s2))

        def score(z1, z2):
            e1, e2 = torch.relu(z1.double() @ a), torch.relu(z2.double() @ b)
            return torch.exp(-(e1 - e2).square().sum(dim=-1))

        return score

    def estimated(self, score, s1, s2, samples, seed=0):
        explainer, generator = KernelSHAP(samples=samples), torch.Generator().manual_seed(seed)
        shown = [explainer.draw(s, generator) for s in (s1, s2)]
        table = score(*crossed(*shown)).view(len(shown[0]), len(shown[1]))
        return torch.cat(explainer.values(*shown, table))

    @pytest.mark.parametrize("sizes", [(1, 1), (1, 2), (2, 2), (3, 3), (4, 2)])
    def test_of_all_orders_are_exact(self, sizes):
        score, most = self.game(*sizes), max(sizes)
        truth = brute_force(score, *sizes)
        found = self.estimated(score, *sizes, math.factorial(most) * (most + 1))
        assert torch.allclose(found, truth, atol=1e-12)
        assert truth.abs().max() > 0.01

    def test_of_few_orders_are_right_on_average(self):
        score = self.game(3, 3)
        found = torch.stack([self.estimated(score, 3, 3, 8, seed) for seed in range(500)])
        error = found.std(dim=0) / 500**0.5
        assert ((found.mean(dim=0) - brute_force(score, 3, 3)).abs() < 4 * error).all()
        assert error.max() < 0.02

    def test_are_those_captum_estimates(self):
        score = self.game(3, 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            oracle = KernelShap(score).attribute(
                (torch.ones(1, 3), torch.ones(1, 3)),
                baselines=(0, 0),
                feature_mask=(torch.arange(3)[None], torch.arange(3, 6)[None]),
                n_samples=1500,
                perturbations_per_eval=1500,
            )
        both = torch.stack([self.estimated(score, 3, 3, 24), torch.cat(oracle, dim=1)[0].double()])
        assert torch.corrcoef(both)[0, 1] > 0.95
        assert both[0].sum() == pytest.approx(float(both[1].sum()), abs=1e-4)

    @pytest.mark.parametrize("samples", [2, 30])
    def test_of_a_toy_network_sum_to_the_score_over_the_hidden_score(self, samples):
        net, a, b = half(), blocks(seed=1), blocks(seed=2)
        pairs = pairs_of(net, a, b)
        maps = KernelSHAP(segments=4, samples=samples).maps(pairs)
        total = sum(float(maps[0, k, y, x]) for k in (0, 1) for y in (8, 24) for x in (8, 24))
        grey = [p.mean(dim=(1, 2), keepdim=True).expand_as(p)[None] for p in pairs.pixels]
        hidden = pairs.score(*(pairs.embed(g) for g in grey))
        assert total == pytest.approx(float(pairs.similarity - hidden), abs=1e-6)
        assert abs(total) > 0.01

    def test_of_a_toy_network_are_those_of_brute_force(self):
        pairs = pairs_of(half(), blocks(seed=1), blocks(seed=2))
        pieces = [superpixels(p, 4) for p in pairs.pixels]

        def score(z1, z2):
            grey = pairs.pixels.mean(dim=(2, 3), keepdim=True)
            shown = [z.bool()[:, piece][:, None] for z, piece in zip((z1, z2), pieces, strict=True)]
            ends = zip(shown, pairs.pixels, grey, strict=True)
            return pairs.score(*(pairs.embed(torch.where(*end)) for end in ends))

        truth = brute_force(score, 4, 4).split(4)
        maps = KernelSHAP(segments=4, samples=400).maps(pairs)[0]
        largest = max(t.abs().max() for t in truth)
        for found, values, piece in zip(maps, truth, pieces, strict=True):
            assert torch.allclose(found.double(), values[piece], atol=1e-6)
        assert largest > 0.01

    @pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (40, 31)])
    def test_interleavings_are_probabilities(self, sizes):
        found = interleaved(*sizes)
        assert torch.allclose(found.sum(dim=1), torch.ones(sizes[0]).double())
        # seen from either side, it is the same before or after
        assert torch.allclose(found, found.flip(0, 1))


# --- the decoder ----------------------------------------------------------------------------------


class TestDecoder:
    def test_it_beats_the_mean_picture(self, decoded, images):
        net, decoder = decoded
        assert decoder.error < 0.8 * decoder.mean_error
        assert f"{decoder.error:.4f}" in repr(decoder)
        shown = decoder(embeddings(net, images, progress=False))
        pictures = squares([images.image(i) for i in range(len(images))], SIDE)
        error = (shown - pictures).square().mean()
        assert error < (pictures - pictures.mean(dim=0)).square().mean()

    def test_the_seed_decides(self, images):
        few, net = images.subset(range(20)), build()
        one, two, other = (
            train_decoder(net, few, hidden=4, epochs=2, seed=s, progress=False) for s in (0, 0, 1)
        )
        told = torch.rand(2, 16)
        assert torch.equal(one(told), two(told)) and one.error == two.error
        assert not torch.allclose(one(told), other(told))

    def test_training_leaves_the_callers_random_numbers_alone(self, images):
        torch.manual_seed(3)
        want = torch.rand(3)
        torch.manual_seed(3)
        train_decoder(build(), images.subset(range(10)), hidden=0, epochs=1, progress=False)
        assert torch.equal(torch.rand(3), want)

    def test_training_leaves_the_callers_logs_alone(self, images, monkeypatch):
        monkeypatch.setattr(logger := logging.getLogger("lightning.pytorch"), "level", 17)
        train_decoder(build(), images.subset(range(10)), hidden=0, epochs=1, progress=False)
        assert logger.level == 17

    def test_it_is_deaf_to_features_that_never_varied(self, images):
        net = build()
        with torch.no_grad():
            net.projection.bias[3] = -1e3
        decoder = train_decoder(net, images, hidden=8, epochs=2, progress=False)
        e = torch.rand(4, 16).double()
        moved = e.clone()
        moved[:, 3] += 5
        assert decoder.spread[3] == 0 and decoder.spread.max() > 0
        assert torch.equal(decoder(e), decoder(moved))
        assert decoder.change(e, e + 1).max() > 0

    def test_it_is_read_as_it_was_written(self, decoded, tmp_path):
        _, decoder = decoded
        decoder.save(tmp_path / "d.safetensors")
        again = Decoder.load(tmp_path / "d.safetensors")
        told = torch.rand(3, 16).double()
        assert torch.equal(decoder(told), again(told))
        assert (again.network, again.error, again.mean_error, again.hidden) == (
            decoder.network, decoder.error, decoder.mean_error, 32
        )  # fmt: skip

    def test_what_is_no_decoder_is_refused(self, tmp_path):
        with pytest.raises(ExplanationError, match="Decoder.save"):
            Decoder.load(tmp_path / "missing")
        build().save(tmp_path / "net.safetensors")
        with pytest.raises(ExplanationError, match="Decoder.save"):
            Decoder.load(tmp_path / "net.safetensors")

    def test_wrong_settings_are_refused(self, images):
        with pytest.raises(ExplanationError, match="at least ten"):
            train_decoder(build(), images.subset(range(9)), progress=False)
        for options in ({"hidden": -1}, {"epochs": 0}):
            with pytest.raises(ExplanationError, match="whole number"):
                train_decoder(build(), images, progress=False, **options)

    @pytest.mark.parametrize("normalize", [False, True])
    def test_embeddings_are_those_that_are_compared(self, images, normalize):
        few, net = images.subset(range(5)), build(normalize=normalize)
        pictures = [few.image(i) for i in range(5)]
        with torch.inference_mode():
            want = net.embed(net.to_tensor(pictures)).double()
        found = embeddings(net, few, progress=False)
        seen = as_compared(as_explainable(net), pairs_of(net, *pictures).seen.embedding)
        for other in (want, seen):
            assert torch.allclose(found, other, atol=1e-5 * float(want.abs().max()))

    def test_any_network_can_be_decoded(self, images):
        net = half()
        decoder = train_decoder(net, images, hidden=0, epochs=3, progress=False)
        pairs = pairs_of(net, images.image(0), images.image(1))
        maps = ExplainLFS(decoder=decoder)(pairs)
        assert maps.shape == (1, 2, SIDE, SIDE) and maps.abs().max() > 0


# --- ExplainLFS -----------------------------------------------------------------------------------

H1 = [1.2, 1.9, 2.3, 3.1, 2.0, 2.1, 2.2]


class TestGoldenVectors:
    """The two worked examples of Bello et al. (2024), section 3.2, digit by digit."""

    def test_similar(self):
        h1, h2 = torch.tensor([[H1], [[1.1, 3.0, 2.5, 4.0, 1.3, 1.4, 1.9]]]).double()
        d, r = normalised_difference(h1, h2), relevance(h1, h2, torch.tensor([True]))
        assert d.round(decimals=1).tolist() == [[0, 1, 0.1, 0.8, 0.6, 0.6, 0.2]]
        assert r.round(decimals=1).tolist() == [[1, 0, 0.9, 0.2, 0.4, 0.4, 0.8]]

    def test_dissimilar(self):
        h1, h2 = torch.tensor([[H1], [[2.0, 1.5, 2.7, 0.3, 2.5, 1.6, 2.5]]]).double()
        d, r = normalised_difference(h1, h2), relevance(h1, h2, torch.tensor([False]))
        assert d.round(decimals=2).tolist() == [[0.2, 0.04, 0.04, 1, 0.08, 0.08, 0]]
        assert torch.equal(d, r)


class TestExplainLFS:
    def test_the_map_is_the_change_of_the_decoded_picture(self, decoded, images):
        net, decoder = decoded
        pairs = pairs_of(judging(net, similar=True), images.image(0), images.image(1))
        h1, h2 = nn.functional.normalize(pairs.seen.embedding)
        d = (h1 - h2).abs()
        shift = 0.5 * (1 - (d - d.min()) / (d.max() - d.min()))
        want = (decoder(h1[None]) - decoder((h1 + shift)[None])).abs().sum(dim=1)
        found = ExplainLFS(p=0.5, xi2=0, decoder=decoder).maps(pairs)
        assert torch.allclose(found[0, 0], want[0])

    def test_the_sign_is_that_of_the_decision(self, decoded, images):
        net, decoder = decoded
        for similar in (True, False):
            pairs = pairs_of(judging(net, similar), images.image(0), images.image(1))
            maps = ExplainLFS(decoder=decoder)(pairs)
            assert (maps if similar else -maps).min() == 0
            assert (maps if similar else -maps).max() > 0

    @pytest.mark.parametrize("xi2", [0.0, 0.7, 0.95])
    def test_what_does_not_exceed_the_threshold_is_not_shown(self, decoded, images, xi2):
        net, decoder = decoded
        pairs = pairs_of(judging(net, similar=True), images.image(0), images.image(1))
        whole = ExplainLFS(xi2=0, decoder=decoder)(pairs)[0, 0]
        shown = ExplainLFS(xi2=xi2, decoder=decoder)(pairs)[0, 0]
        keep = whole > xi2 * whole.max()
        assert torch.equal(shown[keep], whole[keep]) and not shown[~keep].any() and keep.any()

    def test_equal_differences_are_no_division_by_zero(self, decoded, images):
        h = torch.rand(2, 5).double()
        same = torch.tensor([True, False])
        assert torch.equal(relevance(h, h, same), torch.tensor([[1.0] * 5, [0.0] * 5]).double())
        net, decoder = decoded
        a = images.image(0)
        alike = ExplainLFS(decoder=decoder)(pairs_of(judging(net, similar=True), a, a))
        unlike = ExplainLFS(decoder=decoder)(pairs_of(judging(net, similar=False), a, a))
        assert alike.max() > 0 and not unlike.any()

    def test_options_out_of_range_are_refused(self):
        for options in ({"p": 1.1}, {"p": -0.1}, {"xi2": 1}, {"xi2": -0.1}):
            with pytest.raises(ExplanationError):
                ExplainLFS(**options)


class TestFlaws:
    """What the docstring says of ExplainLFS."""

    def test_what_neither_picture_has_counts_most_for_similarity(self):
        h1, h2 = torch.tensor([[0.0, 2.0, 5.0]]), torch.tensor([[0.0, 2.1, 4.0]])
        r = relevance(h1, h2, torch.tensor([True]))
        assert r[0, 0] == 1 and r.argmax() == 0

    def test_the_shift_is_never_negative(self):
        generator = torch.Generator().manual_seed(0)
        h1, h2 = torch.randn(2, 50, 8, generator=generator)
        similar = torch.arange(50) < 25
        r = relevance(h1, h2, similar)
        assert r.min() == 0 and r.max() == 1
        # even a feature that only the first picture has is added to it
        alone = relevance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]]), similar[-1:])
        assert alone[0, 0] == 1

    def shapes(self, images, hidden):
        net = judging(build(), similar=True)
        decoder = train_decoder(net, images, hidden=hidden, epochs=15, progress=False)
        pairs = pairs_of(net, images.image(0), images.image(1))
        maps = [ExplainLFS(p=p, xi2=0, decoder=decoder)(pairs)[0] for p in (0.05, 0.3, 1.0)]
        return [m / m.amax(dim=(1, 2), keepdim=True) for m in maps]

    def test_insensitive_to_p_with_an_affine_decoder_alone(self, images):
        little, some, much = self.shapes(images, hidden=0)
        assert torch.allclose(little, some, atol=1e-5) and torch.allclose(some, much, atol=1e-5)
        little, some, much = self.shapes(images, hidden=32)
        assert (little - much).abs().max() > 0.1

    def test_an_affine_decoder_gives_both_pictures_the_same_map(self, images):
        _, some, _ = self.shapes(images, hidden=0)
        assert torch.allclose(some[0], some[1], atol=1e-5)
        _, some, _ = self.shapes(images, hidden=32)
        assert (some[0] - some[1]).abs().max() > 0.1

    def test_the_shift_is_longer_than_an_embedding_of_unit_length(self):
        h = nn.functional.normalize(torch.rand(1, 256))
        shift = 0.3 * relevance(h, h, torch.tensor([True]))
        assert shift.norm() == pytest.approx(0.3 * 16) and h.norm() == pytest.approx(1)


# --- Utkin et al.; Tummala and Suresh -------------------------------------------------------------


class TestUtkin:
    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls, decoded, images):
        net, decoder = decoded
        return net, Utkin(decoder=decoder).fit(net, images, progress=False)

    def test_prototypes_are_class_means(self, fitted, images):
        net, explainer = fitted
        e = embeddings(net, images, progress=False)
        want = [e[images.labels == label].mean(dim=0) for label in np.unique(images.labels)]
        assert torch.allclose(explainer.prototypes, torch.stack(want))
        assert nearest_prototype(explainer.prototypes, explainer.prototypes).tolist() == list(
            range(len(want))
        )

    def test_the_nearest_features_are_chosen(self, fitted):
        net, explainer = fitted
        spread, centre = explainer.decoder.spread, explainer.prototypes[0]
        far = torch.arange(1, 17).double().flip(0) * 1e-3
        chosen = explainer.chosen((centre + far * spread)[None])[0]
        varies = (spread > 0).nonzero().flatten()
        count = max(1, round(0.1 * len(varies)))
        assert chosen.nonzero().flatten().tolist() == varies[-count:].tolist()

    def test_the_map_is_of_the_picture_alone_and_not_negative(self, fitted, images):
        net, explainer = fitted
        a, b, c = (images.image(i) for i in range(3))
        with_b, with_c = (explainer(pairs_of(net, a, x), seed=2)[0, 0] for x in (b, c))
        assert torch.allclose(with_b, with_c, atol=1e-6 * float(with_b.max()))
        assert with_b.min() >= 0 and with_b.max() > 0
        assert not torch.allclose(with_b, explainer(pairs_of(net, a, b), seed=3)[0, 0], rtol=1e-3)

    def test_larger_perturbations_move_more(self, decoded, images):
        net, decoder = decoded
        pairs = pairs_of(net, images.image(0), images.image(1))
        small, large = (
            Utkin(size=size, decoder=decoder).fit(net, images, progress=False)(pairs).sum()
            for size in (0.1, 1.0)
        )
        assert large > 5 * small

    def test_options_out_of_range_are_refused(self):
        for options in ({"nearest": 0}, {"nearest": 2}, {"size": 0}, {"draws": 0}):
            with pytest.raises(ExplanationError):
                Utkin(**options)


class TestTummala:
    def test_the_map_adds_up_to_the_likeness_to_the_partners_class(self, images):
        net = build()
        with torch.no_grad():
            net.projection.bias.zero_()  # which no place of the picture holds
        explainer = Tummala().fit(net, images, progress=False)
        pairs = pairs_of(net, images.image(0), images.image(1))
        raw = pairs.seen.embedding
        e = nn.functional.normalize(raw)
        far = (e[1] - explainer.prototypes).norm(dim=1)
        want = raw[0] @ explainer.prototypes[far.argmin()]
        assert float(explainer(pairs)[0, 0].sum()) == pytest.approx(float(want), rel=1e-4)

    def test_it_says_that_it_is_our_reading(self):
        assert "our reading" in Tummala.title and "Our reading" in Tummala.limits


# --- what all of them refuse ----------------------------------------------------------------------

LEARNING = [ExplainLFS, Utkin, Tummala]


class TestErrors:
    @pytest.mark.parametrize("kind", LEARNING)
    def test_not_fitted(self, kind, images):
        with pytest.raises(ExplanationError, match="fit"):
            kind()(pairs_of(build(), images.image(0), images.image(1)))

    @pytest.mark.parametrize("kind", LEARNING)
    def test_fitted_on_another_network(self, kind, decoded, images):
        net, decoder = decoded
        explainer = kind() if kind is Tummala else kind(decoder=decoder)
        explainer.fit(net, images, progress=False)
        with pytest.raises(ExplanationError, match="another network"):
            explainer(pairs_of(build(seed=1), images.image(0), images.image(1)))

    @pytest.mark.parametrize("kind", [ExplainLFS, Utkin])
    def test_a_decoder_of_another_network_is_not_taken(self, kind, decoded, images):
        with pytest.raises(ExplanationError, match="another network"):
            kind(decoder=decoded[1]).fit(build(seed=1), images, progress=False)

    @pytest.mark.parametrize("kind", [Utkin, Tummala])
    def test_fewer_than_two_classes(self, kind, images):
        one = images.subset(np.flatnonzero(images.labels == images.labels[0]))
        with pytest.raises(ExplanationError, match="two classes"):
            kind().fit(build(), one, progress=False)
        with pytest.raises(ExplanationError, match="two classes"):
            prototypes(torch.rand(len(one), 4), one)

    def test_a_moved_threshold_is_no_other_network(self, decoded, images):
        net, decoder = decoded
        explainer = ExplainLFS(decoder=decoder)
        for similar in (True, False):
            pairs = pairs_of(judging(net, similar), images.image(0), images.image(1))
            assert explainer(pairs).abs().max() > 0

    def test_fit_can_be_chained_and_trains_its_own_decoder(self, images):
        few = images.subset(range(20))
        explainer = sc.explainers.get("explainlfs", hidden=0)
        assert explainer.fit(build(), few, seed=1, progress=False) is explainer
        assert explainer.fitted and explainer.decoder.hidden == 0
        again = explainer.fit(build(seed=1), few, progress=False)  # another network, learned anew
        assert again.decoder.network == as_explainable(build(seed=1)).digest()
