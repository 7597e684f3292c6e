"""The decoder: initial weights, causality, positions, precision, and a 1-expert MoE against dense."""

from __future__ import annotations

import math

import pytest
import torch

from upcycle.model.kernels import choose_kernels
from upcycle.model.rope import rope_tables, rotate
from upcycle.model.transformer import Transformer, init_weights, normal
from upcycle.study.shape import ModelSpec, MoESpec, RopeScaling

EIGHT_TOP_2 = MoESpec(n_expert=8, top_k=2)
BOTH = pytest.mark.parametrize("moe", [None, EIGHT_TOP_2], ids=["dense", "moe"])


def initial(model: ModelSpec, moe: MoESpec | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    transformer = Transformer(model, moe)
    init_weights(transformer, seed)
    return transformer.state_dict()


# --- initial weights

WIDE = ModelSpec(n_layer=3, d_model=96, n_head=2, vocab_size=256, context=8, init_std=0.05)
MATRIX, OUTPUT, ROUTER = 0.05, 0.05 / math.sqrt(6), math.sqrt(2 / (5 * 96))
DENSE_STDS = {"embed.weight": MATRIX, "head.weight": MATRIX, "attn.wqkv": MATRIX, "attn.wo": OUTPUT}
DENSE_STDS |= {"mlp.w_in": MATRIX, "mlp.w_out": OUTPUT}
MOE_STDS = {"moe.w_in": MATRIX, "moe.w_out": OUTPUT, "moe.router.weight": ROUTER}


@pytest.mark.parametrize(("suffix", "std"), [*DENSE_STDS.items(), *MOE_STDS.items()])
def test_each_matrix_has_the_mean_and_std_of_the_init_table(suffix: str, std: float) -> None:
    """Within five standard errors of the sample mean and standard deviation, in every layer and expert."""
    state = initial(WIDE, EIGHT_TOP_2 if suffix in MOE_STDS else None)
    weights = [weight for name, weight in state.items() if name.endswith(suffix)]
    assert weights
    for weight in weights:
        for matrix in weight if weight.dim() == 3 else [weight]:
            assert matrix.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * matrix.numel()))
            assert abs(matrix.mean().item()) < 5 * std / math.sqrt(matrix.numel())


def test_defaults_are_table_5s_std_and_plain_output_init_is_not_scaled() -> None:
    plain = ModelSpec(n_layer=3, d_model=96, n_head=2, vocab_size=256, context=8, output_init="plain")
    assert initial(plain)["blocks.0.mlp.w_out"].std().item() == pytest.approx(math.sqrt(2 / (5 * 96)), rel=0.02)


def test_a_given_router_std_is_taken() -> None:
    moe = MoESpec(n_expert=8, top_k=2, router_std=0.5)
    assert initial(WIDE, moe)["blocks.1.moe.router.weight"].std().item() == pytest.approx(0.5, rel=0.15)


def test_every_norm_starts_at_one() -> None:
    norms = [weight for name, weight in initial(WIDE).items() if "norm" in name]
    assert len(norms) == 2 * WIDE.n_layer + 1
    assert all(torch.equal(norm, torch.ones(WIDE.d_model)) for norm in norms)


def test_a_tied_model_has_one_matrix_for_embedding_and_head() -> None:
    """In its parameters and in the state that files hold; biases start at zero, norms of heads at one."""
    state = initial(WIDE.model_copy(update={"tied": True, "n_kv_head": 1, "qkv_bias": True, "qk_norm": True}))
    assert torch.equal(state["embed.weight"], initial(WIDE)["embed.weight"])
    assert "head.weight" not in state
    assert torch.equal(state["blocks.1.attn.bqkv"], torch.zeros(4 * 48))
    assert torch.equal(state["blocks.1.attn.q_norm.weight"], torch.ones(48))


def test_a_weight_depends_on_its_name_and_the_seed_alone() -> None:
    """Not on the layers or experts around it, nor on torch's global generator, which is left alone."""
    before = torch.random.get_rng_state()
    state = initial(WIDE)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(123)
    deeper = initial(WIDE.model_copy(update={"n_layer": 4, "output_init": "plain"}), EIGHT_TOP_2)
    for name in ("embed.weight", "head.weight", "blocks.2.attn.wqkv"):
        assert torch.equal(state[name], deeper[name])
    assert not torch.equal(state["blocks.1.attn.wqkv"], state["blocks.2.attn.wqkv"])
    assert not torch.equal(state["embed.weight"], initial(WIDE, seed=1)["embed.weight"])


def test_expert_0_starts_as_the_dense_mlp_and_the_others_differ() -> None:
    dense, moe = initial(WIDE), initial(WIDE, EIGHT_TOP_2)
    for matrix in ("w_in", "w_out"):
        experts = moe[f"blocks.1.moe.{matrix}"]
        assert torch.equal(experts[0], dense[f"blocks.1.mlp.{matrix}"])
        assert len({expert.sum().item() for expert in experts}) == 8
    fewer = initial(WIDE, MoESpec(n_expert=4, top_k=2))
    assert torch.equal(moe["blocks.1.moe.w_in"][:4], fewer["blocks.1.moe.w_in"])


def test_initial_numbers_are_normal() -> None:
    """Quantiles of a large draw, within five standard errors."""
    draw = normal((100_000,), 2.0, "any", 0) / 2
    for quantile, share in ((-1.0, 0.158655), (0.0, 0.5), (2.0, 0.977250)):
        assert (draw < quantile).float().mean().item() == pytest.approx(
            share, abs=5 * math.sqrt(share * (1 - share) / 1e5)
        )


# --- forward


@BOTH
def test_logits_depend_on_no_later_token(build, batch, moe) -> None:
    """A changed token moves its own position's logits and no earlier one's."""
    model, (ids, _) = build(moe=moe).eval(), batch(sequences=3)
    changed = ids.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 64
    with torch.no_grad():
        gap = (model(ids).logits_BSV - model(changed).logits_BSV).abs().amax(dim=(0, 2))
    assert gap[:20].max() <= 1e-6
    assert gap[20] > 1e-2


def test_sequences_of_a_batch_do_not_see_each_other(build, batch) -> None:
    model, (ids, _) = build(moe=EIGHT_TOP_2).eval(), batch(sequences=3)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits_BSV[1:2], model(ids[1:2]).logits_BSV)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    """RoPE: q at s against k at t equals q at s + 9 against k at t + 9; and position 0 is not turned."""
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 40, 1, 16)
    tables = rope_tables(40, 16, 10_000.0, torch.device("cpu"))
    scores = rotate(q, *tables)[:, 0] @ rotate(k, *tables)[:, 0].T
    torch.testing.assert_close(scores[:-9, :-9], scores[9:, 9:], atol=2e-5, rtol=0)
    assert scores[5, 5] != pytest.approx(scores[5, 2].item(), abs=1e-3)
    torch.testing.assert_close(rotate(q, *tables)[0], q[0], atol=0, rtol=0)


def test_rotation_follows_llamas_pairs_and_angles() -> None:
    """Column i turns with i + C/2 by position * base^(-2i/C), alike in every head."""
    x = torch.eye(8)[2].expand(5, 3, 8)
    turned = rotate(x, *rope_tables(5, 8, 100.0, torch.device("cpu")))
    angle = 4 * 100.0 ** (-4 / 8)
    expected = torch.zeros(3, 8)
    expected[:, 2], expected[:, 6] = math.cos(angle), math.sin(angle)
    torch.testing.assert_close(turned[4], expected)


def test_a_linear_scaling_turns_by_the_position_over_the_factor() -> None:
    scaling = RopeScaling(kind="linear", factor=3)
    for stretched, plain in zip(tables_of(16, 9, scaling), tables_of(16, 3), strict=True):
        torch.testing.assert_close(stretched[::3], plain, atol=1e-6, rtol=0)


def test_a_llama3_scaling_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    """Of waves of 2 pi 64^(i/2) tokens (6, 50, 402, 3217) in a context of 800: 127, 16, 2 and 0.25 turns. Between 1
    and 4 turns the frequency is a blend: at 2, two thirds over the factor and a third as it is."""
    scaling = RopeScaling(kind="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_context=800)
    cos, sin = (table[1, 0, 4:] for table in tables_of(8, 2, scaling, base=64.0**2))
    found = torch.atan2(sin, cos)
    turns = 800 / (2 * math.pi * 64)
    kept = (turns - 1) / 3
    blend = (kept + (1 - kept) / 8) / 64
    torch.testing.assert_close(found, torch.tensor([1, 1 / 8, blend, 1 / 512 / 8]), atol=1e-7, rtol=1e-5)


def tables_of(
    head_dim: int, positions: int, scaling: RopeScaling | None = None, base: float = 100.0
) -> tuple[torch.Tensor, torch.Tensor]:
    return rope_tables(positions, head_dim, base, torch.device("cpu"), scaling)


def test_rotation_backward_turns_back() -> None:
    x = torch.randn(2, 6, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tables = rope_tables(6, 8, 100.0, torch.device("cpu"))
    assert torch.autograd.gradcheck(lambda x: rotate(x, *tables), x)


def test_dense_output_has_no_balance_and_no_stats(build, batch) -> None:
    out = build()(batch()[0])
    assert out.balance.item() == 0
    assert out.stats is None
    assert out.logits_BSV.shape == (8, 32, 64)


def test_moe_output_has_one_row_of_stats_a_layer(build, batch) -> None:
    """Loads are shares of all slots; entropy lies between 0 and ln E; balance is near 1 a layer at the start."""
    stats = build(moe=EIGHT_TOP_2)(batch()[0]).stats
    assert stats.load_LE.shape == (2, 8)
    torch.testing.assert_close(stats.load_LE.sum(1), torch.ones(2))
    assert ((stats.entropy_L > 0) & (stats.entropy_L < math.log(8))).all()
    assert not stats.entropy_L.requires_grad


def test_under_bfloat16_autocast_the_router_stays_float32(build, batch) -> None:
    """Matrix products run in bfloat16; router logits, balance loss, cross-entropy and all gradients are float32."""
    model, (ids, targets) = build(moe=EIGHT_TOP_2), batch()
    seen: list[torch.Tensor] = []
    for mixture in model.mixtures:
        inner = mixture.gate
        mixture.gate = lambda logits, chosen, inner=inner: (seen.append(logits), inner(logits, chosen))[1]
    with torch.autocast("cpu", torch.bfloat16):
        logits_BSV, out = model.logits(ids), model(ids, targets)
        x = torch.randn(5, 32, dtype=torch.bfloat16)
        logits = model.mixtures[0].router(x)
    torch.testing.assert_close(logits, x.float() @ model.mixtures[0].router.weight.T, atol=1e-6, rtol=0)
    assert {logits.dtype for logits in seen} == {torch.float32}
    assert (logits_BSV.dtype, out.balance.dtype) == (torch.bfloat16, torch.float32)
    loss = out.loss + out.balance
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(weight.grad.dtype == torch.float32 for weight in model.parameters())
    exact = model(ids, targets)
    assert loss.item() == pytest.approx((exact.loss + exact.balance).item(), rel=0.02)


# --- one expert


@pytest.mark.parametrize("experts", ["grouped_mm", "loop"])
@pytest.mark.parametrize(
    "shape",
    [
        {"n_layer": 2, "d_model": 64, "n_head": 4, "vocab_size": 256, "context": 64},
        {"n_layer": 1, "d_model": 32, "n_head": 2, "vocab_size": 97, "context": 33},
        {"n_layer": 3, "d_model": 96, "n_head": 6, "vocab_size": 128, "context": 48, "d_mlp": 104},
    ],
    ids=["2x64", "1x32", "3x96"],
)
@pytest.mark.parametrize("gate", ["topk_softmax", "softmax_topk", "softmax_topk_renormalised"])
def test_a_one_expert_moe_is_the_dense_model_bit_for_bit(batch, shape, experts, gate) -> None:
    """Same seed: the loss and every gradient are bitwise those of the dense model; the router's gradient is zero."""
    spec = ModelSpec(**shape)
    dense = Transformer(spec)
    moe = Transformer(spec, MoESpec(n_expert=1, top_k=1, gate=gate), choose_kernels(spec, {"experts": experts}))
    ids, targets = batch(spec)
    losses = []
    for model in (dense, moe):
        init_weights(model, seed=5)
        out = model(ids, targets)
        losses.append(out.loss)
        (losses[-1] + 0.01 * out.balance).backward()
    assert torch.equal(*losses)
    wanted = {name: weight.grad for name, weight in dense.named_parameters()}
    for name, weight in moe.named_parameters():
        if name.endswith(".router.weight"):
            assert torch.equal(weight.grad, torch.zeros_like(weight))
        else:
            gradient = wanted.pop(name.replace(".moe.", ".mlp."))
            assert torch.equal(weight.grad.view_as(gradient), gradient), name
    assert not wanted
