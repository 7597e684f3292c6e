"""Methods that change the shape of experts: slices of the dense MLP, in virtual groups and as shared experts."""

from __future__ import annotations

import pytest
import torch

from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer
from upcycle.model.upcycling import ZERO_GAP, preserves_function, upcycle
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import RunSpec

GATES = ["topk_softmax", "softmax_topk_renormalised"]
MIXTURES = {
    "one group of two": ("fine_grained", {"n_expert": 8, "top_k": 2, "granularity": 2}),
    "two groups of four": ("fine_grained", {"n_expert": 16, "top_k": 8, "granularity": 4}),
    "three groups, an odd root": ("fine_grained", {"n_expert": 32, "top_k": 24, "granularity": 8}),
    "beside copies": ("shared_expert", {"n_expert": 4, "top_k": 2, "shared_expert": 1}),
    "beside one copy": ("shared_expert", {"n_expert": 4, "top_k": 1, "shared_expert": 1}),
    "one slice of four": ("shared_expert", {"n_expert": 16, "top_k": 8, "granularity": 4, "shared_expert": 1}),
    "all slices": ("shared_expert", {"n_expert": 16, "top_k": 4, "granularity": 4, "shared_expert": 4}),
}
every_mixture = pytest.mark.parametrize(("method", "shape"), MIXTURES.values(), ids=MIXTURES)


def upcycled(build, method: str, moe: MoESpec, layers: str = "composed") -> tuple[Transformer, Transformer]:
    """A dense model and the mixture made of it."""
    dense = build()
    mixture = Transformer(dense.model, moe, choose_kernels(dense.model, {"layers": layers}, moe=moe))
    mixture.load_state_dict(upcycle(method, dense.state_dict(), dense.model, moe, seed=3))
    return dense, mixture


def gap(dense: Transformer, mixture: Transformer) -> tuple[float, float]:
    """Largest difference of two logits, and the dense model's largest, on random tokens."""
    ids = torch.randint(0, dense.model.vocab_size, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = dense.logits(ids), mixture.eval().logits(ids)
    return (found - expected).abs().max().item(), expected.abs().max().item()


@every_mixture
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("layers", ["composed", "native"])
def test_logits_are_the_dense_ones(build, method: str, shape: dict, gate: str, layers: str) -> None:
    """Zero in theory, and 1e-5 of the largest logit measured, for every gate whose weights sum to 1."""
    moe = MoESpec(gate=gate, balance_group=1, **shape)
    assert preserves_function(moe)
    found, largest = gap(*upcycled(build, method, moe, layers))
    assert found <= ZERO_GAP * max(largest, 1)


@every_mixture
def test_routed_experts_are_groups_of_slices_with_equal_rows_of_the_router(build, method: str, shape: dict) -> None:
    """Of gate as they are, of up and down times the same root; slices that are also shared, at half of the others'."""
    moe = MoESpec(gate="topk_softmax", **shape)
    dense, mixture = upcycled(build, method, moe)
    G, (mlp, layer) = moe.granularity, (dense.blocks[1].mlp, mixture.blocks[1].moe)
    gate, up = mlp.w_in.chunk(2)
    width = len(gate) // G
    for expert in range(moe.n_expert):
        part = slice(expert % G * width, (expert % G + 1) * width)
        root = (G / (2 if expert % G < moe.shared_expert else 1)) ** 0.5
        found_gate, found_up = layer.w_in[expert].chunk(2)
        assert torch.equal(found_gate, gate[part])
        torch.testing.assert_close(found_up, root * up[part])
        torch.testing.assert_close(layer.w_out[expert], root * mlp.w_out[:, part])
        assert torch.equal(layer.router.weight[expert], layer.router.weight[expert // G * G])
    assert len(torch.unique(layer.router.weight, dim=0)) == moe.n_expert // G


def test_each_token_begins_with_whole_groups(build) -> None:
    moe = MoESpec(n_expert=16, top_k=8, granularity=4)
    _, mixture = upcycled(build, "fine_grained", moe)
    chosen: list[torch.Tensor] = []
    for layer in mixture.mixtures:
        layer.router.register_forward_hook(lambda _, __, logits: chosen.append(logits.topk(8).indices))
    mixture.eval().logits(torch.randint(0, mixture.model.vocab_size, (4, 32)))
    for ids_TK in chosen:
        groups = (ids_TK // 4).sort(-1).values.view(-1, 2, 4)
        assert (groups == groups[..., :1]).all()


def test_softmax_over_all_experts_is_scaled_for_a_router_that_prefers_none(build) -> None:
    """Exact for equal logits, Nemotron's E G^2 / topk in groups E; not for a router that has preferences."""
    moe = MoESpec(n_expert=16, top_k=4, granularity=4, gate="softmax_topk")
    dense, mixture = upcycled(build, "fine_grained", moe)
    assert gap(dense, mixture)[0] > 0.01
    with torch.no_grad():
        for layer in mixture.mixtures:
            layer.router.weight.zero_()
            layer.router.register_forward_hook(lambda _, __, logits: logits + 1e-7 * torch.arange(16).lt(4))
    found, largest = gap(dense, mixture)
    assert found <= 2 * ZERO_GAP * max(largest, 1)


def test_megatrons_cube_root_on_all_three_matrices_is_not_exact_for_swiglu(build) -> None:
    """Why the factor is on up and down alone: SiLU is not homogeneous."""
    moe = MoESpec(n_expert=8, top_k=4, granularity=4)
    dense, mixture = upcycled(build, "fine_grained", moe)
    with torch.no_grad():
        for layer in mixture.mixtures:
            gate, up = layer.w_in.chunk(2, dim=1)
            gate *= 4 ** (1 / 3)
            up *= 4 ** (1 / 3 - 1 / 2)
            layer.w_out *= 4 ** (1 / 3 - 1 / 2)
    assert gap(dense, mixture)[0] > 1e-3


@pytest.mark.parametrize(
    ("method", "shape", "words"),
    [
        ("copy", {"granularity": 2}, "method `copy` makes experts as wide as the dense MLP"),
        ("drop", {"shared_expert": 1}, "with moe.granularity 1 and moe.shared_expert 1 name `fine_grained` or"),
        ("fine_grained", {}, "with granularity 1 and moe.shared_expert 0 name `copy`"),
        ("fine_grained", {"granularity": 2, "shared_expert": 1}, "name `shared_expert`"),
        ("fine_grained", {"granularity": 2, "top_k": 3}, "moe.top_k 3 is no multiple of moe.granularity 2"),
        ("fine_grained", {"granularity": 8, "n_expert": 12, "top_k": 8}, "moe.n_expert 12 is no multiple"),
        ("shared_expert", {}, "moe.shared_expert 0 is not from 1 to moe.granularity 1"),
        ("shared_expert", {"granularity": 2, "shared_expert": 3}, "moe.shared_expert 3 is not from 1 to"),
        ("fine_grained", {"granularity": 3, "n_expert": 9, "top_k": 3}, "granularity 3 does not divide the width"),
    ],
)
def test_a_shape_that_a_method_does_not_make_is_refused(small: ModelSpec, method: str, shape: dict, words: str) -> None:
    fields = {
        "model": small.model_dump(),
        "moe": {"n_expert": 8, "top_k": 2, **shape},
        "data": {"dataset": "x", "vocab_size": 64},
        "optim": {"lr": 1e-3, "batch": 8},
        "schedule": {},
        "end_step": 1,
        "origin": f"upcycle:{method}",
        "dense_parent": "dense-x",
        "parent": "dense-x",
    }
    with pytest.raises(ValueError, match=words):
        RunSpec.model_validate(fields)


def test_ids_name_the_shape_of_experts(small: ModelSpec) -> None:
    assert MoESpec(n_expert=8, top_k=2).slug == "e8k2"
    assert MoESpec(n_expert=32, top_k=8, granularity=4, shared_expert=2).slug == "e32k8g4s2"
    assert MoESpec(n_expert=32, top_k=8, granularity=4, shared_expert=2).shared_width(small) == 64
