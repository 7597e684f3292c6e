"""Damage that disks, crashes and hands do to a file: for tests that accept none of it."""

from __future__ import annotations

import random
from pathlib import Path


def corrupt(path: Path, draw: random.Random) -> str:
    """Damage a file in a way drawn at random, so that its bytes change; returns what was done."""
    kind = draw.choice(["truncated", "bit-flipped", "half-written", "emptied", "deleted", "appended to"])
    before = path.read_bytes()
    if kind == "deleted":
        path.unlink()
        return kind
    data = bytearray(before)
    if kind == "truncated":
        del data[draw.randrange(1, len(data)) :]
    elif kind == "bit-flipped":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "half-written":  # blocks that never reached the disk read as zeros, at the full length
        first = draw.randrange(len(data))
        data[first:] = bytes(len(data) - first)
    elif kind == "emptied":
        data.clear()
    else:
        data += draw.choice([b"\n", b" ", b"\0" * 512, draw.randbytes(draw.randrange(1, 100)), before])
    if data == before:  # zeros over zeros
        data[draw.randrange(len(data))] ^= 1
    path.write_bytes(data)
    return kind
