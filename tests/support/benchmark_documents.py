"""Made-up documents of the benchmarks of Table 7, in the form that `upcycle.data.benchmarks` gives to real ones."""

from __future__ import annotations

from typing import Any

WORDS = ["a stone", "the old house by the sea", "light", "three of them, é", "wood"]


def made_up_document(task: str, number: int) -> dict[str, Any]:
    """The document of that number."""
    word = [WORDS[(number + place) % len(WORDS)] for place in range(5)]
    match task:
        case "lambada":
            return {"id": str(number), "context": f"{word[0]} and {word[1]} are", "word": word[2]}
        case "winogrande":
            return {"id": "0", "choices": [f"So {word[0]}", f"So {word[1]}"], "continuation": word[2], "gold": 1}
    fields = ("question", "goal", "passage", "support")
    return {"id": str(number), "choices": word[:4], "gold": number % 4} | dict.fromkeys(fields, f"Is it {word[4]}?")
