"""Gates, balance loss, dispatch, and grouped products against the definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from upcycle.model import moe as moe_module
from upcycle.model.kernels import Kernels, choose_kernels
from upcycle.model.moe import GATES, MoE, balance_loss, z_loss
from upcycle.model.torch_kernels import grouped_mm, loop
from upcycle.study.shape import ModelSpec, MoESpec


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- gates


def gate_weights(order: str, logits: torch.Tensor, top_k: int) -> torch.Tensor:
    return GATES[order](logits, logits.topk(top_k, dim=-1).indices)


def test_equation_15_is_a_softmax_over_the_k_largest_logits() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    expected = torch.tensor([[3.0, 2.0]]).exp() / (torch.tensor(3.0).exp() + torch.tensor(2.0).exp())
    torch.testing.assert_close(gate_weights("topk_softmax", logits, 2), expected)


def test_softmax_then_topk_keeps_the_probabilities_over_all_experts() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    torch.testing.assert_close(gate_weights("softmax_topk", logits, 2), logits.softmax(-1)[:, [1, 2]])


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_renormalised_gate_is_equation_15s_function(top_k: int) -> None:
    logits = random(50, 8)
    renormalised = gate_weights("softmax_topk_renormalised", logits, top_k)
    torch.testing.assert_close(renormalised, gate_weights("topk_softmax", logits, top_k))


def test_the_sigmoid_gate_divides_the_largest_sigmoids_by_their_sum() -> None:
    """Against the definition; and where every sigmoid underflows to 0, weights are still finite."""
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0], [-200.0, -300.0, -200.0, -300.0]])
    chosen = logits[0, [1, 2]].sigmoid()
    expected = torch.stack([chosen / chosen.sum(), torch.full((2,), 0.5)])
    torch.testing.assert_close(gate_weights("sigmoid_topk_renormalised", logits, 2), expected)


SUMS = {gate: gate != "softmax_topk" for gate in GATES}


@pytest.mark.parametrize(("order", "sums_to_one"), SUMS.items())
def test_weights_of_a_token_sum_to_one_unless_softmax_comes_first(order: str, sums_to_one: bool) -> None:
    sums = gate_weights(order, random(50, 8), 2).sum(-1)
    assert torch.allclose(sums, torch.ones(50)) == sums_to_one


# --- balance loss


@pytest.mark.parametrize(("n_expert", "top_k"), [(8, 2), (4, 1), (16, 4)])
def test_balance_loss_is_one_at_uniform_probabilities_and_loads(n_expert: int, top_k: int) -> None:
    probs = torch.full((4, 16, n_expert), 1 / n_expert)
    load = torch.full((4, n_expert), 16 * top_k // n_expert)
    assert balance_loss(probs_BSE=probs, load_BE=load, top_k=top_k, group=2).item() == pytest.approx(1)


@pytest.mark.parametrize(("n_expert", "top_k"), [(8, 2), (4, 1), (8, 1)])
def test_balance_loss_of_a_collapsed_router_is_e_over_k(n_expert: int, top_k: int) -> None:
    """All probability and one slot of every token on expert 0: E / (K T^2) * T * T."""
    probs = F.one_hot(torch.zeros(4, 16, dtype=torch.long), n_expert).float()
    load = torch.zeros(4, n_expert, dtype=torch.long)
    load[:, :top_k] = 16
    assert balance_loss(probs_BSE=probs, load_BE=load, top_k=top_k, group=4).item() == pytest.approx(n_expert / top_k)


def test_balance_loss_is_the_written_sum_over_each_group() -> None:
    """Against the formula of A.3 spelt out in Python floats, two groups of three sequences."""
    probs, load = random(6, 5, 4).softmax(-1), torch.randint(0, 9, (6, 4), generator=torch.Generator().manual_seed(1))
    groups = []
    for first in (0, 3):
        tokens, total = 15, 0.0
        for i in range(4):
            P = sum(probs[b, j, i].item() for b in range(first, first + 3) for j in range(5))
            total += P * sum(load[b, i].item() for b in range(first, first + 3))
        groups.append(4 / (2 * tokens**2) * total)
    found = balance_loss(probs_BSE=probs, load_BE=load, top_k=2, group=3)
    assert found.item() == pytest.approx(sum(groups) / 2, rel=1e-6)


def test_balance_loss_and_gradient_do_not_depend_on_the_micro_batch(build, batch) -> None:
    """Micro-batches of whole groups, averaged, give the whole batch's balance loss and its router gradient."""
    model, (ids, _) = build(moe=MoESpec(n_expert=8, top_k=2, balance_group=2)), batch()
    routers = [mixture.router.weight for mixture in model.mixtures]
    whole = model(ids).balance
    parts = torch.stack([model(part).balance for part in ids.split(2)]).mean()
    torch.testing.assert_close(parts, whole)
    for one, other in zip(torch.autograd.grad(parts, routers), torch.autograd.grad(whole, routers), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-4)


def test_balance_loss_depends_on_the_group() -> None:
    """A product of means: sequences that each load one expert are balanced together, not one by one."""
    probs = torch.eye(4).view(4, 1, 4).expand(4, 8, 4)
    load = 8 * torch.eye(4, dtype=torch.long)
    together = balance_loss(probs_BSE=probs, load_BE=load, top_k=1, group=4)
    alone = balance_loss(probs_BSE=probs, load_BE=load, top_k=1, group=1)
    assert (together.item(), alone.item()) == (pytest.approx(1), pytest.approx(4))


def test_balance_of_the_model_is_summed_over_layers_and_one_each_for_a_router_of_zeros(build, batch) -> None:
    model = build(moe=MoESpec(n_expert=8, top_k=2))
    for mixture in model.mixtures:
        torch.nn.init.zeros_(mixture.router.weight)
    assert model(batch()[0]).balance.item() == pytest.approx(2)


def test_training_refuses_a_part_of_a_balance_group_and_evaluation_takes_it(build, batch) -> None:
    model, (ids, _) = build(moe=MoESpec(n_expert=4, top_k=2, balance_group=8)), batch(sequences=3)
    with pytest.raises(ValueError, match=r"3 sequences .* balance groups \(8\)"):
        model(ids)
    assert torch.isfinite(model.eval()(ids).balance)


# --- experts

SIZES = {"even": [8] * 8, "ragged": [5, 0, 1, 40, 0, 18, 0, 0], "one takes all": [0, 0, 0, 64, 0, 0, 0, 0]}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_grouped_products_equal_the_loop_forward_and_in_every_gradient(sizes: list[int]) -> None:
    """Empty experts get gradients of zero."""
    ends = torch.tensor(sizes).cumsum(0, dtype=torch.int32)
    inputs = [random(64, 32), random(8, 2 * 64, 32, seed=1) / 6, random(8, 32, 64, seed=2) / 8]
    outgoing = random(64, 32, seed=3)
    results = []
    for kernel in (grouped_mm, loop):
        x, w_in, w_out = (tensor.clone().requires_grad_() for tensor in inputs)
        y = kernel(x, ends, w_in, w_out)
        results.append((y, *torch.autograd.grad(y, (x, w_in, w_out), outgoing)))
    for grouped, reference in zip(*results, strict=True):
        torch.testing.assert_close(grouped, reference)
    empty = torch.tensor(sizes) == 0
    assert results[0][2][empty].abs().sum() == 0
    assert (results[0][2][~empty].abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("experts", ["grouped_mm", "loop"])
def test_moe_is_the_gate_weighted_sum_of_each_tokens_experts(experts: str, top_k: int, gate: str) -> None:
    """Against the definition token by token, forward and gradients; no token is dropped."""
    model = ModelSpec(n_layer=1, d_model=16, n_head=1, vocab_size=8, context=8)
    layer = MoE(
        model, MoESpec(n_expert=4, top_k=top_k, gate=gate, balance_group=2), choose_kernels(model, {"experts": experts})
    )
    for seed, weight in enumerate(layer.parameters()):
        weight.data = random(*weight.shape, seed=seed) / 4
    x = random(2, 8, 16, seed=9).requires_grad_()

    def token(x_D: torch.Tensor) -> torch.Tensor:
        logits = layer.router.weight @ x_D
        ids = logits.topk(top_k).indices
        outputs = []
        for e in ids:
            gate_M, up_M = (layer.w_in[e] @ x_D).chunk(2)
            outputs.append(layer.w_out[e] @ (gate_M * gate_M.sigmoid() * up_M))
        return GATES[gate](logits[None], ids[None])[0] @ torch.stack(outputs)

    reference = torch.stack([token(x_D) for x_D in x.flatten(0, 1)]).view_as(x)
    found, routing = layer(x)
    torch.testing.assert_close(found, reference)
    wanted = [x, *layer.parameters()]
    outgoing = random(2, 8, 16, seed=10)
    pairs = zip(
        torch.autograd.grad(found, wanted, outgoing), torch.autograd.grad(reference, wanted, outgoing), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert routing.slots_E.sum().item() == 2 * 8 * top_k


def small_layer(**changes: object) -> MoE:
    """A mixture of 4 experts on tokens of width 16, its router drawn, its biases 0."""
    model = ModelSpec(n_layer=1, d_model=16, n_head=1, vocab_size=8, context=8)
    fields = {"n_expert": 4, "top_k": 2, "balance_group": 2} | changes
    layer = MoE(model, MoESpec.model_validate(fields), Kernels(experts=loop))
    for seed, weight in enumerate(layer.parameters()):
        weight.data = random(*weight.shape, seed=seed) / 4
    for bias in layer.buffers():
        bias.zero_()
    return layer


def test_biases_choose_experts_and_weigh_nothing() -> None:
    """A bias above any score sends every token to its expert, with the weight that its own logits give; equal biases
    change nothing; and no gradient reaches one."""
    plain, biased = small_layer(), small_layer(bias_rate=1e-3)
    x = random(2, 8, 16, seed=9)
    biased.router.bias.fill_(7.0)
    assert torch.equal(plain(x)[0], biased(x)[0])
    biased.router.bias[2] = 9.0
    y, routing = biased(x)
    assert routing.slots_E[2] == 16
    logits = biased.router(x.flatten(0, 1))
    ids, gates, probs, _ = biased._route(logits)
    torch.testing.assert_close(gates, GATES["topk_softmax"](logits, ids))
    torch.testing.assert_close(probs, logits.softmax(-1))
    y.sum().backward()
    assert biased.router.bias.grad is None
    assert not biased.router.bias.requires_grad
    assert "router.bias" in biased.state_dict()
    assert "router.bias" not in dict(biased.named_parameters())


@pytest.mark.parametrize("gate", ["softmax_topk", "sigmoid_topk_renormalised"])
def test_biases_that_follow_the_load_balance_it(gate: str) -> None:
    """With weights held still, 300 moves by the sign of the load's error halve the largest load's excess at least."""
    layer, x = small_layer(gate=gate, top_k=1, bias_rate=1e-2), random(8, 32, 16, seed=9) + 0.5
    largest = []
    with torch.no_grad():
        for _ in range(300):
            slots_E = layer(x)[1].slots_E
            largest.append(slots_E.max().item() / 256)
            layer.router.move_bias(slots_E, layer.moe.bias_rate)
    assert largest[0] > 0.35
    assert max(largest[-20:]) - 0.25 < (largest[0] - 0.25) / 2


def test_a_bias_moves_by_the_sign_of_the_loads_error() -> None:
    """Below the mean of 10 up, at it not at all, above it down: by the rate, however far."""
    router = small_layer(bias_rate=0.5).router
    router.move_bias(torch.tensor([0, 9, 10, 21]), 0.5)
    assert router.bias.tolist() == [0.5, 0.5, 0.0, -0.5]


def test_z_loss_of_equal_logits_is_the_square_of_their_level_and_ln_e() -> None:
    """(c + ln E)^2 for logits that are all c; its gradient on each is 2 (c + ln E) / E over the tokens."""
    logits = torch.full((5, 8), 1.5, requires_grad=True)
    loss = z_loss(logits)
    assert loss.item() == pytest.approx((1.5 + math.log(8)) ** 2)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.full((5, 8), 2 * (1.5 + math.log(8)) / 8 / 5))
    assert small_layer()(random(2, 8, 16))[1].z.item() == 0
    layer = small_layer(z_coef=1e-3)
    x = random(2, 8, 16)
    assert layer(x)[1].z.item() == pytest.approx(z_loss(layer.router(x.flatten(0, 1))).item())


def test_the_sigmoid_gates_balance_loss_is_over_sigmoids_divided_by_their_sum() -> None:
    layer, x = small_layer(gate="sigmoid_topk_renormalised"), random(2, 8, 16, seed=9)
    scores = layer.router(x).sigmoid()
    _, routing = layer(x)
    P_E, Q_E = (scores / scores.sum(-1, keepdim=True)).sum((0, 1)), routing.slots_E
    assert routing.balance.item() == pytest.approx((4 / (2 * 16**2) * (P_E * Q_E).sum()).item())


def test_load_counts_the_slots_each_expert_computes() -> None:
    """The slots reported equal the rows that the kernel was given, expert by expert."""
    model = ModelSpec(n_layer=1, d_model=16, n_head=1, vocab_size=8, context=8)
    rows: list[torch.Tensor] = []

    def spy(x_ND: torch.Tensor, ends_E: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        rows.append(ends_E.diff(prepend=torch.zeros(1, dtype=torch.int32)))
        return loop(x_ND, ends_E, *weights)

    layer = MoE(model, MoESpec(n_expert=4, top_k=2, balance_group=4), Kernels(experts=spy))
    for seed, weight in enumerate(layer.parameters()):
        weight.data = random(*weight.shape, seed=seed)
    _, routing = layer(random(4, 8, 16))
    assert rows[0].sum() == 4 * 8 * 2
    assert routing.slots_E.tolist() == rows[0].tolist()


def test_the_routers_entropy_is_that_of_its_probabilities_in_nats() -> None:
    """ln E where all experts are equally likely; of any other router the mean over tokens of -sum p ln p."""
    model = ModelSpec(n_layer=1, d_model=16, n_head=1, vocab_size=8, context=8)
    layer = MoE(model, MoESpec(n_expert=4, top_k=2, balance_group=2), Kernels(experts=loop))
    for weight in layer.parameters():
        weight.data = torch.zeros_like(weight)
    x = random(2, 8, 16)
    assert layer(x)[1].entropy.item() == pytest.approx(math.log(4))
    layer.router.weight.data = random(4, 16, seed=1)
    probs_TE = (x.flatten(0, 1) @ layer.router.weight.T).softmax(-1)
    expected = -(probs_TE * probs_TE.log()).sum(-1).mean().item()
    assert layer(x)[1].entropy.item() == pytest.approx(expected, rel=1e-5)


def test_permutations_have_the_gradient_of_what_they_compute() -> None:
    """Finite differences in float64, for slots of K = 2 in an arbitrary order."""
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    place = order.argsort()
    x = random(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moe_module._Dispatch.apply(x, order, place, 2), x)
    y = random(6, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: moe_module._Collect.apply(y, order, place), y)


def test_a_forward_and_backward_pass_is_bitwise_repeatable(build, batch) -> None:
    model, (ids, _) = build(moe=MoESpec(n_expert=8, top_k=2)), batch()
    passes = []
    for _ in range(2):
        out = model(ids)
        passes.append(
            [
                out.logits_BSV,
                *torch.autograd.grad(out.logits_BSV.square().mean() + out.balance, list(model.parameters())),
            ]
        )
    assert all(torch.equal(one, other) for one, other in zip(*passes, strict=True))
