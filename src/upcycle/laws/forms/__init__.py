"""Every functional form, each a small documented function: this folder is the one place to add one.

A law is found by its function's name (`LAWS`). `tokens`: Equations 1, 3, 7 to 10, 16; `configuration`: Equations 11,
17, 18; `joint`: Equations 12, 19 and all that also depends on the model's size.
"""

from upcycle.laws.forms import configuration, joint, tokens
from upcycle.laws.registry import LAWS, get_law, register

__all__ = ["LAWS", "configuration", "get_law", "joint", "register", "tokens"]
