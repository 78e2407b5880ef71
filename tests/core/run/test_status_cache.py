"""The tally spares a survey the reading of records, and never says anything that they do not."""

import contextlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genenc_core import errors, statuses
from genenc_core.run import driver, status, status_cache
from genenc_core.run.folder import RunFolder
from genenc_core.store import repair, run_store, store_keys
from genenc_core.store.backends import local

Extract = Callable[..., driver.Result]


@pytest.fixture
def run(extract: Extract, photos: Path, tmp_path: Path) -> Path:
    """A run of three shards with one unreadable image."""
    (photos / "img_005.png").write_bytes(b"no image")
    extract()
    return tmp_path / "run"


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The shards whose records are read."""
    found: list[int] = []
    real = run_store.RunStore.record

    def record(self: run_store.RunStore, shard: int) -> object:
        found.append(shard)
        return real(self, shard)

    monkeypatch.setattr(run_store.RunStore, "record", record)
    return found


def without_tally(root: Path) -> status.Survey:
    """The survey that reads every record."""
    path, kept = root / status_cache.TALLY, root / "kept"
    path.rename(kept)
    try:
        return status.survey(RunFolder(root))
    finally:
        kept.rename(path)


def test_a_survey_by_the_tally_is_that_of_the_records(run: Path, reading: list[int]) -> None:
    found = status.survey(RunFolder(run))
    assert reading == [1], "only for the reason why an image is unreadable"
    assert found == without_tally(run)
    assert (found.status.ok, found.status.unreadable, len(found.unreadable)) == (10, 1, 1)
    reading.clear()
    assert status.run_status(RunFolder(run)) == found.status
    assert reading == []


def test_a_record_that_changed_is_read(run: Path, reading: list[int]) -> None:
    path = run / store_keys.record(0)
    before, data = path.stat(), path.read_bytes()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert status.run_status(RunFolder(run)).ok == 10
    path.write_bytes(data + b" ")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert status.run_status(RunFolder(run)).ok == 10
    assert reading == [0, 0]
    path.write_bytes(data.replace(b'"ok":4', b'"ok":3'))
    with pytest.raises(errors.StoreError, match="was changed after it was written"):
        status.run_status(RunFolder(run))


@pytest.mark.slow
def test_a_damaged_tally_changes_nothing(run: Path) -> None:
    expected, path = status.survey(RunFolder(run)), run / status_cache.TALLY
    data = path.read_bytes()
    cut = [data[:at] for at in range(0, len(data), 7)]
    flipped = [bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]) for at in range(0, len(data), 7)]
    for damaged in (*cut, *flipped, os.urandom(500)):
        path.write_bytes(damaged)
        assert status.survey(RunFolder(run)) == expected, damaged
    path.unlink()
    assert status.survey(RunFolder(run)) == expected
    path.mkdir()
    assert status.survey(RunFolder(run)) == expected


def test_a_line_after_a_torn_one_counts(run: Path, reading: list[int]) -> None:
    path = run / status_cache.TALLY
    path.write_bytes(path.read_bytes()[:-5])
    store = run_store.RunStore.open(run)
    records = [store.record(shard) for shard in range(3)]
    reading.clear()
    status_cache.note(store.objects, filter(None, records))
    status.run_status(RunFolder(run))
    assert reading == []


def test_a_forged_line_is_no_traceback(run: Path) -> None:
    """Whoever can write a checksum can write a record, too; but the command must not stumble."""
    expected, data = status.survey(RunFolder(run)), (run / status_cache.TALLY).read_bytes()
    size, changed = status_cache.stamps(run_store.RunStore.open(run).objects)[0]
    of_types = f'[0,{size},{changed},"4",0,{{}},{{}}]'
    huge = 10**400
    of_seconds = f'[0,{size},{changed},4,0,{{}},{{"read":{huge}}}]'
    of_work = ("1", "[1, 2]", '"123456789"', [huge, 0.5, *[0] * 7], [huge, -huge, *[0] * 7])
    works = (f"[0,{size},{changed},4,0,{{}},{{}},0,{work}]" for work in of_work)
    nan = f"[0,{size},{changed},4,0,{{}},{{}},0,[{', '.join(['NaN'] * 9)}]]"
    for row in ("[[0, 1], 2]", "[0]", '{"a": 1}', "0", "[" * 5000, "[NaN]", of_types, of_seconds, *works, nan):
        checksum = b"\t%08x" % zlib.crc32(row.encode())
        (run / status_cache.TALLY).write_bytes(data + b"\n" + row.encode() + checksum)
        assert status.survey(RunFolder(run)) == expected


@pytest.mark.slow
def test_a_copy_and_a_repair_are_read_anew(run: Path, extract: Extract, reading: list[int], tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copy)
    assert status.run_status(RunFolder(tmp_path / "copy")).ok == 10
    assert sorted(reading) == [0, 1, 2]
    store = run_store.RunStore.open(run)
    store.objects.remove(f"{store_keys.GROUP}/features/c.0.0")
    repair.repair_store(store, coordinates=[])
    assert (status.run_status(RunFolder(run)).committed, status.run_status(RunFolder(run)).ok) == (2, 6)
    extract()
    reading.clear()
    assert status.run_status(RunFolder(run)).ok == 10
    assert reading == []


def test_a_record_that_vanishes_meanwhile_is_passed_over(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a repair beside the survey does."""
    objects, real = run_store.RunStore.open(run).objects, os.scandir
    assert isinstance(objects, local.LocalObjects)

    @contextlib.contextmanager
    def scandir(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with real(path) as entries:
            found = list(entries)
        (run / store_keys.record(1)).unlink()
        yield found

    monkeypatch.setattr(os, "scandir", scandir)
    assert {store_keys.generation_of(name) for name, _ in objects.stamps(store_keys.COMMITS)} == {(0, 0), (2, 0)}


def test_unwritable_folder_is_surveyed(run: Path, monkeypatch: pytest.MonkeyPatch, reading: list[int]) -> None:
    """Many unknown records are noted for the next survey, if that is possible."""
    expected = status.survey(RunFolder(run))
    monkeypatch.setattr(status, "_CACHE_FROM", 1)
    (run / status_cache.TALLY).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
        assert status.survey(RunFolder(run)) == expected
    assert status.survey(RunFolder(run)) == expected
    reading.clear()
    assert status.run_status(RunFolder(run)) == expected.status
    assert reading == []


def test_the_names_of_points_stay_what_they_are_in_stored_runs() -> None:
    assert [(each.value, each.name) for each in statuses.written(statuses.POINTS)] == [
        *((1, "ok"), (2, "outside_view"), (3, "image_unreadable"), (4, "no_such_point"), (5, "outside_image"))
    ]
