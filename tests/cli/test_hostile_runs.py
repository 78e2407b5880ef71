"""Nothing of a run folder leads out of it: a link, a pipe or a second name at every place, for every command."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pictures
from genenc_core.run import driver, planning, records, session_log, status_cache, worker
from genenc_core.run.parameters import ExtractParameters

MINE = b"alias ls=ls\n"
ABSENT = (
    *(".claim", "_txn/repair.json", "_txn/claims", "_txn/set-aside", "_txn/staging/s0000001-0123"),
    *("_txn/commits/s0000001.json", "_txn/commits/s0000009.json", "_txn/creating-0", "_txn/taken-down-0"),
    *("provenance/failed", "provenance/failed/s0000001.json", "provenance/decoding", "provenance/precision.json"),
    *("features.zarr/features/c.1.0", "features.zarr/status/c.1", "model/.weights.partial", "provenance/.a.partial"),
)
"""Places in which nothing is in the run below, and a command may look or write."""
READING = (("status", "--json"), ("info",), ("verify", "--content"))
UNUSED = (".claim", "_txn/set-aside")
"""Places that `resume` has nothing to do with."""
KINDS = ("link to a copy", "link to nothing", "link to a folder", "second name", "pipe")
Tree = dict[str, tuple[Any, ...]]


def parameters(photos: Path, out: Path) -> ExtractParameters:
    return ExtractParameters.model_validate(
        {
            "images": str(photos),
            "model": "tiny_models:conv",
            "weights": "random:0",
            "image_size": "32",
            "out": str(out),
            "shard_rows": 3,
            "batch_size": "auto",
            "device": "cpu",
        }
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.write_folder(tmp_path_factory.mktemp("hostile") / "photos", 6)


@pytest.fixture(scope="module")
def begun(photos: Path) -> Path:
    """A run of two shards, the first of them committed."""
    root = photos.parent / "run"
    given = parameters(photos, root)
    run = planning.create_run(given)
    options = records.Options.of(given)
    with session_log.recorded(run, options, command="extract"), worker.working(run, options):
        worker.encode_shards(run, [0], options)
    driver.plan(run, "failed")
    return root


def places_of(root: Path) -> list[str]:
    """Every file and folder of a run, but of arrays that are alike one of a kind."""
    kept = ("features", "status", "image_id")
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
    return [
        name for name in found if not name.startswith("features.zarr/") or name.split("/")[1] in (*kept, "zarr.json")
    ]


def tree(root: Path) -> Tree:
    """Everything below a folder: what it is, its bytes, when it was changed."""
    found: Tree = {}
    for path in [root, *root.rglob("*")]:
        about = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(root))] = (about.st_mode, about.st_mtime_ns, data)
    return found


def spoilt(place: Path, kind: str, outside: Path) -> bool:
    """Put something of the user's, or nothing, behind a name of the run; return whether that can be told from a run."""
    mine, was_folder = outside / "mine", place.is_dir()
    if place.is_file():
        shutil.copy2(place, mine)
        place.unlink()
    elif was_folder:
        shutil.copytree(place, mine)
        shutil.rmtree(place)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link to a copy":
        if not mine.exists():
            mine.write_bytes(MINE)
        place.symlink_to(mine)
    elif kind == "link to nothing":
        place.symlink_to(outside / "new")
    elif kind == "link to a folder":
        (outside / "documents").mkdir()
        for name in ("c.0.0", "zarr.json", ".old.partial", "creating-0", "s0000001-0", "1-a.rows", "letter.txt"):
            (outside / "documents" / name).write_bytes(MINE)
        place.symlink_to(outside / "documents")
    elif kind == "second name":
        if was_folder:
            return False
        if not mine.exists():
            mine.write_bytes(MINE)
        os.link(mine, place)
    elif kind == "pipe":
        os.mkfifo(place)
    return True


@pytest.fixture
def attempt(
    genenc: Callable[..., Any], begun: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], list[str]]:
    """Return a call that spoils one place of a copy, runs every command, and returns what went wrong."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("genenc_core.run.status._CACHE_FROM", 1)
    count = iter(range(10**6))

    def go(place: str, kind: str) -> list[str]:
        base = tmp_path / str(next(count))
        run, outside = base / "run", base / "outside"
        shutil.copytree(begun, run, symlinks=True)
        outside.mkdir()
        if not spoilt(run / place, kind, outside):
            return []
        wrong: list[str] = []
        theirs, own = tree(outside), tree(run)

        def check(name: str, said: Any, *, codes: tuple[int, ...]) -> None:
            if tree(outside) != theirs:
                wrong.append(f"{name}: changed what lies outside")
            if said.code not in codes or "Traceback" in said.err or len(said.err.strip().splitlines()) > 1:
                wrong.append(f"{name}: exit code {said.code}: {said.err}")

        for command, *options in READING:
            check(command, genenc(command, run, *options), codes=(0, 1, 2, 3))
            if tree(run) != own:
                wrong.append(f"{command}: changed the run")
        again = [f"--{name.replace('_', '-')}={value}" for name, value in parameters(photos, run) if _given(name)]
        works = kind == "second name" or place in UNUSED
        check("resume", genenc("resume", run, "--plain"), codes=(0, 1, 2, 3) if works else (1, 2))
        check("extract", genenc("extract", photos, "--plain", *again), codes=(0, 1, 2, 3))
        check("repair", genenc("verify", run, "--repair"), codes=(0, 1, 2, 3))
        check("resume again", genenc("resume", run, "--plain"), codes=(0, 1, 2, 3))
        return wrong

    return go


def _given(name: str) -> bool:
    return name in ("model", "weights", "image_size", "out", "shard_rows", "device")


def kinds_of(place: Path, number: int) -> set[str]:
    """The kind that leads furthest from such a place, and one of the others in turn."""
    first = "link to a folder" if place.is_dir() else "link to a copy" if place.is_file() else "link to nothing"
    return {first, KINDS[number % len(KINDS)]}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_no_command_leaves_the_run_folder(attempt: Callable[[str, str], list[str]], begun: Path, part: int) -> None:
    wrong = {
        (place, kind): found
        for number, place in list(enumerate((*places_of(begun), *ABSENT)))[part::3]
        for kind in sorted(kinds_of(begun / place, number))
        if (found := attempt(place, kind))
    }
    assert wrong == {}


def test_a_cache_of_tallies_is_the_users_own(
    genenc: Callable[..., Any], begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` of a run without a tally notes what it read, but not in the run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("genenc_core.run.status._CACHE_FROM", 1)
    shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "run" / status_cache.TALLY).unlink()
    before = tree(tmp_path / "run")
    assert genenc("status", tmp_path / "run").code == 1
    assert tree(tmp_path / "run") == before
    (noted,) = (tmp_path / "cache").rglob("tally.jsonl")
    monkeypatch.setattr("genenc_core.run.status._record", None)
    assert "3 of 6 images" in genenc("status", tmp_path / "run").out
    assert noted.stat().st_mode & 0o077 == 0 or noted.parent.stat().st_mode & 0o077 == 0
