"""Losses against plain Python, against formulas written out, and against numerical gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import SupConLoss
from torch import nn

from siamcam_lib.errors import TrainingError
from siamcam_lib.losses import (
    OBJECTIVES,
    balanced_mean,
    batch_pairs,
    contrastive,
    hardest,
    objective,
    supervised_contrastive,
)
from siamcam_lib.model import SiameseNet

LABELS = torch.tensor([0, 0, 1, 1, 2, 0])


class Nothing(nn.Module):
    """A backbone for tests that never look at an image."""

    def forward(self, x):
        return x[:, :, ::32, ::32]


@pytest.fixture
def net() -> SiameseNet:
    torch.manual_seed(0)
    return SiameseNet(Nothing(), embed_dim=4, normalize=False).double()


def embeddings(n: int = 6, unit: bool = False, seed: int = 0) -> torch.Tensor:
    e = torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).relu()
    e = e + 0.01
    return e / e.norm(dim=1, keepdim=True) if unit else e


class TestContrastive:
    @settings(max_examples=100, deadline=None)
    @given(
        rows=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1)), min_size=1, max_size=20),
        margin=st.floats(0.1, 3),
    )
    def test_it_is_the_printed_formula(self, rows, margin):
        found = contrastive(
            torch.tensor([d for d, _ in rows], dtype=torch.float64),
            torch.tensor([k for _, k in rows]),
            margin,
        )
        expected = [0.5 * ((1 - k) * d**2 + k * max(0.0, margin - d) ** 2) for d, k in rows]
        assert found.tolist() == pytest.approx(expected, abs=1e-12)

    def test_the_papers_margin_is_the_default(self):
        assert contrastive(torch.tensor([0.0]), torch.tensor([1])).item() == 2

    def test_gradients_are_right_and_end_at_the_margin(self):
        distance = torch.tensor([0.3, 1.1, 0.4, 1.9, 2.7], dtype=torch.float64, requires_grad=True)
        label = torch.tensor([0, 0, 1, 1, 1])
        assert torch.autograd.gradcheck(lambda d: contrastive(d, label), distance)
        contrastive(distance, label).sum().backward()
        assert distance.grad.tolist() == pytest.approx([0.3, 1.1, -1.6, -0.1, 0.0])


class TestPairsOfABatch:
    @settings(max_examples=50, deadline=None)
    @given(labels=st.lists(st.integers(0, 3), max_size=15))
    def test_all_unordered_pairs_once(self, labels):
        i, j, label = (x.tolist() for x in batch_pairs(torch.tensor(labels, dtype=torch.long)))
        expected = list(itertools.combinations(range(len(labels)), 2))
        assert sorted(zip(i, j, strict=True)) == expected
        assert label == [int(labels[p] != labels[q]) for p, q in zip(i, j, strict=True)]

    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(st.integers(0, 10**6), st.integers(0, 1)),
            min_size=1,
            max_size=30,
            unique_by=lambda row: row[0],
        ),
        fraction=st.floats(0.01, 1),
    )
    def test_the_hardest_are_the_dearest_of_each_kind(self, rows, fraction):
        values = torch.tensor([float(v) for v, _ in rows])
        label = torch.tensor([k for _, k in rows])
        found = sorted(hardest(values, label, fraction).tolist())
        expected = []
        for side in (0, 1):
            mine = sorted(
                (k for k, row in enumerate(rows) if row[1] == side), key=lambda k: -rows[k][0]
            )
            expected += mine[: max(1, round(fraction * len(mine)))]
        assert found == sorted(expected)

    def test_all_are_kept_at_first(self):
        values, label = torch.rand(9), torch.tensor([0, 1, 0, 1, 1, 1, 1, 1, 1])
        assert sorted(hardest(values, label, 1.0).tolist()) == list(range(9))

    def test_both_kinds_weigh_the_same_however_many_there_are(self):
        values, label = torch.tensor([1.0, 2.0, 6.0, 9.0]), torch.tensor([0, 1, 1, 1])
        assert balanced_mean(values, label).item() == pytest.approx((1 + 17 / 3) / 2)

    @pytest.mark.parametrize("side", [0, 1])
    def test_with_one_kind_it_is_the_plain_mean(self, side):
        values = torch.tensor([1.0, 2.0, 6.0])
        assert balanced_mean(values, torch.full((3,), side)).item() == pytest.approx(3)


def naive_supcon(e: torch.Tensor, labels: list[int], temperature: float) -> float:
    """Khosla et al. 2020, eq. 2, mean over the anchors that have a positive; plain Python."""
    losses = []
    vectors = e.tolist()
    score = [
        [math.fsum(p * q for p, q in zip(u, v, strict=True)) / temperature for v in vectors]
        for u in vectors
    ]
    for i, label in enumerate(labels):
        others = [k for k in range(len(labels)) if k != i]
        positives = [k for k in others if labels[k] == label]
        if positives:
            total = math.fsum(math.exp(score[i][k]) for k in others)
            losses.append(
                -sum(math.log(math.exp(score[i][k]) / total) for k in positives) / len(positives)
            )
    return sum(losses) / len(losses)


class TestObjectives:
    def test_an_unknown_one_is_told_which_there_are(self):
        with pytest.raises(TrainingError, match="'tripel'.*paper.*supervised_contrastive"):
            objective("tripel")

    def test_each_is_found_under_its_own_name(self):
        assert {name: objective(name).name for name in OBJECTIVES} == {n: n for n in OBJECTIVES}
        assert not objective("paper").calibrated
        assert objective("supervised_contrastive").unit_length

    @settings(max_examples=60, deadline=None)
    @given(
        values=st.lists(st.floats(0, 50), min_size=8, max_size=8),
        slope=st.floats(0.01, 20),
        offset=st.floats(-20, 20),
    )
    def test_the_papers_loss_stays_above_half_on_dissimilar_pairs(self, values, slope, offset):
        net = SiameseNet(Nothing(), embed_dim=4, normalize=False).double()
        with torch.no_grad():
            net.output.weight.fill_(slope)
            net.output.bias.fill_(offset)
        e = torch.tensor(values, dtype=torch.float64).view(2, 4)
        assert objective("paper").loss(net, e, torch.tensor([0, 1]), 0.0).item() >= 0.5

    def test_the_margin_on_the_raw_distance_can(self, net):
        e = torch.tensor([[0, 0, 0, 0], [0, 0, 2.5, 0]], dtype=torch.float64)
        assert objective("margin").loss(net, e, torch.tensor([0, 1]), 0.0).item() == 0

    def test_given_pairs_are_first_half_against_second_half(self, net):
        e, labels = embeddings(), torch.tensor([0, 0, 1, 0, 1, 1])
        distance = [(e[k] - e[k + 3]).norm().item() for k in range(3)]
        same = [True, False, True]
        score = [1 / (1 + math.exp(-d)) for d in distance]  # w_y = 1, c = 0
        for name, values in (("margin", distance), ("paper", score)):
            expected = sum(
                0.5 * (v**2 if alike else max(0, 2 - v) ** 2)
                for v, alike in zip(values, same, strict=True)
            )
            found = objective(name).loss(net, e, labels, 0.0).item()
            assert found == pytest.approx(expected / 3)

    def test_all_pairs_are_every_pair_with_both_kinds_balanced(self, net):
        e = embeddings()
        cost = {0: [], 1: []}
        for i, j in itertools.combinations(range(6), 2):
            d, k = (e[i] - e[j]).norm().item(), int(LABELS[i] != LABELS[j])
            cost[k].append(0.5 * (d**2 if k == 0 else max(0, 2 - d) ** 2))
        expected = sum(sum(v) / len(v) for v in cost.values()) / 2
        found = objective("margin_all_pairs").loss(net, e, LABELS, 0.7).item()
        assert found == pytest.approx(expected)

    def test_mining_starts_with_all_pairs_and_ends_with_the_hardest_quarter(self, net):
        e = embeddings()
        every, mined = objective("margin_all_pairs").loss, objective("margin_mined").loss
        assert mined(net, e, LABELS, 0.0).item() == pytest.approx(every(net, e, LABELS, 0.0).item())
        cost = {0: [], 1: []}
        for i, j in itertools.combinations(range(6), 2):
            d, k = (e[i] - e[j]).norm().item(), int(LABELS[i] != LABELS[j])
            cost[k].append(0.5 * (d**2 if k == 0 else max(0, 2 - d) ** 2))
        top = {k: sorted(v)[-max(1, round(len(v) / 4)) :] for k, v in cost.items()}
        expected = sum(sum(v) / len(v) for v in top.values()) / 2
        assert mined(net, e, LABELS, 1.0).item() == pytest.approx(expected)

    @pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 0], [0, 1, 1, 1, 1, 1], [3, 1, 1, 3, 2, 4]])
    def test_supervised_contrastive_is_the_written_formula(self, net, labels):
        e = embeddings(unit=True)
        found = objective("supervised_contrastive").loss(net, e, torch.tensor(labels), 0.0)
        assert found.item() == pytest.approx(naive_supcon(e, labels, 0.1), rel=1e-9)

    @pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5]])
    def test_supervised_contrastive_needs_both_kinds_of_pair(self, net, labels):
        e = embeddings(unit=True).requires_grad_()
        loss = objective("supervised_contrastive").loss(net, e, torch.tensor(labels), 0.0)
        loss.backward()
        assert loss.item() == 0
        assert not e.grad.any()

    @settings(max_examples=25, deadline=None)
    @given(
        labels=st.lists(st.integers(0, 3), min_size=2, max_size=12), seed=st.integers(0, 10**6),
        temperature=st.floats(0.05, 1),
    )  # fmt: skip
    def test_supervised_contrastive_is_that_of_pytorch_metric_learning(
        self, labels, seed, temperature
    ):
        drawn = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed)).double()
        e = nn.functional.normalize(drawn, dim=1).requires_grad_()
        classes = torch.tensor(labels)
        values = [
            supervised_contrastive(e, classes, temperature),
            SupConLoss(temperature=temperature)(e, classes),
        ]
        torch.testing.assert_close(*values)
        along = [torch.autograd.grad(value, e, retain_graph=True)[0] for value in values]
        # theirs scales to unit length itself, so that only what lies across an embedding is left
        across = [own - (own * e).sum(dim=1, keepdim=True) * e for own in along]
        torch.testing.assert_close(*across)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_gradients_agree_with_differences(self, net, name):
        goal = objective(name)
        e = embeddings(unit=goal.unit_length).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: goal.loss(net, x, LABELS, 0.5), e)

    @pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if not o.given_pairs])
    def test_the_order_of_a_batch_does_not_matter(self, net, name):
        goal = objective(name)
        e, order = embeddings(unit=goal.unit_length), torch.tensor([3, 5, 0, 1, 4, 2])
        one, other = (goal.loss(net, *x, 0.5) for x in ((e, LABELS), (e[order], LABELS[order])))
        assert one.item() == pytest.approx(other.item())

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_equal_embeddings_give_finite_gradients(self, net, name):
        e = torch.full((6, 4), 0.5, dtype=torch.float64, requires_grad=True)
        objective(name).loss(net, e, LABELS, 0.5).backward()
        assert torch.isfinite(e.grad).all()

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_a_step_along_the_gradient_lowers_the_loss(self, net, name):
        goal = objective(name)
        e = embeddings(unit=goal.unit_length, seed=3).requires_grad_()
        before = goal.loss(net, e, LABELS, 0.0)
        before.backward()
        assert goal.loss(net, e - 1e-3 * e.grad, LABELS, 0.0) < before
