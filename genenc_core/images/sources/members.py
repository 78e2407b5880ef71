"""Listing of images inside containers, in blocks of rows."""

import glob
import itertools
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from genenc_core import errors
from genenc_core.images.containers import kinds
from genenc_core.images.containers.container import Mark, Member
from genenc_core.images.containers.frames import Frames
from genenc_core.images.containers.parquet_images import ParquetImages
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.sources import folders, image_source
from genenc_core.images.sources.block import Block

_ARCHIVES_AHEAD = 16
"""Archives far away that are listed at once."""


class ContainerLeftOut(UserWarning):
    """A file of a folder has the name of one with images inside, and holds none."""


def iter_blocks(
    source: image_source.ImageSource,
    *,
    limit: int | None,
    block_rows: int,
    left_out: folders.LeftOut | None,
    checkpoint: Callable[[], None],
) -> Generator[Block, None, None]:
    """Yield the members of a source's containers, at most `limit`, in blocks of `block_rows`.

    Raises:
        InputError: a container is missing, damaged, or has no images.
    """
    columns: tuple[str, ...] | None = None
    held = _empty(())
    left = limit
    base = _base(source.location)
    for path, found in _listed(source, left_out, checkpoint):
        place = kinds.without_pattern(path)
        for member, mark, names in found:
            if columns is None:
                columns = names if source.columns else ()
                held = _empty(columns)
            if left == 0:
                break
            left = None if left is None else left - 1
            _add(held, place, member, mark, names, base=base)
            if len(held) == block_rows:
                checkpoint()
                yield held
                held = _empty(columns)
        checkpoint()
        if left == 0:
            break
    if len(held):
        yield held


_Found = Iterator[tuple[Member, Mark, tuple[str, ...]]]


def _listed(
    source: image_source.ImageSource, left_out: folders.LeftOut | None, checkpoint: Callable[[], None]
) -> Iterator[tuple[str, _Found]]:
    """Yield the paths of containers and what is in each; of archives far away, some are listed before their turn."""
    paths = containers(source, left_out, checkpoint)
    if not kinds.is_remote(source.location) or kinds.remote_extension(source.location) != "tar":
        yield from ((path, _usable(source, path, left_out)) for path in paths)
        return
    waiting: deque[tuple[str, Future[list[tuple[Member, Mark, tuple[str, ...]]]], folders.LeftOut]] = deque()
    pool = ThreadPoolExecutor(_ARCHIVES_AHEAD, thread_name_prefix="genenc-list")
    try:
        for path in itertools.chain(paths, itertools.repeat(None)):
            if path is not None:
                own = folders.LeftOut()
                waiting.append((path, pool.submit(lambda *given: list(_members(*given)), source, path, own), own))
                if len(waiting) < _ARCHIVES_AHEAD:
                    continue
            if not waiting:
                return
            first, members, own = waiting.popleft()
            while not members.done():
                checkpoint()
                wait([members], timeout=0.2)
            yield first, iter(members.result())
            if left_out is not None:
                left_out.merge(own)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _base(location: str) -> str:
    """Return what the names of members of archives far away leave out: the folder of all of them."""
    address = location.partition("?")[0] if location[:4].lower() == "http" else location
    return re.split(r"[*?\[{]", address)[0].rpartition("/")[0] + "/" if kinds.is_remote(location) else ""


def containers(
    source: image_source.ImageSource, left_out: folders.LeftOut | None, checkpoint: Callable[[], None]
) -> Iterator[str]:
    """Yield the paths of a source's containers in order, relative to its root; raises as `folders.walk`."""
    if source.files:  # addresses among them
        for path in source.files:
            chosen = (
                kinds.is_remote(path) and kinds.without_pattern(path) != path and kinds.remote_extension(path) == "tar"
            )
            yield from _remote_archives(path) if chosen else (path,)
    elif glob.has_magic(source.location) and "zarr" not in source.extensions:
        pattern = Path(source.location).parts[len(source.root.parts) :]
        for paths in folders.walk(source.root, pattern, left_out, extensions=source.extensions, checkpoint=checkpoint):
            yield from paths
    elif glob.has_magic(source.location):
        below = os.path.relpath(source.location, source.root)
        found = glob.glob(below, root_dir=source.root, recursive=True)  # noqa: PTH207 -- as users write them
        yield from sorted(each for each in found if not _is_behind_link(source.root, each))
    else:
        yield from sorted(_in_folder(source, left_out, checkpoint))


def _remote_archives(pattern: str) -> Iterator[str]:
    """Yield the addresses of the archives that a pattern chooses."""
    from genenc_core.images.containers import remote

    opened = remote.Remote.open(pattern)
    try:
        found = [key for key, _ in opened.chosen()]
    except OSError as error:
        raise errors.InputError(f"cannot list {pattern!r}: {error.strerror or error}") from error
    finally:
        opened.close()
    yield from (f"{kinds.without_pattern(pattern)}/{key}" for key in found)


def _is_behind_link(root: Path, path: str) -> bool:
    """Return whether a folder above a path, below the root, is a link, or hidden."""
    above = Path(path).parents
    return any(each.name.startswith(".") or (root / each).is_symlink() for each in above if each.name)


def _in_folder(
    source: image_source.ImageSource, left_out: folders.LeftOut | None, checkpoint: Callable[[], None]
) -> Iterator[str]:
    """Yield the containers of a folder, relative to it; Zarr folders among them are not entered."""
    for place, names, files in os.walk(source.root):
        checkpoint()
        below = os.path.relpath(place, source.root)
        own = "" if below == "." else f"{below}/"
        stacks = [name for name in names if kinds.extension(name) == "zarr" and kinds.is_zarr(Path(place, name))]
        entered = folders.SYSTEM_FOLDERS.union(stacks)
        names[:] = [name for name in sorted(names) if not name.startswith(".") and name.lower() not in entered]
        yield from (own + name for name in stacks)
        for name in sorted(files):
            if not name.startswith(".") and kinds.extension(name) in source.extensions:
                yield own + name
            elif left_out is not None:
                left_out.add(own + name)


def _usable(
    source: image_source.ImageSource, path: str, left_out: folders.LeftOut | None
) -> Iterator[tuple[Member, Mark, tuple[str, ...]]]:
    """Yield as `_members`; a file of a folder that holds no images is left out, with a warning."""
    if source.files or glob.has_magic(source.location):
        yield from _members(source, path, left_out)
        return
    try:
        found = list(_members(source, path, left_out))
    except errors.InputError as error:
        warnings.warn(f"left out: {error}", ContainerLeftOut, stacklevel=2)
        if left_out is not None:
            left_out.add(path)
        return
    yield from found


def _members(
    source: image_source.ImageSource, path: str, left_out: folders.LeftOut | None
) -> Iterator[tuple[Member, Mark, tuple[str, ...]]]:
    """Yield a container's members, with their marks and the names of its columns."""
    full = path if kinds.is_remote(path) else os.path.join(source.root, path)  # noqa: PTH118
    try:
        container = kinds.open_container(full, source.channels)
        try:
            if isinstance(container, ParquetImages):
                container.choose(source.image_column)
            if source.frames is not None and not container.frames:
                raise errors.InputError(
                    f"--frames {source.frames}: {full!r} holds image files, not frames; leave it out"
                )
            if left_out is not None:
                container.leave_out = lambda name: left_out.add(f"{path}/{name}")  # type: ignore[method-assign]
            for member in container.members(Frames.parse(source.frames)):
                yield member, container.mark(member.at), container.columns
        finally:
            container.close()
    except ImageUnreadable as error:
        raise errors.InputError(f"cannot list the images in {full!r}: {error}") from error
    except errors.InputError as error:
        raise errors.InputError(f"{full!r}: {error}" if full not in str(error) else str(error)) from error
    except OSError as error:
        raise errors.InputError(f"cannot read {full!r}: {error.strerror or error}") from error


def _empty(columns: Sequence[str]) -> Block:
    return Block(image_ids=[], paths=[], bytes=[], mtime_ns=[], members=[], columns={name: [] for name in columns})


def _add(block: Block, path: str, member: Member, mark: Mark, columns: Sequence[str], *, base: str) -> None:
    """Add a member; columns that only some containers have are those of the first one."""
    values = dict(zip(columns, member.values, strict=True))
    for name, kept in block.columns.items():
        kept.append(values.get(name, ""))
    place = folders.to_text(path)
    if kinds.is_remote(path) and not member.name.startswith("/"):
        block.image_ids.append(folders.to_text(member.name) or place)
    else:
        block.image_ids.append(place.removeprefix(base) + folders.to_text(member.name))
    block.paths.append(place)
    block.bytes.append(mark.size)
    block.mtime_ns.append(mark.mtime_ns)
    assert block.members is not None
    block.members.append(member.at)
