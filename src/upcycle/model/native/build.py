"""Compiling and loading the C kernels: one plain C library, cached by source, compiler, C library and processor.

The library knows nothing of torch: it gets addresses and sizes. So gcc (or clang, not tried by us) compiles it in four
seconds, where torch.compile takes 30 to 60 on these models, and a sweep's jobs share the cached file.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from ctypes import c_float, c_long, c_void_p
from pathlib import Path
from typing import Any

from upcycle.files import cache_folder

log = logging.getLogger(__name__)

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
    "attention_forward": (_LONG,) * 6 + (_FLOAT,) + (_POINTER,) * 11,
    "attention_backward": (_LONG,) * 6 + (_POINTER,) * 15,
    "hidden_units": (_LONG,) * 2,
    "mlp_forward": (_LONG,) * 3 + (_FLOAT,) + (_POINTER,) * 7,
    "mlp_backward": (_LONG,) * 3 + (_POINTER,) * 11,
    "sort_slots": (_LONG,) * 3 + (_POINTER,) * 3,
    "experts_forward": (_LONG,) * 5 + (_POINTER,) * 9,
    "experts_backward": (_LONG,) * 5 + (_POINTER,) * 12,
    "loss": (_LONG,) * 3 + (_FLOAT,) * 2 + (_POINTER,) * 8,
}
"""Arguments of each function of the library, without its prefix `upcycle_`, in the order of the C source."""
RETURNING = ("hidden_units", "loss")
"""Those that return a number."""


class CannotBuildError(RuntimeError):
    """Why there are no C kernels here; `kernels.py` turns the message into a log line or a UserError."""


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, compiled first if this machine has not done so, or if its file is damaged.

    Raises CannotBuildError.
    """
    compiler = _compiler()
    try:
        path = cache_folder() / f"kernels-{key()}.so"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "compile.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # concurrent jobs wait for the one that compiles
            loaded = _load(path) if path.exists() else None
            if loaded is None:
                _compile(compiler, path)
                loaded = _load(path)
    except OSError as error:
        raise CannotBuildError(f"the kernels cannot be kept in a cache ({error}); set XDG_CACHE_HOME") from None
    if loaded is None:
        raise CannotBuildError(f"{path} was compiled and cannot be loaded; set XDG_CACHE_HOME to another file system")
    return loaded


def _load(path: Path) -> ctypes.CDLL | None:
    """The library with its signatures, or None if the file is no library for this machine. Raises CannotBuildError."""
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        log.warning("%s: %s; compiled again", path, error)
        return None
    for name, arguments in SIGNATURES.items():
        function = getattr(loaded, f"upcycle_{name}", None)
        if function is None:  # a path is loaded once a process, so this one cannot compile it again
            raise CannotBuildError(f"{path} is no library of ours: it has no upcycle_{name}; delete it")
        function.argtypes, function.restype = arguments, c_long if name in RETURNING else None
    return loaded


def _compiler() -> str:
    """Path of the C compiler. Raises CannotBuildError if there is none."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise CannotBuildError(f"no C compiler ({', '.join(COMPILERS)}) on this machine; Debian: apt-get install gcc")
    return compiler


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Raises CannotBuildError if the compiler cannot be started."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotBuildError(f"{command[0]} cannot be run: {error}") from None


def _compile(compiler: str, path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    command = [compiler, *FLAGS, str(SOURCE / "kernels.c"), "-o", str(temporary), "-lm"]
    done = _run(command)
    if done.returncode:
        temporary.unlink(missing_ok=True)
        said = done.stderr.strip().splitlines()
        raise CannotBuildError(f"{compiler} failed on {SOURCE / 'kernels.c'}: {said[0] if said else done.returncode}")
    temporary.replace(path)


@functools.cache
def key() -> str:
    """Sixteen hexadecimal digits of all that the compiled file depends on; home folders are shared by machines."""
    compiler = _compiler()
    version = _run([compiler, "--version"]).stdout
    sources = [path.read_text() for path in sorted(SOURCE.glob("*.[ch]"))]
    machine = [_processor(), *platform.libc_ver()]
    return hashlib.sha256("\n".join([compiler, version, *FLAGS, *machine, *sources]).encode()).hexdigest()[:16]


def _processor() -> str:
    """What -march=native looks at."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "CPU part", "Features")
        lines = info.read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.startswith(wanted))
    return f"{platform.machine()} {platform.processor()}"
