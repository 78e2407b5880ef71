"""Files of the planned size and nearly the planned time: which of a shard may be others than planned."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from genenc_core.images.decode import load_image
from genenc_core.images.sources import file_stamps, image_source, manifest

START, MS, SECOND = 1_700_000_000 * 10**9, 10**6, 10**9
LISTED = START + 10**6 * SECOND
FRAMES = 64


class Rows:
    """As much of a manifest as is asked."""

    listed_ns: int | None

    def __init__(self, times: Sequence[int], paths: Sequence[str], listed_ns: int | None) -> None:
        self.rows, self.listed_ns, self.times, self.paths = len(times), listed_ns, times, list(paths)

    def iter_columns(self, columns: Sequence[str]) -> Sequence[pa.RecordBatch]:
        assert list(columns) == ["bytes", "mtime_ns"]
        cut = self.rows // 2 + 1
        parts = [np.array(part, np.int64) for part in (self.times[:cut], self.times[cut:])]
        return [
            pa.record_batch({"bytes": np.full(len(part), 9), "mtime_ns": np.array(part, np.int64)}) for part in parts
        ]

    def read(self, start: int, stop: int) -> "Rows":
        return Rows(self.times[start:stop], self.paths[start:stop], None)


def doubtful(
    planned: Sequence[int],
    found: Sequence[int],
    *,
    shard: slice = slice(None),
    touched: int = LISTED + 1,
    listed: int | None = LISTED,
    paths: Sequence[str] = (),
) -> tuple[set[int], set[int]]:
    """Return the rows that are accepted by size and time alone, and those of them that are doubtful."""
    rows = [*range(len(planned))][shard]
    given = [row for row in rows if found[row] >= 0]
    stamped = np.array([(9, planned[row], found[row], touched) for row in given], file_stamps.STAMP)
    names = paths or [f"{row}.bmp" for row in range(len(planned))]
    said = file_stamps.doubtful(np.array(given), stamped, Rows(planned, names, listed), dict(enumerate(names)))  # type: ignore[arg-type]
    taken = {row for row in given if file_stamps.same_time(planned[row], found[row])}
    assert set(said) <= taken
    return taken, set(said)


STEPS: dict[str, Callable[[int], int]] = {
    "5 ms": lambda k: START + k * 5 * MS,
    "4 ms": lambda k: START + k * 4 * MS,
    "2 ms": lambda k: START + k * 2 * MS,
    "1 ms": lambda k: START + k * MS,
    "half seconds": lambda k: START + k * SECOND // 2,
    "0.5 us": lambda k: START + k * 500,
    "50 ns": lambda k: START + k * 50,
    "25 a second": lambda k: START + k // 25 * SECOND,
    "FAT": lambda k: START + k // 60 * 2 * SECOND,
    "one time": lambda _: START,
    "exact": lambda k: START + k * 33_366_701,
}


@pytest.mark.parametrize("listed", [LISTED, None], ids=["listed", "an earlier version's manifest"])
@pytest.mark.parametrize("step", STEPS)
def test_no_frame_is_taken_for_its_neighbour(step: str, listed: int | None) -> None:
    planned = [STEPS[step](k) for k in range(FRAMES)]
    for by, shard in itertools.product((1, -1, 2, 7), (slice(None), slice(8, 24), slice(16, 18), slice(40, 41))):
        found = [planned[k + by] if 0 <= k + by < FRAMES else -1 for k in range(FRAMES)]
        taken, said = doubtful(planned, found, shard=shard, listed=listed)
        if listed is not None:
            assert said == taken
        elif len(range(FRAMES)[shard]) > 2:  # what shows without the time of listing
            assert said == {row for row in taken if planned[row] != found[row]}


@pytest.mark.parametrize("step", STEPS)
def test_files_that_nobody_touched_are_not_doubtful(step: str) -> None:
    planned = [STEPS[step](k) for k in range(FRAMES)]
    assert doubtful(planned, planned, touched=LISTED)[1] == set()
    assert doubtful(planned, planned, listed=None)[1] == set()


def test_files_of_their_own_time_may_be_touched() -> None:
    """A changed mode, a hard link, a copy with its times: no other planned file could be it."""
    planned = [STEPS["exact"](k) for k in range(FRAMES)]
    assert doubtful(planned, planned) == ({*range(FRAMES)}, set())


@pytest.mark.parametrize("resolution", file_stamps.RESOLUTIONS)
@pytest.mark.parametrize("other_way", [False, True])
def test_a_copy_with_fewer_digits_is_the_same(resolution: int, other_way: bool) -> None:
    planned = [START + k * 4_033_366_701 for k in range(FRAMES)]
    copy = [time // resolution * resolution for time in planned]
    for one, other in [(copy, planned) if other_way else (planned, copy)]:
        assert doubtful(one, other) == ({*range(FRAMES)}, set())
        assert doubtful(one, other, shard=slice(3, 4)) == ({3}, set())


def test_a_file_that_changed_long_after_says_nothing_of_the_others() -> None:
    planned = [START + k * 4_033_366_701 for k in range(FRAMES)]
    found = [time // 1000 * 1000 for time in planned]
    found[5] = START + 10**15 + 123
    assert doubtful(planned, found) == ({*range(FRAMES)} - {5}, set())


def test_one_file_that_a_list_names_twice_is_not_two() -> None:
    planned = [START] * 4
    assert doubtful(planned, planned, paths=["a", "a", "a", "a"])[1] == set()
    assert doubtful(planned, planned, paths=["a", "a", "b", "a"])[1] == {0, 1, 2, 3}


def test_a_manifest_says_when_its_files_were_listed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    before = (tmp_path / "a.png").stat().st_ctime_ns
    written = manifest.write_manifest(tmp_path / "m.parquet", image_source.open_source(str(tmp_path)))
    assert written.listed_ns is not None
    assert written.listed_ns >= before
    (tmp_path / "a.png").chmod(0o600)
    _, status = load_image.read(str(tmp_path / "a.png"))
    assert status.st_ctime_ns >= before


@pytest.mark.parametrize("target", ["loop", "./loop", "../links/loop"])
def test_a_loop_of_links_ends(tmp_path: Path, target: str) -> None:
    """A file that became one while it was read."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "loop"
    link.symlink_to(target)
    assert file_stamps.last_renamed(str(link), {}) >= link.lstat().st_ctime_ns
