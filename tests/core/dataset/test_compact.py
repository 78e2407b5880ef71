"""Compaction: the same rows in the same order, bit for bit, beside whatever else happens to the dataset."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forked
import grown_datasets
import store_worker
from genenc_core import errors
from genenc_core.dataset import compact, diff, documents, origins, parts, rows, tags, update
from genenc_core.dataset.documents import Version
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import model_cache, status
from genenc_core.store.backends.objects import open_objects
from s3_server import ON_S3

Grow = Callable[..., update.Updated]


def meanwhile(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Do something once, just before the next version is made."""
    own = DatasetFolder.create_version
    left = [what]

    def create(folder: DatasetFolder, version: Version) -> bool:
        if left:
            left.pop()()
        return own(folder, version)

    monkeypatch.setattr(DatasetFolder, "create_version", create)


@pytest.mark.slow
@ON_S3
def test_the_rows_are_the_same_on_s3(grown: DatasetFolder) -> None:
    check_rows(grown)


@pytest.mark.slow
def test_the_rows_are_the_same_bit_for_bit(grown: DatasetFolder) -> None:
    check_rows(grown)


def check_rows(grown: DatasetFolder) -> None:
    before, why, files = grown_datasets.read(grown), grown_datasets.reasons(grown), grown_datasets.inputs(grown)
    old = grown_datasets.read(grown, 2)
    done = compact.compact(grown, below=5)
    (made,) = done.made
    assert made.sources == ("p000002", "p000003", "p000004")
    assert grown_datasets.part_names(grown) == ["p000001", made.part, "p000005"]
    assert (done.before, done.version.version, done.version.last_part) == (5, 6, 5)
    assert done.version.counts["rows"] == len(before)
    assert list(grown_datasets.read(grown).items()) == list(before.items())
    assert list(grown_datasets.read(grown, 5).items()) == list(before.items())
    assert grown_datasets.read(grown, 2) == old
    assert "" not in files.values()
    assert why == grown_datasets.reasons(grown) == {name: f"drawn broken: {name}" for name in ("bad0.png", "bad1.png")}
    assert grown_datasets.inputs(grown) == files
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
def test_the_new_part_is_a_run_like_any_other(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(model_cache.EncoderCache, "load", refuse)
    monkeypatch.setattr(model_cache.EncoderCache, "build", refuse)
    done = compact.compact(grown)
    run = grown.part(done.made[0].part)
    assert status.verify_run(run, content=True).problems == ()
    survey = status.survey(run)
    assert survey.status.complete
    assert (survey.status.ok, survey.status.unreadable) == (18, 2)
    assert grown_datasets.reasons(grown).keys() == {"bad0.png", "bad1.png"}
    first = grown.part("p000001")
    assert {**run.identity, "images": None} == {**first.identity, "images": None}
    assert run.given.images == first.given.images
    assert run.store.plan.attributes["genenc"] != first.store.plan.attributes["genenc"]
    copied = [item for shard in range(run.store.shard_count) for item in run.store.record(shard).details["copied"]]  # type: ignore[union-attr]
    assert sum(item["rows"] for item in copied) == run.manifest.rows == 20
    assert {item["part"] for item in copied} == set(done.made[0].sources)
    assert run.store.files.keys() >= {origins.RECORD}


@pytest.mark.slow
def test_its_record_says_where_each_row_was_encoded_also_when_compacted_again(grown: DatasetFolder) -> None:
    known = rows.current(grown, grown.version())
    names = known.text("image_id", np.arange(len(known)))
    expected = dict(zip(names, zip(known.part.tolist(), known.row.tolist(), strict=True), strict=True))
    compact.compact(grown, below=5)
    again = compact.compact(grown)
    record = origins.read(grown.part(again.made[0].part).objects)
    part, row = record.places()
    assert list(zip(part.tolist(), row.tolist(), strict=True)) == [expected[name] for name in names]
    assert len(record.names) == 3
    found = diff.diff(grown, 5, 7)
    assert found.same
    assert diff.diff(grown, 1, 5).lines()[1:] == diff.diff(grown, 1, 7).lines()[1:]


def test_nothing_to_join_makes_no_version(grown: DatasetFolder) -> None:
    assert compact.compact(grown, below=2).made == ()
    assert grown.versions() == [1, 2, 3, 4, 5]


def test_a_run_ends_at_a_large_part_and_at_the_most_rows(grown: DatasetFolder) -> None:
    version = grown.version()
    changes = rows.read_changes(grown, version)

    def chosen(below: int, most: int) -> list[list[str]]:
        return [[part.name[-1] for part in group] for group in compact.choose(version, changes, below=below, most=most)]

    assert chosen(100, 100) == [["1", "2", "3", "4", "5"]]
    assert chosen(5, 100) == [["2", "3", "4"]]
    assert chosen(100, 12) == [["1", "2", "3"], ["4", "5"]]
    assert chosen(100, 7) == [["2", "3", "4"]]


@pytest.mark.slow
def test_named_parts_must_be_neighbours(grown: DatasetFolder) -> None:
    for wrong in (["p000001", "p000003"], ["p000002", "p000001"], ["p000001"], [], ["p000009", "p000010"]):
        with pytest.raises(errors.InputError, match="not two or more neighbouring parts"):
            compact.compact(grown, only=wrong)
    done = compact.compact(grown, only=["p000001", "p000002"])
    assert done.made[0].sources == ("p000001", "p000002")
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
def test_the_next_update_goes_on_from_a_compacted_part(grown: DatasetFolder, grow: Grow) -> None:
    before = grown_datasets.read(grown)
    compact.compact(grown)
    done = grow("new.png", gone="a0.png")
    assert done.version is not None
    assert [result.run.manifest.rows for result in done.results] == [1]
    assert (done.version.counts["new"], done.version.counts["withdrawn"], done.version.last_part) == (1, 1, 6)
    after = grown_datasets.read(grown)
    assert list(after) == [*(name for name in before if name != "a0.png"), "new.png"]
    assert all(after[name] == values for name, values in before.items() if name != "a0.png")
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
def test_an_unfinished_part_of_a_compaction_is_none_of_an_update(
    grown: DatasetFolder, grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the other way round: the version of a compaction does not pass over an update's unfinished part."""
    with monkeypatch.context() as patch:
        patch.setattr(grown_datasets.Drawing, "work", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            grow("new.png")
    assert grown.parts() == [1, 2, 3, 4, 5, 6]
    with monkeypatch.context() as patch:
        patch.setattr(DatasetFolder, "create_version", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compact.compact(grown)
    (left,) = [number for number in grown.parts() if documents.is_compacted(number)]
    compact.compact(grown, below=5)
    done = grow()
    assert done.version is not None
    assert [parts.name_of(result.run) for result in done.results] == ["p000006"]
    assert (done.version.version, done.version.counts["new"], done.version.last_part) == (7, 1, 6)
    assert documents.part_name(left) not in grown_datasets.part_names(grown)
    assert "new.png" in grown_datasets.read(grown)


@pytest.mark.slow
def test_a_killed_compaction_is_continued(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    own, done = compact._Source.shard, []

    def shard(self: Any, run: Any, start: int, stop: int) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(start)
        return own(self, run, start, stop)

    monkeypatch.setattr(compact._Source, "shard", shard)
    with pytest.raises(KeyboardInterrupt):
        compact.compact(grown)
    monkeypatch.setattr(compact._Source, "shard", lambda *arguments: done.append(arguments[2]) or own(*arguments))
    compact.compact(grown)
    assert done == [0, 4, 8, 12, 16]
    assert len(grown.parts()) == 6


@pytest.mark.slow
def test_a_version_made_meanwhile_loses_nothing(
    grown: DatasetFolder, grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = grown_datasets.read(grown)
    meanwhile(monkeypatch, lambda: grow("new.png"))
    done = compact.compact(grown, below=5)
    assert done.version.version == 7
    assert grown_datasets.part_names(grown) == ["p000001", done.made[0].part, "p000005", "p000006"]
    after = grown_datasets.read(grown)
    assert list(after) == [*before, "new.png"]
    assert all(after[name] == values for name, values in before.items())
    assert len(grown.parts()) == 7  # what was copied served
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
def test_rows_that_changed_meanwhile_are_copied_anew(
    grown: DatasetFolder, grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = grown_datasets.read(grown)
    meanwhile(monkeypatch, lambda: grow(gone="b0.png"))
    done = compact.compact(grown, below=5)
    assert done.version.version == 7
    assert done.made[0].rows == 6
    after = grown_datasets.read(grown)
    assert list(after) == [name for name in before if name != "b0.png"]
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
def test_an_update_looks_again_when_a_compaction_was_first(
    grown: DatasetFolder, grow: Grow, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = grown_datasets.read(grown)
    meanwhile(monkeypatch, lambda: compact.compact(grown, below=5))
    done = grow("new.png", gone="b0.png")
    assert done.version is not None
    after = grown_datasets.read(grown)
    assert list(after) == [*(name for name in before if name != "b0.png"), "new.png"]
    assert (done.version.counts["rows"], done.version.counts["withdrawn"]) == (len(after), 1)
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
def test_the_second_of_two_compactors_finds_it_done(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = grown_datasets.read(grown)
    meanwhile(monkeypatch, lambda: compact.compact(DatasetFolder(Path(grown.root))))
    done = compact.compact(grown)
    assert (done.made, done.version.version, len(grown.parts())) == ((), 6, 6)
    assert list(grown_datasets.read(grown).items()) == list(before.items())


@pytest.mark.slow
def test_other_rows_with_the_same_number_are_left_alone(grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins.Compacted, "number", lambda _: documents.FIRST_COMPACTED)
    before = grown_datasets.read(grown)
    compact.compact(grown, only=["p000001", "p000002"])
    compact.compact(grown, only=["p000004", "p000005"])
    assert [number - documents.FIRST_COMPACTED for number in grown.parts()[5:]] == [0, 1]
    assert list(grown_datasets.read(grown).items()) == list(before.items())


def test_a_changed_object_is_not_copied(grown: DatasetFolder) -> None:
    key = next(
        key for key, _ in open_objects(Path(grown.root)).walk("parts/p000003/features.zarr/features") if "c." in key
    )
    path = Path(grown.root, "parts/p000003/features.zarr/features", key)
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.StoreError, match="differs from the committed object"):
        compact.compact(grown)
    assert grown.versions() == [1, 2, 3, 4, 5]


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start `grown_datasets` in a process of its own."""
    folders = [Path(module.__file__ or "").parent for module in (grown_datasets, store_worker)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-m", "grown_datasets", *arguments]
    return forked.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_at_once_lose_nothing(grown: DatasetFolder, grow: Grow) -> None:
    before = grown_datasets.read(grown)
    racers = [start("compact", grown.root) for _ in range(2)]
    grow("new.png")
    ends = [(racer.communicate(timeout=300)[1][-2000:], racer.returncode) for racer in racers]
    assert [code for _, code in ends] == [0, 0], ends
    after = grown_datasets.read(grown)
    assert after.keys() - before.keys() == {"new.png"}
    assert {name: after[name] for name in before} == before
    grown_datasets.assert_intact(grown)


@pytest.mark.slow
@pytest.mark.parametrize(("program", "every"), [("compact", 41), ("prune", 37)])
def test_killed_anywhere(program: str, every: int, grown_once: Path, tmp_path: Path) -> None:
    """The full form, before every call: `python -m grown_datasets PROGRAM SCRATCH --of DATASET`."""
    source = tmp_path / "source" / "grown"
    folder = grown_datasets.copy(grown_once / "dataset", source)
    for name in ("photos", "points.csv"):
        (source.parent / name).symlink_to(grown_once / name)
    tags.set_tag(folder, "kept", 2)
    if program == "prune":
        compact.compact(folder)
    done = start(program, str(tmp_path / "scratch"), "--of", str(source), "--every", str(every))
    out, error = done.communicate(timeout=300)
    *violations, count = out.splitlines() or ["nothing"]
    assert (violations, done.returncode) == ([], 0), error[-3000:] + out[-3000:]
    assert int(count.split()[1]) >= 5


def test_the_records_of_compacted_parts_are_read_together_and_once(
    grown: DatasetFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = compact.compact(grown).made
    number = documents.part_number(made.part)
    assert number is not None
    own = origins.of_parts(DatasetFolder(grown.root), [number])[number]
    both = threading.Barrier(2, timeout=20)

    def read(_objects: object) -> origins.Compacted:
        both.wait()
        return own

    monkeypatch.setattr(origins, "read", read)
    folder = DatasetFolder(grown.root)
    found = origins.of_parts(folder, [number, number + 1])
    assert list(found.values()) == [own, own]
    known = rows.current(folder, folder.version())
    origins.resolved(folder, known.part, known.row)
    assert both.n_waiting == 0
