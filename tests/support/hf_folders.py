"""Hugging Face folders of tiny random models, written without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from upcycle.data.tokenizer import train_bpe
from upcycle.study.parent import INDEX, WEIGHTS_FILE

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
PIECES = 300


def llama_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a Llama of this configuration, under its names."""
    rng = np.random.default_rng(seed)
    width, hidden, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    queries, keys = heads * head, config["num_key_value_heads"] * head
    layer = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    shapes = {"model.embed_tokens": (config["vocab_size"], width), "model.norm": (width,)}
    shapes |= {} if config["tie_word_embeddings"] else {"lm_head": (config["vocab_size"], width)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return {
        f"{name}.weight": (rng.normal(1.0 if len(shape) == 1 else 0.0, 0.1, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_folder(
    folder: Path, *, shards: int = 1, tensors: dict[str, np.ndarray] | None = None, **changes: Any
) -> Path:
    """A folder as save_pretrained writes it, of `LLAMA` with changes; a change to None removes the key."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (LLAMA | changes).items() if value is not None}
    folder.joinpath("config.json").write_text(json.dumps(config))
    write_weights(folder, llama_tensors(LLAMA | changes) if tensors is None else tensors, shards)
    if not folder.joinpath("tokenizer.json").exists():
        words = [f"{first}{second} " * 20 for first in "abcdefgh" for second in "ijklmnop"]
        folder.joinpath("tokenizer.json").write_text(train_bpe(words, PIECES).to_str())
    return folder


def write_weights(folder: Path, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """One safetensors file, or several with their index."""
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / WEIGHTS_FILE)
        return
    files = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    for number, file in enumerate(files):
        save_file({name: tensors[name] for name in names[number::shards]}, folder / file)
    places = {name: files[k % shards] for k, name in enumerate(names)}
    folder.joinpath(INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
