"""The C kernels: each layer against the composed one, its bits, its edges, and how it is compiled."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import native_models
import pytest
import torch
from native_models import MOE, ROUNDING, SHAPES, assert_native_is_composed, batch, gradients, pair
from torch import Tensor

from upcycle.errors import UserError
from upcycle.model.kernels import choose_kernels
from upcycle.model.native import build, layers
from upcycle.study.shape import ModelSpec, MoESpec

FINE = MoESpec(n_expert=8, top_k=4, granularity=2, shared_expert=3, balance_group=1)
GATES = [MoESpec(n_expert=6, top_k=3, gate=gate, balance_group=1) for gate in ("softmax_topk", "topk_softmax")]
BEYOND = [
    MoESpec(n_expert=6, top_k=3, gate="sigmoid_topk_renormalised", balance_group=1),
    MoESpec(n_expert=6, top_k=1, gate="softmax_topk", balance_group=1, bias_rate=1e-3, z_coef=1e-3),
]
IDS = ["dense", "moe", "softmax_topk", "three of six", "sigmoid", "biases, z-loss"]


@pytest.mark.parametrize("moe", [None, MOE, *GATES, *BEYOND], ids=IDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_the_composed_model(shape: str, moe: MoESpec | None) -> None:
    assert_native_is_composed(shape, moe)


@pytest.mark.parametrize("shape", ["whole vectors", "a hidden layer deeper than a product's block"])
def test_narrow_and_shared_experts_are_those_of_the_composed_model(shape: str) -> None:
    assert_native_is_composed(shape, FINE)


def test_the_width_of_an_expert_decides_whether_the_c_kernels_can() -> None:
    spec = ModelSpec(n_layer=1, **SHAPES["whole vectors"])
    with pytest.raises(UserError, match="d_mlp / granularity 8 not a multiple of 16"):
        choose_kernels(spec, {"layers": "native"}, moe=MoESpec(n_expert=32, top_k=32, granularity=32))


def test_what_experts_keep_is_in_arrays_that_the_allocator_uses_again() -> None:
    """The workflow sets glibc's threshold to 32 MB: a larger array would be asked of the kernel anew in every step."""
    pieces = layers._hidden(torch.empty(0), rows=8192, D=128, M=512)
    assert sum(piece.shape[1] for piece in pieces) == 2 * 512
    assert {len(piece) for piece in pieces} == {8192}
    assert max(piece.nbytes for piece in pieces) < 2**25 <= sum(piece.nbytes for piece in pieces)


def test_gradients_follow_what_the_loss_is_multiplied_by() -> None:
    native, _ = pair("whole vectors", MOE)
    once, thrice = gradients(native)[1], gradients(native, 3.0)[1]
    for name, gradient in once.items():
        assert (thrice[name] - 3 * gradient).abs().max() <= 64 * ROUNDING * thrice[name].abs().max(), name


@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "moe"])
def test_token_losses_and_logits_are_those_of_the_composed_model(moe: MoESpec | None) -> None:
    native, composed = pair("odd lengths, narrow heads", moe)
    ids, targets = batch(native)
    with torch.no_grad():
        found, expected = (model(ids, targets, per_token=True).loss for model in (native, composed))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(native.logits(ids), composed.logits(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("moe", [None, MOE], ids=["dense", "moe"])
def test_bits_do_not_depend_on_where_arrays_lie(moe: MoESpec | None) -> None:
    """Twice the same model, once with every parameter moved by one float off any alignment: equal bits."""
    native, _ = pair("odd lengths, narrow heads", moe)
    first = gradients(native)
    for parameter in native.parameters():
        moved = torch.empty(parameter.numel() + 1)[1:].view_as(parameter)
        parameter.data = moved.copy_(parameter.data)
    second = gradients(native)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], gradient) for name, gradient in second[1].items())


@pytest.mark.parametrize("shape", SHAPES)
def test_one_expert_is_the_dense_model_bit_for_bit(shape: str) -> None:
    dense = pair(shape, None)[0]
    one = pair(shape, MoESpec(n_expert=1, top_k=1, gate="topk_softmax", balance_group=1))[0]
    with torch.no_grad():
        for name, weight in one.named_parameters():
            if ".router." not in name:
                weight.copy_(dense.get_parameter(name.replace(".moe.", ".mlp.")).view_as(weight))
    (loss, found), (expected_loss, expected) = gradients(one), gradients(dense)
    assert torch.equal(loss, expected_loss)
    for name, gradient in expected.items():
        assert torch.equal(found[name.replace(".mlp.", ".moe.")].view_as(gradient), gradient), name


def test_an_expert_without_tokens_gets_zero_gradients() -> None:
    xn, x = torch.randn(20, 32), torch.randn(20, 32)
    ids, gates = torch.tensor([[0, 2]] * 20), torch.full((20, 2), 0.5)
    w_in, w_out = torch.randn(4, 64, 32, requires_grad=True), torch.randn(4, 32, 32, requires_grad=True)
    layers.experts(x, xn, gates, ids, w_in, w_out).square().sum().backward()
    for weight in (w_in, w_out):
        assert (weight.grad[[1, 3]] == 0).all()
        assert weight.grad[0].abs().max() > 0


POISONED = ["embed.weight", "blocks.0.attn.wqkv", "blocks.1.mlp.w_in", "blocks.1.mlp.w_out", "head.weight"]


@pytest.mark.parametrize("name", [*POISONED, *(f"blocks.0.moe.router.weight:{row}" for row in range(8))])
def test_a_poisoned_weight_gives_a_loss_that_is_not_finite(name: str) -> None:
    """No clamp, mask or comparison on the way may hide a NaN: the loop stops by it, and no held-out loss is one."""
    name, _, row = name.partition(":")
    native, _ = pair("whole vectors", MOE if row else None)
    place = int(row) * native.model.d_model if row else 5
    native.get_parameter(name).data.view(-1)[place] = math.nan
    ids, targets = batch(native)
    ids = ids.clone()
    ids[0, 0] = 0  # the token whose embedding is poisoned
    assert not native(ids, targets).loss.isfinite()
    with torch.no_grad():
        assert not native(ids, targets, per_token=True).loss.isfinite().all()


def test_what_c_would_read_as_something_else_is_refused() -> None:
    native, _ = pair("whole vectors", None)
    with pytest.raises(TypeError, match="float32, int32 or int64 is wanted, not torch"):
        native.double()(*batch(native))
    with pytest.raises(ValueError, match="has nothing to compute"):
        layers.norm(torch.zeros(0, 32), torch.ones(32), 1e-5)


def test_gradients_of_gradients_are_refused() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(layers.norm(x, torch.ones(32), 1e-5).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_of_equal_logits_the_first_experts_are_chosen() -> None:
    ids, gates, probs, logs = layers.route(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2, "topk_softmax")
    assert ids.tolist() == [[1, 2]]
    assert gates.tolist() == [[0.5, 0.5]]
    torch.testing.assert_close(probs.log(), logs)
    torch.testing.assert_close(probs.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("gate", ["softmax_topk", "topk_softmax"])
def test_no_expert_is_chosen_twice_where_logits_are_minus_infinity(gate: str) -> None:
    logits = torch.tensor([[5.0, -math.inf, -math.inf, 1.0]])
    ids, gates, probs, _ = layers.route(logits, 3, gate)
    assert ids.tolist() == [[0, 3, 1]]
    torch.testing.assert_close(probs, logits.softmax(-1), atol=1e-30, rtol=1e-6)
    torch.testing.assert_close(gates, probs[:, [0, 3, 1]], atol=1e-30, rtol=1e-6)


def test_experts_take_ids_of_any_integer_type() -> None:
    x, ids = torch.randn(5, 32), torch.tensor([[0, 1], [1, 0], [1, 2], [2, 0], [0, 2]])
    w_in, w_out, gates = torch.randn(3, 2, 16, 32), torch.randn(3, 32, 16), torch.full((5, 2), 0.5)
    assert torch.equal(
        layers.experts(x, x, gates, ids.int(), w_in, w_out), layers.experts(x, x, gates, ids, w_in, w_out)
    )


def test_a_target_that_is_no_token_is_refused() -> None:
    native, _ = pair("whole vectors", None)
    ids, targets = batch(native)
    targets = targets.clone()
    targets[1, 3] = 256
    with pytest.raises(IndexError, match="target 256 is no token of a vocabulary of 256"):
        native(ids, targets)


def test_attention_is_exact_to_float32() -> None:
    """Against float64, written out; scores up to 20 in size, where a poor exponential would show."""
    spec = ModelSpec(n_layer=1, d_model=32, n_head=1, vocab_size=8, context=300)
    generator = torch.Generator().manual_seed(4)
    x, wqkv = torch.randn(1, 300, 32, generator=generator), torch.randn(96, 32, generator=generator) * 0.3
    found = layers.attention_layer(torch.zeros(1, 300, 32) + x, torch.ones(32), wqkv, torch.eye(32), spec) - x
    exact = exact_attention(x.double(), wqkv.double(), spec)
    assert (found - exact).abs().max() <= 64 * ROUNDING * exact.abs().max()


def exact_attention(x: Tensor, wqkv: Tensor, spec: ModelSpec) -> Tensor:
    """Attention of one head on the normed x in float64."""
    S, C = x.shape[1], x.shape[2]
    xn = x / (x.square().mean(-1, keepdim=True) + spec.norm_eps).sqrt()
    q, k, v = (xn @ wqkv.T)[0].chunk(3, dim=-1)
    angles = torch.outer(torch.arange(S), spec.rope_base ** -(torch.arange(0, C, 2) / C)).double()

    def turned(rows: Tensor) -> Tensor:
        a, b = rows.chunk(2, dim=-1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    scores = turned(q) @ turned(k).T / math.sqrt(C)
    return (scores.masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -math.inf).softmax(-1) @ v)[None]


# --- choosing


def test_auto_takes_the_c_kernels_in_float32_on_a_cpu_and_says_otherwise_why_not(caplog) -> None:
    spec = ModelSpec(n_layer=1, **SHAPES["whole vectors"])
    caplog.set_level("INFO")
    described = choose_kernels(spec).describe()
    assert (described["layers"], described["attention"], described["native"]) == ("native", "native", build.key())
    assert not choose_kernels(spec, dtype="bfloat16").native
    assert "they compute in float32, and the dtype is bfloat16" in caplog.text
    assert not choose_kernels(spec, {"attention": "plain"}).native
    assert "attention: plain is asked for" in caplog.text
    assert not choose_kernels(spec, tensor_parallel=2).native
    assert not choose_kernels(spec, compile=True).native


@pytest.mark.parametrize(("moe", "router"), [(MOE, "native"), *((moe, "torch") for moe in BEYOND)], ids=IDS[-3:])
def test_who_routes_is_recorded(moe: MoESpec, router: str) -> None:
    """The C kernels compute the experts. torch routes with biases or the sigmoid gate; the column `kernels` says so."""
    described = choose_kernels(ModelSpec(n_layer=1, **SHAPES["whole vectors"]), moe=moe).describe()
    assert (described["layers"], described["experts"], described["router"]) == ("native", "native", router)


@pytest.mark.parametrize(
    ("changed", "names", "reason"),
    [
        ({"d_model": 24, "n_head": 2}, {}, "d_model 24 not a multiple of 16"),
        ({}, {"attention": "plain"}, "attention: plain is asked for"),
        ({"qkv_bias": True, "qk_norm": True}, {}, "they have no qkv_bias and no qk_norm"),
        ({"n_head": 8, "n_kv_head": 1}, {}, "n_kv_head x head dimension 8 not a multiple of 16"),
    ],
)
def test_named_c_kernels_that_cannot_run_are_refused(changed: dict, names: dict, reason: str) -> None:
    spec = ModelSpec(n_layer=1, **(SHAPES["whole vectors"] | changed))
    with pytest.raises(UserError, match=f"layers kernel native cannot be used: .*{reason}"):
        choose_kernels(spec, {"layers": "native"} | names)


# --- compiling

REAL = shutil.which("cc") or shutil.which("gcc")
COMPILE = """
from upcycle.model.native import build
build.FLAGS = (*build.FLAGS, "-O0")  # which compiles six times as fast; nothing here runs the code
print(build.library()._name)
"""


def compile_in(folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMPILE],
        env=os.environ | {"XDG_CACHE_HOME": str(folder)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_jobs_that_start_together_compile_once(tmp_path: Path) -> None:
    """Counted by a compiler that notes each compilation and passes it on."""
    fake, notes = tmp_path / "bin" / "cc", tmp_path / "notes"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ncase $1 in --version) ;; *) echo compiled >> {notes};; esac\nexec {REAL} "$@"\n')
    fake.chmod(0o755)
    jobs = [compile_in(tmp_path, PATH=f"{fake.parent}:{os.environ['PATH']}") for _ in range(2)]
    paths = {job.communicate()[0].strip() for job in jobs}
    assert [job.returncode for job in jobs] == [0, 0]
    assert notes.read_text() == "compiled\n"
    assert paths == {str(path) for path in (tmp_path / "upcycle").glob("*.so")}
    assert not list((tmp_path / "upcycle").glob("*.tmp"))


@pytest.mark.slow
def test_a_damaged_library_is_compiled_again(tmp_path: Path) -> None:
    path = Path(compile_in(tmp_path).communicate()[0].strip())
    path.write_bytes(b"half a library")
    again = compile_in(tmp_path)
    assert again.communicate()[0].strip() == str(path)
    assert again.returncode == 0


@pytest.mark.slow
def test_a_library_without_our_functions_is_named(tmp_path: Path) -> None:
    path = Path(compile_in(tmp_path).communicate()[0].strip())
    (tmp_path / "other.c").write_text("int other(void) { return 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / "other.c"), "-o", str(path)], check=True)
    assert f"{path} is no library of ours" in compile_in(tmp_path).communicate()[1]


def test_a_compiler_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "cc").write_bytes(b"\x7fELF no program")
    (tmp_path / "cc").chmod(0o755)
    assert "cc cannot be run" in compile_in(tmp_path, PATH=str(tmp_path)).communicate()[1]


def test_without_a_compiler_the_reason_is_given(tmp_path: Path) -> None:
    assert "no C compiler (cc, gcc, clang) on this machine" in compile_in(tmp_path, PATH=str(tmp_path)).communicate()[1]


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'unknown option' >&2; exit 1\n")
    fake.chmod(0o755)
    said = compile_in(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}").communicate()[1]
    assert "unknown option" in said
    assert not list((tmp_path / "upcycle").glob("*.so"))


def test_every_function_is_declared_as_the_source_defines_it() -> None:
    """As many arguments of each kind as in the C source: ctypes would not notice."""
    source = " ".join(path.read_text() for path in sorted(build.SOURCE.glob("*.[ch]")))
    kinds = {"long": ctypes.c_long, "float": ctypes.c_float}
    for name, declared in build.SIGNATURES.items():
        arguments = source.split(f"upcycle_{name}(")[1].split(")")[0].split(",")
        defined = tuple(ctypes.c_void_p if "*" in text else kinds[text.split()[0]] for text in arguments)
        assert defined == declared, name
    assert set(re.findall(r"\bupcycle_(\w+)\(", source)) == set(build.SIGNATURES)


NARROWER = """
import sys
from upcycle.model.native import build
build.FLAGS = (*build.FLAGS, sys.argv[1])
from native_models import MOE, SHAPES, assert_native_is_composed
for shape in list(SHAPES)[:2]:
    for moe in (None, MOE):
        assert_native_is_composed(shape, moe)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
def test_narrower_vectors_compute_the_same(flag: str, tmp_path: Path) -> None:
    """The source has a way for each width of vectors; this machine's own is what the other tests take."""
    if platform.machine() != "x86_64":
        pytest.skip(f"{flag} is a flag of x86-64")
    paths = os.pathsep.join([str(Path(native_models.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": paths}
    command = [sys.executable, "-c", NARROWER, flag]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr
