"""A Hugging Face folder is read without its code and without pickle; what we do not compute is refused by name."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hf_folders import LLAMA, llama_tensors, write_folder, write_weights

from upcycle.errors import UserError
from upcycle.study.parent import INDEX, WEIGHTS_FILE, AbsentError, find_parent, identify, noted_hashes, read_parent
from upcycle.study.shape import RopeScaling

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_parent(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("shards", [1, 3])
def test_shape_and_files_of_a_folder(tmp_path, shards):
    parent = read_parent(write_folder(tmp_path, shards=shards, num_key_value_heads=1, rope_theta=5e5))
    assert (parent.family, parent.rows, parent.context, len(parent.files)) == ("llama", 320, 64, shards)
    shape = parent.shape
    assert (shape.n_layer, shape.d_model, shape.n_head, shape.n_kv_head, shape.d_mlp) == (2, 16, 2, 1, 24)
    assert (shape.norm_eps, shape.rope_base, shape.rope_scaling, shape.tied) == (1e-6, 5e5, None, False)


def test_tied_embeddings_need_no_head(tmp_path):
    assert read_parent(write_folder(tmp_path / "tied", tie_word_embeddings=True)).shape.tied
    folder = write_folder(tmp_path / "both", tensors=llama_tensors(LLAMA), tie_word_embeddings=True)
    assert "lm_head.weight is there, but config.json has `tie_word_embeddings: true`; write false" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "base", "scaling"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 1e4, RopeScaling(kind="linear", factor=2)),
        (
            {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
            5e5,
            RopeScaling(kind="linear", factor=2),
        ),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, 7e4, None),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            1e4,
            RopeScaling(kind="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_context=64),
        ),
        ({"rope_theta": None}, 1e4, None),
    ],
)
def test_both_spellings_of_rope(tmp_path, changes, base, scaling):
    shape = read_parent(write_folder(tmp_path, **changes)).shape
    assert (shape.rope_base, shape.rope_scaling) == (base, scaling)


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32}, 32),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "max_position_embeddings": 8192}, 4096),
        ({"sliding_window": 32}, 64),
    ],
)
def test_an_active_window_bounds_the_context(tmp_path, changes, context):
    """Within the window a token attends to everything before it, as in our model."""
    assert read_parent(write_folder(tmp_path, **changes)).context == context


NAN = float("nan")
REFUSED = {
    "another family": ({"model_type": "gpt_neox"}, "`model_type`: 'gpt_neox' is not supported; valid: `llama`"),
    "a near family": ({"model_type": "qwen"}, "did you mean `qwen"),
    "a mixture": ({"model_type": "mixtral"}, "'mixtral' is not supported; did you mean `mistral`"),
    "another head": ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM is wanted"),
    "its own code": ({"auto_map": {"AutoModel": "x.Model"}}, "`auto_map`: the checkpoint wants to run code"),
    "trusted code": ({"trust_remote_code": True}, "`trust_remote_code`: the checkpoint wants to run code"),
    "quantised": ({"quantization_config": {"bits": 4}}, "`quantization_config`: quantised weights"),
    "output bias": ({"attention_bias": True}, "`attention_bias`: True is not supported; false alone is"),
    "mlp bias": ({"mlp_bias": True}, "`mlp_bias`: True is not supported"),
    "activation": ({"hidden_act": "gelu"}, "`hidden_act`: 'gelu' is not supported; \"silu\" alone is"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor`: 0.5 is not supported"),
    "rope type": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "`rope_scaling`: 'yarn' is not supported"),
    "rope twice": ({"rope_parameters": {"rope_theta": 5.0}}, "`rope_theta`: contradicts `rope_parameters`"),
    "rope a layer": (
        {"rope_theta": None, "rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "`rope_parameters.full_attention`: is not supported",
    ),
    "llama3 lacks": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 needs low_freq_factor"),
    "rope factor": (
        {"rope_scaling": {"rope_type": "linear", "factor": -2}},
        "`rope_scaling.factor`: Input should be greater than 0 (given: -2)",
    ),
    "rope base": ({"rope_theta": "x"}, "`rope_theta`: 'x' is not a number"),
    "rope base of no size": (
        {"rope_parameters": {"rope_theta": NAN}, "rope_theta": None},
        "`rope_theta`: Input should be",
    ),
    "epsilon": ({"rms_norm_eps": 0}, "`rms_norm_eps`: Input should be greater than 0 (given: 0)"),
    "no width": ({"hidden_size": None}, "KeyError"),
    "a text for a number": ({"num_hidden_layers": "2"}, "`num_hidden_layers`: a positive whole number is wanted"),
    "too many layers": ({"num_hidden_layers": 10**6}, "`num_hidden_layers`: Input should be less"),
    "no epsilon": ({"rms_norm_eps": None}, "`rms_norm_eps`: is missing"),
    "mixed layers": ({"layer_types": ["full_attention", "chunked"]}, "`layer_types`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path, name):
    changes, words = REFUSED[name]
    tensors = llama_tensors(LLAMA)
    if name == "no width":
        words = "`hidden_size`: a positive whole number is wanted"
    assert words in refusal(write_folder(tmp_path, tensors=tensors, **changes))


def edited(folder: Path, **changes: object) -> None:
    tensors = llama_tensors(LLAMA)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    write_weights(folder, tensors)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__norm__weight": None}, "tensor model.norm.weight is missing"),
        ({"model__norm__weight": np.ones(8, np.float32)}, "model.norm.weight is [8], but config.json asks for [16]"),
        ({"model__norm__weight": np.ones(16, np.float64)}, "model.norm.weight is 'F64'; one of F32, F16, BF16"),
        ({"score__weight": np.ones(16, np.float32)}, "tensor 'score.weight' is not supported"),
    ],
)
def test_every_tensor_is_checked(tmp_path, changes, words):
    folder = write_folder(tmp_path)
    edited(folder, **changes)
    assert words in refusal(folder)


def test_half_precision_and_rotary_buffers_are_fine(tmp_path):
    tensors = {name: tensor.astype(np.float16) for name, tensor in llama_tensors(LLAMA).items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    assert read_parent(write_folder(tmp_path, tensors=tensors)).rows == 320


def test_pickles_and_gguf_are_refused_with_the_way_to_convert_them(tmp_path):
    folder = write_folder(tmp_path)
    (folder / WEIGHTS_FILE).unlink()
    assert "neither model.safetensors nor" in refusal(folder)
    (folder / "it's.gguf").write_bytes(b"GGUF")
    assert f"from_pretrained('{folder}', gguf_file=\"it's.gguf\").save_pretrained(OUT)" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    said = refusal(folder)
    assert "never loaded; convert them with transformers, where you trust them: AutoModelForCausalLM" in said
    assert f"from_pretrained('{folder}').save_pretrained(OUT)" in said


def test_a_folder_without_tokenizer_or_config_is_refused(tmp_path):
    assert "not a folder" in refusal(tmp_path / "none")
    folder = write_folder(tmp_path / "one")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json: No such file" in refusal(folder)


# Hostile folders


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "a\\b", "a\0b"]
)
def test_an_index_leads_nowhere_else(tmp_path, name):
    folder = write_folder(tmp_path / "in", shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    (tmp_path / "outside.safetensors").write_bytes(b"secret")
    assert "leads out of the folder" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS_FILE])
def test_links_out_of_the_folder_are_refused_but_in_the_cache_of_hugging_face(tmp_path, name):
    folder = write_folder(tmp_path / "models--x" / "snapshots" / "0123")
    for target, fine in ((tmp_path / "elsewhere", False), (tmp_path / "models--x" / "blobs" / "ab", True)):
        target.parent.mkdir(exist_ok=True)
        (folder / name).rename(target)
        (folder / name).symlink_to(target)
        if fine:
            assert read_parent(folder).rows == 320
        else:
            assert "leads out of the folder" in refusal(folder)
            (folder / name).unlink()
            target.rename(folder / name)


def test_a_circle_of_links_and_a_folder_in_place_of_a_file(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    assert "config.json" in refusal(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "not a regular file" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 200_000, "is damaged"),
        ('{"a":' * 200_000, "is damaged"),
        ('{"model_type": "llama", "model_type": "qwen2"}', "a key is given twice"),
        ("[]", "no JSON object"),
        (" " * (1 << 20) + "{}", "larger than 1,048,576 bytes"),
        ("\xff", "is damaged"),
    ],
)
def test_a_config_too_deep_too_large_or_no_object(tmp_path, content, words):
    folder = write_folder(tmp_path)
    (folder / "config.json").write_text(content, encoding="latin-1")
    assert words in refusal(folder)


def with_header(folder: Path, header: object, length: int | None = None, body: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return folder


@pytest.mark.parametrize(
    ("header", "length", "body"),
    [
        ({}, 2**63, b""),
        ({}, 1000, b""),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, None, b"1234"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, None, b"1234"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, None, b"12345678"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, None, b""),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, None, b"1234"),
        ({"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}, None, b"1234"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, None, b"1234"),
        ({"a": 3}, None, b""),
        ([], None, b""),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, None, b"12345678"),
    ],
)
def test_a_header_that_does_not_describe_its_file(tmp_path, header, length, body):
    assert "damaged" in refusal(with_header(write_folder(tmp_path), header, length, body))


# Identity


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Notes are in results/ of the folder that Snakemake runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_fingerprint_is_the_content_wherever_it_is(here):
    """Another place, time, or file name of a shard is no other checkpoint; other weights or another shape are."""
    hashes = noted_hashes()

    def fingerprint(folder: Path) -> str:
        return identify(folder, hashes).fingerprint

    same = {fingerprint(write_folder(here / name)) for name in ("one", "two")}
    others = [
        fingerprint(write_folder(here / "base", rope_theta=5e5)),
        fingerprint(write_folder(here / "weights", tensors=llama_tensors(LLAMA, seed=1))),
        fingerprint(write_folder(here / "context", max_position_embeddings=32)),
    ]
    assert len(same) == 1
    assert others[2] in same
    assert len({*same, *others}) == 3


def test_a_file_is_hashed_once(here, monkeypatch):
    """Notes outlive the process; a changed file is hashed again."""
    folder = write_folder(here / "mine")
    hashed: list[Path] = []

    def sha256(path: Path) -> str:
        hashed.append(path)
        return path.read_bytes().hex()[-64:]

    monkeypatch.setattr("upcycle.study.parent._sha256", sha256)

    def look() -> int:
        hashed.clear()
        hashes = noted_hashes()
        identify(folder, hashes)
        hashes.save()
        return len(hashed)

    assert [look(), look()] == [2, 0]
    write_weights(folder, llama_tensors(LLAMA, seed=1))
    assert [look(), look()] == [1, 0]


def test_what_was_imported_can_be_planned_without_its_folder(here):
    """As it was at last; a folder that nobody knows is refused."""
    folder = write_folder(Path("mine"))
    found = identify(folder, noted_hashes())
    folder.rename(here / "moved")
    assert identify(folder, noted_hashes()) == found
    assert find_parent(folder) == found.parent
    with pytest.raises(AbsentError, match="other: no such folder"):
        find_parent(here / "other")
