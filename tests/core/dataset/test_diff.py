"""The difference of two versions: exact counts, first names, in this direction."""

import pytest

from genenc_core import errors
from genenc_core.dataset import diff
from genenc_core.dataset.diff import Names
from genenc_core.dataset.folder import DatasetFolder


def test_every_kind_of_difference_is_told(grown: DatasetFolder) -> None:
    found = diff.diff(grown, 1, 4)
    assert found.versions == (1, 4)
    assert found.rows == (10, 14)
    assert found.added == Names(5, ("b0.png", "b1.png", "bad1.png", "c0.png", "d0.png"))
    assert found.removed == Names(1, ("a2.png",))
    assert found.encoded_again == Names(2, ("a1.png", "a5.png"))
    assert (found.renamed, found.renamed_from) == (Names(1, ("z3.png",)), ("a3.png",))
    assert found.lines() == [
        "version 1 -> 4: 10 -> 14 images",
        "  5 added: b0.png, b1.png, bad1.png, ...",
        "  1 removed: a2.png",
        "  2 encoded again: a1.png, a5.png",
        "  1 renamed: a3.png -> z3.png",
    ]


def test_the_other_way_round_is_the_reverse(grown: DatasetFolder) -> None:
    one, other = diff.diff(grown, 1, 4), diff.diff(grown, 4, 1)
    assert (other.added, other.removed, other.rows) == (one.removed, one.added, (14, 10))
    assert (other.renamed.first, other.renamed_from) == (one.renamed_from, one.renamed.first)
    assert sorted(other.encoded_again.first) == sorted(one.encoded_again.first)


def test_counts_are_exact_where_names_are_left_out(grown: DatasetFolder) -> None:
    found = diff.diff(grown, 1, 5, most=2)
    assert found.added == Names(11, ("b0.png", "b1.png"))
    assert diff.diff(grown, 1, 5, most=0).added == Names(11, ())
    assert "  11 added: b0.png, b1.png, ..." in found.lines()


def test_versions_with_the_same_rows(grown: DatasetFolder) -> None:
    """A file that was only touched is no difference."""
    found = diff.diff(grown, 3, 3)
    assert found.same
    assert found.lines() == ["version 3 -> 3: 13 -> 13 images, the same rows"]
    assert not diff.diff(grown, 3, 4).same


def test_no_such_version(grown: DatasetFolder) -> None:
    with pytest.raises(errors.InputError, match="has no version 9"):
        diff.diff(grown, 1, 9)
