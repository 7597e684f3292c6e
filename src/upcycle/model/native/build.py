"""Compiling and loading the C kernels: one plain C library, two seconds, cached by source, compiler and processor.

The library knows nothing of torch: it gets addresses and sizes. So it compiles in two seconds with any C compiler
(torch.compile takes 30 to 60 on these models), and a sweep's jobs share the cached file.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from ctypes import c_float, c_long, c_void_p
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")

_POINTER, _LONG, _FLOAT = c_void_p, c_long, c_float
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "norm_forward": (_LONG,) * 2 + (_FLOAT,) + (_POINTER,) * 4,
    "norm_backward": (_LONG,) * 2 + (_POINTER,) * 6,
    "narrow_forward": (_LONG,) * 3 + (_POINTER,) * 3,
    "narrow_backward": (_LONG,) * 3 + (_POINTER,) * 5,
    "route_forward": (_LONG,) * 4 + (_POINTER,) * 5,
    "route_backward": (_LONG,) * 4 + (_POINTER,) * 6,
    "attention_forward": (_LONG,) * 4 + (_FLOAT,) + (_POINTER,) * 11,
    "attention_backward": (_LONG,) * 4 + (_POINTER,) * 15,
    "mlp_forward": (_LONG,) * 3 + (_FLOAT,) + (_POINTER,) * 7,
    "mlp_backward": (_LONG,) * 3 + (_POINTER,) * 11,
    "sort_slots": (_LONG,) * 3 + (_POINTER,) * 3,
    "experts_forward": (_LONG,) * 5 + (_POINTER,) * 9,
    "experts_backward": (_LONG,) * 5 + (_POINTER,) * 12,
    "loss": (_LONG,) * 3 + (_FLOAT,) * 2 + (_POINTER,) * 8,
}
"""Arguments of each function of the library, without its prefix `upcycle_`, in the order of the C source."""


class CannotBuildError(RuntimeError):
    """Why there are no C kernels here, in words: the seam makes it a log line or a UserError."""


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, compiled first if this machine has not done so. Raises CannotBuildError."""
    loaded = ctypes.CDLL(str(_compiled()))
    for name, arguments in SIGNATURES.items():
        function = getattr(loaded, f"upcycle_{name}")
        function.argtypes, function.restype = arguments, c_long if name == "loss" else None
    return loaded


def _compiled() -> Path:
    """The library's file; concurrent jobs wait for the one that compiles it."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise CannotBuildError(f"no C compiler ({', '.join(COMPILERS)}) on this machine; Debian: apt-get install gcc")
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "upcycle"
    path = folder / f"kernels-{_key(compiler)}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "compile.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _compile(compiler, path)
    except OSError as error:
        raise CannotBuildError(f"the kernels cannot be kept in {folder} ({error}); set XDG_CACHE_HOME") from None
    return path


def _compile(compiler: str, path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    command = [compiler, *FLAGS, str(SOURCE / "kernels.c"), "-o", str(temporary), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        temporary.unlink(missing_ok=True)
        said = done.stderr.strip().splitlines()
        raise CannotBuildError(f"{compiler} failed on {SOURCE / 'kernels.c'}: {said[0] if said else done.returncode}")
    temporary.replace(path)


def _key(compiler: str) -> str:
    """Sixteen hexadecimal digits of all that the compiled file depends on; home folders are shared by machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    sources = [path.read_text() for path in sorted(SOURCE.glob("*.[ch]"))]
    return hashlib.sha256("\n".join([compiler, version, *FLAGS, _processor(), *sources]).encode()).hexdigest()[:16]


def _processor() -> str:
    """What -march=native looks at."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "CPU part", "Features")
        lines = info.read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(wanted))
    return f"{platform.machine()} {platform.processor()}"
