"""Verification finds one flipped bit in every file that a version needs, and what else can be wrong."""

import json
import shutil
from pathlib import Path

import pytest

import grown_datasets
from genenc_core.dataset import compact, documents, prune, tags, verify
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import records

COMPACTED = "COMPACTED"
FILES = (
    "dataset.json",
    "update.json",
    "versions/v000002.json",
    "versions/v000006.json",
    "versions/v000003-*.parquet",
    "versions/v000001.pruned.json",
    "tags/paper.json",
    "parts/p000003/images.parquet",
    "parts/p000003/model_spec.json",
    "parts/p000003/provenance/parameters.json",
    "parts/p000003/_txn/store.json",
    "parts/p000003/_txn/commits/s0000000.json",
    "parts/p000003/features.zarr/features/zarr.json",
    "parts/p000003/features.zarr/features/c.0.0",
    "parts/p000003/features.zarr/status/c.0",
    f"parts/{COMPACTED}/images.parquet",
    f"parts/{COMPACTED}/provenance/compacted.json",
    f"parts/{COMPACTED}/features.zarr/probes/c.2.0.0",
    f"parts/{COMPACTED}/_txn/commits/s0000001.json",
)


@pytest.fixture(scope="module")
def full_once(grown_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset with parts of updates and of a compaction, a tag, a pruned version; not to be changed."""
    folder = grown_datasets.copy(grown_once / "dataset", tmp_path_factory.mktemp("full") / "dataset")
    tags.set_tag(folder, "paper", 2)
    compact.compact(folder)
    prune.prune(folder, keep=5)
    return Path(folder.root)


@pytest.fixture
def full(full_once: Path, tmp_path: Path) -> DatasetFolder:
    """Return a copy of it."""
    return grown_datasets.copy(full_once, tmp_path / "full")


def path_of(folder: DatasetFolder, place: str) -> Path:
    (name,) = [name for name in map(documents.part_name, folder.parts()) if int(name[1:]) >= documents.FIRST_COMPACTED]
    (found,) = Path(folder.root).glob(place.replace(COMPACTED, name))
    return found


def places(folder: DatasetFolder, *, content: bool = False) -> list[str]:
    return [problem.place for problem in verify.verify(folder, content=content).problems]


@pytest.mark.slow
def test_an_intact_dataset(full: DatasetFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(full.root).rglob("*")}
    found = verify.verify(full, content=True)
    assert (found.ok, found.versions, found.pruned, found.parts, found.unlisted) == (True, 5, 1, 6, ())
    assert found.shards == 13
    assert {path: path.stat().st_mtime_ns for path in Path(full.root).rglob("*")} == before


def test_a_newest_version_that_is_missing_is_found(full: DatasetFolder) -> None:
    newest = max(full.versions())
    Path(full.root, documents.version_key(newest)).unlink()
    assert documents.version_key(newest) in places(DatasetFolder(Path(full.root)))
    Path(full.root, "README.md").unlink()
    assert documents.version_key(newest) not in places(DatasetFolder(Path(full.root)))


@pytest.mark.slow
@pytest.mark.parametrize("place", FILES)
def test_one_flipped_bit_is_found(full: DatasetFolder, place: str) -> None:
    path = path_of(full, place)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = verify.verify(DatasetFolder(Path(full.root)), content=True)
    relative = path.relative_to(full.root).as_posix()
    about = [problem for problem in found.problems if problem.place in (relative, "/".join(relative.split("/")[:2]))]
    assert about, found.problems
    assert all(problem.remedy for problem in about)


@pytest.mark.parametrize("place", [place for place in FILES if "pruned" not in place and "tags" not in place])
def test_a_missing_file_is_found(full: DatasetFolder, place: str) -> None:
    path = path_of(full, place)
    path.unlink()
    relative = path.relative_to(full.root).as_posix()
    found = verify.verify(full)
    if place == "versions/v000006.json":  # nothing names the newest, but what only it has is in no version now
        assert found.unlisted
    else:
        assert "/".join(relative.split("/")[:2]) in {"/".join(each.place.split("/")[:2]) for each in found.problems}


def test_a_shard_that_is_missing_with_its_record_is_found(full: DatasetFolder) -> None:
    """The run by itself is only unfinished."""
    part = Path(full.root, "parts/p000005")
    for path in [
        *part.glob("features.zarr/*/c.1"),
        *part.glob("features.zarr/*/c.1.*"),
        *part.glob("_txn/commits/*1.json"),
    ]:
        path.unlink()
    (found,) = verify.verify(full).problems
    assert (found.place, "the values of its rows" in found.what) == ("parts/p000005", True)


def test_a_version_that_was_written_anew_breaks_the_chain(full: DatasetFolder) -> None:
    record = records.read_json(full.objects, "versions/v000003.json")
    record["made"] = {**record["made"], "images": "elsewhere"}  # type: ignore[dict-item]
    records.write_json(full.objects, "versions/v000003.json", record)
    (found,) = verify.verify(full).problems
    assert found.place == "versions/v000004.json"
    assert "does not name the digest of version 3" in found.what


@pytest.mark.slow
def test_a_part_that_is_another_run_is_found(full: DatasetFolder, tmp_path: Path, grown_once: Path) -> None:
    """Intact by itself, of the same images, but not what the versions were made with."""
    other = tmp_path / "other"
    grown_datasets.grow(other, grown_once / "photos", limit=1)
    place = Path(full.root, "parts/p000003")
    shutil.rmtree(place)
    shutil.copytree(other / "parts/p000001", place)
    found = [problem for problem in verify.verify(full).problems if problem.place == "parts/p000003"]
    assert len(found) == 1
    assert "its store.json" in found[0].what


def test_tags_that_point_to_nothing_are_found(full: DatasetFolder) -> None:
    for name, version in (("none", 17), ("gone", 1)):
        records.write_json(full.objects, f"tags/{name}.json", {"version": version})
    Path(full.root, "tags/1st.json").write_text("{}")
    found = {problem.place: problem.what for problem in verify.verify(full).problems}
    assert found.keys() == {"tags/none.json", "tags/gone.json", "tags/1st.json"}
    assert found["tags/none.json"] == "there is no version 17"
    assert found["tags/gone.json"] == "version 1 was pruned"


def test_foreign_files_and_links_are_found(full: DatasetFolder, tmp_path: Path) -> None:
    root = Path(full.root)
    for place in ("notes.txt", "parts/p1", "versions/v7.json"):
        (root / place).write_text("mine")
    shutil.move(root / "parts/p000004", tmp_path / "p000004")
    (root / "parts/p000004").symlink_to(tmp_path / "p000004")
    assert set(places(full)) == {
        *("notes.txt", "parts/p1", "versions/v7.json", "parts/p000004"),
    }


def test_row_changes_of_a_killed_update_are_no_damage(full: DatasetFolder) -> None:
    name = "v000006-00000000deadbeef.parquet"
    Path(full.root, "versions", name).write_bytes(b"PAR1")
    found = verify.verify(full)
    assert found.ok
    assert name in found.unlisted


def test_a_version_that_counts_other_rows_is_found(full: DatasetFolder) -> None:
    record = records.read_json(full.objects, "versions/v000006.json")
    record["counts"] = {**record["counts"], "rows": 19}  # type: ignore[dict-item]
    records.write_json(full.objects, "versions/v000006.json", record)
    (found,) = verify.verify(full).problems
    assert (found.place, found.what) == ("versions/v000006.json", "version 6 has 20 rows, and states 19")


def test_the_outcome_is_json(full: DatasetFolder) -> None:
    assert json.loads(json.dumps(verify.describe(verify.verify(full))))["ok"] is True
    assert json.loads(json.dumps(prune.describe(prune.prune(full, keep=1, dry_run=True))))["pruned"] == [3, 4, 5]
