"""Folders that transformers writes are read as what transformers means by them, or refused."""

from pathlib import Path
from typing import Any

import pytest
from hf_folders import write_folder

from upcycle.errors import UserError
from upcycle.study.parent import read_parent
from upcycle.study.shape import ModelShape, RopeScaling

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
OURS = ModelShape(n_layer=2, d_model=32, n_head=4, n_kv_head=2, d_mlp=48, norm_eps=1e-6)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "llama": ("Llama", {}, {}, 64),
    "tied": ("Llama", {"tie_word_embeddings": True}, {"tied": True}, 64),
    "llama3": (
        "Llama",
        {
            "rope_parameters": {
                **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 16},
                **LLAMA3,
            }
        },
        {"rope_base": 5e5, "rope_scaling": RopeScaling(kind="llama3", factor=8, original_context=16, **LLAMA3)},
        64,
    ),
    "mistral": ("Mistral", {"sliding_window": None}, {}, 64),
    "mistral with a window": ("Mistral", {"sliding_window": 16}, {}, 16),
    "qwen2": ("Qwen2", {}, {"qkv_bias": True}, 64),
    "qwen2 with a window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16}, {"qkv_bias": True}, 16),
    "qwen3": (
        "Qwen3",
        {"head_dim": 16, "tie_word_embeddings": True},
        {"qk_norm": True, "d_head": 16, "tied": True},
        64,
    ),
}


def saved(folder: Path, family: str, **changes: Any) -> Path:
    """A random model of a family as save_pretrained writes it, in several files, with a tokenizer beside it."""
    config = getattr(transformers, f"{family}Config")(**SMALL | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(folder, max_shard_size="20KB")
    write_folder(folder.with_name("tokenizer"))
    (folder.with_name("tokenizer") / "tokenizer.json").rename(folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_read(tmp_path, name):
    family, changes, ours, context = FAMILIES[name]
    parent = read_parent(saved(tmp_path / "model", family, **changes))
    assert parent.shape == OURS.model_copy(update=ours)
    assert (parent.rows, parent.context) == (320, context)
    assert len(parent.files) > 1


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("Llama", {"attention_bias": True}, "`attention_bias`: True is not supported"),
        ("Llama", {"mlp_bias": True}, "`mlp_bias`: True is not supported"),
        ("Qwen3", {"attention_bias": True}, "`attention_bias`: True is not supported"),
        ("Llama", {"hidden_act": "gelu"}, "`hidden_act`: 'gelu' is not supported"),
        ("Mixtral", {"num_local_experts": 2}, "`model_type`: 'mixtral' is not supported; did you mean `mistral`?"),
        ("Gemma", {}, "`model_type`: 'gemma' is not supported"),
    ],
)
def test_what_we_do_not_compute_is_refused(tmp_path, family, changes, words):
    with pytest.raises(UserError) as error:
        read_parent(saved(tmp_path / "model", family, **changes))
    assert words in str(error.value)
