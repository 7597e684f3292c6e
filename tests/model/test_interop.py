"""The same weights under Hugging Face's names give the same logits (float32, 1e-5)."""

from __future__ import annotations

import pytest
import torch

from upcycle.errors import UserError
from upcycle.model.interop import hugging_face_config, to_hugging_face
from upcycle.study.shape import ModelSpec, MoESpec

transformers = pytest.importorskip("transformers")

SHAPES = {
    "2x64": ModelSpec(n_layer=2, d_model=64, n_head=4, vocab_size=128, context=48),
    "3x60": ModelSpec(
        n_layer=3, d_model=120, n_head=2, vocab_size=97, context=32, d_mlp=200, rope_base=500.0, norm_eps=1e-3
    ),
}
every_shape = pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES)


def largest_gap(ours: torch.nn.Module, theirs: torch.nn.Module, ids: torch.Tensor) -> float:
    theirs.load_state_dict(to_hugging_face(ours.state_dict()))
    with torch.no_grad():
        logits = ours.eval()(ids).logits_BSV
        assert logits.abs().max() > 0.5
        return (logits - theirs.eval()(ids).logits).abs().max().item()


@every_shape
def test_dense_logits_equal_llamas(build, batch, model: ModelSpec) -> None:
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hugging_face_config(model)))
    assert largest_gap(build(model), llama, batch(model, sequences=2)[0]) <= 1e-5


@every_shape
@pytest.mark.parametrize("gate", ["topk_softmax", "softmax_topk_renormalised"])
def test_moe_logits_equal_mixtrals(build, batch, model: ModelSpec, gate: str) -> None:
    moe = MoESpec(n_expert=8, top_k=2, gate=gate)
    mixtral = transformers.MixtralForCausalLM(transformers.MixtralConfig(**hugging_face_config(model, moe)))
    assert largest_gap(build(model, moe), mixtral, batch(model, sequences=2)[0]) <= 1e-5


def test_a_gate_that_mixtral_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="softmax_topk has no Hugging Face form"):
        hugging_face_config(SHAPES["2x64"], MoESpec(n_expert=8, top_k=2, gate="softmax_topk"))
