"""Bars are for a terminal alone."""

import io
import subprocess
import sys

from upcycle.bars import count_work, showing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_the_work_that_is_counted(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with showing("refits"):
        count_work(expected=30)
        count_work(done=10)
        count_work(expected=10)
        count_work(done=30)
    count_work(expected=5)
    assert "refits" in terminal.getvalue()
    assert "40/40" in terminal.getvalue()


def test_nothing_is_shown_or_imported_elsewhere():
    code = "import sys; from upcycle.bars import *\nwith showing('x'): count_work(done=1)\nprint('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
