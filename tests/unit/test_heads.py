"""Heads: the pooled one in closed form, any other by its own graph; both to the definition."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siamcam_lib.heads import PooledHead, PooledSeen, Seen, TracedSeen

E, K, H, W = 7, 5, 3, 4  # sizes that no two axes share


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def definition(embedding: Tensor, leaf: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Grad-CAM's channel weights and map of ⟨v, e⟩, to the letter: one image, one backward pass."""
    weights, maps = [], []
    for i in range(len(leaf)):
        (gradient,) = torch.autograd.grad(embedding[i] @ v[i], leaf, retain_graph=True)
        weights.append(gradient[i].mean(dim=(1, 2)))
        maps.append((weights[-1][:, None, None] * leaf[i].detach()).sum(dim=0))
    return torch.stack(weights), torch.stack(maps)


POOLED = {
    "identity": PooledHead(None, None, relu=False),
    "identity, rectified": PooledHead(None, None, relu=True),
    "identity, bias": PooledHead(None, drawn(K, seed=1), relu=True),
    "linear": PooledHead(drawn(E, K), None, relu=False),
    "linear, bias": PooledHead(drawn(E, K), drawn(E, seed=1), relu=False),
    "rectified": PooledHead(drawn(E, K), drawn(E, seed=1), relu=True),
    "all off": PooledHead(drawn(E, K), torch.full((E,), -1e6).double(), relu=True),
    "all on": PooledHead(drawn(E, K), torch.full((E,), 1e3).double(), relu=True),
}


def written_out(head: PooledHead, leaf: Tensor) -> Tensor:
    """The head's embedding, as torch would have it."""
    g = leaf.mean(dim=(2, 3))
    if head.weight is not None:
        g = F.linear(g, head.weight.to(g))
    g = g if head.bias is None else g + head.bias.to(g)
    return torch.relu(g) if head.relu else g


def attention(A: Tensor) -> Tensor:
    tokens = A.flatten(2)  # (n, K, Z)
    return (tokens * tokens.sum(dim=1, keepdim=True).softmax(dim=-1)).sum(dim=-1)


def gem(A: Tensor) -> Tensor:
    return A.abs().clamp_min(1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)


MIX = drawn(E, K, seed=5)
OTHERS = {
    "max": lambda A: A.amax(dim=(2, 3)) @ MIX.to(A).T,
    "adaptive max": lambda A: F.adaptive_max_pool2d(A, 1).flatten(1),
    "generalised mean": lambda A: gem(A) @ MIX.to(A).T,
    "attention": attention,
    "unit length": lambda A: F.normalize(A.mean(dim=(2, 3)) @ MIX.to(A).T, dim=-1),
    "layer norm": lambda A: F.layer_norm(A.mean(dim=(2, 3)) @ MIX.to(A).T, (E,)),
    "four bins": lambda A: F.adaptive_avg_pool2d(A, 2).flatten(1),
    "second order": lambda A: torch.einsum("nkhw,nlhw->nkl", A, A).flatten(1),
    "convolution": lambda A: F.conv2d(A, MIX.to(A)[:, :, None, None]).relu().mean(dim=(2, 3)),
    "largest three": lambda A: A.flatten(2).topk(3, dim=-1).values.mean(dim=-1),
    "ignores the map": lambda A: A.mean(dim=(2, 3)) * 0,
}


def traced(head, A: Tensor) -> TracedSeen:
    with torch.enable_grad():
        leaf = A.clone().requires_grad_()
        return TracedSeen(leaf, head(leaf))


class TestPooledHead:
    @pytest.mark.parametrize("name", POOLED)
    def test_embedding(self, name):
        A = drawn(4, K, H, W, seed=2)
        found = POOLED[name].embed(A)
        torch.testing.assert_close(found, written_out(POOLED[name], A), rtol=1e-13, atol=1e-13)

    def test_float32_maps_are_added_up_in_float64(self):
        """Ten thousand values beside one large one: float32 sums would lose them."""
        A = torch.full((1, 1, 100, 100), 1e-3)
        A[0, 0, 0, 0] = 1e6
        found = PooledHead(relu=False).embed(A)
        assert found.dtype == torch.float64
        expected = (1e6 + 9999 * float(A[0, 0, 0, 1])) / 1e4
        assert float(found) == pytest.approx(expected, rel=1e-14)

    def test_a_batch_is_its_images(self):
        A, head = drawn(5, K, H, W), POOLED["rectified"]
        one_by_one = torch.cat([head.embed(A[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(head.embed(A), one_by_one, rtol=1e-14, atol=1e-15)

    def test_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            POOLED["linear"].relu = True


@pytest.mark.parametrize("name", POOLED)
class TestPooledSeen:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_weights_and_maps_are_the_definition(self, name, dtype):
        A = drawn(4, K, H, W, seed=2).to(dtype)
        head = POOLED[name]
        seen = PooledSeen(A, head)
        v = drawn(4, seen.embedding.shape[1], seed=3)
        leaf = A.double().requires_grad_()
        weights, maps = definition(written_out(head, leaf), leaf, v)
        every = torch.arange(4)
        found = seen.along(every, v)
        assert found.dtype == seen.weights(every, v).dtype == torch.float64
        torch.testing.assert_close(seen.weights(every, v), weights, rtol=1e-12, atol=1e-14)
        scale = max(float(maps.abs().max()), 1)
        torch.testing.assert_close(found, maps, rtol=0, atol=1e-13 * scale)

    def test_projected_maps_add_up_to_the_embedding_less_its_bias(self, name):
        head, A = POOLED[name], drawn(4, K, H, W, seed=2)
        seen = PooledSeen(A, head)
        projected = seen.project()
        bias = torch.zeros(()) if head.bias is None else head.bias
        active = (seen.embedding > 0) if head.relu else torch.ones_like(seen.embedding)
        expected = seen.embedding - active * bias
        scale = float(expected.abs().max()) + float(bias.abs().max()) * bool(active.any())
        gap = (projected.maps.sum(dim=(2, 3)) - expected).abs().max()
        assert float(gap) <= 3e-7 * scale

    def test_projected_maps_along_a_direction_are_the_maps(self, name):
        seen = PooledSeen(drawn(4, K, H, W, seed=2), POOLED[name])
        check_projection(seen, tolerance=1e-6)

    def test_rows_repeat_and_come_in_any_order(self, name):
        check_rows(PooledSeen(drawn(4, K, H, W, seed=2), POOLED[name]))

    def test_is_linear_in_the_direction(self, name):
        seen, every = PooledSeen(drawn(4, K, H, W), POOLED[name]), torch.arange(4)
        v, w = (drawn(4, seen.embedding.shape[1], seed=s) for s in (1, 2))
        both = 2 * seen.along(every, v) - seen.along(every, w)
        torch.testing.assert_close(seen.along(every, 2 * v - w), both)


@pytest.mark.parametrize("name", OTHERS)
class TestTracedSeen:
    def test_weights_and_maps_are_the_definition(self, name):
        seen = traced(OTHERS[name], drawn(4, K, H, W, seed=2))
        v = drawn(4, seen.embedding.shape[1], seed=3)
        weights, maps = definition(seen.output, seen.leaf, v)
        every = torch.arange(4)
        torch.testing.assert_close(seen.weights(every, v), weights, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(seen.along(every, v), maps, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("at_once", [1, 3, 16, 1000])
    def test_projected_maps_along_a_direction_are_the_maps(self, name, at_once):
        check_projection(traced(OTHERS[name], drawn(3, K, H, W, seed=2)), 1e-6, at_once)

    def test_rows_repeat_and_come_in_any_order(self, name):
        check_rows(traced(OTHERS[name], drawn(4, K, H, W, seed=2)))

    def test_float32_is_float64_but_for_rounding(self, name):
        A = drawn(4, K, H, W, seed=2).float()
        single, double = (traced(OTHERS[name], x) for x in (A, A.double()))
        v, every = drawn(4, single.embedding.shape[1], seed=3), torch.arange(4)
        truth = double.along(every, v)
        gap = (single.along(every, v) - truth).abs().max()
        assert single.embedding.dtype == torch.float64
        assert float(gap) <= 1e-6 * max(float(truth.abs().max()), 1e-30)

    def test_can_be_asked_again_and_in_any_mode(self, name):
        seen, every = traced(OTHERS[name], drawn(4, K, H, W, seed=2)), torch.arange(4)
        v = drawn(4, seen.embedding.shape[1], seed=3)
        first, projected = seen.along(every, v), seen.project()
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                assert torch.equal(seen.along(every, v), first)
                assert torch.equal(seen.project().maps, projected.maps)

    def test_results_carry_no_graph_and_leave_no_gradient(self, name):
        seen, every = traced(OTHERS[name], drawn(4, K, H, W, seed=2)), torch.arange(4)
        v = drawn(4, seen.embedding.shape[1], seed=3)
        projected = seen.project()
        for found in (
            seen.along(every, v), seen.weights(every, v), projected.maps, projected.embedding,
            seen.maps, seen.embedding,
        ):  # fmt: skip
            assert not found.requires_grad
        assert seen.leaf.grad is None


@pytest.mark.parametrize("name", POOLED)
def test_closed_form_and_graph_agree_where_both_exist(name):
    """The pooled heads through the graph: the same numbers by the other way."""
    A, every, head = drawn(4, K, H, W, seed=2), torch.arange(4), POOLED[name]
    closed, graph = PooledSeen(A, head), traced(lambda x: written_out(head, x), A)
    v = drawn(4, closed.embedding.shape[1], seed=3)
    torch.testing.assert_close(graph.embedding, closed.embedding, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        graph.along(every, v), closed.along(every, v), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(graph.project().maps, closed.project().maps, rtol=1e-5, atol=1e-6)


def check_projection(seen: Seen, tolerance: float, *at_once: int) -> None:
    """⟨P(p), v⟩ is the map along v: P holds every direction."""
    n, every = len(seen.maps), torch.arange(len(seen.maps))
    projected = seen.project(*at_once)
    assert projected.maps.dtype == projected.embedding.dtype == torch.float32
    assert projected.maps.shape == (n, seen.embedding.shape[1], *seen.maps.shape[2:])
    torch.testing.assert_close(projected.embedding, seen.embedding.float(), rtol=0, atol=0)
    v = drawn(*seen.embedding.shape, seed=7)
    terms = projected.maps.double() * v[:, :, None, None]
    gap = (terms.sum(dim=1) - seen.along(every, v)).abs()
    assert float(gap.max()) <= tolerance * float(terms.abs().sum(dim=1).max())


def check_rows(seen: Seen) -> None:
    """Asking for (2, 0, 2, 2, 3) with five directions gives what asking one by one gives."""
    rows = torch.tensor([2, 0, 2, 2, 3])
    v = drawn(5, seen.embedding.shape[1], seed=8)
    found = seen.along(rows, v)
    assert found.shape == (5, *seen.maps.shape[2:])
    for k in range(5):
        alone = seen.along(rows[k : k + 1], v[k : k + 1])[0]
        torch.testing.assert_close(found[k], alone, rtol=1e-13, atol=1e-15)
    assert seen.along(rows[:0], v[:0]).shape == (0, *seen.maps.shape[2:])


class TestPieces:
    def test_a_seen_knows_not_how(self):
        with pytest.raises(NotImplementedError):
            Seen().weights(torch.arange(1), drawn(1, 2))
        with pytest.raises(NotImplementedError):
            Seen().project()

    def test_a_unit_that_is_off_gives_nothing(self):
        bias = torch.zeros(E).double()
        bias[3] = -1e6
        seen = PooledSeen(drawn(2, K, H, W), PooledHead(drawn(E, K), bias, relu=True))
        v = torch.zeros(2, E).double()
        v[:, 3] = 1
        assert (seen.along(torch.arange(2), v) == 0).all()
        assert (seen.project().maps[:, 3] == 0).all()

    def test_a_unit_at_exactly_zero_is_off(self):
        """As torch has it: the derivative of the ReLU at 0 is 0."""
        head = PooledHead(torch.zeros(1, K).double(), torch.zeros(1).double(), relu=True)
        leaf = drawn(1, K, H, W).requires_grad_()
        weights, _ = definition(written_out(head, leaf), leaf, torch.ones(1, 1).double())
        seen = PooledSeen(leaf.detach(), head)
        assert torch.equal(seen.weights(torch.arange(1), torch.ones(1, 1).double()), weights)

    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
    def test_a_map_of_one_row_or_place(self, size):
        A = drawn(2, K, *size)
        check_projection(PooledSeen(A, POOLED["rectified"]), 1e-6)
        check_projection(traced(OTHERS["max"], A), 1e-6)

    def test_a_traced_module_keeps_its_parameters_free_of_gradients(self):
        head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(K, E)).double()
        seen = traced(head, drawn(3, K, H, W))
        seen.project()
        seen.along(torch.arange(3), drawn(3, E))
        assert all(p.grad is None for p in head.parameters())
