"""Every file name has one text, and every such text one name."""

import os

from hypothesis import example, given
from hypothesis import strategies as st

from genenc_core.images.sources import folders

PARTS = st.sampled_from(
    [b"a", b"x", b"5c", b"ff", b"\\", b"\\x", b"\\xff", b"\\x5c", b"\xff", b"\xc3\xa9", b"\xc3", b"\n"]
)
NAMES = st.one_of(st.binary(), st.lists(PARTS).map(b"".join)).map(os.fsdecode)


@given(NAMES)
@example(os.fsdecode(b"\\x\xff"))
def test_there_and_back(path: str) -> None:
    text = folders.to_text(path)
    text.encode("utf-8")
    assert folders.to_path(text) == path


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_ordinary_names_are_their_own_text(path: str) -> None:
    """Whatever the script, spaces, control characters and backslashes included."""
    if not folders.has_escape(path):
        assert folders.to_text(path) == path
        assert folders.to_path(path) == path


def test_how_it_looks() -> None:
    assert folders.to_text(os.fsdecode(b"caf\xe9/\xc3\xa9.png")) == r"caf\xe9/é.png"
    assert folders.to_text(r"C:\images\x5.png") == r"C:\images\x5.png"
    assert folders.to_text(r"odd\xff.png") == r"odd\x5cxff.png"
