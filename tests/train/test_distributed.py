"""Many processes: gloo workers on this machine compute what one process computes.

Two launches (2 and 4 processes) do all the work; each test looks at a part of it. What is promised:

- First-step gradients, parameter by parameter: |g_R - g_1| <= 2 u sqrt(n) |g_1| in the Euclidean norm, where u = 2^-24
  is float32's unit roundoff and n the tokens of the batch, the summands of every weight's gradient. How the work is
  divided changes the order of sums only; the rounding errors of n summands add up like a random walk, to u sqrt(n)
  (Higham and Mary, SIAM J. Sci. Comput. 41, 2019), and two sums are compared, each off by as much. It is no bound for
  the worst case, which grows with n. Measured: 0.36 u sqrt(n), and 0.57 with tensor parallelism, which divides the
  sums over heads and hidden units too.
- Losses of the first 20 steps, dense, MoE and upcycled, to 1e-6 relative (measured: 2e-7). Not of long trajectories:
  two logits of a router that tie to the last bits send a token elsewhere, after which two MoE runs drift apart.
- bfloat16: every process rounds its part of a matrix's gradient to bfloat16 before the float32 sum, one process the
  whole: 2 u relative, u = 2^-8. Tensor parallelism in bfloat16 rounds partial sums of activations as well, and routers
  then choose otherwise now and then: no bound is promised for MoEs.
- The same processes give the same bits, run after run.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import gradients
from preempted import preempt_at
from safetensors.torch import load_file
from small_runs import EXECUTION, MOE, VOCABULARY, rows_of, small_run, tensors_sha256, train_in, upcycled_run

from upcycle.errors import UserError
from upcycle.model.stacks import stacked
from upcycle.model.transformer import Transformer
from upcycle.study.counting import count_parameters
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.processes.distributed import GLOO, Group, start_group

pytestmark = pytest.mark.slow

N_STEPS = 20
U32, U16 = 2.0**-24, 2.0**-8
LOSS_BOUND = 1e-6
WORKER = Path(__file__).parents[1] / "support" / "distributed_worker.py"
ROWS_THAT_FIT = (0, 8, N_STEPS + 2)
"""Of a run of 20 steps: then comes the first held-out loss, an update, or the last held-out loss."""
COMPOSED = EXECUTION.model_copy(update={"layers": "composed"})
WHOLE = {"micro_batch": 2, "exchange": "update"}
TRAFFIC = {
    (name, exchange): {"micro_batch": 2, "exchange": exchange}
    for name in ("dense", "moe")
    for exchange in ("micro_batch", "update")
}
Job = dict[str, Any]

OPTIM = {"lr": 2e-2, "batch": 8}
DENSE = small_run(optim=OPTIM, end_step=N_STEPS)
SKIPPING = small_run(optim=OPTIM | {"skip_above": 6.0}, end_step=5)
OTHER = {
    "n_layer": 2, "d_model": 16, "n_head": 4, "n_kv_head": 2, "d_head": 8, "vocab_size": VOCABULARY, "context": 32,
    "tied": True, "qkv_bias": True, "qk_norm": True, "rope_scaling": {"kind": "linear", "factor": 2},
}  # fmt: skip
"""Shared keys, a tied head, biases, norms of heads, stretched frequencies, heads wider than the model."""
RUNS = {
    "dense": DENSE,
    "moe": small_run(optim=OPTIM, end_step=N_STEPS, moe=MOE | {"bias_rate": 1e-2, "z_coef": 1e-2}),
    "fine": small_run(optim=OPTIM, moe=MOE | {"granularity": 2, "shared_expert": 1}),
    "three": small_run(optim=OPTIM, end_step=N_STEPS, moe=MOE | {"n_expert": 3}),
    "rough": small_run(optim=OPTIM, dtype="bfloat16"),
    "rough_moe": small_run(optim=OPTIM, dtype="bfloat16", moe=MOE),
    "other": small_run(model=OTHER, optim=OPTIM, end_step=N_STEPS),
    "up": upcycled_run(DENSE, optim={"lr": 4e-3, "batch": 8}, end_step=N_STEPS),
}
RUNS["other_up"] = upcycled_run(RUNS["other"], model=OTHER, optim={"lr": 4e-3, "batch": 8}, end_step=N_STEPS)
GRADIENTS: dict[int, dict[str, tuple[str, dict[str, Any]]]] = {
    2: {
        "dense": ("dense", {}),
        "dense_tensor": ("dense", {"tensor_parallel": 2}),
        "moe_accumulated": ("moe", {"micro_batch": 2}),
        "moe_tensor": ("moe", {"tensor_parallel": 2, "micro_batch": 2}),
        "fine": ("fine", {"micro_batch": 2, "exchange": "update"}),
        "fine_tensor": ("fine", {"tensor_parallel": 2, "micro_batch": 2}),
        "three_recomputed": ("three", {"activation_checkpointing": "block"}),
        "rough": ("rough", {}),
        "rough_moe": ("rough_moe", {}),
        "dense_whole": ("dense", {"micro_batch": 2, "exchange": "update"}),
        "dense_compiled": ("dense", {"micro_batch": 2, "exchange": "update", "compile": True}),
        "moe_tensor_whole": ("moe", {"tensor_parallel": 2, "micro_batch": 2, "exchange": "update"}),
        "rough_moe_whole": ("rough_moe", {"micro_batch": 2, "exchange": "update"}),
        "other": ("other", {"micro_batch": 2}),
        "other_tensor": ("other", {"tensor_parallel": 2}),
        "other_compiled": ("other", {"compile": True}),
    },
    4: {
        "dense": ("dense", {}),
        "moe": ("moe", {}),
        "moe_tensor_recomputed": ("moe", {"tensor_parallel": 2, "activation_checkpointing": "block"}),
        "moe_whole": ("moe", {"micro_batch": 2, "exchange": "update", "activation_checkpointing": "block"}),
        "other_tensor_recomputed": ("other", {"tensor_parallel": 2, "activation_checkpointing": "block"}),
    },
}
"""By number of processes and name: a run and how it is executed."""


def job_of(do: str, run: RunSpec, folder: Path, tokens: Path, execution: dict[str, Any], **more: Any) -> Job:
    whole = COMPOSED.model_dump(mode="json") | execution
    fields = {"do": do, "run": run.model_dump(mode="json"), "execution": whole, "folder": str(folder)}
    return fields | {"tokens": str(tokens)} | more


def launch(n_process: int, jobs: list[Job], folder: Path) -> None:
    """Do the jobs by that many processes, as a user's torchrun would start them."""
    listed = folder / f"jobs-{n_process}.json"
    listed.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_process)]
    paths = os.pathsep.join([str(WORKER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    launcher = subprocess.Popen(
        [*command, str(WORKER), str(listed)],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = launcher.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        launcher.terminate()  # its workers have sessions of their own: only torchrun itself ends them all
        launcher.communicate(timeout=300)
        raise
    finally:
        launcher.kill()
    assert launcher.returncode == 0, said[:6000]


@pytest.fixture(scope="module")
def results(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `1`, `2`, `4` of what that many processes computed."""
    root = tmp_path_factory.mktemp("results")
    one, two, four = (root / str(size) for size in (1, 2, 4))
    for folder in (one, two, four):
        folder.mkdir()
    for name in ("dense", "moe", "up", "other", "other_up"):
        train_in(one, tokens_dir, RUNS[name], COMPOSED)
    for name in ("dense", "moe", "fine", "three", "rough", "rough_moe", "other"):
        gradients(job_of("gradients", RUNS[name], one / f"gradients-{name}", tokens_dir, {}), Group())
    jobs: dict[int, list[Job]] = {}
    for size, cases in GRADIENTS.items():
        jobs[size] = [
            job_of("gradients", RUNS[run], root / str(size) / f"gradients-{name}", tokens_dir, {"devices": size} | how)
            for name, (run, how) in cases.items()
        ]

    def train_job(run: RunSpec, folder: Path, how: dict[str, Any], **more: Any) -> Job:
        parent = {"parent": str(one / run.parent)} if run.parent else {}
        return job_of("train", run, folder, tokens_dir, how, **parent, **more)

    for name in ("dense", "moe", "up"):
        jobs[2].append(train_job(RUNS[name], two / RUNS[name].id, {"devices": 2}))
    how = {"devices": 2, "tensor_parallel": 2}
    jobs[2].append(train_job(RUNS["other_up"], two / RUNS["other_up"].id, how))
    jobs[2].append(train_job(RUNS["moe"], two / "again", {"devices": 2}))
    for stop_at in (11, 0):  # stopped, and the same again
        jobs[2].append(train_job(RUNS["moe"], two / "whole", {"devices": 2} | WHOLE, stop_at=stop_at))
    for (name, exchange), how in TRAFFIC.items():
        folder = two / f"traffic-{name}-{exchange}"
        jobs[2].append(job_of("traffic", RUNS[name], folder, tokens_dir, {"devices": 2} | how))
    for name, tensor_parallel in (("dense", 1), ("moe", 2)):
        (two / f"resumed-{name}").mkdir()
        preempt_at(5, two / f"resumed-{name}", tokens_dir, RUNS[name], COMPOSED)
        how = {"devices": 2, "tensor_parallel": tensor_parallel}
        jobs[2].append(train_job(RUNS[name], two / f"resumed-{name}" / RUNS[name].id, how, stop_at=11))
    for ranks in ([1], [0, 1]):
        name = f"blind-{len(ranks)}"
        jobs[2].append(train_job(DENSE, two / name, {"devices": 2}, without_tokens=ranks))
    jobs[2].append(train_job(DENSE, two / "wild", {"devices": 2}, nan_at=3))
    jobs[2].append(train_job(SKIPPING, two / "skipping", {"devices": 2}, nan_at=3))
    for count in ROWS_THAT_FIT:
        jobs[2].append(train_job(DENSE, two / f"full-{count}", {"devices": 2}, rows_that_fit=count))
    # 62 held-out sequences, 60 at a time: two processes have none of the last two to evaluate.
    jobs[4].append(train_job(RUNS["moe"], four / RUNS["moe"].id, {"devices": 4, "eval_batch": 15}))
    launch(2, jobs[2], root)
    launch(4, jobs[4], root)
    return root


@pytest.mark.parametrize(
    ("size", "name"), [(size, name) for size, cases in GRADIENTS.items() for name in cases], ids=str
)
def test_first_step_gradients_are_the_single_processs(size: int, name: str, results: Path) -> None:
    """Every parameter's within the bound of the module's docstring; loss and balance loss to 8 units of rounding."""
    run, _ = GRADIENTS[size][name]
    single, several = results / "1" / f"gradients-{run}", results / str(size) / f"gradients-{name}"
    wanted, found = (load_file(folder / "gradients.safetensors") for folder in (single, several))
    assert found.keys() == wanted.keys()
    rough = RUNS[run].dtype == "bfloat16"
    bound = 2 * U16 if rough else 2 * U32 * math.sqrt(RUNS[run].tokens_per_step)
    for parameter, gradient in wanted.items():
        assert found[parameter].shape == gradient.shape, "files hold single-process shapes"
        difference = torch.linalg.vector_norm(found[parameter] - gradient)
        assert difference <= bound * torch.linalg.vector_norm(gradient), parameter
        assert gradient.any(), f"{parameter} has a gradient to compare"
    notes, one = (json.loads((folder / "gradients.json").read_text()) for folder in (several, single))
    for key in ("loss", "balance"):
        assert notes[key] == pytest.approx(one[key], rel=U16 / 8 if rough else 8 * U32), key
    with torch.device("meta"):
        wanted_shapes = {
            name: list(stacked(name, torch.empty(shape), RUNS[run].model).shape) for name, shape in one["saved"].items()
        }
    assert notes["saved"] == wanted_shapes, "a rolling state's shapes"


def test_every_process_holds_its_part(results: Path) -> None:
    """Of 4 processes, 2 tensor parallel: a quarter of each matrix, a quarter of the vocabulary, all of the norms."""
    held = json.loads((results / "4" / "gradients-moe_tensor_recomputed" / "gradients.json").read_text())["held"]
    assert held["blocks.0.attn.wqkv"] == [3, 8, 8]
    assert held["blocks.0.moe.w_in"] == [2, 2, 32, 16]
    assert held["blocks.0.moe.w_out"] == [2, 16, 32]
    assert held["embed.weight"] == held["head.weight"] == [16, 16]
    assert held["blocks.0.attn_norm.weight"] == [16]
    assert held["blocks.0.moe.router.weight"] == [4, 16]
    uneven = json.loads((results / "2" / "gradients-three_recomputed" / "gradients.json").read_text())["held"]
    assert uneven["blocks.0.moe.w_in"] == [3, 1, 64, 16], "3 experts over 2 processes are split evenly elsewhere"


def test_bfloat16_reaches_the_matrices_alone(results: Path) -> None:
    """Matrices of a block are gathered in bfloat16; norms and router arrive in float32, and so does all at rest."""
    for name in ("rough", "rough_moe"):
        dtypes = json.loads((results / "2" / f"gradients-{name}" / "gradients.json").read_text())["dtypes"]
        seen = {parameter.split(".")[-1]: dtype for parameter, dtype in dtypes.items() if ".attn." in parameter}
        assert set(seen.values()) == {"torch.bfloat16"}
        kept = [dtype for parameter, dtype in dtypes.items() if "norm" in parameter or "router" in parameter]
        assert len(kept) == (5 if name == "rough" else 7)
        assert set(kept) == {"torch.float32"}


@pytest.mark.parametrize(("size", "name"), [(2, "dense"), (2, "moe"), (2, "up"), (2, "other_up"), (4, "moe")])
def test_losses_are_the_single_processs(size: int, name: str, results: Path) -> None:
    """20 steps to 1e-6: every row of the curve, held-out losses among them; and the receipt of an upcycled start."""
    run = RUNS[name]
    several = results / str(size) / run.id
    assert_same_curve(rows_of(several), rows_of(results / "1" / run.id))
    metrics = json.loads((several / "metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(
        json.loads((results / "1" / run.id / "metrics.json").read_text())["loss"], rel=LOSS_BOUND
    )
    assert metrics["execution"]["devices"] == size
    one, here = (load_file(folder / "weights.safetensors") for folder in (results / "1" / run.id, several))
    biases = [parameter for parameter in one if parameter.endswith("router.bias")]
    assert len(biases) == (2 if name == "moe" else 0)
    for parameter in biases:
        assert torch.equal(here[parameter], one[parameter]), "moved by the load of the whole batch, whoever counted it"
        assert one[parameter].any()
    if name.endswith("up"):
        receipt, wanted = (
            json.loads((folder / "receipt.json").read_text()) for folder in (several, results / "1" / run.id)
        )
        assert receipt.keys() == wanted.keys()
        assert receipt["statement"].split("gap is")[0] == wanted["statement"].split("gap is")[0]
        assert receipt["router_gradient"]["step_1"]["norm"] == pytest.approx(
            wanted["router_gradient"]["step_1"]["norm"], rel=1e-4
        )
        assert receipt["logit_gap"] <= receipt["logit_gap_bound"]


def test_an_exchange_once_an_update_trains_the_same(results: Path) -> None:
    """Stopped in step 11, resumed, and evaluated on the way: losses of 20 steps to the same bound."""
    assert "Preempted" in (results / "2" / "whole-end-0.txt").read_text()
    assert_same_curve(rows_of(results / "2" / "whole"), rows_of(results / "1" / RUNS["moe"].id))


@pytest.mark.parametrize(("name", "exchange"), TRAFFIC)
def test_an_update_exchanges_what_it_must_and_the_host_waits_once(name: str, exchange: str, results: Path) -> None:
    """Of 2 passes and 2 blocks: collectives and their bytes (float32, whole tensors). Every pass gathers each block for
    the forward and the backward pass, embedding and head once, and sums their gradients; or the update does so once.
    Norms and routers travel in one message, all that processes agree on in another, which the host reads."""
    found = json.loads((results / "2" / f"traffic-{name}-{exchange}" / "traffic.json").read_text())
    run = RUNS[name]
    counts = count_parameters(run.model, run.moe)
    blocks, vocabulary = 4 * (counts.attention + counts.mlp), 4 * (counts.embedding + counts.head)
    passes = 2 if exchange == "micro_batch" else 1
    each = passes  # gathers of a block in a pass: for its forward pass, and given up in between for its backward pass
    n_tensor = sum(1 for _ in Transformer(run.model, run.moe).parameters())
    message = 8 * (3 + 2 + n_tensor + (2 * 4 + 2 if run.moe else 0))
    wanted = {
        "_allgather_base_": [(2 * each + 1) * passes, (each * blocks + vocabulary) * passes],
        "_reduce_scatter_base_": [3 * passes, (blocks + vocabulary) * passes],
        "allreduce_": [2, 4 * (counts.norm + counts.router) + message],
    }
    assert found["collectives"] == wanted
    assert found["reads"] == {"tolist": 1}
    assert found["waits"] == []


def assert_same_curve(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Equal rows, the numbers that rounding touches to the bound."""
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        alone = {"expert_distance"}  # in rows of one process, which has the weights whole
        assert row.keys() - alone == other.keys() - alone
        for key in row.keys() - alone:
            if key == "load" or key == "entropy":
                assert torch.tensor(row[key]) == pytest.approx(torch.tensor(other[key]), abs=2e-6), (row["step"], key)
            else:
                bound = 10 * LOSS_BOUND if key == "grad_norm" else LOSS_BOUND
                assert row[key] == pytest.approx(other[key], rel=bound), (row["step"], key)


def test_two_processes_give_the_same_bits_every_time(results: Path) -> None:
    """Weights, optimizer state and rows of two runs by two processes are equal."""
    first, again = results / "2" / RUNS["moe"].id, results / "2" / "again"
    assert tensors_sha256(first) == tensors_sha256(again)
    assert rows_of(first) == rows_of(again)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_one_two_one_processes_make_one_run(name: str, results: Path, tokens_dir: Path) -> None:
    """Stopped in one process, resumed by two (the MoE's tensor parallel) and stopped by a signal to one of them,
    finished by one: the data order and the losses of an undisturbed run."""
    root, run = results / "2" / f"resumed-{name}", RUNS[name]
    for rank in (0, 1):
        end = (root / f"{run.id}-end-{rank}.txt").read_text()
        assert end.startswith("Preempted 75")
        assert "after step 12" in end, "all stop after one and the same step"
    assert [row["step"] for row in rows_of(root / run.id)][-1] == 12
    train_in(root, tokens_dir, run, COMPOSED)
    assert json.loads((root / run.id / "metrics.json").read_text())["resumed"] == 2
    assert_same_curve(rows_of(root / run.id), rows_of(results / "1" / run.id))


def test_a_failure_of_one_process_ends_all_with_one_message(results: Path) -> None:
    """Data missing for one process or for both: the lowest that failed says so, the other ends with its exit code."""
    for name, speaker in (("blind-1", 1), ("blind-2", 0)):
        ends = [(results / "2" / f"{name}-end-{rank}.txt").read_text() for rank in (0, 1)]
        assert "/nowhere" in ends[speaker]
        assert ends[1 - speaker] == "EndedByPeer 2: 2"


@pytest.mark.parametrize("count", ROWS_THAT_FIT)
def test_a_disk_too_full_for_a_row_ends_all_with_one_message(count: int, results: Path) -> None:
    """Only the first process writes rows: it names file and mend, the other ends with it, not with gloo's traceback."""
    first, other = ((results / "2" / f"full-{count}-end-{rank}.txt").read_text() for rank in (0, 1))
    assert first.startswith(f"TrainingError 3: {results / '2' / f'full-{count}' / 'metrics.jsonl'}: the disk is full")
    assert other == "EndedByPeer 3: 3"
    assert len(rows_of(results / "2" / f"full-{count}")) == count


def test_a_loss_that_is_not_finite_stops_all_before_the_update(results: Path) -> None:
    ends = [(results / "2" / f"wild-end-{rank}.txt").read_text() for rank in (0, 1)]
    assert all(end.startswith("TrainingError 3:") and "step 3: loss nan" in end for end in ends)
    assert all("Stopped before the update" in end for end in ends)
    assert ends[0] == ends[1], "in the same step, for the same numbers"


def test_a_loss_that_is_not_finite_is_skipped_by_all_where_that_is_asked_for(results: Path) -> None:
    """The run goes on to its end, and says in which step."""
    folder = results / "2" / "skipping"
    assert [row["step"] for row in rows_of(folder) if row.get("skipped")] == [3]
    assert json.loads((folder / "metrics.json").read_text())["skipped_updates"] == 1


def test_every_group_completes_its_collectives_in_one_thread(results: Path) -> None:
    """All groups of a run are `GLOO`'s: the default one, the mesh's, FSDP's, the saver's. Two threads corrupted the
    heap (`distributed._gloo_with_one_worker`)."""
    for name in ("dense", "dense_tensor"):
        notes = json.loads((results / "2" / f"gradients-{name}" / "gradients.json").read_text())
        assert len(notes["backends"]) >= 3
        assert set(notes["backends"]) == {GLOO}
    threads = n_threads()
    torch.distributed.init_process_group(GLOO, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert n_threads() == threads + 2, "one that watches connections, one worker"
    finally:
        torch.distributed.destroy_process_group()


def n_threads() -> int:
    """Threads of this process (Linux)."""
    return len(list(Path("/proc/self/task").iterdir()))


# --- refused before anything starts


@pytest.mark.parametrize(
    ("run", "execution", "words"),
    [
        (RUNS["moe"], {"micro_batch": 3}, "micro_batch 3 is not a whole number of moe.balance_group 2"),
        (DENSE, {"devices": 3, "tensor_parallel": 2}, "tensor_parallel 2 .* does not divide execution.devices 3"),
        (DENSE, {"devices": 3}, "optim.batch 8 cannot be shared among 3 processes"),
        (RUNS["moe"], {"devices": 8}, "in whole balance groups of 2: use a number of devices that divides 4"),
        (DENSE, {"devices": 4, "tensor_parallel": 4}, "model.n_head 2 does not divide by execution.tensor_parallel 4"),
        (
            small_run(model=OTHER, optim=OPTIM),
            {"devices": 4, "tensor_parallel": 4},
            "model.n_kv_head 2 does not divide by execution.tensor_parallel 4",
        ),
        (DENSE, {"devices": 2, "tensor_parallel": 2, "compile": True}, "compile cannot trace the exchange"),
        (DENSE, {"devices": 2, "layers": "native"}, "layers: native computes in one process"),
    ],
)
def test_a_run_that_cannot_be_divided_is_refused(run: RunSpec, execution: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Execution(device="cpu", **execution).check(run)


def test_the_number_of_processes_must_be_the_studys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few, too many: refused at once, before a process waits for another. torchrun's single one is no group."""
    with (
        pytest.raises(UserError, match="devices is 2, but 1 process started"),
        start_group(Execution(device="cpu", devices=2)),
    ):
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with start_group(Execution(device="cpu")) as group:
        assert group == Group()
        assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="devices is 1, but 4 processes started"), start_group(Execution(device="cpu")):
        pass


def test_workers_that_torchrun_did_not_start_are_told_to_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match=r"not LOCAL_RANK, MASTER_PORT: start workers with torchrun"),
        start_group(Execution(device="cpu", devices=2)),
    ):
        pass
