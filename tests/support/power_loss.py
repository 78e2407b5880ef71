"""Model of a disk that loses everything not fsynced, driven by the real calls of the code under test."""

import dataclasses
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@dataclasses.dataclass
class Disk:
    """State after a power loss: everything fsynced, plus any subset of the names that were not.

    Inodes; a folder maps names to inodes. A file's bytes are durable once it was fsynced (before: zero bytes). A new
    name is durable once its folder was fsynced. A rename is one step (journaling file systems), durable with the
    fsync of the folder that it goes to. Deletions are not modelled: the protocol deletes only what is finished.
    """

    folders: dict[int, dict[str, int]]
    contents: dict[int, bytes]
    pending: list[tuple[int, str, int, tuple[int, str] | None]]
    """(folder, name, inode, source of the rename)."""
    held: list[int] = dataclasses.field(default_factory=list)
    version: int = 0
    """Version number of the durable state."""
    told: set[tuple[int, frozenset[tuple[int, str, int, tuple[int, str] | None]]]] = dataclasses.field(
        default_factory=set
    )
    """Yielded trees, by version and pending names."""

    @classmethod
    def of(cls, root: Path) -> "Disk":
        """Start with all of `root` durable."""
        disk = cls(folders={}, contents={}, pending=[])
        for folder, folders, names in os.walk(root):
            inode = Path(folder).stat().st_ino
            disk.folders[inode] = {name: (Path(folder) / name).stat().st_ino for name in (*folders, *names)}
            disk.contents |= {(Path(folder) / n).stat().st_ino: (Path(folder) / n).read_bytes() for n in names}
        return disk

    def fsync(self, path: Path) -> None:
        """Make a file's bytes, or a folder's names, durable."""
        about = path.stat()
        if not stat.S_ISDIR(about.st_mode):
            data = path.read_bytes()
            self.version += self.contents.get(about.st_ino) != data
            self.contents[about.st_ino] = data
            self.name(path)
            return
        for entry in [entry for entry in self.pending if entry[0] == about.st_ino]:
            self.apply(self.folders, entry)
            self.pending.remove(entry)
            self.version += 1

    def name(self, path: Path, *, moved_from: Path | None = None) -> None:
        """Record a new name that is not durable yet."""
        folder, inode = path.parent.stat().st_ino, path.stat().st_ino
        if folder not in self.folders:
            return  # scratch elsewhere
        # Kept open, so that no other file gets its inode when it is deleted.
        self.held.append(os.open(path, os.O_RDONLY))
        if self.folders.get(folder, {}).get(path.name) == inode:
            return
        source = (moved_from.parent.stat().st_ino, moved_from.name) if moved_from else None
        entry = (folder, path.name, inode, source)
        if entry not in self.pending:
            self.pending.append(entry)

    @staticmethod
    def apply(folders: dict[int, dict[str, int]], entry: tuple[int, str, int, tuple[int, str] | None]) -> None:
        folder, name, inode, source = entry
        folders[folder][name] = inode
        if source:
            folders[source[0]].pop(source[1], None)

    def after_power_loss(self, root_inode: int) -> Iterator[dict[str, bytes | None]]:
        """Yield new trees (path -> bytes, None for a folder): no pending name kept, all, each alone, all but each."""
        count = len(self.pending)
        everything = set(range(count))
        chosen = [set(), everything, *({n} for n in range(count)), *(everything - {n} for n in range(count))]
        for kept in chosen:
            which = self.version, frozenset(self.pending[index] for index in kept)
            if which in self.told:
                continue
            self.told.add(which)
            folders = {inode: dict(names) for inode, names in self.folders.items()}
            for index, entry in enumerate(self.pending):
                if index in kept:
                    self.apply(folders, entry)
            yield dict(self._walk(folders, root_inode, ""))

    def _walk(self, folders: dict[int, dict[str, int]], inode: int, prefix: str) -> Iterator[tuple[str, bytes | None]]:
        for name, child in folders[inode].items():
            if child in folders:
                yield prefix + name, None
                yield from self._walk(folders, child, f"{prefix}{name}/")
            else:
                yield prefix + name, self.contents.get(child, b"")


def power_losses(
    root: Path, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, bytes | None]]:
    """Return every distinct tree that a power loss during `work` may leave, according to `Disk`."""
    disk, inode, one_by_one = Disk.of(root), root.stat().st_ino, threading.RLock()
    found: dict[int, dict[str, bytes | None]] = {}

    def look() -> None:
        for tree in disk.after_power_loss(inode):
            found.setdefault(hash(frozenset(tree.items())), tree)

    def watch(call: str, note: Callable[..., None]) -> None:
        real = getattr(os, call)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            with one_by_one:
                result = real(*arguments, **options)
                note(*arguments)
                look()
            return result

        monkeypatch.setattr(os, call, wrapped)

    def named(path: Any, *, moved_from: Path | None = None) -> None:
        if root.resolve() in Path(path).resolve().parents:  # not scratch elsewhere
            disk.name(Path(path), moved_from=moved_from)

    def made_folder(path: Any, *_: Any) -> None:
        if root.resolve() in Path(path).resolve().parents:
            disk.folders.setdefault(Path(path).stat().st_ino, {})
        named(path)

    watch("mkdir", made_folder)
    watch("link", lambda _, target: named(target))
    for call in ("rename", "replace"):
        watch(call, lambda source, target: named(target, moved_from=Path(source)))
    watch("fsync", lambda fd: disk.fsync(Path(f"/proc/self/fd/{fd}").readlink()))
    look()
    try:
        work()
    finally:
        monkeypatch.undo()
        for descriptor in disk.held:
            os.close(descriptor)
    return list(found.values())


def without_building(trees: list[dict[str, bytes | None]]) -> list[dict[str, bytes | None]]:
    """Return the distinct trees, ignoring the private files of a creation."""
    kept = [{name: data for name, data in tree.items() if "/creating-" not in name} for tree in trees]
    return list({frozenset(tree.items()): tree for tree in kept}.values())


def restore(tree: dict[str, bytes | None], root: Path) -> Path:
    """Write a tree to a real folder."""
    root.mkdir()
    for name, data in tree.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)
    return root
