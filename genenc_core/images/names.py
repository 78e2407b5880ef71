"""File names as text, and back: in names that are not UTF-8 each odd byte becomes a hexadecimal escape.

Nearly all names are their own text. A byte that is not UTF-8 becomes a backslash, an x and two hexadecimal digits; in a
name that holds such a sequence by itself the backslash becomes such an escape (5c), so that every text means one name.
"""

import os
import re

_ODD = re.compile(r"[\udc80-\udcff]|\\(?=x[0-9a-f]{2})")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def to_text(path: str) -> str:
    """Return the text of a path as Python's file functions give it, with surrogates for odd bytes."""
    if path.isascii() and "\\" not in path:
        return path
    return _ODD.sub(lambda found: f"\\x{os.fsencode(found[0]).hex()}", path)


def to_path(text: str) -> str:
    """Return the path that `to_text` made this text of."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: os.fsdecode(bytes.fromhex(found[1])), text)


def has_escape(text: str) -> bool:
    """Return whether a text would mean another path than itself."""
    return _ESCAPE.search(text) is not None
