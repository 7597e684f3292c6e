"""Counts by formula equal the parameters of the built modules, and Table 3's."""

from __future__ import annotations

import pytest
import torch

from upcycle.model.transformer import Transformer
from upcycle.study.counting import ParameterCounts, count_parameters
from upcycle.study.spec import ModelSpec, MoESpec

TABLE_3 = {
    "15M": (9, 320, 4, 14_751_680, 92_189_120),
    "44M": (12, 480, 8, 44_248_800, 276_538_080),
    "0.1B": (15, 640, 8, 98_323_840, 614_496_640),
    "0.2B": (21, 832, 8, 232_623_040, 1_453_845_952),
    "0.5B": (26, 1120, 16, 521_889_760, 3_261_732_320),
    "1B": (30, 1504, 16, 1_085_859_424, 6_786_500_704),
}
EIGHT_TOP_2 = MoESpec(n_expert=8, top_k=2)
SHAPES = [
    ModelSpec(n_layer=n, d_model=d, n_head=h, vocab_size=32_000, context=1024) for n, d, h, *_ in TABLE_3.values()
]
ODD = ModelSpec(n_layer=3, d_model=24, n_head=2, vocab_size=50, context=16, d_mlp=56)


def built_counts(model: ModelSpec, moe: MoESpec | None) -> ParameterCounts:
    """Group the numbers of elements of a model built without memory."""
    with torch.device("meta"):
        sizes = {name: weight.numel() for name, weight in Transformer(model, moe).named_parameters()}

    def group(*parts: str) -> int:
        return sum(sizes.pop(name) for name in list(sizes) if any(part in name for part in parts))

    router = group(".router.weight")
    mlp = group(".mlp.", ".moe.")
    counts = ParameterCounts(
        embedding=group("embed."),
        head=group("head."),
        attention=group(".attn."),
        mlp=mlp,
        mlp_active=mlp * moe.top_k // moe.n_expert if moe else mlp,
        router=router,
        norm=group("norm."),
    )
    assert not sizes, f"in no group: {sizes}"
    return counts


@pytest.mark.parametrize("moe", [None, EIGHT_TOP_2, MoESpec(n_expert=4, top_k=1, gate="softmax_topk")])
@pytest.mark.parametrize("model", [*SHAPES, ODD], ids=[*TABLE_3, "odd"])
def test_formula_equals_built_module_in_every_group(model: ModelSpec, moe: MoESpec | None) -> None:
    assert count_parameters(model, moe) == built_counts(model, moe)


@pytest.mark.parametrize("name", TABLE_3)
def test_built_modules_have_table_3s_non_embedding_counts_exactly(name: str) -> None:
    n_layer, d_model, n_head, dense, total = TABLE_3[name]
    model = ModelSpec(n_layer=n_layer, d_model=d_model, n_head=n_head, vocab_size=32_000, context=1024)
    assert built_counts(model, None).non_embedding == dense
    assert built_counts(model, EIGHT_TOP_2).non_embedding == total
