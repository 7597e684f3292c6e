"""Files of tokens as Megatron-LM's preprocess_data.py writes them."""

import struct
from pathlib import Path

import numpy as np


def write_megatron(path: Path, documents: list[list[int]], code: int = 8) -> Path:
    """Documents as MMapIndexedDatasetBuilder writes them; the fourth consists of two sequences, the fifth is empty."""
    sequences = [*documents[:3], documents[3][:2], documents[3][2:], *documents[4:]]
    boundaries = [0, 1, 2, 3, 5, 5, *range(6, len(sequences) + 1)]
    dtype = {4: np.int32, 8: np.uint16}[code]
    sizes = np.array([len(sequence) for sequence in sequences], np.int32)
    pointers = (np.cumsum(sizes, dtype=np.int64) - sizes) * np.dtype(dtype).itemsize
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(boundaries))
    path.write_bytes(np.concatenate([np.array(sequence, dtype) for sequence in sequences]).tobytes())
    index = head + sizes.tobytes() + pointers.tobytes() + np.array(boundaries, np.int64).tobytes()
    path.with_suffix(".idx").write_bytes(index)
    return path
