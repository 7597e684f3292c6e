"""A made-up language for tests: words with a Zipf law, each followed by one of its own: something to learn."""

import json
import random
from pathlib import Path


def write_texts(folder: Path) -> None:
    """words.jsonl (training), heldout.jsonl and other.jsonl (evaluation), the same bytes every time."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(400)]
    weights = [1 / (rank + 1) for rank in range(400)]
    for name, count in (("words", 400), ("heldout", 40), ("other", 40)):
        with folder.joinpath(f"{name}.jsonl").open("w") as handle:
            for _ in range(count):
                text = []
                for first in rng.choices(range(400), weights, k=30):
                    text += [words[first], words[(first * 7 + 3) % 400]]
                handle.write(json.dumps({"text": " ".join(text)}) + "\n")
