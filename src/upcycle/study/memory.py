"""Peak memory of one process of a training job, by formula: what `upcycle plan` states before anything is started.

Layer 0. Counted are the bytes of tensors: weights, AdamW's moments, gradients, what autograd keeps of the forward pass
for the backward pass, buffers that are held for a moment, and on a CPU the snapshot of a save and what the heap loses
to holes. Not counted: code, and on CUDA the context, NCCL's buffers and fragmentation. Tested on a CPU against live
tensors and against the peak of fresh processes (tests/train/test_peak_memory.py), and for several processes as an upper
bound, by at most 15 %, of the live tensors of one of four (tests/train/test_shared_memory.py). For CUDA the formula is
derived in the same way from the same code; we have run no CUDA job.

An update has moments at which memory can be largest; its peak is the largest of them:

| moment        | held beside weights and the optimizer's moments                                                     |
|---------------|-----------------------------------------------------------------------------------------------------|
| `loss`        | everything kept by all blocks and the loss; two more matrices of the logits' size                   |
| `last block`  | everything kept by all blocks; the head's gradient; buffers of a block's backward pass              |
| `first block` | what the first block kept; all gradients but its own; buffers of a block's backward pass            |
| `embedding`   | of a tied model: all gradients; the embedding's own, and its sum with the head's                    |
| `update`      | all gradients (AdamW and clipping work in place)                                                    |
| `evaluation`  | all gradients (the next update frees them); logits and log-probabilities of `eval_batch` sequences  |

The receipt of an upcycled start needs less than an update (train/receipt.py; tests/train/test_receipt.py).

With accumulation (a micro-batch smaller than the batch) whole gradients are there at every moment, and the largest
matrix's once more until it is added.

What autograd keeps of a block, in numbers a token (D d_model, A all heads of queries, G heads of keys and values each
times d_head; the paper's A and G are D; M d_mlp, of experts d_mlp / granularity; W the width of the shared experts;
H n_head, K top_k, E n_expert). Numbers have the products' precision,
4 bytes in float32 and 2 in bfloat16, but those marked * are always float32:

| op                     | composed of torch ops                                     | native C kernels (float32)      |
|------------------------|-----------------------------------------------------------|---------------------------------|
| RMSNorm, twice         | input D*, root 1*, on a CPU the normed input D*; result D | input D, root 1; MoE: result D  |
| qkv, rotary, attention | q, k rotated A + G; qkv A + 2 G (v is a view); row sums   | qkv A + 2 G; row sums H         |
|                        | H*; A more where queries share keys (put in order)        |                                 |
| norms of heads         | float32 roots H*; on a CPU normed q, k; in bfloat16 both  |                                 |
|                        | in float32 (A + G)*                                       |                                 |
| wo                     | its input A                                               | its input A                     |
| MLP                    | hidden 2 M, SiLU of its gate M, their product M           | hidden 2 M                      |
| router and gates       | input D*; 3 E + K*; 3 K int64                             | 3 E + K; 2 K int64              |
| experts                | inputs, results 2 K D; hidden, SiLU, product 4 K M        | hidden 2 K M                    |
| shared experts         | in bfloat16 their input D; hidden, SiLU, product 4 W      | hidden 2 W; weight 1, its place |

`plain` attention keeps the softmax besides, H S* a token. With `activation_checkpointing: block` a block keeps its
input D* alone, and one block at a time the table's. Autocast on one process keeps a bfloat16 copy of each matrix. The
loss keeps its norm's and the log-probabilities, V* a token; `chunked` and native ones keep the gradients of the hidden
state and the head instead.

Several processes (model/parallel.py): each holds its part of every matrix, its moments and its gradient, and whole
norms and routers. A block's matrices are gathered before they are used (in bfloat16 with dtype bfloat16 on CUDA), the
next block's meanwhile; its gradient is whole, and in float32 once more, until it is summed. Embedding and head are
gathered together from the forward pass's begin to the backward pass's end, and so are their gradients. With `exchange:
update` all blocks stay gathered, and with accumulation whole float32 gradients from its first pass on. Tensor-parallel
processes split hidden units and heads; between layers each has its share of the positions. What torch.compile saves is
not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from upcycle.study.counting import count_parameters
from upcycle.study.execution import Execution
from upcycle.study.kernel_fit import fitting, named_kernels, why_not, why_not_native
from upcycle.study.spec import RunSpec

FLOAT, INT64 = 4, 8
CHUNK_BYTES, CUDA_CHUNK_TOKENS = 1 << 25, 8192
"""Logits that the chunked cross-entropy holds at a time, in float32: bytes on a CPU, tokens on CUDA
(model/torch_kernels.py)."""
LOGITS, STREAM, UNIT_WEIGHTS, CHUNK_ROWS, ATTENTION_ROWS = 1 << 20, 393216, 16384, 96, 256
"""Of the C kernels: numbers of logits and of rows at a time, weights of a block of units, rows at a time
(model/native/loss.h, mlp.h, attention.h)."""
MMAP_BYTES = 32 << 20
"""CPU: glibc takes larger blocks from the kernel, and gives them back (workflow.ALLOCATOR): none of them is lost."""
HEAP_LOSS, HEAP_LOSS_RECOMPUTED = 0.18, 1.5
"""CPU, composed layers of smaller blocks: what glibc's heap loses to holes that an aligned block of their own size may
miss, as a share of the activations, or with recomputation of one block's. Measured on glibc 2.36: 0.07 to 0.25, and 0.6
to 1.9. The C kernels make few temporary tensors, and lose 0.03."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the moment of an update at which it holds most."""

    moment: str
    """Which one: see the module's table."""
    weights: float
    """Its parameters, and copies of them in another precision or gathered from other processes."""
    optimizer: float
    """AdamW's two moments, float32."""
    gradients: float
    activations: float
    """Kept by autograd for the backward pass."""
    working: float
    """Buffers of the moment: logits and their gradients, or a block's backward pass."""
    snapshot: float
    """CPU: the copy of weights and moments that a save is written from. (Of a CUDA job it is in the host's memory.)"""
    process: float
    """CPU: what its heap loses to holes."""

    @property
    def tensors(self) -> float:
        """What an update holds in tensors."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.working

    @property
    def peak(self) -> float:
        """All of it."""
        return self.tensors + self.snapshot + self.process


@dataclass(frozen=True)
class _Job:
    """A run on one of its processes: the sizes that every formula needs."""

    run: RunSpec
    execution: Execution

    @property
    def data_ranks(self) -> int:
        return self.execution.devices // self.execution.tensor_parallel

    @property
    def sequences(self) -> int:
        """Of one forward pass of this process."""
        own = max(self.run.optim.batch // self.data_ranks, 1)
        return min(self.execution.micro_batch or own, own)

    @property
    def accumulates(self) -> bool:
        return self.sequences * self.data_ranks < self.run.optim.batch

    @property
    def tokens(self) -> int:
        return self.sequences * self.run.model.context

    @property
    def own_tokens(self) -> float:
        """Tokens whose positions are this process's between layers."""
        return self.tokens / self.execution.tensor_parallel

    @property
    def mixed(self) -> bool:
        return self.run.dtype == "bfloat16"

    @property
    def product(self) -> int:
        """Bytes of a number in a matrix product."""
        return 2 if self.mixed else FLOAT

    @property
    def native(self) -> bool:
        """Whether layers are the C kernels' (`auto` takes them where it can; a machine without a compiler cannot)."""
        execution = self.execution
        if execution.layers == "composed" or execution.devices > 1:
            return False
        named, fit = named_kernels(execution.kernels), fitting(execution, self.run)
        return not why_not_native(self.run.model, named, **fit, compile=execution.compile)

    @property
    def routed_units(self) -> int:
        """Hidden units of a token's experts, or of the dense MLP."""
        model, moe = self.run.model, self.run.moe
        return moe.top_k * moe.expert_width(model) if moe else model.mlp_width

    @property
    def shared_units(self) -> int:
        """Hidden units of the shared experts."""
        return self.run.moe.shared_width(self.run.model) if self.run.moe else 0

    @property
    def widest(self) -> int:
        """Hidden units of a token that are computed together."""
        return max(self.routed_units, self.shared_units)

    @property
    def whole(self) -> bool:
        """Whether gathered weights and summed gradients stay whole through an update."""
        return self.execution.exchange == "update" and self.execution.devices > 1

    @property
    def recomputes(self) -> bool:
        return self.execution.activation_checkpointing == "block"


def peak_memory(run: RunSpec, execution: Execution) -> Memory:
    """Bytes that one process of the run's job holds at its peak, by part; the module's docstring has the formulas."""
    job = _Job(run, execution)
    counts = count_parameters(run.model, run.moe)
    processes, on_cpu = execution.devices, execution.device == "cpu"
    matrices, vocabulary = counts.attention + counts.mlp, counts.embedding + counts.head
    own = (vocabulary + matrices + counts.bias) / processes + counts.norm + counts.router
    block = matrices / run.model.n_layer / execution.tensor_parallel

    gradients = FLOAT * own
    head = FLOAT * counts.embedding / processes  # as large as the embedding, whether it is one with it or not
    first = FLOAT * (matrices / run.model.n_layer + counts.head) / processes  # tied: the embedding's is there
    started = gradients if job.accumulates else 0.0
    gathered, summing = _gathered(job, block, vocabulary)
    if job.whole and job.accumulates:
        started = FLOAT * (run.model.n_layer * block + vocabulary + counts.norm + counts.router)
    inside, kept = _kept(job), run.model.n_layer * (_input(job) if job.recomputes else _kept(job))
    again, first_input = (inside, _input(job)) if job.recomputes else (0.0, 0.0)
    one_copy, all_copies = (
        _copies(job, block),
        run.model.n_layer * _copies(job, block) + 2 * job.mixed * counts.embedding,
    )
    backward = _backward_buffers(job) + summing + _matrix_again(job)
    moments = {  # copies and gathered weights, gradients, kept, buffers
        "loss": (gathered + all_copies, started, kept + _loss_kept(job), _loss_buffers(job)),
        "last block": (gathered + (one_copy if again else all_copies), max(started, head), kept + again, backward),
        "first block": (gathered + one_copy, max(started, gradients - first), inside + first_input, backward),
        "embedding": (gathered, max(started, gradients), _input(job), _tied_again(job)),
        "update": (0.0, gradients, 0.0, _matrix_again(job)),
        "evaluation": (gathered + all_copies, gradients, 0.0, _evaluation_buffers(job)),
    }
    moment = max(moments, key=lambda name: sum(moments[name]))
    copies, present, activations, working = moments[moment]
    return Memory(
        moment=moment,
        weights=FLOAT * own + copies,
        optimizer=2 * FLOAT * own,
        gradients=present,
        activations=activations,
        working=working + _scratch(job),
        snapshot=3 * FLOAT * own if on_cpu else 0.0,
        process=_heap_loss(job, activations, again) if on_cpu else 0.0,
    )


def _heap_loss(job: _Job, activations: float, again: float) -> float:
    if job.native or _input(job) >= MMAP_BYTES:
        return 0.0
    return HEAP_LOSS_RECOMPUTED * again if again else HEAP_LOSS * activations


# Weights beside the process's own


def _gathered(job: _Job, block: float, vocabulary: float) -> tuple[float, float]:
    """Bytes of gathered matrices at any moment, and of whole gradients that are being summed."""
    if job.execution.devices == 1:
        return 0.0, 0.0
    width = 2 if job.mixed and job.execution.device == "cuda" else FLOAT
    blocks = job.run.model.n_layer if job.whole else 2
    return FLOAT * vocabulary + blocks * width * block, (width + FLOAT) * block + FLOAT * vocabulary


def _copies(job: _Job, block: float) -> float:
    """Bytes of autocast's bfloat16 copies of a block's matrices; gathered ones are bfloat16 already."""
    return 2 * block if job.mixed and job.execution.devices == 1 else 0.0


def _matrix_again(job: _Job) -> float:
    """Gradients held twice: by accumulation until added, or of experts computed singly until they are stacked."""
    model, moe, execution = job.run.model, job.run.moe, job.execution
    units = max(moe.n_expert * moe.expert_width(model), job.shared_units) if moe else model.mlp_width
    w_in = FLOAT * 2 * units * model.d_model / execution.tensor_parallel
    if execution.devices == 1 and job.accumulates:
        return w_in
    fits = not why_not("experts", "grouped_mm", model, device=execution.device, dtype=job.run.dtype, moe=moe)
    singly = moe and not job.native and (execution.experts == "loop" or (execution.experts == "auto" and not fits))
    return w_in if singly else 0.0


def _tied_again(job: _Job) -> float:
    """Of a tied matrix: the embedding's gradient, the sum of it and the head's, and with accumulation the head's."""
    matrix = FLOAT * job.run.model.vocab_size * job.run.model.d_model
    return matrix * (2 + job.accumulates) if job.run.model.tied else 0.0


# What a forward pass leaves behind


def _input(job: _Job) -> float:
    """Bytes of a block's input."""
    return FLOAT * job.run.model.d_model * job.own_tokens


def _norm(job: _Job) -> float:
    """Bytes kept of one RMSNorm, its result left out."""
    normed = 1 if job.execution.device == "cpu" and not job.native else 0
    return FLOAT * ((1 + normed) * job.run.model.d_model + 1) * job.own_tokens


def _kept(job: _Job) -> float:
    """Bytes that autograd keeps of one block: the module's table."""
    if job.native:
        return _native_kept(job)
    model, moe = job.run.model, job.run.moe
    width, hidden = model.d_model, job.routed_units + job.shared_units
    kept = 2 * _norm(job) + _attention_kept(job) + job.product * 4 * hidden * job.own_tokens
    if moe is None:
        return kept + job.product * width * job.tokens
    kept += (FLOAT * (width + 3 * moe.n_expert + moe.top_k) + INT64 * 3 * moe.top_k) * job.tokens
    inputs = 2 * moe.top_k + (job.mixed and moe.shared_expert > 0)
    return kept + job.product * inputs * width * job.tokens


def _attention_kept(job: _Job) -> float:
    """Bytes kept of attention and of the products before and after it, the norm's result with it."""
    model, plain = job.run.model, job.execution.attention == "plain"
    copied = plain or (job.execution.device == "cuda" and not job.mixed)  # keys and values, for each query
    queries, keys = model.attention_width, model.kv_width
    kept = model.qkv_width + queries + keys + queries
    if model.sharing > 1 and copied:  # in place of those that they were made of
        kept = 4 * queries + model.qkv_width * model.qk_norm
    if model.sharing > 1 and not plain:  # put in order, attention's result is kept twice
        kept += queries
    softmax = model.context if plain else 0
    size = job.product * kept + FLOAT * model.n_head * (1 + softmax)
    if model.qk_norm:
        copies = job.mixed + (job.execution.device == "cpu")
        size += FLOAT * (copies * (queries + keys) + model.n_head + model.kv_heads)
    gathered = job.product * model.d_model * job.tokens  # a norm's result, from tensor-parallel processes
    return gathered + size * job.own_tokens


def _native_kept(job: _Job) -> float:
    """Bytes that autograd keeps of one block of C kernels (model/native/layers.py)."""
    model, moe = job.run.model, job.run.moe
    numbers: float = 2 * model.d_model + model.qkv_width + model.attention_width + model.n_head + 2
    if moe is None:
        return FLOAT * (numbers + 2 * model.mlp_width) * job.tokens
    numbers += model.d_model + 3 * moe.n_expert + moe.top_k + 2 * (job.routed_units + job.shared_units)
    numbers += 2 * (moe.shared_expert > 0)
    return (FLOAT * numbers + INT64 * 2 * moe.top_k) * job.tokens


def _loss_kept(job: _Job) -> float:
    """Bytes kept of the final norm and the loss."""
    model = job.run.model
    if job.native:
        return FLOAT * (2 * model.d_model * job.tokens + model.vocab_size * model.d_model)
    norm = _norm(job) + job.product * model.d_model * job.own_tokens
    if job.execution.cross_entropy == "chunked":
        return norm + FLOAT * model.d_model * job.own_tokens + FLOAT * model.vocab_size * model.d_model
    return norm + (FLOAT * model.vocab_size + INT64) * job.own_tokens


# Buffers of a moment


def _logits(job: _Job, tokens: float) -> float:
    """Two matrices of logits, or three of a chunk of them and the chunk before; native ones are in `_scratch`."""
    if job.native:
        return 0.0
    whole = FLOAT * job.run.model.vocab_size * tokens
    on_cuda = job.execution.device == "cuda"
    chunk = float(FLOAT * job.run.model.vocab_size * CUDA_CHUNK_TOKENS if on_cuda else CHUNK_BYTES)
    if job.execution.cross_entropy == "chunked" and whole > chunk:
        return 3 * chunk
    return 2 * whole


def _loss_buffers(job: _Job) -> float:
    """Gradients of log-probabilities and logits, side by side; of native ones, both gradients times their share."""
    model = job.run.model
    if job.native and job.accumulates:
        return FLOAT * (model.d_model * job.tokens + model.vocab_size * model.d_model)
    return _logits(job, job.own_tokens)


def _backward_buffers(job: _Job) -> float:
    """A block's backward pass at its widest, beside what it kept: gradients of SiLU and of the up projection (the
    gradient of the product takes the product's place), and of the residual stream and the layer's result."""
    if job.native:
        return 3 * _input(job)
    return 2 * job.product * job.widest * job.own_tokens + 2 * _input(job)


def _evaluation_buffers(job: _Job) -> float:
    """A forward pass without gradients: logits and log-probabilities, or a layer's hidden units."""
    model, execution = job.run.model, job.execution
    tokens = execution.eval_batch * model.context
    layer = 4 * job.widest / execution.tensor_parallel
    return max(_logits(job, tokens), job.product * layer * tokens) + 3 * FLOAT * model.d_model * tokens


def _scratch(job: _Job) -> float:
    """Memory that the C kernels keep between calls (model/native: attention.h, mlp.h, loss.h): packed matrices, logits
    of some rows, and rows with what is made of them while they pass by a block of the MLP."""
    if not job.native:
        return 0.0
    model = job.run.model
    width, head = model.d_model, model.vocab_size * model.d_model
    packed = max(head, model.qkv_width * width) + max(head, model.attention_width * width)
    whole = model.vocab_size * job.tokens
    logits = min(whole, max(LOGITS if head > LOGITS / 4 else LOGITS / 4, CHUNK_ROWS * model.vocab_size))
    hidden = max(job.run.moe.expert_width(model), job.shared_units) if job.run.moe else model.mlp_width
    streamed = STREAM if hidden * width > UNIT_WEIGHTS else 0
    rows = min(width * job.tokens, max(streamed, CHUNK_ROWS * width))  # norm, result, its gradient, strips, panels
    projected = model.qkv_width * max(ATTENTION_ROWS, model.context)  # gradients of q, k, v, and their panels
    return float(FLOAT * (packed + max(logits, projected) + 4 * rows + max(rows, projected)))
