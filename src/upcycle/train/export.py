"""`upcycle export`: a finished run as a folder that `transformers` loads, and that computes what the run computes.

The folder is written beside its place, loaded again and compared with the run; only then it gets its name.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from upcycle.data.tokenizer import end_of_text
from upcycle.data.tokens import TOKENIZER, TokenSet
from upcycle.errors import UserError
from upcycle.files import sync_folder, write_atomic
from upcycle.manifest import WEIGHTS, json_bytes, read_manifest
from upcycle.model.hub import file_tensors
from upcycle.model.interop import hugging_face_config, to_hugging_face
from upcycle.model.transformer import Transformer
from upcycle.study.recorded import check_trained
from upcycle.study.spec import RunSpec
from upcycle.train.card import model_card
from upcycle.train.evaluate import heldout, spread_sequences
from upcycle.train.processes.preemption import HOPELESS, TrainingError
from upcycle.train.states.checkpoint import disk_full_is_named, read_spec, read_tensors, safetensors_parts

FORMAT = {"format": "pt"}
"""Without this note older versions of transformers do not read a safetensors file."""
SHARD_BYTES = 5 * 10**9
"""A larger model.safetensors is several, with an index."""
COMPARED = 1024
"""Held-out tokens on which the export is compared with the run, in whole sequences (at least two)."""
TOLERANCE = 1e-5
"""Largest difference of two logits, as a share of the largest logit. Both are computed in float32."""
UNDECIDED = 1e-5
"""A router whose last chosen logit is this close to the next one, as a share of its largest: rounding may choose."""


class SameLogits(NamedTuple):
    """The run's logits against those of the exported folder."""

    difference: float
    """Largest difference of two logits."""
    largest: float
    """Largest logit of the run, absolute."""
    tokens: int
    """Positions compared."""

    def __str__(self) -> str:
        return (
            f"largest difference of {self.tokens:,} tokens' logits from transformers' {self.difference:.1e}, "
            f"{self.difference / self.largest:.1e} of the largest logit ({self.largest:.1f})"
        )


def export_run(run_dir: Path, tokens_dir: Path, folder: Path) -> SameLogits:
    """Write a finished run into a new `folder`: weights, config, tokenizer, generation config, model card.

    Raises UserError, before anything is written, for a folder that holds something, a run that is not finished or that
    no class of transformers can hold, and tokens of another tokenizer; and TrainingError, leaving nothing, if what
    transformers loads computes other logits.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "an export is loaded again by `transformers` and compared, and that is not installed: "
            "pip install 'transformers>=5'"
        )
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError(f"{folder}: is there already; name a folder that does not exist, or is empty")
    folder = folder.resolve()  # which has a name and a parent, as `.` has not
    check_trained(run_dir)
    run, manifest = read_spec(run_dir), read_manifest(run_dir)
    config = hugging_face_config(run.model, run.moe)
    tokens = TokenSet(tokens_dir)
    if tokens.manifest["tokenizer"]["sha256"] != manifest["tokenizer_sha256"]:
        raise UserError(
            f"{tokens_dir}: its tokenizer is not the one that {run.id} was trained with; restore that token set"
        )
    sequences = heldout(tokens, run)
    ids_BS = sequences[spread_sequences(len(sequences), COMPARED // run.model.context), :-1]
    weights = read_tensors(run_dir, WEIGHTS)
    expected = _logits(run, weights, torch.from_numpy(ids_BS))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with disk_full_is_named(folder):
            _write_weights(partial, file_tensors(to_hugging_face(weights, run.model, run.moe), config["model_type"]))
            del weights  # before transformers has its own
            _write_settings(partial, run, config, tokens)
            compared = _compared(*expected, torch.from_numpy(ids_BS), partial)
            _check_tokenizer(partial, tokens.tokenizer(), ids_BS)
            write_atomic(partial / "README.md", model_card(run_dir, run, tokens.manifest, str(compared)))
            partial.chmod(0o755)  # not mkdtemp's
            sync_folder(partial)
            partial.replace(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return compared


# What is written


def _write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """model.safetensors, or several with an index where it would be larger than SHARD_BYTES."""
    shards = list(_shards(state))
    if len(shards) == 1:
        write_atomic(folder / "model.safetensors", *safetensors_parts(shards[0], FORMAT))
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_atomic(folder / name, *safetensors_parts(shard, FORMAT))
        places |= dict.fromkeys(shard, name)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_atomic(folder / "model.safetensors.index.json", json_bytes(index))


def _shards(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, cut before one that would make a file larger than SHARD_BYTES."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in state.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _write_settings(folder: Path, run: RunSpec, config: Mapping[str, Any], tokens: TokenSet) -> None:
    """config.json, generation_config.json, tokenizer.json and tokenizer_config.json.

    A document ends with the end token and none begins with a start token, as in training.
    """
    tokenizer = tokens.tokenizer()
    end = end_of_text(tokenizer)
    stated = {**config, "bos_token_id": None, "eos_token_id": end, "pad_token_id": None, "torch_dtype": "float32"}
    # In the spelling that transformers reads in all its versions: version 4 does not know `rope_parameters`, and would
    # take its default without a word.
    rope = stated.pop("rope_parameters")
    stated["rope_theta"] = rope.pop("rope_theta")
    stated["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    write_atomic(folder / "config.json", json_bytes(stated))
    write_atomic(folder / "generation_config.json", json_bytes({"eos_token_id": end, "pad_token_id": end}))
    write_atomic(folder / TOKENIZER, (tokens.folder / TOKENIZER).read_bytes())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.id_to_token(end),
        "model_max_length": run.model.context,
        "clean_up_tokenization_spaces": False,
    }
    write_atomic(folder / "tokenizer_config.json", json_bytes(settings))


# The comparison


def _compared(ours_BSV: Tensor, decided_BS: Tensor, ids_BS: Tensor, folder: Path) -> SameLogits:
    """The run's logits against those of what transformers loads. TrainingError if they differ."""
    with torch.no_grad():
        theirs_BSV = _loaded(folder)(ids_BS).logits
    ours_NV, theirs_NV = ours_BSV[decided_BS], theirs_BSV[decided_BS]
    if not len(ours_NV):
        raise TrainingError("rounding could choose an expert of each sequence's first token: nothing to compare")
    difference, largest = (ours_NV - theirs_NV).abs().max().item(), ours_NV.abs().max().item()
    compared = SameLogits(difference, largest, len(ours_NV))
    if not difference <= TOLERANCE * largest:  # NaN too
        raise TrainingError(
            f"{compared}; {TOLERANCE:g} is allowed, so nothing is exported. Either the export is wrong, a bug, "
            "or rounding alone moves this model's logits so far",
            HOPELESS,
        )
    return compared


@torch.no_grad()
def _logits(run: RunSpec, weights: dict[str, Tensor], ids_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The run's logits (B, S, V), and where they do not hang on a choice between two experts that are equally good.

    Rounding may decide such a choice, another one in transformers, and positions see those before them: a sequence is
    compared up to its first.
    """
    model = Transformer(run.model, run.moe)
    model.load_state_dict(weights, assign=True)
    decided_BS = torch.ones(ids_BS.shape, dtype=torch.bool)

    def note(_router: torch.nn.Module, _inputs: Any, logits_TE: Tensor) -> None:
        assert run.moe is not None
        best = logits_TE.topk(run.moe.top_k + 1).values
        close_T = best[:, -2] - best[:, -1] <= UNDECIDED * logits_TE.abs().max()
        decided_BS.logical_and_(~close_T.view(ids_BS.shape))

    if run.moe is not None and run.moe.top_k < run.moe.n_expert:
        for mixture in model.mixtures:
            mixture.router.register_forward_hook(note)
    logits_BSV = model.eval().logits(ids_BS)
    return logits_BSV, decided_BS.cumprod(1).bool()


def _loaded(folder: Path) -> torch.nn.Module:
    """The model of a folder, loaded by transformers as a user would load it. TrainingError unless every tensor fits."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # Qwen2Moe's shared expert
        model, report = load(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    if wrong := {key: sorted(map(str, names)) for key, names in report.items() if names}:
        raise TrainingError(f"transformers does not load the export as written: {wrong}; this is a bug", HOPELESS)
    loaded: torch.nn.Module = model.eval()
    return loaded


def _check_tokenizer(folder: Path, ours: Tokenizer, ids_BS: np.ndarray) -> None:
    """TrainingError if transformers cuts the compared text into other tokens than the run was trained on."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in ours.decode_batch(ids_BS.tolist()):
        cut = theirs.encode(text, add_special_tokens=False, verbose=False)  # or it warns of a text beyond the context
        if cut != ours.encode(text, add_special_tokens=False).ids:
            raise TrainingError("transformers cuts text into other tokens than the run's tokenizer does", HOPELESS)
    if theirs.eos_token_id != end_of_text(ours):
        raise TrainingError(f"transformers takes token {theirs.eos_token_id} for the end of text", HOPELESS)
