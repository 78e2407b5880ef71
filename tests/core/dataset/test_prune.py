"""Pruning removes what no kept version needs, and nothing else; a tag either keeps its version or is refused."""

import fcntl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import grown_datasets
from genenc_core import errors
from genenc_core.dataset import compact, documents, marks, origins, prune, tags, update
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import records
from genenc_core.store.backends.local import LocalObjects
from s3_server import ON_S3

Grow = Callable[..., update.Updated]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stop(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def tree(folder: DatasetFolder) -> dict[str, bytes]:
    root = Path(folder.root)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check_kept(grown: DatasetFolder) -> prune.Pruned:
    """Prune all but the newest version, which is compacted, and a tagged one."""
    tags.set_tag(grown, "paper", 2)
    compact.compact(grown)
    newest, tagged = grown_datasets.read(grown), grown_datasets.read(grown, "paper")
    done = prune.prune(grown, keep=1)
    assert (done.kept, done.versions) == ((2, 6), (1, 3, 4, 5))
    assert [item.place for item in done.removed if item.place.startswith("parts/")] == [
        f"parts/p00000{number}" for number in (3, 4, 5)
    ]
    assert grown.parts()[:2] == [1, 2]
    assert len(grown.parts()) == 3
    assert list(grown_datasets.read(grown).items()) == list(newest.items())
    assert list(grown_datasets.read(grown, "paper").items()) == list(tagged.items())
    assert grown.pruned().keys() == {1, 3, 4, 5}
    assert grown_datasets.assert_intact(grown).pruned == 4
    return done


@pytest.mark.slow
def test_kept_versions_read_the_same_and_the_others_say_that_they_are_gone(grown: DatasetFolder, grow: Grow) -> None:
    check_kept(grown)
    for number in (1, 3, 4, 5):
        with pytest.raises(errors.InputError, match=rf"version {number} of .* was pruned on 20\d\d-"):
            grown.version(number)
    assert prune.prune(grown, keep=1).removed == ()
    grow("new.png")
    assert "new.png" in grown_datasets.read(grown)
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
@ON_S3
def test_on_s3(grown: DatasetFolder) -> None:
    check_kept(grown)


def test_the_last_versions_are_kept(grown: DatasetFolder) -> None:
    done = prune.prune(grown, keep=4)
    assert (done.kept, done.versions, [item.place for item in done.removed]) == ((2, 3, 4, 5), (1,), [])
    assert prune.prune(grown, keep=100).versions == ()
    with pytest.raises(errors.InputError, match="give at least 1"):
        prune.prune(grown, keep=0)


def test_a_dry_run_tells_the_same_with_bytes_and_changes_nothing(grown: DatasetFolder) -> None:
    compact.compact(grown)
    before = tree(grown)
    told = prune.prune(grown, keep=1, dry_run=True)
    assert tree(grown) == before
    parts = sum(size(Path(grown.root, f"parts/p00000{number}")) for number in range(1, 6))
    files = sum(path.stat().st_size for path in Path(grown.root, "versions").glob("*.parquet"))
    assert told.bytes == parts + files > 0
    done = prune.prune(grown, keep=1)
    assert (done.removed, done.versions, done.kept) == (told.removed, told.versions, told.kept)
    assert (told.dry_run, done.dry_run) == (True, False)


@pytest.mark.slow
def test_a_tag_that_is_set_meanwhile_keeps_its_version(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written before the mark was looked for, so the prune reads it after its mark."""
    own = marks.make

    def make(objects: Any, number: int, state: str) -> None:
        if number == 2 and state == marks.ABOUT_TO_BE:
            tags.set_tag(grown, "paper", 2)
        own(objects, number, state)

    monkeypatch.setattr(marks, "make", make)
    rows = grown_datasets.read(grown, 2)
    compact.compact(grown)
    done = prune.prune(grown, keep=1)
    assert done.kept == (2, 6)
    assert grown_datasets.read(grown, "paper") == rows
    assert marks.state(grown.objects, 2) is None
    grown_datasets.assert_intact(grown)


def test_a_tag_that_comes_after_the_mark_is_refused(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    own, refused = prune._tagged, []

    def tagged(folder: DatasetFolder) -> set[int]:
        found = own(folder)
        if marks.state(folder.objects, 2) is not None:
            with pytest.raises(errors.InputError, match="is being pruned"):
                tags.set_tag(folder, "paper", 2)
            refused.append(2)
        return found

    monkeypatch.setattr(prune, "_tagged", tagged)
    prune.prune(grown, keep=1)
    assert (refused, grown.tags()) == ([2], [])


def test_a_mark_of_a_killed_prune_is_decided_again(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prune, "_remove", stop)
        patch.setattr(marks, "take_back", stop)
        patch.setattr(prune, "_tagged", lambda folder: stop() if marks.state(folder.objects, 4) else set())
        with pytest.raises(KeyboardInterrupt):
            prune.prune(grown, keep=1)
    assert marks.state(grown.objects, 3) == marks.ABOUT_TO_BE
    assert grown.version(3).version == 3
    with pytest.raises(errors.InputError, match="is being pruned"):
        tags.set_tag(grown, "paper", 3)
    assert prune.prune(grown, keep=3).kept == (3, 4, 5)
    assert marks.state(grown.objects, 3) is None
    tags.set_tag(grown, "paper", 3)


@pytest.mark.slow
def test_what_a_killed_prune_left_is_removed(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    compact.compact(grown)
    own = LocalObjects.remove_tree

    def half(self: LocalObjects, folder: str) -> None:
        if folder.endswith("p000003"):
            self.remove(f"{folder}/_txn/store.json")
            raise KeyboardInterrupt
        own(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "remove_tree", half)
        with pytest.raises(KeyboardInterrupt):
            prune.prune(grown, keep=1)
    assert grown.parts()[:3] == [3, 4, 5]
    told = prune.prune(grown, keep=1, dry_run=True)
    done = prune.prune(grown, keep=1)
    assert [item.place for item in told.removed] == [item.place for item in done.removed]
    assert len(grown.parts()) == 1
    assert not Path(grown.root, prune.JOURNAL).exists()
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
def test_a_part_that_an_update_works_on_stays(
    grown: DatasetFolder, grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(grown_datasets.Drawing, "work", stop)
        with pytest.raises(KeyboardInterrupt):
            grow("new.png")
    done = prune.prune(grown, keep=1)
    assert [(item.place, item.why) for item in done.left] == [
        ("parts/p000006", "unfinished; the next update continues it, or passes over it")
    ]
    assert grow().version.counts["new"] == 1  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_part_that_was_passed_over_is_removed(
    grown: DatasetFolder, grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(grown_datasets.Drawing, "work", stop)
        with pytest.raises(KeyboardInterrupt):
            grow("new.png", "gone.png")
    grow(gone="gone.png")
    assert grown.version().last_part == 7
    done = prune.prune(grown, keep=100)
    assert [(item.place, item.why) for item in done.removed] == [("parts/p000006", "a version passed over it")]


@pytest.mark.slow
def test_an_unfinished_compaction_stays_until_its_parts_are_superseded(
    grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DatasetFolder, "create_version", stop)
        with pytest.raises(KeyboardInterrupt):
            compact.compact(grown, below=5)
    (number,) = [number for number in grown.parts() if documents.is_compacted(number)]
    place = f"parts/{documents.part_name(number)}"
    assert [item.place for item in prune.prune(grown, keep=100).left] == [place]
    compact.compact(grown)
    done = prune.prune(grown, keep=100)
    assert [item.place for item in done.removed if item.place.startswith("parts")] == [place]
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
def test_a_half_removed_part_of_a_compaction_is_removed(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its record it would not be known what it was: `prune.json` says so."""
    with monkeypatch.context() as patch:
        patch.setattr(DatasetFolder, "create_version", stop)
        with pytest.raises(KeyboardInterrupt):
            compact.compact(grown, below=5)
    (number,) = [number for number in grown.parts() if documents.is_compacted(number)]
    compact.compact(grown)
    with monkeypatch.context() as patch:

        def half(self: LocalObjects, folder: str) -> None:
            self.remove(f"{folder}/{origins.RECORD}")
            raise KeyboardInterrupt

        patch.setattr(LocalObjects, "remove_tree", half)
        with pytest.raises(KeyboardInterrupt):
            prune.prune(grown, keep=100)
    done = prune.prune(grown, keep=100)
    assert f"parts/{documents.part_name(number)}" in [item.place for item in done.removed]
    assert number not in grown.parts()


BY_ALL = pytest.mark.parametrize("number", [6, documents.FIRST_COMPACTED + 7], ids=["update", "compaction"])


def in_creation(grown: DatasetFolder, number: int) -> Path:
    """Return a part as an update or compaction leaves it that is killed while it creates it."""
    place = Path(grown.root, "parts", documents.part_name(number))
    (place / ".plan-x1" / "deep").mkdir(parents=True)
    (place / ".plan-x1" / "deep" / "file").write_bytes(b"half")
    (place / ".claim").touch()
    return place


@BY_ALL
def test_what_a_killed_process_began_to_create_is_removed(grown: DatasetFolder, number: int) -> None:
    place = in_creation(grown, number)
    assert [item.place for item in prune.prune(grown, keep=100, dry_run=True).removed] == [f"parts/{place.name}"]
    assert place.exists()
    assert [item.place for item in prune.prune(grown, keep=100).removed] == [f"parts/{place.name}"]
    assert not place.exists()


@BY_ALL
def test_what_a_process_is_creating_stays(grown: DatasetFolder, number: int) -> None:
    place = in_creation(grown, number)
    with (place / ".claim").open("r+") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        done = prune.prune(grown, keep=100)
    assert done.removed == ()
    assert [item.place for item in done.left] == [f"parts/{place.name}"]
    assert (place / ".plan-x1/deep/file").exists()


def test_litter_is_removed_and_files_that_may_be_about_to_be_used_stay(grown: DatasetFolder) -> None:
    versions = Path(grown.root, "versions")
    for name in ("v000004-00000000deadbeef.parquet", "v000006-00000000deadbeef.parquet", ".v-00ff.partial", "mine.txt"):
        (versions / name).write_bytes(b"x")
    done = prune.prune(grown, keep=100)
    assert [item.place for item in done.removed] == [
        "versions/v000004-00000000deadbeef.parquet",
        "versions/.v-00ff.partial",
    ]
    assert {"v000006-00000000deadbeef.parquet", "mine.txt"} <= {path.name for path in versions.iterdir()}


def test_only_one_prune_at_a_time(grown: DatasetFolder) -> None:
    with (
        grown.objects.lock(prune.LOCK, b"process 1 on elsewhere"),
        pytest.raises(errors.StoreError, match=r"another prune of .* is running .process 1 on elsewhere.*delete"),
    ):
        prune.prune(grown, keep=1)
    assert prune.prune(grown, keep=1).kept == (5,)


def test_nothing_is_removed_where_a_tag_is_damaged(grown: DatasetFolder) -> None:
    tags.set_tag(grown, "paper", 1)
    Path(grown.root, "tags/paper.json").write_bytes(b"{}")
    with pytest.raises(errors.StoreError, match="names no version"):
        prune.prune(grown, keep=1)
    assert grown.pruned() == {}
    assert grown.parts() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("place", ["parts/p000001", "parts/../../elsewhere", "dataset.json", "versions/v000001.json"])
def test_a_journal_that_names_what_is_needed_is_damage(grown: DatasetFolder, place: str) -> None:
    record: Mapping[str, object] = {"remove": [place]}
    records.write_json(grown.objects, prune.JOURNAL, record)
    before = tree(grown)
    with pytest.raises(errors.StoreError, match=r"prune\.json' is damaged"):
        prune.prune(grown, keep=1)
    assert {key: data for key, data in tree(grown).items() if "pruned" not in key} == before


def test_a_part_without_its_record_of_a_compaction_stops_the_prune(
    grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DatasetFolder, "create_version", stop)
        with pytest.raises(KeyboardInterrupt):
            compact.compact(grown)
    (number,) = [number for number in grown.parts() if documents.is_compacted(number)]
    Path(grown.root, "parts", documents.part_name(number), origins.RECORD).unlink()
    with pytest.raises(errors.StoreError, match=r"compacted\.json"):
        prune.prune(grown, keep=1)
    assert grown.parts()[:5] == [1, 2, 3, 4, 5]
