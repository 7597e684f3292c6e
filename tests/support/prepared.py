"""A data set's documents as they are written, of one step of each kind, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from upcycle.data.corpus import HeldoutText, Reasons, Removed, distinct_documents, spool_text, training_documents
from upcycle.data.datasets import Dataset
from upcycle.data.rows import Rows
from upcycle.data.spool import Document, Spool, SpoolWriter


@dataclass
class Prepared:
    train: list[Document]
    heldout: list[Document]
    removed: Mapping[str, Removed]


def prepared(
    dataset: Dataset,
    folder: Path,
    fraction: float | None = None,
    *,
    decontaminate: bool = True,
    buckets: int = 4,
    cache: Path = Path("nowhere"),
) -> Prepared:
    """Both parts of a data set that has no files."""
    removed = Reasons(Removed)
    writer = SpoolWriter(folder, "read", buckets)
    texts = [(number, None) for number in range(len(dataset.sources))]
    fraction = dataset.heldout_fraction if fraction is None else fraction
    spool_text(dataset, texts, cache, fraction, writer, Rows(), removed)
    spool = Spool([folder / run for run in writer.runs], buckets)
    heldout = list(distinct_documents(spool, buckets, removed))
    forbidden = HeldoutText(*HeldoutText.collected(heldout, decontaminate=decontaminate))
    train = [
        document
        for bucket in range(buckets)
        for document in training_documents(dataset, spool, bucket, forbidden, removed)
    ]
    return Prepared(train, heldout, removed)
