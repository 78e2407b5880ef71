"""Datasets whose rows are drawn instead of encoded: grown by `update`, checked by readers, killed in processes.

`python -m grown_datasets PROGRAM ROOT` runs a program once; with `--of DATASET` it is killed in copies of that, before
every call that changes a folder, and checks what readers and the next commands find then.
"""

import argparse
import importlib
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from genenc_core import statuses, stored_arrays
from genenc_core.dataset import compact, prune, rows, update, verify
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.dataset.rows import CurrentRows
from genenc_core.images.sources import manifest
from genenc_core.run import records, status
from genenc_core.run.folder import RunFolder
from genenc_core.store.backends.objects import Root, open_objects, to_root

store_worker: Any = importlib.import_module("store_worker")
GIVEN = {
    "model": "tiny_models:conv",
    "weights": "random:0",
    "image_size": "32",
    "device": "cpu",
    "shard_rows": 4,
    "products": ["features=global_avg_pool", "probes=spatial_point(cell)"],
    "trust": True,
}
BROKEN = "bad"
"""How names of unreadable images begin."""
LABELLED = ("a0.png", "a1.png", "a7.png")
Seen = dict[str, tuple[bytes, ...]]
"""Bytes of every array's row, by image id, in the order of the rows."""


class Drawing:
    """Stands for the session that encodes a part."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def work(self, _shards: str) -> records.Result:
        """Commit pending shards."""
        pending = self.run.store.pending()
        for shard in pending:
            arrays, state, details = drawn(self.run, shard)
            self.run.store.commit(shard, arrays, state, details=details)
        return records.Result(run=self.run, status=status.run_status(self.run), asked=len(pending), failures=())


class Update(update.Update):
    """An update that draws."""

    def session(self, run: RunFolder, options: records.Options) -> Any:
        """Return what draws."""
        del options
        return Drawing(run)


def drawn(run: RunFolder, shard: int) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """Return a shard's arrays, status and details, which follow from its images' names, sizes and times."""
    start, stop = run.store.shard_range(shard)
    listed = run.manifest.read(start, stop)
    state = np.array([1 + name.startswith(BROKEN) for name in listed.image_ids], np.uint8)
    arrays = {}
    for array in run.store.plan.arrays:
        values = np.zeros((stop - start, *array.shape[1:]), array.dtype)
        for at, seed in enumerate(map(zlib.crc32, _seeds(listed))):
            draw = np.random.default_rng([seed, zlib.crc32(array.name.encode())])
            values[at] = draw.integers(1, 5, values[at].shape) if values.dtype.kind in "iu" else draw.normal()
        if array.name == stored_arrays.POINT_STATUS:
            values[state == statuses.UNREADABLE] = statuses.POINT_UNREADABLE
        elif values.dtype.kind == "f":
            values[state == statuses.UNREADABLE] = np.nan
        arrays[array.name] = values
    points = arrays.get(stored_arrays.POINT_STATUS, np.zeros(0, np.uint8))
    unreadable = [
        {"row": start + at, "image_id": listed.image_ids[at], "reason": f"drawn broken: {listed.image_ids[at]}"}
        for at in np.flatnonzero(state == statuses.UNREADABLE).tolist()
    ]
    details = {
        "unreadable": unreadable,
        "changed_since_planned": [],
        "points": statuses.counts(statuses.written(statuses.POINTS), points),
        "input_sha256": [digest(Path(path)) for path in listed.paths],
        "batch_sizes": {"4": 1},
        "seconds": {},
    }
    return arrays, state, details


def digest(path: Path) -> str:
    """Return the sha256 of a file."""
    from genenc_core.system import digests

    return digests.IMAGE_FILE.hex_of_file(path)


def _seeds(listed: manifest.Rows) -> list[bytes]:
    rows_of = zip(listed.image_ids, listed.bytes.tolist(), listed.mtime_ns.tolist(), strict=True)
    return [repr(row).encode() for row in rows_of]


def grow(root: Root, photos: Path, **changes: object) -> update.Updated:
    """Update a dataset from a folder of images, with points for some of them."""
    values = {**GIVEN, "images": str(photos), "points": str(photos.parent / "points.csv"), "out": str(root), **changes}
    return Update(UpdateParameters.model_validate(values)).run()


def write(photos: Path, *names: str, seed: int = 0) -> None:
    """Write images, which need not be readable; their content follows from name and seed."""
    photos.mkdir(exist_ok=True)
    for name in names:
        (photos / name).write_bytes(f"{name} {seed}".encode() * (seed + 1))
        os.utime(photos / name, ns=(10**18 + seed, 10**18 + seed))


def make(root: Root, work: Path) -> Path:
    """Make a dataset of five versions and parts, in shards of 4; return its folder of images.

    Some rows are unreadable, superseded, withdrawn, renamed and touched.
    """
    photos = work / "photos"
    write(photos, *(f"a{index}.png" for index in range(9)), "bad0.png")
    labelled = [f"{name},{point},{at + 1},{at + 2}" for at, name in enumerate(LABELLED) for point in ("nose", "tail")]
    (work / "points.csv").write_text("\n".join(["image,point,x,y", *labelled]) + "\n")
    grow(root, photos)
    write(photos, "b0.png", "b1.png", "bad1.png")
    write(photos, "a1.png", seed=1)
    grow(root, photos)
    write(photos, "c0.png")
    (photos / "a2.png").unlink()
    (photos / "a3.png").rename(photos / "z3.png")
    os.utime(photos / "a4.png", ns=(10**18 + 7, 10**18 + 7))
    grow(root, photos, by="content")
    write(photos, "a5.png", seed=2)
    write(photos, "d0.png")
    grow(root, photos)
    write(photos, *(f"e{index}.png" for index in range(6)))
    grow(root, photos)
    return photos


def read(folder: DatasetFolder, which: int | str | None = None) -> Seen:
    """Read a version's current rows by plain Zarr, with their names, sizes, times, points."""
    version = folder.version(which)
    known = rows.current(folder, version)
    columns: list[list[bytes]] = [_text(known)]
    groups: dict[int, Any] = {
        part.number: zarr.open_group(folder.part(part.name).store.zarr_store(), mode="r") for part in version.parts
    }
    for name in sorted(version.templates[0]):
        if name in ("image_id", "point"):
            continue
        whole: dict[int, Any] = {number: group[name][:] for number, group in groups.items()}
        at = zip(known.part.tolist(), known.row.tolist(), strict=True)
        if name == "path":
            columns.append([path.encode() for path in known.text("path", np.arange(len(known)))])
        else:
            columns.append([np.asarray(whole[part][row]).tobytes() for part, row in at])
    return dict(zip(known.text("image_id", np.arange(len(known))), zip(*columns, strict=True), strict=True))


def _text(known: CurrentRows) -> list[bytes]:
    table = known.table.to_pylist()
    return [repr((row, xy.tolist())).encode() for row, xy in zip(table, known.points, strict=True)]


def reasons(folder: DatasetFolder) -> dict[str, str]:
    """Return why images of the newest version are unreadable, from the commit records of its parts."""
    found: dict[str, str] = {}
    for part in folder.version().parts:
        run = folder.part(part.name)
        for item in status.survey(run).unreadable:
            assert run.manifest.read(item["row"], item["row"] + 1).image_ids == [item["image_id"]]
            found[item["image_id"]] = item["reason"]
    return found


def inputs(folder: DatasetFolder) -> dict[str, str]:
    """Return the recorded sha256 of the files of the newest version's rows."""
    from genenc_core.dataset import parts

    known = rows.current(folder, folder.version())
    at = np.arange(len(known))
    return dict(zip(known.text("image_id", at), parts.RecordedDigests(folder, known)(at), strict=True))


def assert_intact(folder: DatasetFolder) -> verify.Verified:
    """Verify a dataset by its content."""
    found = verify.verify(folder, content=True)
    assert found.ok, "\n".join(map(str, found.problems))
    return found


def part_names(folder: DatasetFolder, which: int | str | None = None) -> list[str]:
    """Return the parts of a version."""
    return [part.name for part in folder.version(which).parts]


def upload(source: Path, root: str) -> None:
    """Copy a local dataset to S3."""
    objects = open_objects(root)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            objects.replace(path.relative_to(source).as_posix(), path.read_bytes())


def copy(source: Path, root: Root) -> DatasetFolder:
    """Copy a local dataset to a place."""
    if isinstance(root, Path):
        shutil.copytree(source, root)
    else:
        upload(source, root)
    return DatasetFolder(root)


def _compact(root: Root) -> None:
    compact.compact(DatasetFolder(root), below=9)


def _prune(root: Root) -> None:
    prune.prune(DatasetFolder(root), keep=1)


PROGRAMS: Mapping[str, Callable[[Root], None]] = {"compact": _compact, "prune": _prune}


def exhaust(program: str, source: Path, scratch: Path, every: int) -> Iterator[str]:
    """Kill a program before its folder-changing calls, check, go on, check; yield what is wrong, then `points N`.

    Nothing is read in this process: what it forks would have the locks, but not the threads, of the libraries.
    """
    run = PROGRAMS[program]
    expected = store_worker.ask(lambda: (read(DatasetFolder(source)), read(DatasetFolder(source), 2)))

    def counted() -> tuple[int, list[str]]:
        calls: list[int] = []
        shutil.copytree(source, scratch / "whole")
        store_worker.count_calls(scratch, calls.append)
        run(scratch / "whole")
        return len(calls), names(scratch / "whole")

    made, whole = store_worker.ask(counted)

    def victim(root: Path, at: int) -> None:
        store_worker.count_calls(root, lambda number: store_worker.kill_self() if number == at else None)
        run(root)

    def survivor(root: Path, at: int) -> None:
        folder = DatasetFolder(root)
        assert (read(folder), read(folder, 2)) == expected
        if at % 2:
            photos = shutil.copytree(source.parent / "photos", root.with_name(f"photos{at}"))
            shutil.copy(source.parent / "points.csv", photos.parent)
            write(photos, "later.png")
            grow(root, photos)
            later = read(folder)
            assert later.keys() - expected[0].keys() == {"later.png"}
            assert {name: later[name] for name in expected[0]} == expected[0]
        before = list(read(folder).items())
        run(root)
        assert list(read(folder).items()) == before
        assert read(folder, 2) == expected[1]
        assert_intact(folder)
        if not at % 2:
            assert names(root) == whole

    chosen = range(1, made + 1, every)
    for at in chosen:
        root = scratch / f"at{at:03d}"
        shutil.copytree(source, root)
        ended, text = store_worker.in_child(lambda root=root, at=at: victim(root, at))
        if not os.WIFSIGNALED(ended):
            yield f"victim {at} was not killed: {text}"
        ended, text = store_worker.in_child(lambda root=root, at=at: survivor(root, at))
        if ended:
            yield f"killed before call {at}: {text}"
        shutil.rmtree(root)
    yield f"points {len(chosen)}"


def names(root: Root) -> list[str]:
    """Return the names of a dataset's parts, documents, marks and tags."""
    objects = open_objects(root)
    found = [f"{above}/{name}" for above in ("parts", "versions", "tags") for name in objects.names(above)]
    return sorted([*(re.sub(r"-[0-9a-f]{16}", "-", name) for name in found), *objects.names("")])


def main() -> None:
    """Run a program, or kill it everywhere."""
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("root")
    parser.add_argument("--of", type=Path)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    if given.of is None:
        PROGRAMS[given.program](to_root(given.root))
        return
    for line in exhaust(given.program, given.of, Path(given.root), given.every):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()


def vectors(done: update.Updated, number: int | None = None) -> dict[str, np.ndarray]:
    """Return the features of a version's current rows by image id, read by plain Zarr."""
    version = done.folder.version(number)
    known = rows.current(done.folder, version)
    arrays = {
        part.number: zarr.open_array(f"{done.folder.root}/parts/{part.name}/features.zarr/features", mode="r")
        for part in version.parts
    }
    names = known.text("image_id", range(len(known)))
    places = zip(names, known.part.tolist(), known.row.tolist(), strict=True)
    return {name: np.asarray(arrays[part][row]) for name, part, row in places}
