"""Tags name versions, keep them from being pruned, and never name a pruned one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from genenc_core import errors
from genenc_core.dataset import diff, marks, prune, tags
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import records
from genenc_core.system import proc


def test_a_tag_is_set_moved_listed_and_removed(grown: DatasetFolder) -> None:
    assert tags.set_tag(grown, "paper", 2) == tags.Tagged(name="paper", before=None, version=2)
    assert tags.set_tag(grown, "best") == tags.Tagged(name="best", before=None, version=5)
    assert tags.set_tag(grown, "paper", "v3") == tags.Tagged(name="paper", before=2, version=3)
    assert [(tag.name, tag.version) for tag in tags.list_tags(grown)] == [("best", 5), ("paper", 3)]
    assert all(tag.time for tag in tags.list_tags(grown))
    assert grown.version("paper").version == 3
    assert tags.remove_tag(grown, "paper") == tags.Tagged(name="paper", before=3, version=None)
    assert [tag.name for tag in tags.list_tags(grown)] == ["best"]
    with pytest.raises(errors.InputError, match=r"no tag 'paper': nothing to remove; tags: best"):
        tags.remove_tag(grown, "paper")


@pytest.mark.parametrize("name", ["", "1st", "a/b", ".x", "v3", "v012", "a b", "x" * 101])
def test_names_that_are_no_tags_are_refused(grown: DatasetFolder, name: str) -> None:
    with pytest.raises(errors.InputError, match="cannot be a tag"):
        tags.set_tag(grown, name, 1)
    assert grown.tags() == []


def test_a_tag_of_no_version_is_refused(grown: DatasetFolder) -> None:
    with pytest.raises(errors.InputError, match="has no version 6"):
        tags.set_tag(grown, "paper", 6)
    assert grown.tags() == []


def test_a_damaged_tag_can_be_set_again(grown: DatasetFolder) -> None:
    tags.set_tag(grown, "paper", 2)
    path = Path(grown.root, "tags/paper.json")
    path.write_bytes(path.read_bytes().replace(b'"version": 2', b'"version": 4'))
    with pytest.raises(errors.StoreError, match="changed after it was written"):
        tags.list_tags(grown)
    assert tags.set_tag(grown, "paper", 3).version == 3
    assert tags.remove_tag(grown, "paper").before == 3


@pytest.mark.parametrize("before", [None, 1])
def test_a_version_that_is_marked_while_it_is_tagged_stays_untagged(
    grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch, before: int | None
) -> None:
    """The prune may have read holds and tags before the hold was there."""
    if before:
        tags.set_tag(grown, "paper", before)
    own = records.write_json

    def write(objects: Any, key: str, record: Mapping[str, object]) -> None:
        own(objects, key, record)
        if key.endswith(".hold"):
            marks.make(objects, 2, marks.ABOUT_TO_BE)

    monkeypatch.setattr(tags.records, "write_json", write)
    with pytest.raises(errors.InputError, match=r"version 2 .* is being pruned"):
        tags.set_tag(grown, "paper", 2)
    assert [(tag.name, tag.version) for tag in tags.list_tags(grown)] == ([("paper", before)] if before else [])
    assert tags.holds(grown) == {}


@pytest.mark.parametrize("ended", [False, True])
def test_a_version_is_kept_while_a_tag_of_it_is_set(
    grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Until the command is known to be killed; where it is not, the prune names its file."""
    if ended:
        own = proc.identity()
        monkeypatch.setattr(proc, "identity", lambda: {**own, "began": "0"})
    write_json = records.write_json

    class Killed(BaseException):
        pass

    def write(objects: Any, key: str, record: Mapping[str, object]) -> None:
        if key == "tags/paper.json":
            raise Killed
        write_json(objects, key, record)

    with monkeypatch.context() as patch:
        patch.setattr(tags.records, "write_json", write)
        patch.setattr(type(grown.objects), "remove", lambda *_: None)
        with pytest.raises(Killed):
            tags.set_tag(grown, "paper", 2)
    done = prune.prune(grown, keep=1)
    if ended:
        assert done.kept == (5,)
        assert [item.why for item in done.removed if item.place.startswith("tags/")] == ["left by a killed process"]
        assert tags.holds(grown) == {}
        return
    assert done.kept == (2, 5)
    (left,) = done.left
    assert left.place.startswith("tags/.v000002.")
    assert "keeps version 2 while a tag is set" in left.why
    Path(grown.root, left.place).unlink()
    assert prune.prune(grown, keep=1).kept == (5,)


def test_a_pruned_version_cannot_be_tagged_or_compared(grown: DatasetFolder) -> None:
    prune.prune(grown, keep=1)
    for use in (lambda: tags.set_tag(grown, "paper", 2), lambda: diff.diff(grown, 2, 5)):
        with pytest.raises(errors.InputError, match=r"version 2 of .* was pruned on 20\d\d-"):
            use()
