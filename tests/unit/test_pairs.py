"""Splits, pairs, duplicates and leaks, held to what they promise by independent counting."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

import siamcam_lib as sc
from siamcam_lib.cache import FeatureCache
from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import PairError
from siamcam_lib.pairs import (
    PairSet,
    Split,
    all_pairs,
    check_split,
    find_duplicates,
    find_leaks,
    join_groups,
    sample,
    split,
    splitting,
)


@dataclass(frozen=True)
class Memory:
    """Pictures held in memory; where only names matter, none at all."""

    origin: str = "scenes"
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)

    def image(self, item):
        return self.pictures[item]

    def masks(self, item):
        return {}

    def digest(self, item):
        return self.contents.get(item, item)


def labelled(labels, groups=None, source=None, items=None) -> ImageSet:
    labels = np.asarray(labels, np.int64)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups, np.int64)
    items = items or tuple(f"{i:04d}" for i in range(len(labels)))
    classes = tuple(f"class {k}" for k in range(labels.max(initial=0) + 1))
    return ImageSet("made up", classes, tuple(items), labels, groups, source or Memory())


def smooth(seed: int, size: int = 64) -> Image.Image:
    """A random picture of broad patches: what a perceptual hash is made for."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(patches).resize((size, size), Image.Resampling.BICUBIC)


def reencoded(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> FeatureCache:
    monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path / "cache"))
    return FeatureCache()


@st.composite
def sets(draw):
    """Sets of two to four classes, images alone or in groups, some of these across classes."""
    sizes = draw(st.lists(st.integers(80, 120), min_size=2, max_size=4))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        groups = np.arange(len(labels))
    else:
        groups = random.integers(0, len(labels) // 2, len(labels))
    order = random.permutation(len(labels))
    return labelled(labels[order], groups[order])


class TestSplit:
    @settings(max_examples=25, deadline=None)
    @given(images=sets(), seed=st.integers(0, 1000))
    def test_every_image_is_in_one_part_and_no_group_in_two(self, images, seed):
        parts = split(images, seed)
        named = (parts.train, parts.val, parts.test)
        assert Counter(i for p in named for i in p.items) == Counter(images.items)
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not set(named[one].groups) & set(named[other].groups)
        check_split(parts)

    @settings(max_examples=25, deadline=None)
    @given(images=sets(), seed=st.integers(0, 1000))
    def test_parts_are_72_8_20_and_keep_the_classes_shares(self, images, seed):
        parts = split(images, seed)
        n = len(images)
        largest = np.bincount(images.groups).max()
        slack = largest * len(images.classes)  # folds are filled a group at a time
        assert abs(len(parts.test) - n / 5) <= slack
        assert abs(len(parts.val) - (n - len(parts.test)) / 10) <= slack
        whole = np.bincount(images.labels)
        test = np.bincount(parts.test.labels, minlength=len(whole))
        assert (np.abs(test - whole / 5) <= largest + 2).all()

    @settings(max_examples=10, deadline=None)
    @given(images=sets(), seed=st.integers(0, 1000))
    def test_parts_keep_labels_groups_and_pictures_together(self, images, seed):
        parts = split(images, seed)
        where = {item: k for k, item in enumerate(images.items)}
        for part in (parts.train, parts.val, parts.test):
            old = [where[item] for item in part.items]
            assert (part.labels == images.labels[old]).all()
            assert (part.groups == images.groups[old]).all()
            assert part.source is images.source
            assert part.classes == images.classes

    def test_the_seed_and_nothing_else_decides(self):
        images = labelled(np.repeat(np.arange(4), 40))
        np.random.seed(1)  # noqa: NPY002  a global state that must not matter
        first = split(images, 3)
        np.random.seed(2)  # noqa: NPY002
        again = split(images, 3)
        assert first.test.items == again.test.items
        assert first.val.items == again.val.items
        assert split(images, 4).test.items != first.test.items

    @pytest.mark.parametrize("seed", range(5))
    def test_classes_of_one_or_two_images_survive(self, seed):
        images = labelled(np.repeat(np.arange(6), [60, 50, 30, 2, 1, 1]))
        parts = split(images, seed)
        total = sum(
            np.bincount(p.labels, minlength=6) for p in (parts.train, parts.val, parts.test)
        )
        assert total.tolist() == [60, 50, 30, 2, 1, 1]

    def test_ungrouped_parts_groups_as_the_paper_does(self):
        images = labelled(np.repeat([0, 1], 60), groups=np.tile(np.arange(30), 4))
        loose = split(images, 0, grouped=False)
        assert set(np.unique(images.groups[[int(i) for i in loose.train.items]])) & set(
            images.groups[[int(i) for i in loose.test.items]]
        )
        tight = split(images, 0)
        assert not set(tight.train.groups) & set(tight.test.groups)

    def test_ungrouped_parts_say_which_groups_they_share(self):
        images = labelled(np.repeat([0, 1], 60), groups=np.tile(np.arange(30), 4))
        loose = split(images, 0, grouped=False)
        for part in (loose.train, loose.val, loose.test):
            assert (part.groups == images.groups[[int(i) for i in part.items]]).all()
        shared = len({*loose.train.groups} & {*loose.test.groups})
        assert shared > 10
        with pytest.raises(PairError, match=r"training and validation parts share \d+ group"):
            check_split(loose)
        report = find_leaks(sample(loose.train), sample(loose.test))
        assert (report.images, report.groups, report.pairs) == (0, shared, 0)

    def test_ungrouped_parts_of_photographs_say_which_copies_they_share(self, cache):
        pictures = {f"{k:03d}": smooth(k) for k in range(40)}
        pictures |= {f"{k:03d} saved": reencoded(pictures[f"{k:03d}"], 60) for k in range(40)}
        labels = [int(item[:3]) % 2 for item in pictures]
        source = Memory("folder", pictures)
        images = labelled(labels, source=source, items=tuple(pictures))
        loose = split(images, 0, grouped=False)
        families = [{item[:3] for item in part.items} for part in (loose.train, loose.test)]
        shared = len(set.intersection(*families))
        report = find_leaks(sample(loose.train), sample(loose.test))
        assert shared > 0
        assert (report.images, report.groups) == (0, shared)

    def test_knowing_the_groups_moves_no_image(self):
        """The seeds' parts are those of a set that has no groups to hide."""
        labels, groups = np.repeat([0, 1, 2], 40), np.arange(120) // 4
        for seed in range(3):
            loose = split(labelled(labels, groups), seed, grouped=False)
            plain = split(labelled(labels), seed)
            assert loose.train.items == plain.train.items
            assert loose.val.items == plain.val.items
            assert loose.test.items == plain.test.items

    def test_a_part_of_copies_is_too_few(self):
        """Two pictures of the smaller class in each part, but the same two."""
        same = {f"{k:04d}": "0050" for k in range(50, 60)}
        images = labelled(np.repeat([0, 1], [50, 10]), source=Memory(contents=same))
        twins = {f"{k:04d}": "0000" for k in range(50)}
        split(images, 0)  # the larger class has pairs enough
        images = replace(images, source=Memory(contents=same | twins))
        with pytest.raises(PairError, match="too few for one similar"):
            split(images, 0)

    def test_copies_of_photographs_are_never_parted(self, cache):
        pictures = {f"{k:03d}": smooth(k) for k in range(40)}
        pictures |= {f"{k:03d} copy": pictures[f"{k:03d}"] for k in range(5)}
        pictures |= {f"{k:03d} saved": reencoded(pictures[f"{k:03d}"], 60) for k in range(5, 10)}
        contents = {f"{k:03d} copy": f"{k:03d}" for k in range(5)}
        items = tuple(pictures)
        labels = [int(item[:3]) % 2 for item in items]
        images = labelled(labels, source=Memory("folder", pictures, contents), items=items)
        for seed in range(5):
            parts = split(images, seed)
            for part in (parts.train, parts.val, parts.test):
                families = {item[:3] for item in part.items}
                assert len(part) == sum(item[:3] in families for item in items)

    @pytest.mark.parametrize(
        ("labels", "groups", "expected"),
        [
            ([], None, "images: none. Two .* fewer than 10 of one class and 3 of others"),
            ([0] * 50, None, "images: 50 of 'class 0'. Two .* 10 of one class and 3 of others"),
            ([0] * 49 + [1], None, "images: 49 of 'class 0', 1 of 'class 1'. Two .* 3 of others"),
            ([0, 1] * 9, None, "images: 9 of 'class 0', 9 of 'class 1'. Two .* 10 of one class"),
            ([0, 1] * 10, None, "images: .*10 of 'class 1'. Two .* 8 images left, and 10 are"),
            ([0, 1] * 12, None, "images: .*12 of .* With seed 0 the validation part would hold 2"),
            (
                [0, 1] * 50, [0] * 100,
                "independent images: 50 of .* Of 100 images there are 1 independent groups, .* 5 ",
            ),
        ],
    )  # fmt: skip
    def test_what_cannot_be_split_is_refused(self, labels, groups, expected):
        with pytest.raises(PairError, match=f"^'made up' has too few {expected}") as told:
            split(labelled(labels, groups))
        assert re.search("Two classes need 14 (independent )?images each", str(told.value))

    def test_of_many_classes_the_largest_are_named(self):
        images = labelled(np.repeat(np.arange(9), [1, 2, 1, 1, 4, 1, 3, 1, 1]))
        expected = "4 of 'class 4', 3 of 'class 6', 2 of 'class 1', 1 of 'class 0', 1 of 'class 2'"
        with pytest.raises(PairError, match=f"images: {expected}, others of 4 classes. Two"):
            split(images)

    def test_what_no_split_can_do_is_told_before_pictures_are_looked_at(self, monkeypatch):
        monkeypatch.setattr(splitting, "find_duplicates", lambda _: pytest.fail("looked at"))
        for labels in ([0, 1] * 9, [0] * 500 + [1, 2]):
            with pytest.raises(PairError, match="too few images"):
                split(labelled(labels, source=Memory("folder")))
        # a class for each part, of which no two are the same, is enough
        parts = split(labelled([0] * 100 + [1, 2, 3]))
        assert all(len(np.unique(p.labels)) == 2 for p in (parts.train, parts.val, parts.test))

    @pytest.mark.parametrize(
        "sizes", [(14, 14), (14, 14, 14), (14,) * 5, (14, 40), (14, 14, 1), (14, 14, 5, 5)]
    )
    def test_as_many_images_as_the_message_asks_for_are_enough(self, sizes):
        images = labelled(np.repeat(np.arange(len(sizes)), sizes))
        assert min(sizes[:2]) == splitting.LEAST
        for seed in range(50):
            parts = split(images, seed)
            for part in (parts.train, parts.val, parts.test):
                assert len(sample(part, seed)) > 0

    def test_one_image_less_can_be_too_few(self):
        images = labelled([0, 1] * (splitting.LEAST - 1))
        with pytest.raises(PairError, match="Two classes need 14 images each"):
            for seed in range(100):
                split(images, seed)

    def test_the_first_fold_is_taken_where_it_will_do(self):
        """As it was before there was a second choice."""
        labels = np.arange(200) % 3
        folds = StratifiedGroupKFold(splitting.TEST_FOLDS, shuffle=True, random_state=3)
        _, first = next(folds.split(labels, labels, np.arange(200)))
        assert split(labelled(labels), 3).test.items == tuple(f"{i:04d}" for i in first)

    @pytest.mark.real
    @pytest.mark.slow
    def test_no_airbnb_listing_is_on_two_sides(self, data_root):
        parts = split(sc.datasets.load("airbnb"), seed=0)
        # "berlin_31567374_1.jpg": city and listing number, told from the name alone
        listings = [
            {item.rsplit("/")[-1].rsplit("_", 1)[0] for item in part.items}
            for part in (parts.train, parts.val, parts.test)
        ]
        assert len(set.union(*listings)) == sum(map(len, listings))


class TestSample:
    @settings(max_examples=60, deadline=None)
    @given(
        labels=st.lists(st.integers(0, 4), min_size=3, max_size=40).filter(
            lambda x: len(set(x)) > 1 and max(Counter(x).values()) > 1
        ),
        seed=st.integers(0, 1000),
    )
    def test_each_image_has_one_partner_of_each_kind_and_never_itself(self, labels, seed):
        pairs = sample(labelled(labels), seed)
        size = Counter(labels)
        assert (pairs.a != pairs.b).all()
        assert [labels[i] != labels[j] for i, j in zip(pairs.a, pairs.b, strict=True)] == (
            pairs.label == 1
        ).tolist()
        for kind in (0, 1):
            anchors = pairs.a[pairs.label == kind].tolist()
            able = [i for i, k in enumerate(labels) if kind == 1 or size[k] > 1]
            assert sorted(anchors) == able, "an image alone in its class gets no similar pair"
        assert {x.dtype for x in (pairs.a, pairs.b, pairs.label)} == {np.dtype(np.int64)}

    def test_the_seed_decides(self):
        images = labelled(np.repeat([0, 1, 2], 20))
        assert (sample(images, 1).b == sample(images, 1).b).all()
        assert (sample(images, 1).b != sample(images, 2).b).any()

    @pytest.mark.parametrize("labels", [[], [0], [0, 0, 0], [0, 1], [0, 1, 2]])
    def test_too_few_images_are_refused(self, labels):
        with pytest.raises(PairError, match="classes"):
            sample(labelled(labels))

    @pytest.mark.parametrize("seed", range(20))
    def test_a_copy_is_no_partner(self, seed):
        """Copies within a class, and across classes where the labels contradict each other."""
        copies = {"0001": "0000", "0004": "0000", "0002": "0003"}
        images = labelled([0, 0, 0, 0, 1, 1, 1], source=Memory(contents=copies))
        pairs = sample(images, seed)
        for i, j in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True):
            assert images.digest(i) != images.digest(j)
        assert len(pairs) == 14, "each image has others of its class and of the other left"

    def test_an_image_whose_classmates_are_copies_is_alone(self):
        images = labelled([0, 0, 1, 1], source=Memory(contents={"0001": "0000"}))
        for seed in range(5):
            pairs = sample(images, seed)
            assert pairs.a[pairs.label == 0].tolist() == [2, 3]
            assert pairs.a[pairs.label == 1].tolist() == [0, 1, 2, 3]

    def test_classes_of_copies_only_are_refused(self):
        copies = {"0001": "0000", "0003": "0002"}
        with pytest.raises(PairError, match="4 images of 2 classes, 2 of them different"):
            sample(labelled([0, 0, 1, 1], source=Memory(contents=copies)))

    def test_without_copies_the_pairs_of_a_seed_are_those_they_were(self):
        """From a run of the sampler as it was before it knew of copies."""
        known = [1, 10, 0, 2, 3, 5, 2, 10, 3, 8, 6, 0, 5, 0, 8, 3, 7, 4, 11, 4, 9, 1, 10, 6]
        assert sample(sc.datasets.load("scenes/flowers", n=12), 3).b.tolist() == known

    def test_it_says_how_many_of_each_kind(self):
        assert repr(sample(labelled([0, 0, 1]))) == "PairSet(5 pairs: 2 similar, 3 dissimilar)"

    @pytest.mark.parametrize("copies", [{}, {"0001": "0000", "0004": "0000", "0006": "0002"}])
    def test_all_pairs_weigh_what_sampling_gives_on_average(self, copies):
        images = labelled([0, 0, 0, 1, 1, 2, 0], source=Memory(contents=copies))
        n, trials = len(images), 4000
        drawn = np.zeros((2, n, n))
        for seed in range(trials):
            pairs = sample(images, seed)
            drawn[pairs.label, pairs.a, pairs.b] += 1
        expected = np.zeros_like(drawn)
        every, weight = all_pairs(images)
        expected[every.label, every.a, every.b] = weight
        sigma = np.sqrt(expected * (1 - expected) / trials)
        assert (np.abs(drawn / trials - expected) <= 4.5 * sigma).all()

    @settings(max_examples=40, deadline=None)
    @given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=25))
    def test_all_pairs_are_all_and_each_anchor_weighs_one_a_kind(self, labels):
        pairs, weight = all_pairs(labelled(labels))
        n = len(labels)
        assert {*zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)} == {
            (i, j) for i in range(n) for j in range(n) if i != j
        }
        for anchor in range(n):
            for kind in (0, 1):
                mine = (pairs.a == anchor) & (pairs.label == kind)
                if mine.any():
                    assert weight[mine].sum() == pytest.approx(1)
                    assert np.ptp(weight[mine]) == 0

    @settings(max_examples=40, deadline=None)
    @given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=25))
    def test_unordered_they_come_once_with_the_weight_of_both_orders(self, labels):
        every, weight = all_pairs(labelled(labels))
        once, both = all_pairs(labelled(labels), ordered=False)
        n = len(labels)
        sums, found = np.zeros((2, n, n)), np.zeros((2, n, n))
        np.add.at(
            sums, (every.label, np.minimum(every.a, every.b), np.maximum(every.a, every.b)), weight
        )
        np.add.at(found, (once.label, once.a, once.b), both)
        assert len(once) == n * (n - 1) // 2
        np.testing.assert_allclose(found, sums, rtol=1e-15)

    def test_all_pairs_leave_out_copies_and_keep_the_weight(self):
        images = labelled([0, 0, 0, 1, 1], source=Memory(contents={"0001": "0000", "0003": "0002"}))
        pairs, weight = all_pairs(images)
        left_out = {(i, i) for i in range(5)} | {(0, 1), (1, 0), (2, 3), (3, 2)}
        assert {*zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)} == {
            (i, j) for i in range(5) for j in range(5) if (i, j) not in left_out
        }
        total = np.zeros((2, 5))
        np.add.at(total, (pairs.label, pairs.a), weight)
        np.testing.assert_allclose(total, 1)


class TestDuplicates:
    def test_exact_and_near_copies_are_found_and_nothing_else(self, cache):
        pictures = {f"{k}": smooth(k) for k in range(8)}
        pictures["same bytes"] = pictures["2"]
        pictures["saved again"] = reencoded(pictures["4"], 50)
        pictures["smaller"] = pictures["5"].resize((40, 40), Image.Resampling.LANCZOS)
        source = Memory("folder", pictures, {"same bytes": "2"})
        images = labelled([0, 1] * 5 + [0], source=source, items=tuple(pictures))
        found = find_duplicates(images)
        assert found.exact.tolist() == [[2, 8]]
        assert sorted(found.near.tolist()) == [[4, 9], [5, 10]]
        groups = found.joined(np.arange(11))
        assert groups[2] == groups[8]
        assert groups[4] == groups[9]
        assert groups[5] == groups[10]
        assert len(np.unique(groups)) == 8

    def test_the_limit_is_a_hamming_distance_of_64_bits(self, cache):
        import imagehash

        pictures = {f"{k}": smooth(k) for k in range(12)}
        images = labelled([0, 1] * 6, source=Memory("folder", pictures), items=tuple(pictures))
        hashes = [imagehash.phash(p) for p in pictures.values()]
        for limit in (0, 20, 28, 64):
            expected = [
                [i, j]
                for i in range(12)
                for j in range(i + 1, 12)
                if hashes[i] - hashes[j] <= limit
            ]
            assert find_duplicates(images, limit).near.tolist() == expected

    def test_hashes_are_kept_and_read_again(self, cache, monkeypatch):
        pictures = {f"{k}": smooth(k % 3) for k in range(6)}
        images = labelled([0, 1] * 3, source=Memory("folder", pictures), items=tuple(pictures))
        first = find_duplicates(images)
        assert first.near.tolist() == [[0, 3], [1, 4], [2, 5]]
        monkeypatch.setattr(Memory, "image", None)  # a picture opened again would raise
        assert (find_duplicates(images).near == first.near).all()

    def test_one_picture_has_no_duplicate(self, cache):
        images = labelled([0], source=Memory("folder", {"0000": smooth(0)}))
        found = find_duplicates(images)
        assert found.exact.shape == found.near.shape == (0, 2)

    @settings(max_examples=80, deadline=None)
    @given(data=st.data())
    def test_groups_are_joined_as_by_union_find(self, data):
        n = data.draw(st.integers(1, 25))
        groups = data.draw(st.lists(st.integers(-3, 9), min_size=n, max_size=n))
        ends = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
        links = data.draw(st.lists(ends, max_size=20))
        parent = {g: g for g in groups}

        def root(g):
            while parent[g] != g:
                g = parent[g]
            return g

        for i, j in links:
            parent[root(groups[i])] = root(groups[j])
        joined = join_groups(np.array(groups), np.array(links, np.int64).reshape(-1, 2))
        assert sorted(np.unique(joined)) == list(range(len(np.unique(joined))))
        for i in range(n):
            for j in range(n):
                assert (joined[i] == joined[j]) == (root(groups[i]) == root(groups[j]))


def paired(images, *rows) -> PairSet:
    a, b = np.array(rows, np.int64).reshape(-1, 2).T
    return PairSet(images, a, b, (images.labels[a] != images.labels[b]).astype(np.int64))


class TestLeaks:
    images = labelled([0, 0, 0, 1, 1, 1], groups=[0, 0, 1, 2, 3, 3])

    def test_clean_sides_have_none(self):
        report = find_leaks(paired(self.images, (0, 1)), paired(self.images, (2, 3), (3, 2)))
        assert not report
        assert "No leak" in str(report)

    def test_each_kind_is_counted(self):
        train = paired(self.images, (0, 3), (0, 2), (4, 4))
        test = paired(self.images, (3, 0), (1, 5), (5, 5))
        report = find_leaks(train, test)
        # images 0 and 3; groups 0, 2 and 3; the pair {0, 3} in the other order; two self-pairs
        assert (report.images, report.groups, report.pairs, report.self_pairs) == (2, 3, 1, 2)
        assert report
        assert str(report) == (
            "Leak: 2 images, 3 groups and 1 pair are on both sides; 2 images are paired with "
            "themselves."
        )

    def test_one_is_singular_and_none_is_plural(self):
        report = find_leaks(paired(self.images, (0, 3), (4, 4)), paired(self.images, (0, 2)))
        assert str(report) == (
            "Leak: 1 image, 1 group and 0 pairs are on both sides; 1 image is paired with itself."
        )

    def test_a_pair_of_copies_is_a_self_pair(self):
        images = labelled([0, 0, 1, 1], source=Memory(contents={"0001": "0000"}))
        report = find_leaks(paired(images, (0, 1), (0, 2)), paired(images, (3, 3)))
        assert (report.images, report.pairs, report.self_pairs) == (0, 0, 2)

    def test_a_copy_under_another_name_is_the_same_image(self):
        source = Memory(contents={"0005": "0000"})
        images = labelled([0, 0, 1, 0, 1, 0], source=source)
        report = find_leaks(paired(images, (0, 2)), paired(images, (5, 4)))
        assert (report.images, report.groups) == (1, 0)

    def test_only_what_is_used_counts(self):
        assert not find_leaks(paired(self.images, (0, 2)), paired(self.images, (4, 5)))

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(images=sets(), seed=st.integers(0, 100))
    def test_a_grouped_split_never_leaks(self, images, seed):
        parts = split(images, seed)
        assert not find_leaks(sample(parts.train, seed), sample(parts.test, seed))
        assert not find_leaks(sample(parts.val, seed), sample(parts.test, seed))

    def test_check_split_names_the_parts_and_a_group(self):
        parts = split(labelled(np.repeat([0, 1], 40)))
        check_split(parts)
        leaky = replace(parts.val, groups=np.full(len(parts.val), parts.test.groups[0]))
        with pytest.raises(PairError, match="validation and test.*1 group of.*first: group"):
            check_split(Split(parts.train, leaky, parts.test))
