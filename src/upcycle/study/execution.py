"""How a run is executed: settings that affect rounding and speed, never the expected loss.

They are recorded in metrics.json and are not in a run's id: moving from 8 to 16 GPUs retrains nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from upcycle.errors import UserError
from upcycle.study.shape import Frozen
from upcycle.study.spec import RunSpec
from upcycle.study.values import Count, Positive, Sequences, Width, as_list

DEFAULT_RATES = {"cuda": 400e12, "cpu": 1e10}
"""FLOP/s of a GPU (an H100, A.10) and of one thread of a CPU (of a small cloud machine, in a small model)."""


TrackerName = Literal["tensorboard", "wandb"]
TRACKER_LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class ModelExecution(Frozen):
    """What `execution` of a model may set for its own jobs; a key left out is as in the study's `execution`."""

    devices: Width | None = None
    """Processes of a job on all its nodes together."""
    nodes: Width | None = None
    """Nodes of a job, each with an equal share of its `devices`."""
    micro_batch: Sequences | None = None
    """Sequences a forward pass of each process, a whole number of balance groups."""
    compile: bool | None = None
    """torch.compile every block."""
    activation_checkpointing: Literal["none", "block"] | None = None
    """`block` keeps only each block's input and computes its inside again in the backward pass."""
    exchange: Literal["micro_batch", "update"] | None = None
    """When several processes gather weights and sum gradients: in every micro-batch, or once an update, which meanwhile
    keeps them whole on every process."""
    tensor_parallel: Width | None = None
    """Processes that share each matrix; divides `devices`."""


class Execution(Frozen):
    """Execution settings of every training and evaluation job of a study."""

    device: Literal["cpu", "cuda"]
    """Explicit, never guessed: a cuda study on a machine without CUDA stops."""
    threads: Annotated[Count, Field(le=1024)] = 1
    """Torch threads a job. Two jobs of one thread are faster than one of two on small models."""
    micro_batch: Sequences | None = None
    """Sequences a forward pass, a whole number of balance groups; None takes the batch whole."""
    eval_batch: Sequences = 16
    """Sequences a forward pass when evaluating."""
    save_seconds: Positive = 60.0
    """Seconds between rolling resume states."""
    log_steps: Count = 10
    """Steps between rows of metrics.jsonl."""
    trackers: Annotated[
        tuple[TrackerName, ...],
        BeforeValidator(as_list, json_schema_input_type=TrackerName | list[TrackerName]),
    ] = ()
    """Where rows of metrics.jsonl are copied to: event files of TensorBoard, Weights & Biases (also offline)."""
    layers: Literal["auto", "native", "composed"] = "auto"
    """Whole layers by the C kernels of `model/native` (CPU, float32), or composed of the ops below."""
    attention: Literal["auto", "flash2", "te", "sdpa_flash", "sdpa", "plain"] = "auto"
    """Kernel of attention; `auto` takes the fastest that can compute the model, and logs its choice."""
    experts: Literal["auto", "grouped_mm", "te", "loop"] = "auto"
    """Kernel of the experts' matrix products."""
    rms_norm: Literal["auto", "torch", "te"] = "auto"
    """Kernel of RMSNorm."""
    cross_entropy: Literal["auto", "plain", "chunked"] = "auto"
    """`chunked` computes the loss of some positions at a time, which takes less memory than `plain`."""
    compile: bool = False
    """torch.compile every block, and the loss if it is chunked; worth its minute a job where training takes many."""
    activation_checkpointing: Literal["none", "block"] = "none"
    """`block` keeps only each block's input and computes its inside again in the backward pass."""
    exchange: Literal["micro_batch", "update"] = "micro_batch"
    """When several processes gather weights and sum gradients: in every micro-batch, or once an update, which meanwhile
    keeps them whole on every process."""
    fork_server: bool = False
    """Local runs only: jobs fork from one process that has imported torch, instead of each importing it."""
    flops_per_second: Positive | None = None
    """Rate of one process that `plan` takes for its times until runs were measured; None: `DEFAULT_RATES`."""
    devices: Width = 1
    """Processes of a job on all its nodes together, each with a device of its own: FSDP2 from two up."""
    nodes: Width = 1
    """Nodes of a job, each with an equal share of its `devices`."""
    tensor_parallel: Width = 1
    """Processes that share each matrix (tensor and sequence parallelism); divides `devices`. The paper: 2 (largest)."""
    device_memory_gb: Positive | None = None
    """Memory of one process's device, 10^9 bytes: `plan` warns of runs whose peak, by formula, exceeds it."""
    max_segment_hours: Positive | None = None
    """A trunk segment that is expected to take longer is cut into several; one that has begun is never cut."""

    def check(self, run: RunSpec) -> None:
        """Raise UserError, naming the keys and how to fix them, if a run cannot be divided so."""
        if self.devices % self.nodes:
            raise UserError(
                f"{run.id}: execution.devices {self.devices} cannot be shared equally by execution.nodes {self.nodes}; "
                "devices counts the processes of all nodes together"
            )
        group = run.moe.balance_group if run.moe else 1
        if self.micro_batch is not None and self.micro_batch % group:
            raise UserError(
                f"execution.micro_batch {self.micro_batch} is not a whole number of moe.balance_group {group}: "
                "the balance loss of a group needs all its sequences at once"
            )
        if self.devices > 1 and self.layers == "native":
            raise UserError(
                f"execution.layers: native computes in one process, and execution.devices is {self.devices}; "
                "name `composed` or `auto`"
            )
        if self.compile and self.tensor_parallel > 1:
            raise UserError(
                f"{run.id}: execution.compile cannot trace the exchange between tensor-parallel processes; set it to "
                "false, or tensor_parallel (of `execution`, or of the model) to 1"
            )
        data_ranks, odd = divmod(self.devices, self.tensor_parallel)
        if odd:
            raise UserError(
                f"tensor_parallel {self.tensor_parallel} (of execution, or of the model of {run.id}) does not divide "
                f"execution.devices {self.devices}: every matrix is shared by that many of them"
            )
        if run.role != "imported" and run.optim.batch % (data_ranks * group):  # an import has no batch to share
            raise UserError(
                f"{run.id}: optim.batch {run.optim.batch} cannot be shared among {data_ranks} processes (execution."
                f"devices / tensor_parallel) in whole balance groups of {group}: use a number of devices that divides "
                f"{run.optim.batch // group}"
            )
        model = run.model
        heads = "n_head" if model.n_kv_head is None else "n_kv_head"
        sizes = {heads: model.kv_heads, "d_mlp": model.mlp_width, "context": model.context}
        if run.moe:
            sizes["d_mlp (of an expert)"] = run.moe.expert_width(model)
        for name, size in sizes.items():
            if size % self.tensor_parallel:
                raise UserError(
                    f"{run.id}: model.{name} {size} does not divide by execution.tensor_parallel "
                    f"{self.tensor_parallel}; set that to a divisor, or to 1"
                )

    def check_trackers(self) -> None:
        """Raise UserError naming a tracker whose library is not installed. (Finding it imports nothing.)"""
        for name in self.trackers:
            if find_spec(TRACKER_LIBRARIES[name]) is None:
                raise UserError(
                    f"execution.trackers: {name} needs the library {TRACKER_LIBRARIES[name]}: `pip install "
                    f"{TRACKER_LIBRARIES[name]}` into this environment, or leave {name} out"
                )

    @property
    def expected_rate(self) -> float:
        """FLOP/s that one job is expected to reach, all its processes together."""
        default = DEFAULT_RATES[self.device] * (self.threads if self.device == "cpu" else 1)
        return self.devices * (self.flops_per_second or default)

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel asked for, by op: what `model.kernels.choose_kernels` takes. Several processes compose layers."""
        names = {op: getattr(self, op) for op in ("layers", "attention", "experts", "rms_norm", "cross_entropy")}
        return names | ({"layers": "composed"} if self.devices > 1 else {})
