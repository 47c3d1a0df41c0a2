"""Texts of others on a terminal: shown, never obeyed.

A label may hold what a terminal takes for a command (to move, to set its title, to answer), what turns the
order of a line round, or what rich takes for a style.
"""

from __future__ import annotations

import re

_COMMANDS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")
"""Control characters but tab and line feed, and those that override the direction of writing."""


def plain(text: str) -> str:
    r"""``text`` with such characters written out, as ``\x1b``."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape(text: str) -> str:
    """``plain`` text that rich takes for no style."""
    from rich import markup

    return markup.escape(plain(text))
