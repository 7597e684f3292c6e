"""A Hugging Face folder as the dense parent of runs: its shape and fingerprint, and what we cannot train, by name.

Layer 0: standard library and pydantic only. Planning reads config.json and the headers of the safetensors files; no
code of the folder runs and nothing is unpickled. The families compute what `model/transformer.py` does: RMSNorm,
SwiGLU, RoPE in halves. Files are hashed once (`data/verified.py` keeps notes); the job that imports checks the bytes
that it loads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upcycle.data.sources import sha256_file
from upcycle.data.verified import NotedHashes
from upcycle.errors import UserError, brief, nearest
from upcycle.files import given_path, write_atomic
from upcycle.study.foreign import ITEM_BYTES, MAX_HEADER_BYTES, inside, read_header, read_json
from upcycle.study.shape import Frozen, ModelShape, RopeScaling
from upcycle.study.spec import canonical_json
from upcycle.study.values import PATH_PATTERN, Sha256

log = logging.getLogger(__name__)

NOTES = Path("results") / ".checkpoints"
"""What is known of checkpoints that studies of this folder began with."""
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Class by `model_type`. SmolLM and SmolLM2 are Llamas."""
MISTRAL_WINDOW = 4096
"""Sliding window of a mistral whose config.json does not state one (MistralConfig)."""
MAX_CONFIG_BYTES = 1 << 20
SLOW_BYTES = 1 << 30
"""Hashing a larger file takes seconds: the log says that it is being hashed."""
KEYS = {
    "n_layer": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "d_head": "head_dim",
    "d_mlp": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "rope_base": "rope_theta",
    "kind": "rope_type",
    "original_context": "original_max_position_embeddings",
}
"""Keys of config.json by our names of what they state."""
ROPE_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
}
"""Settings of each type of rotary embedding that we compute."""
CONVERT = "AutoModelForCausalLM.from_pretrained({source}).save_pretrained(OUT)"


class AbsentError(UserError):
    """A checkpoint that is not here, and that no results of this folder are of."""


class Parent(Frozen):
    """A checkpoint that can be a parent, as its config.json and headers describe it."""

    folder: Path
    family: str
    """`model_type` of config.json."""
    shape: ModelShape
    rows: int
    """Rows of the embedding and of the head."""
    context: int
    """Longest sequence, in tokens, for which it computes what we do: its positions, or its sliding window."""
    files: tuple[Path, ...]
    """The safetensors files, sorted by name."""

    @property
    def tokenizer(self) -> Path:
        """Its tokenizer.json."""
        return self.folder / TOKENIZER

    def fingerprint(self, sha256s: Iterable[str]) -> str:
        """SHA-256 over family, shape and the hexadecimal SHA-256 of every weight file, in any order."""
        about = {"family": self.family, "rows": self.rows, **self.shape.model_dump(mode="json", exclude_defaults=True)}
        return hashlib.sha256("\n".join([canonical_json(about), *sorted(sha256s)]).encode()).hexdigest()


def read_parent(folder: Path) -> Parent:
    """What a Hugging Face folder holds.

    Raises `UserError` naming the file, and the key or tensor, that is missing, damaged, hostile or not supported.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; name a Hugging Face folder with {CONFIG} and safetensors files")
    config = _Config(read_json(folder, CONFIG, MAX_CONFIG_BYTES), folder / CONFIG)
    family = config.check_family()
    files = _weight_files(folder)
    if not (folder / TOKENIZER).is_file():
        raise UserError(
            f"{folder}: no {TOKENIZER}, with which its text is cut; make it with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    inside(folder, TOKENIZER)
    parent = Parent(
        folder=folder,
        family=family,
        shape=config.shape(family),
        rows=config.whole("vocab_size"),
        context=config.context(family),
        files=tuple(inside(folder, name) for name in files),
    )
    _check_tensors(parent, files)
    return parent


class Checkpoint(Frozen):
    """A parent whose content is known."""

    parent: Parent
    files: dict[str, Sha256]
    """SHA-256 of each of its weight files, by name."""
    tokenizer_sha256: Sha256

    @property
    def fingerprint(self) -> str:
        """As `Parent.fingerprint`."""
        return self.parent.fingerprint(self.files.values())


def noted_hashes() -> NotedHashes:
    """SHA-256 of checkpoints' files, each computed once and noted by path, size and times."""
    return NotedHashes(NOTES, _sha256)


def identify(folder: Path, hashes: NotedHashes) -> Checkpoint:
    """A checkpoint by content, which is noted: what has been imported can be planned without its folder.

    Raises `UserError` as `find_parent` does.
    """
    if not folder.exists():
        return _noted(folder)
    parent = read_parent(folder)

    def known(path: Path) -> str:
        found = hashes.of(path)
        if found is None:
            raise UserError(f"{path}: removed while it was read; restore the folder")
        return found

    files = {path.name: known(path) for path in parent.files}
    checkpoint = Checkpoint(parent=parent, files=files, tokenizer_sha256=known(parent.tokenizer))
    text = checkpoint.model_dump_json() + "\n"
    note = _note(folder)
    if not note.exists() or note.read_text(encoding="utf-8") != text:
        write_atomic(note, text)
    return checkpoint


def find_parent(folder: Path) -> Parent:
    """`read_parent`, or for a folder that is gone what it held at last. Raises `AbsentError` where nobody knows."""
    return read_parent(folder) if folder.exists() else _noted(folder).parent


def _note(folder: Path) -> Path:
    """By the path as the study gives it, so that copied results bring it along."""
    return NOTES / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"


def _noted(folder: Path) -> Checkpoint:
    try:
        return Checkpoint.model_validate_json(_note(folder).read_bytes())
    except (OSError, ValidationError):
        raise AbsentError(
            f"{folder}: no such folder; name a Hugging Face folder with {CONFIG} and safetensors files"
        ) from None


def _sha256(path: Path) -> str:
    size = path.stat().st_size
    if size > SLOW_BYTES:
        log.warning("%s: hashed once, %.1f GB", path, size / 1e9)
    return sha256_file(path)


class _Config:
    """config.json, read key by key."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def error(self, key: str, why: str) -> UserError:
        return UserError(f"{self.path}: `{key}`: {why}")

    def out_of_range(self, key: str, error: ValidationError) -> UserError:
        """The first thing that a shape, or a part of it stated under `key`, cannot have, by its name in config.json."""
        first = error.errors()[0]
        name = KEYS.get(name := ".".join(map(str, first["loc"])), name)
        why = first["msg"].removeprefix("Value error, ")
        given = f" (given: {brief(first['input'])})" if name and first["type"] != "value_error" else ""
        return self.error(".".join(filter(None, (key, name))), why + given)

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number; the default stands in for a key that is absent or null."""
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.error(key, f"a positive whole number is wanted (given: {brief(value)})")
        return value

    def check_family(self) -> str:
        """The family; `UserError` for what is none of `FAMILIES`, or would need its own code or another arithmetic."""
        for key in ("auto_map", "trust_remote_code"):
            if self.values.get(key):
                raise self.error(key, "the checkpoint wants to run code of its own, which is never done")
        family = self.values.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise self.error("model_type", f"{brief(family)} is not supported; {nearest(str(family), FAMILIES)}")
        classes = self.values.get("architectures") or [FAMILIES[family]]
        if classes != [FAMILIES[family]]:
            raise self.error("architectures", f"{brief(classes)} is not supported; {FAMILIES[family]} is wanted")
        if self.values.get("quantization_config"):
            raise self.error(
                "quantization_config", "quantised weights are not supported; save them as float32 or 16 bit"
            )
        fixed: dict[str, tuple[Any, ...]] = {
            "hidden_act": (None, "silu"),
            "attention_bias": (None, False),
            "mlp_bias": (None, False),
            "partial_rotary_factor": (None, 1),
        }
        for key, allowed in fixed.items():
            value = self.values.get(key)
            if value not in allowed:
                raise self.error(key, f"{brief(value)} is not supported; {json.dumps(allowed[-1])} alone is")
        if self.values.get("tie_word_embeddings") not in (None, True, False):
            raise self.error("tie_word_embeddings", "true or false is wanted")
        return family

    def shape(self, family: str) -> ModelShape:
        """The shape in our words; initialisation as a model of ours, from scratch, has it."""
        width, heads = self.whole("hidden_size"), self.whole("num_attention_heads")
        grouped = self.whole("num_key_value_heads", heads if family == "llama" else None)
        head = self.whole("head_dim", width // heads if family != "qwen3" else None)
        theta, scaling = self._rope()
        if (epsilon := self.values.get("rms_norm_eps")) is None:
            raise self.error("rms_norm_eps", "is missing")
        try:
            return ModelShape(
                n_layer=self.whole("num_hidden_layers"),
                d_model=width,
                n_head=heads,
                n_kv_head=grouped if grouped != heads else None,
                d_head=head if head * heads != width else None,
                d_mlp=self.whole("intermediate_size"),
                norm_eps=epsilon,
                rope_base=theta,
                rope_scaling=scaling,
                tied=bool(self.values.get("tie_word_embeddings")),
                qkv_bias=family == "qwen2",
                qk_norm=family == "qwen3",
            )
        except ValidationError as error:
            raise self.out_of_range("", error) from None

    def _rope(self) -> tuple[Any, RopeScaling | None]:
        """Base and scaling of the rotary frequencies; `rope_parameters` is how transformers 5 writes them."""
        new, old = self.values.get("rope_parameters"), self.values.get("rope_scaling")
        key = "rope_scaling" if new is None else "rope_parameters"
        if new is not None and old is not None and new != old:
            raise self.error("rope_scaling", "contradicts `rope_parameters`; keep one of them")
        given = new if new is not None else old if old is not None else {}
        if not isinstance(given, dict):
            raise self.error(key, f"an object is wanted (given: {brief(given)})")
        given = dict(given)
        theta = given.pop("rope_theta", self.values.get("rope_theta", 10_000.0))
        if (own := self.values.get("rope_theta", theta)) is not theta and own != theta:  # NaN is refused as a value
            raise self.error("rope_theta", f"contradicts `{key}`; keep one of them")
        kind, again = given.pop("rope_type", None), given.pop("type", None)
        kind = kind or again or "default"
        if not isinstance(kind, str) or kind not in ROPE_KEYS or again not in (None, kind):
            raise self.error(key, f"{brief(kind)} is not supported; {nearest(str(kind), ROPE_KEYS)}")
        if given.get("partial_rotary_factor", 1) == 1:
            given.pop("partial_rotary_factor", None)
        if unknown := sorted(given.keys() - ROPE_KEYS[kind]):
            raise self.error(f"{key}.{unknown[0]}", f"is not supported with type {kind}")
        if kind == "default":
            return theta, None
        original = given.pop("original_max_position_embeddings", None)
        try:
            return theta, RopeScaling(kind=kind, original_context=original, **given)
        except ValidationError as error:
            raise self.out_of_range(key, error) from None

    def context(self, family: str) -> int:
        """Tokens up to which the checkpoint attends to everything before."""
        longest = self.whole("max_position_embeddings")
        kinds = self.values.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
            raise self.error("layer_types", f"{brief(kinds)} is not supported; full_attention alone is")
        slides = bool(self.values.get("use_sliding_window")) or "sliding_attention" in kinds
        window = self.values.get("sliding_window", MISTRAL_WINDOW if family == "mistral" else None)
        if window is None or (family != "mistral" and not slides):
            return longest
        return min(longest, self.whole("sliding_window", MISTRAL_WINDOW))


# Files


def _weight_files(folder: Path) -> dict[str, set[str] | None]:
    """Names of the safetensors files, sorted, each with the tensors that the index places in it; None without one."""
    if (folder / WEIGHTS_FILE).exists():
        return {WEIGHTS_FILE: None}
    if not (folder / INDEX).exists():
        raise UserError(f"{folder}: {_no_weights(folder)}")
    places = read_json(folder, INDEX, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{folder / INDEX} is damaged: `weight_map` names no files; restore it from its source")
    found: dict[str, set[str] | None] = {name: set() for name in sorted(set(places.values()))}
    for tensor, name in places.items():
        tensors = found[name]
        assert tensors is not None
        tensors.add(tensor)
    return found


def _no_weights(folder: Path) -> str:
    if any(folder.glob("pytorch_model*.bin")):
        convert = CONVERT.format(source=repr(str(folder)))
        return (
            "its weights are pickles (.bin), which are never loaded; convert them with transformers, where you trust "
            f"them: {convert}, and name OUT"
        )
    if gguf := sorted(path.name for path in folder.glob("*.gguf")):
        convert = CONVERT.format(source=f"{str(folder)!r}, gguf_file={gguf[0]!r}")
        return f"its weights are GGUF; convert them with transformers: {convert}, and name OUT"
    return f"neither {WEIGHTS_FILE} nor {INDEX} in it; name a folder that save_pretrained wrote"


# Tensors


def expected_tensors(shape: ModelShape, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a checkpoint's tensors, as Hugging Face's classes of `FAMILIES` write them."""
    width = shape.d_model
    head = shape.d_head or width // shape.n_head
    queries, keys = shape.n_head * head, (shape.n_kv_head or shape.n_head) * head
    hidden = shape.d_mlp or 4 * width
    yield "model.embed_tokens.weight", (rows, width)
    yield "model.norm.weight", (width,)
    if not shape.tied:
        yield "lm_head.weight", (rows, width)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (hidden, width),
        "mlp.up_proj.weight": (hidden, width),
        "mlp.down_proj.weight": (width, hidden),
    }
    if shape.qkv_bias:
        layer |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", queries), ("k", keys), ("v", keys))}
    if shape.qk_norm:
        layer |= {f"self_attn.{name}_norm.weight": (head,) for name in ("q", "k")}
    for number in range(shape.n_layer):
        for name, size in layer.items():
            yield f"model.layers.{number}.{name}", size


def is_buffer(name: str) -> bool:
    """Whether a tensor is the rotary frequencies that old checkpoints hold, and that follow from the shape."""
    return name.endswith("rotary_emb.inv_freq")


def _check_tensors(parent: Parent, files: Mapping[str, set[str] | None]) -> None:
    """Raise `UserError` naming the first tensor that is missing, unknown, doubled, or of another shape or precision."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path, placed in zip(parent.files, files.values(), strict=True):
        header = read_header(path)
        if placed is not None and placed != header.keys():
            name = min(placed ^ header.keys())
            raise UserError(f"{path}: tensor {brief(name)} is not where {INDEX} places it; restore the folder")
        found |= {name: (path, entry) for name, entry in header.items() if not is_buffer(name)}
    for name, shape in expected_tensors(parent.shape, parent.rows):
        if name not in found:
            raise UserError(f"{parent.folder}: tensor {name} is missing, which {CONFIG} asks for; restore the folder")
        path, entry = found.pop(name)
        if entry["dtype"] not in ITEM_BYTES:
            wanted = ", ".join(ITEM_BYTES)
            raise UserError(f"{path}: tensor {name} is {brief(entry['dtype'])}; one of {wanted} is wanted")
        if tuple(entry["shape"]) != shape:
            raise UserError(f"{path}: tensor {name} is {entry['shape']}, but {CONFIG} asks for {list(shape)}")
    if found:
        name = min(found)
        if name == "lm_head.weight":  # transformers 5 uses it and warns, older ones do not
            raise UserError(
                f"{found[name][0]}: tensor {name} is there, but {CONFIG} has `tie_word_embeddings: true`; write false, "
                "or save the model without it"
            )
        raise UserError(f"{found[name][0]}: tensor {brief(name)} is not supported: no part of the model computes it")


def give_shapes(raw: Any) -> None:
    """Give each model of a study, as it was read, that begins with a checkpoint the shape that its config.json states.

    Raises `UserError` naming the model, as `find_parent` does, and for a key that the checkpoint states already.
    """
    models = raw.get("models") if isinstance(raw, dict) else None
    for name, entry in models.items() if isinstance(models, dict) else ():
        folder = entry.get("checkpoint") if isinstance(entry, dict) else None
        if folder is None:
            continue
        if not isinstance(folder, str) or re.fullmatch(PATH_PATTERN, folder) is None:
            raise UserError(f"models.{name}.checkpoint: a folder's path is wanted (given: {brief(folder)})")
        for key in (*ModelShape.model_fields, "vocab_size"):
            if key in entry:
                raise UserError(f"models.{name}: the shape is the checkpoint's; leave out `{key}`")
        try:
            parent = find_parent(given_path(folder))
        except UserError as error:
            raise type(error)(f"models.{name}.checkpoint: {error}") from None
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise UserError(f"models.{name}.checkpoint: {brief(folder)}: {error.strerror}; name another") from None
        entry |= parent.shape.model_dump(exclude_defaults=True) | {"vocab_size": parent.rows}
