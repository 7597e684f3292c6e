"""Counts by formula equal the parameters of the built modules, and Table 3's."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.counting import (
    ParameterCounts,
    count_parameters,
    flops_6nd,
    flops_per_token,
    n1,
    n2,
    n_total,
)
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import DataSpec, OptimSpec, RunSpec, ScheduleSpec

TABLE_3 = {
    "15M": (9, 320, 4, 14_751_680, 92_189_120),
    "44M": (12, 480, 8, 44_248_800, 276_538_080),
    "0.1B": (15, 640, 8, 98_323_840, 614_496_640),
    "0.2B": (21, 832, 8, 232_623_040, 1_453_845_952),
    "0.5B": (26, 1120, 16, 521_889_760, 3_261_732_320),
    "1B": (30, 1504, 16, 1_085_859_424, 6_786_500_704),
}
EIGHT_TOP_2 = MoESpec(n_expert=8, top_k=2)
FINE = MoESpec(n_expert=32, top_k=8, granularity=4, shared_expert=2)
SHAPES = [
    ModelSpec(n_layer=n, d_model=d, n_head=h, vocab_size=32_000, context=1024) for n, d, h, *_ in TABLE_3.values()
]
ODD = ModelSpec(n_layer=3, d_model=24, n_head=2, vocab_size=50, context=16, d_mlp=56)
GROUPED = ModelSpec(
    n_layer=3, d_model=24, n_head=6, n_kv_head=2, d_head=8, d_mlp=40, tied=True, qkv_bias=True, qk_norm=True,
    vocab_size=50, context=16,
)  # fmt: skip


def built_counts(model: ModelSpec, moe: MoESpec | None) -> ParameterCounts:
    """Group the numbers of elements of a model built without memory."""
    with torch.device("meta"):
        sizes = {name: weight.numel() for name, weight in Transformer(model, moe).named_parameters()}

    def group(*parts: str) -> int:
        return sum(sizes.pop(name) for name in list(sizes) if any(part in name for part in parts))

    router, norm, bias = group(".router.weight"), group("norm."), group(".bqkv")
    shared = group(".moe.shared.")
    mlp = group(".mlp.", ".moe.")
    counts = ParameterCounts(
        embedding=group("embed."),
        head=group("head."),
        attention=group(".attn."),
        bias=bias,
        mlp=mlp + shared,
        mlp_active=mlp * moe.top_k // moe.n_expert + shared if moe else mlp,
        router=router,
        norm=norm,
    )
    assert not sizes, f"in no group: {sizes}"
    return counts


@pytest.mark.parametrize("moe", [None, EIGHT_TOP_2, FINE, MoESpec(n_expert=4, top_k=1, gate="softmax_topk")])
@pytest.mark.parametrize("model", [*SHAPES, ODD, GROUPED], ids=[*TABLE_3, "odd", "grouped"])
def test_formula_equals_built_module_in_every_group(model: ModelSpec, moe: MoESpec | None) -> None:
    assert count_parameters(model, moe) == built_counts(model, moe)


@pytest.mark.parametrize("name", TABLE_3)
def test_built_modules_have_table_3s_non_embedding_counts_exactly(name: str) -> None:
    n_layer, d_model, n_head, dense, total = TABLE_3[name]
    model = ModelSpec(n_layer=n_layer, d_model=d_model, n_head=n_head, vocab_size=32_000, context=1024)
    assert built_counts(model, None).non_embedding == dense
    assert built_counts(model, EIGHT_TOP_2).non_embedding == total


def test_sizes_of_the_laws_are_equations_4_to_6():
    model = ModelSpec(n_layer=3, d_model=32, n_head=2, vocab_size=100, context=64)
    moe = MoESpec(n_expert=8, top_k=2)
    assert n1(model) == 16 * 3 * 32**2
    assert n2(model, moe) == (4 + 12 * 2) * 3 * 32**2
    assert n_total(model, moe) == (4 + 12 * 8) * 3 * 32**2


def test_sizes_count_experts_in_units_of_the_dense_mlp():
    """32 quarter-width experts of which a token uses 8 are 8 and 2; two shared ones are half a dense MLP more."""
    model = ModelSpec(n_layer=3, d_model=32, n_head=2, vocab_size=100, context=64)
    plain, fine = EIGHT_TOP_2, FINE.model_copy(update={"shared_expert": 0})
    assert (n2(model, fine), n_total(model, fine)) == (n2(model, plain), n_total(model, plain))
    assert n2(model, FINE) == (4 + 12 * 2.5) * 3 * 32**2
    assert n_total(model, FINE) == (4 + 12 * 8.5) * 3 * 32**2


def test_sizes_of_any_shape_are_the_matrices_of_attention_and_mlps() -> None:
    """Queries 48, keys and values 16 each, output 48, MLP 3 x 40; biases, norms, router and vocabulary are none."""
    moe = MoESpec(n_expert=8, top_k=2)
    attention, mlp = 3 * 24 * (48 + 16 + 16 + 48), 3 * 24 * 3 * 40
    assert n1(GROUPED) == attention + mlp
    assert n2(GROUPED, moe) == attention + 2 * mlp
    assert n_total(GROUPED, moe) == attention + 8 * mlp


def test_flops_of_a_tied_head_and_of_shared_keys_are_done_like_others() -> None:
    """The head's product is done though its matrix is the embedding's; every query meets every key."""
    keys = 2 * 2 * 48 * (16 / 2) * 3
    assert flops_per_token(GROUPED) == 6 * (n1(GROUPED) + 24 * 50) + 3 * keys


@pytest.mark.parametrize("moe", [None, EIGHT_TOP_2, FINE], ids=["dense", "moe", "fine"])
def test_flops_are_those_of_the_products_done(moe: MoESpec | None) -> None:
    """Counted by torch, forward and backward. Plain attention does scores of future keys too: twice the formula's."""
    model = Transformer(GROUPED, moe, choose_kernels(GROUPED, {"attention": "plain", "experts": "loop"}))
    init_weights(model, seed=0)
    ids = torch.randint(0, 50, (8, 17))
    with FlopCounterMode(display=False) as counter:
        output = model(ids[:, :-1], ids[:, 1:])
        (output.loss + output.balance).backward()
    future = 3 * 2 * 2 * 48 * (16 / 2) * 3
    assert counter.get_total_flops() / (8 * 16) == flops_per_token(GROUPED, moe) + future


def test_flops_of_a_token_are_six_a_weight_and_half_the_context_of_attention():
    """A layer: 24 d^2 for attention's matrices, 72 d^2 for SwiGLU's, 12 d a key; 6 d V for the head."""
    L, d, V, context = 3, 32, 100, 64
    model = ModelSpec(n_layer=L, d_model=d, n_head=2, vocab_size=V, context=context)
    assert flops_per_token(model) == L * (24 * d**2 + 72 * d**2 + 12 * d * context / 2) + 6 * d * V


def test_6nd_counts_the_tokens_of_the_segment():
    model = ModelSpec(n_layer=3, d_model=32, n_head=2, vocab_size=100, context=64)
    run = RunSpec(
        model=model, data=DataSpec(dataset="english", vocab_size=100), optim=OptimSpec(lr=1e-3, batch=4),
        schedule=ScheduleSpec(), role="decay", start_step=90, end_step=100, parent="trunk",
    )  # fmt: skip
    assert flops_6nd(run) == 6 * count_parameters(model).active * 10 * 4 * 64
