"""The same weights under Hugging Face's names give the same logits (float32), and come back bit for bit."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from upcycle.errors import UserError
from upcycle.model.interop import from_hugging_face, hugging_face_config, to_hugging_face
from upcycle.model.kernels import choose_kernels
from upcycle.model.rope import rope_tables
from upcycle.model.transformer import Transformer
from upcycle.model.upcycling import upcycle
from upcycle.study.shape import Gate, ModelSpec, MoESpec

transformers = pytest.importorskip("transformers")

BOUND = 1e-5
"""Of the largest logit."""
GROUPED = {"n_layer": 2, "d_model": 48, "n_head": 6, "n_kv_head": 2, "d_head": 16, "d_mlp": 80, "vocab_size": 97}
LLAMA3 = {"kind": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_context": 16}
SHAPES = {
    "2x64": {"n_layer": 2, "d_model": 64, "n_head": 4, "vocab_size": 128, "context": 48},
    "3x60": {
        "n_layer": 3, "d_model": 120, "n_head": 2, "vocab_size": 97, "context": 32, "d_mlp": 200, "rope_base": 500.0,
        "norm_eps": 1e-3,
    },
    "grouped": GROUPED,
    "grouped, tied": GROUPED | {"tied": True},
    "one head of keys": GROUPED | {"n_kv_head": 1},
    "mistral": GROUPED | {"n_head": 5, "n_kv_head": 5},
    "linear": GROUPED | {"rope_scaling": {"kind": "linear", "factor": 4}},
    "llama3": GROUPED | {"rope_scaling": LLAMA3, "rope_base": 300.0},
    "qwen2": GROUPED | {"qkv_bias": True},
    "qwen3": GROUPED | {"qk_norm": True, "tied": True},
}  # fmt: skip
MODELS = {name: ModelSpec(**{"context": 64} | shape) for name, shape in SHAPES.items()}
every_shape = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
EIGHT_TOP_2 = MoESpec(n_expert=8, top_k=2)


def theirs_of(model: ModelSpec, moe: MoESpec | None = None) -> Any:
    """A model of Hugging Face's class with the configuration, without remote code, as exported."""
    config = hugging_face_config(model, moe)
    (name,) = config["architectures"]
    return getattr(transformers, name)(transformers.AutoConfig.for_model(**config))


def assert_equal_logits(ours: Transformer, theirs: Any, ids: torch.Tensor) -> None:
    with torch.no_grad():
        logits, wanted = ours.eval()(ids).logits_BSV, theirs.eval()(ids).logits
    assert wanted.abs().max() > 0.5
    assert (logits - wanted).abs().max() <= BOUND * wanted.abs().max()


def stirred(model: Any) -> Any:
    """The model with every parameter random, biases and norms too: one that is 0 or 1 would hide a swap."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15, generator=generator)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(0, 0.5, generator=generator)
    return model


@every_shape
@pytest.mark.parametrize("attention", ["sdpa", "plain"])
def test_dense_logits_equal_those_of_hugging_faces_class(batch, model: ModelSpec, attention: str) -> None:
    theirs = stirred(theirs_of(model))
    ours = Transformer(model, None, choose_kernels(model, {"layers": "composed", "attention": attention}))
    ours.load_state_dict(from_hugging_face(theirs.state_dict(), model))
    assert_equal_logits(ours, theirs, batch(model, sequences=2)[0])


@pytest.mark.parametrize("name", ["3x60", "linear", "llama3"])
def test_rotary_angles_are_hugging_faces_to_the_last_bit(name: str) -> None:
    """Where the base is not the paper's: an error in the last bit of a frequency would grow with the position."""
    model = MODELS[name].model_copy(update={"rope_base": 1e5})
    rotary, positions = theirs_of(model).model.rotary_emb, torch.arange(5000)[None]
    wanted, _ = rotary(torch.zeros(1), positions)
    cos, _ = rope_tables(5000, model.head_dim, model.rope_base, torch.device("cpu"), model.rope_scaling)
    assert torch.equal(cos[:, 0], wanted[0])


@every_shape
def test_tensors_come_back_bit_for_bit(model: ModelSpec) -> None:
    """Theirs to ours to theirs; of a tied model without the head, which is no tensor of its own in a file."""
    theirs = dict(stirred(theirs_of(model)).named_parameters())
    ours = from_hugging_face(theirs, model)
    back = to_hugging_face(ours, model)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    assert all(torch.equal(weight, ours[name]) for name, weight in from_hugging_face(back, model).items())


def test_a_mistral_is_read_as_a_llama(batch) -> None:
    model = MODELS["grouped"]
    config = hugging_face_config(model) | {"sliding_window": None}
    kept = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    mistral = stirred(transformers.MistralForCausalLM(transformers.MistralConfig(**kept)))
    ours = Transformer(model)
    ours.load_state_dict(from_hugging_face(mistral.state_dict(), model))
    assert_equal_logits(ours, mistral, batch(model, sequences=2)[0])


@every_shape
@pytest.mark.parametrize("gate", [gate for gate in get_args(Gate) if "sigmoid" not in gate])
def test_logits_of_a_mixture_equal_those_of_hugging_faces_class(build, batch, model: ModelSpec, gate: str) -> None:
    moe = MoESpec(n_expert=8, top_k=2, gate=gate)
    ours, theirs = stirred(build(model, moe)), theirs_of(model, moe)
    theirs.load_state_dict(to_hugging_face(ours.state_dict(), model, moe), strict=not model.tied)
    theirs.tie_weights()
    assert_equal_logits(ours, theirs, batch(model, sequences=2)[0])


@pytest.mark.parametrize(("name", "shared", "kind"), [("3x60", 0, "mixtral"), ("3x60", 2, "qwen2_moe")])
def test_the_shape_of_experts_is_hugging_faces(build, batch, name: str, shared: int, kind: str) -> None:
    """Experts of half width; Qwen2Moe's gate of the shared ones is 1/2 everywhere, so theirs is twice ours."""
    model = MODELS[name]
    moe = MoESpec(n_expert=8, top_k=4, granularity=2, shared_expert=shared)
    assert hugging_face_config(model, moe)["model_type"] == kind
    ours, theirs = stirred(build(model, moe)), theirs_of(model, moe)
    theirs.load_state_dict(to_hugging_face(ours.state_dict(), model, moe))
    assert_equal_logits(ours, theirs, batch(model, sequences=2)[0])


def test_shared_experts_with_norms_of_heads_are_refused() -> None:
    with pytest.raises(UserError, match="Qwen3Moe no shared expert"):
        hugging_face_config(MODELS["qwen3"], MoESpec(n_expert=8, top_k=2, shared_expert=1))


@every_shape
def test_after_upcycling_the_logits_are_still_the_dense_models(batch, model: ModelSpec) -> None:
    """Eight experts, top-2: each a copy of the MLP, so the mixture computes what Hugging Face's dense model does."""
    theirs = stirred(theirs_of(model))
    dense = from_hugging_face(theirs.state_dict(), model)
    mixture = Transformer(model, EIGHT_TOP_2, choose_kernels(model))
    mixture.load_state_dict(upcycle("copy", dense, model, EIGHT_TOP_2, seed=1))
    assert_equal_logits(mixture, theirs, batch(model, sequences=2)[0])


@pytest.mark.parametrize("moe", [None, EIGHT_TOP_2])
def test_what_no_class_holds_is_refused(moe: MoESpec | None) -> None:
    model = MODELS["qwen3"].model_copy(update={"qkv_bias": True})
    for refused in (lambda: hugging_face_config(model, moe), lambda: to_hugging_face({}, model, moe)):
        with pytest.raises(UserError, match="qkv_bias with qk_norm has no Hugging Face form"):
            refused()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"bias_rate": 1e-3}, "moe.bias_rate"), ({"gate": "sigmoid_topk_renormalised"}, "moe.gate sigmoid_topk")],
)
def test_a_router_that_no_class_has_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    moe = MoESpec.model_validate({"n_expert": 8, "top_k": 2} | change)
    with pytest.raises(UserError, match=f"{words}.* has no Hugging Face form"):
        hugging_face_config(MODELS["grouped"], moe)


def test_a_tensor_that_is_missing_or_of_another_shape_is_named() -> None:
    model = MODELS["grouped"]
    tensors = theirs_of(model).state_dict()
    name = "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(UserError, match=rf"{name} is \(32, 47\), wanted \(32, 48\)"):
        from_hugging_face(tensors | {name: torch.zeros(32, 47)}, model)
    del tensors[name]
    with pytest.raises(UserError, match=rf"{name} is missing, wanted \(32, 48\)"):
        from_hugging_face(tensors, model)
