"""The tally spares a survey the reading of records, and never says anything that they do not."""

import contextlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genenc_core import errors
from genenc_core.images.point_states import POINT_STATES
from genenc_core.run import driver, status, tally
from genenc_core.store import local, places, repair, run_store

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
    path, kept = root / tally.TALLY, root / "kept"
    path.rename(kept)
    try:
        return status.survey(root)
    finally:
        kept.rename(path)


def test_a_survey_by_the_tally_is_that_of_the_records(run: Path, reading: list[int]) -> None:
    found = status.survey(run)
    assert reading == [1], "only for the reason why an image is unreadable"
    assert found == without_tally(run)
    assert (found.status.ok, found.status.unreadable, len(found.unreadable)) == (10, 1, 1)
    reading.clear()
    assert status.run_status(run) == found.status
    assert reading == []


def test_a_record_that_changed_is_read(run: Path, reading: list[int]) -> None:
    path = run / places.record(0)
    before, data = path.stat(), path.read_bytes()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert status.run_status(run).ok == 10
    path.write_bytes(data + b" ")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert status.run_status(run).ok == 10
    assert reading == [0, 0]
    path.write_bytes(data.replace(b'"ok":4', b'"ok":3'))
    with pytest.raises(errors.StoreError, match="was changed after it was written"):
        status.run_status(run)


def test_a_damaged_tally_changes_nothing(run: Path) -> None:
    expected, path = status.survey(run), run / tally.TALLY
    data = path.read_bytes()
    cut = [data[:at] for at in range(0, len(data), 7)]
    flipped = [bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]) for at in range(0, len(data), 7)]
    for damaged in (*cut, *flipped, os.urandom(500)):
        path.write_bytes(damaged)
        assert status.survey(run) == expected, damaged
    path.unlink()
    assert status.survey(run) == expected
    path.mkdir()
    assert status.survey(run) == expected


def test_a_line_after_a_torn_one_counts(run: Path, reading: list[int]) -> None:
    path = run / tally.TALLY
    path.write_bytes(path.read_bytes()[:-5])
    store = run_store.RunStore.open(run)
    records = [store.record(shard) for shard in range(3)]
    reading.clear()
    tally.note(store.objects, filter(None, records))
    status.run_status(run)
    assert reading == []


def test_a_forged_line_is_no_traceback(run: Path) -> None:
    """Whoever can write a checksum can write a record, too; but the command must not stumble."""
    expected, data = status.survey(run), (run / tally.TALLY).read_bytes()
    size, changed = tally.stamps(run_store.RunStore.open(run).objects)[0]
    of_types = f'[0,{size},{changed},"4",0,{{}},{{}}]'
    for row in ("[[0, 1], 2]", "[0]", '{"a": 1}', "0", "[" * 5000, "[NaN]", of_types):
        checksum = b"\t%08x" % zlib.crc32(row.encode())
        (run / tally.TALLY).write_bytes(data + b"\n" + row.encode() + checksum)
        assert status.survey(run) == expected


def test_a_copy_and_a_repair_are_read_anew(run: Path, extract: Extract, reading: list[int], tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copy)
    assert status.run_status(tmp_path / "copy").ok == 10
    assert sorted(reading) == [0, 1, 2]
    store = run_store.RunStore.open(run)
    store.objects.remove(f"{places.GROUP}/features/c.0.0")
    repair.repair_store(store, coordinates=[])
    assert (status.run_status(run).committed, status.run_status(run).ok) == (2, 6)
    extract()
    reading.clear()
    assert status.run_status(run).ok == 10
    assert reading == []


def test_a_record_that_vanishes_meanwhile_is_passed_over(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a repair beside the survey does."""
    objects, real = run_store.RunStore.open(run).objects, os.scandir
    assert isinstance(objects, local.LocalObjects)

    @contextlib.contextmanager
    def scandir(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with real(path) as entries:
            found = list(entries)
        (run / places.record(1)).unlink()
        yield found

    monkeypatch.setattr(os, "scandir", scandir)
    assert {places.generation_of(name) for name, _ in objects.stamps(places.COMMITS)} == {(0, 0), (2, 0)}


def test_a_folder_that_cannot_be_written_is_surveyed(
    run: Path, monkeypatch: pytest.MonkeyPatch, reading: list[int]
) -> None:
    """Many unknown records are noted for the next survey, if that is possible."""
    expected = status.survey(run)
    monkeypatch.setattr(status, "_WORTH_NOTING", 1)
    (run / tally.TALLY).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
        assert status.survey(run) == expected
    assert status.survey(run) == expected
    reading.clear()
    assert status.run_status(run) == expected.status
    assert reading == []


def test_the_names_of_points_stay_what_they_are_in_stored_runs() -> None:
    assert list(POINT_STATES.items()) == [
        *((1, "ok"), (2, "outside_view"), (3, "image_unreadable"), (4, "no_such_point"), (5, "outside_image"))
    ]
