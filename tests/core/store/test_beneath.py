"""Every operation on a run folder's files stays below the folder, whatever a stranger put there."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from genenc_core import errors
from genenc_core.store import run_store, store_keys
from genenc_core.store.backends import beneath
from genenc_core.store.backends.local import LocalObjects

Call = Callable[[LocalObjects, str], object]


def hold(objects: LocalObjects, key: str) -> None:
    with objects.lock(key, b"note"):
        pass


BELOW: dict[str, Call] = {
    "read": lambda o, k: o.read(f"{k}/mine"),
    "read_range": lambda o, k: o.read_range(f"{k}/mine", 0, 1),
    "open": lambda o, k: o.open(f"{k}/mine"),
    "size": lambda o, k: o.size(f"{k}/mine"),
    "kind": lambda o, k: o.kind(f"{k}/mine"),
    "digest": lambda o, k: o.digest(f"{k}/mine"),
    "has_group": lambda o, k: o.has_group(k),
    "names": lambda o, k: o.names(k),
    "stamps": lambda o, k: list(o.stamps(k)),
    "walk": lambda o, k: list(o.walk(k)),
    "specials": lambda o, k: list(o.specials(k)),
    "make_folder": lambda o, k: o.make_folder(k),
    "make_folder below": lambda o, k: o.make_folder(f"{k}/a/b"),
    "write_new": lambda o, k: o.write_new(f"{k}/new", b"x"),
    "create": lambda o, k: o.create(f"{k}/new", b"x", via="via"),
    "create via": lambda o, k: o.create("new", b"x", via=f"{k}/via"),
    "replace": lambda o, k: o.replace(f"{k}/mine", b"x"),
    "replace below": lambda o, k: o.replace(f"{k}/a/b", b"x"),
    "move in": lambda o, k: o.move("own", f"{k}/mine"),
    "move out": lambda o, k: o.move(f"{k}/mine", "there"),
    "take_away": lambda o, k: o.take_away(f"{k}/mine", "there"),
    "take_away in": lambda o, k: o.take_away("own", f"{k}/mine"),
    "alone": lambda o, k: hold(o, f"{k}/mine"),
    "append": lambda o, k: o.append(f"{k}/mine", b"x"),
    "remove": lambda o, k: o.remove(f"{k}/mine"),
    "sync": lambda o, k: o.sync(k),
    "zarr_store": lambda o, k: o.zarr_store(k),
}
AT_THE_END: dict[str, Call] = {
    "read": lambda o, k: o.read(k),
    "read_range": lambda o, k: o.read_range(k, -1, 1),
    "open": lambda o, k: o.open(k),
    "digest": lambda o, k: o.digest(k),
    "alone": hold,
    "append": lambda o, k: o.append(k, b"x"),
    "move": lambda o, k: o.move(k, "there"),
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "mine").write_bytes(b"mine")
    (folder / "zarr.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    """A folder that is itself reached through a link, which is allowed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    (tmp_path / "run" / "own").write_bytes(b"own")
    return LocalObjects(tmp_path / "run")


def shown(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("depth", ["sub", "a/sub"])
@pytest.mark.parametrize("call", BELOW)
def test_nothing_behind_a_linked_folder_is_reached(objects: LocalObjects, outside: Path, call: str, depth: str) -> None:
    place = objects.path(depth)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside)
    before = shown(outside)
    with pytest.raises(errors.UnsafeFileError) as raised:
        BELOW[call](objects, depth)
    assert raised.value.filename == str(place)
    assert "is a symbolic link" in raised.value.sentence
    assert shown(outside) == before
    assert sorted(path.name for path in outside.iterdir()) == ["mine", "zarr.json"]


@pytest.mark.parametrize("call", AT_THE_END)
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "socket", "second name"])
def test_name_that_is_no_own_file_is_left(objects: LocalObjects, outside: Path, call: str, kind: str) -> None:
    place = objects.path("name")
    if kind == "link":
        place.symlink_to(outside / "mine")
    elif kind == "dangling link":
        place.symlink_to(outside / "new")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(place))
        bound.close()
    else:
        os.link(outside / "mine", place)
    before = shown(outside)
    if kind == "second name" and call not in ("alone", "append"):
        AT_THE_END[call](objects, "name")  # reading and renaming change nothing elsewhere
    else:
        with pytest.raises(errors.UnsafeFileError):
            AT_THE_END[call](objects, "name")
        assert objects.kind("name") is not None
    assert shown(outside) == before
    assert not (outside / "new").exists()


def test_removing_and_replacing_a_link_touches_the_link_alone(objects: LocalObjects, outside: Path) -> None:
    before = shown(outside)
    for name in ("one", "two", "three"):
        objects.path(name).symlink_to(outside / "mine")
    objects.path("folder").symlink_to(outside)
    objects.remove("one")
    objects.replace("two", b"new")
    objects.take_away("three", "moved")
    objects.remove_tree("folder")
    assert objects.read("two") == b"new"
    assert objects.kind("one") is None
    assert objects.kind("moved") == "a symbolic link"
    assert shown(outside) == before


def test_a_file_of_absurd_size_is_refused_before_it_is_read(objects: LocalObjects) -> None:
    with objects.path("large").open("wb") as file:
        file.truncate(60 * 10**9)
    with pytest.raises(errors.UnsafeFileError, match="60,000,000,000 bytes"):
        objects.read("large")
    assert objects.digest("large", size=4) == (60 * 10**9, "")
    assert beneath.LARGEST_DOCUMENT < 2**30


def test_what_is_wrong_is_named_by_its_path(objects: LocalObjects) -> None:
    """Not by the descriptor that it is reached through."""
    for call in (lambda: objects.read("no/such"), lambda: objects.sync("no"), lambda: objects.read("gone")):
        with pytest.raises(FileNotFoundError) as raised:
            call()
        assert str(raised.value.filename).startswith(str(objects.root))


@pytest.mark.parametrize("name", [store_keys.TRANSACTIONS, store_keys.COMMITS, store_keys.GROUP, store_keys.STAGING])
def test_linked_run_folder_is_refused(small: ModuleType, full: run_store.RunStore, tmp_path: Path, name: str) -> None:
    """Also when it is linked to while a worker is at work."""
    root = full.objects.root  # type: ignore[attr-defined]
    shutil.move(root / name, tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "elsewhere").rglob("*"))
    for work in (lambda: run_store.RunStore.open(root).recover(), lambda: small.create(root).recover()):
        with pytest.raises(errors.StoreError, match="is a symbolic link"):
            work()
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "elsewhere").rglob("*")) == before
