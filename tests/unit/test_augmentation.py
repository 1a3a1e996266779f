"""Augmentation and batches: every draw follows from seed, epoch and picture alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from siamcam_lib.augmentation import AugmentedImages, Batches, default_augmentation
from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import PairError


@dataclass(frozen=True)
class Noise:
    """Pictures of random pixels, 50 × 40."""

    origin: str = "folder"

    def image(self, item):
        random = np.random.default_rng(int(item))
        return Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8))

    def masks(self, item):
        return {}

    def digest(self, item):
        return item


def images(labels=(0, 1, 0, 1, 2)) -> ImageSet:
    n = len(labels)
    names = tuple(map(str, range(n)))
    return ImageSet("noise", ("a", "b", "c"), names, np.array(labels), np.arange(n), Noise())


LABELS = np.repeat([0, 1, 2], [20, 13, 7])


class TestAugmentation:
    def test_a_picture_becomes_a_square_of_floats(self):
        tensor = default_augmentation(24)(images().image(0))
        assert tensor.shape == (3, 24, 24)
        assert tensor.dtype == torch.float32
        assert 0 <= tensor.min() < tensor.max() <= 1

    def test_the_draw_and_nothing_else_decides(self):
        data = AugmentedImages(images(), default_augmentation(24))
        assert len(data) == 5
        torch.manual_seed(1)
        first, labels = data[[(2, 99), (3, 99), (2, 100)]]
        torch.manual_seed(2)
        again, _ = data[[(4, 7), (2, 99)]]
        assert first.shape == (3, 3, 24, 24)
        assert labels.tolist() == [0, 1, 0]
        assert labels.dtype == torch.int64
        assert torch.equal(first[0], again[1]), "neither the batch nor the global seed matters"
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], first[2])

    def test_the_callers_random_numbers_are_left_alone(self):
        data = AugmentedImages(images(), default_augmentation(24))
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        data[[(0, 1), (1, 2)]]
        assert torch.equal(torch.rand(3), expected)

    def test_it_mirrors_and_crops_and_changes_colour(self):
        wide = Image.fromarray(np.tile(np.arange(0, 250, 5, np.uint8)[None, :, None], (40, 1, 3)))
        transform = default_augmentation(16)
        torch.manual_seed(0)
        seen = [transform(wide) for _ in range(40)]
        rising = sum(bool(t[0, 0, 0] < t[0, 0, -1]) for t in seen)
        assert 8 <= rising <= 32, "about half are mirrored"
        assert len({round(float(t.mean()), 4) for t in seen}) > 30

    def test_a_loader_draws_the_same(self):
        data = AugmentedImages(images(), default_augmentation(16))
        batches = Batches(images().labels, 2, seed=3)
        direct = [data[batch] for batch in batches]
        loaded = list(DataLoader(data, sampler=batches, batch_size=None))
        assert len(loaded) == len(batches)
        for one, other in zip(direct, loaded, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


class TestBatches:
    @pytest.mark.parametrize("given_pairs", [False, True])
    def test_seed_and_epoch_fix_everything(self, given_pairs):
        def drawn(seed, epoch):
            batches = Batches(LABELS, 8, given_pairs=given_pairs, seed=seed, epoch=epoch)
            np.random.seed(seed + 7 * epoch)  # noqa: NPY002  must not matter
            return list(batches)

        assert drawn(1, 4) == drawn(1, 4)
        assert drawn(1, 4) != drawn(1, 5)
        assert drawn(1, 4) != drawn(2, 4)

    def test_going_through_twice_gives_the_same(self):
        batches = Batches(LABELS, 8)
        assert list(batches) == list(batches)

    @settings(max_examples=60, deadline=None)
    @given(
        n=st.integers(2, 40),
        size=st.integers(1, 60),
        steps=st.none() | st.integers(1, 12),
        given_pairs=st.booleans(),
    )
    def test_length_and_size_are_as_promised(self, n, size, steps, given_pairs):
        batches = Batches(np.arange(n) % 2, size, steps=steps, given_pairs=given_pairs)
        found = list(batches)
        used = min(size, n)
        assert len(found) == len(batches) == (steps or max(1, n // used))
        expected = 2 * max(1, used // 2) if given_pairs else used
        assert {len(batch) for batch in found} == {expected}
        assert all(0 <= position < n for batch in found for position, _ in batch)

    def test_a_pass_takes_no_image_twice(self):
        positions = [p for batch in Batches(LABELS, 7) for p, _ in batch]
        assert len(positions) == len(set(positions)) == 35

    def test_a_long_epoch_takes_all_images_equally_often(self):
        positions = [p for batch in Batches(LABELS, 10, steps=12) for p, _ in batch]
        assert Counter(positions) == dict.fromkeys(range(40), 3)

    def test_draws_are_fresh_for_every_image(self):
        draws = [d for batch in Batches(LABELS, 10, steps=12) for _, d in batch]
        assert len(set(draws)) == len(draws)

    @settings(max_examples=60, deadline=None)
    @given(
        labels=st.lists(st.integers(0, 3), min_size=2, max_size=30).filter(lambda x: len({*x}) > 1),
        size=st.integers(2, 30),
        seed=st.integers(0, 100),
    )
    def test_given_pairs_are_anchors_then_partners_half_of_them_alike(self, labels, size, seed):
        alone = {k for k, n in Counter(labels).items() if n == 1}
        for batch in Batches(np.array(labels), size, given_pairs=True, seed=seed):
            positions = [p for p, _ in batch]
            half = len(positions) // 2
            for turn, (a, b) in enumerate(zip(positions[:half], positions[half:], strict=True)):
                assert a != b
                alike = turn % 2 == 0 and labels[a] not in alone
                assert (labels[a] == labels[b]) == alike

    def test_no_image_at_all_is_refused(self):
        with pytest.raises(PairError):
            Batches(np.array([], np.int64), 4)

    @pytest.mark.parametrize("labels", [[0], [1, 1, 1]])
    def test_one_class_is_refused(self, labels):
        with pytest.raises(PairError, match="two classes"):
            Batches(np.array(labels), 4)
