"""Checks of a study's vocabulary before its tokenizer is trained or used. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from upcycle.errors import UserError
from upcycle.files import check_regular

END_OF_TEXT = "<|endoftext|>"
"""Written after every document; piece 0 of the tokenizers that are trained here."""
KNOWN_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>")
"""Names of the end-of-text piece in other tokenizers, in the order in which they are looked for."""
BYTES = 256
MAX_TOKENIZER_BYTES = 1 << 28
"""A larger tokenizer.json is not read; one of 256,000 pieces has 35 MB."""


def check_vocab_size(vocab_size: int) -> None:
    """UserError if the vocabulary has no room for the 256 bytes and the end of text."""
    if vocab_size < BYTES + 1:
        raise UserError(
            f"vocab_size {vocab_size}: a byte-level tokenizer needs at least {BYTES + 1} (256 bytes and {END_OF_TEXT})"
        )


def check_tokenizer(path: Path, vocab_size: int) -> None:
    """UserError if a file is missing, is no tokenizer.json, or its ids are not `vocab_size` with an end of text.

    Ids may have holes (as in cl100k_base): rows of the embedding that nothing uses.
    """
    check_regular(path)
    if path.exists() and path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise UserError(f"{path}: larger than {MAX_TOKENIZER_BYTES:,} bytes, which no tokenizer.json is")
    try:
        pieces = _pieces(json.loads(path.read_bytes()))
        count = max(pieces.values(), default=-1) + 1
    except FileNotFoundError:
        raise UserError(f"tokenizer {path}: no such file; give `bpe`, or the path of a tokenizer.json") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: not a tokenizer.json, which has its pieces under `model.vocab`") from None
    if count != vocab_size:
        raise UserError(f"{path} has {count} pieces, but vocab_size is {vocab_size}: make them equal")
    if not pieces.keys() & set(KNOWN_ENDS):
        raise UserError(f"{path} has no end-of-text piece: one of {', '.join(KNOWN_ENDS)} is needed")


def _pieces(content: Any) -> dict[str, int]:
    """Ids of all pieces: of the model, by piece or as [piece, score], and of those added to it."""
    vocab, added = content["model"]["vocab"], content.get("added_tokens") or []
    pieces = dict(vocab) if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
    return pieces | {token["content"]: token["id"] for token in added}
