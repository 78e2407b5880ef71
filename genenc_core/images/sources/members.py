"""Listing of images inside containers, in blocks of rows."""

import glob
import os
from collections.abc import Callable, Generator, Iterator, Sequence

from genenc_core import errors
from genenc_core.images.containers import kinds
from genenc_core.images.containers.container import Mark, Member
from genenc_core.images.containers.frames import Frames
from genenc_core.images.containers.parquet_images import ParquetImages
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.sources import folders, image_source
from genenc_core.images.sources.block import Block


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
    for path in containers(source, left_out, checkpoint):
        for member, mark, names in _members(source, path, left_out):
            if columns is None:
                columns = names if source.columns else ()
                held = _empty(columns)
            if left == 0:
                break
            left = None if left is None else left - 1
            _add(held, path, member, mark, names)
            if len(held) == block_rows:
                checkpoint()
                yield held
                held = _empty(columns)
        checkpoint()
        if left == 0:
            break
    if len(held):
        yield held


def containers(
    source: image_source.ImageSource, left_out: folders.LeftOut | None, checkpoint: Callable[[], None]
) -> Iterator[str]:
    """Yield the paths of a source's containers in order, relative to its root; raises as `folders.walk`."""
    if source.files:
        yield from source.files
    elif glob.has_magic(source.location):
        pattern = os.path.relpath(source.location, source.root)
        found = glob.glob(pattern, root_dir=source.root, recursive=True)  # noqa: PTH207 -- as users write them
        yield from sorted(each for each in found if kinds.extension(each) in source.extensions)
    else:
        for paths in folders.walk(source.root, ("**",), left_out, extensions=source.extensions, checkpoint=checkpoint):
            yield from paths


def _members(
    source: image_source.ImageSource, path: str, left_out: folders.LeftOut | None
) -> Iterator[tuple[Member, Mark, tuple[str, ...]]]:
    """Yield a container's members, with their marks and the names of its columns."""
    full = os.path.join(source.root, path)  # noqa: PTH118
    try:
        container = kinds.open_container(full)
        try:
            if isinstance(container, ParquetImages):
                container.choose(source.image_column)
            if source.frames is not None and not container.frames:
                raise errors.InputError(
                    f"--frames {source.frames}: {full!r} holds image files, not frames; leave it out"
                )
            for member in container.members(Frames.parse(source.frames)):
                yield member, container.mark(member.at), container.columns
            if left_out is not None:
                for name in container.left_out():
                    left_out.add(f"{path}/{name}")
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


def _add(block: Block, path: str, member: Member, mark: Mark, columns: Sequence[str]) -> None:
    """Add a member; columns that only some containers have are those of the first one."""
    values = dict(zip(columns, member.values, strict=True))
    for name, kept in block.columns.items():
        kept.append(values.get(name, ""))
    place = folders.to_text(path)
    block.image_ids.append(place + folders.to_text(member.name))
    block.paths.append(place)
    block.bytes.append(mark.size)
    block.mtime_ns.append(mark.mtime_ns)
    assert block.members is not None
    block.members.append(member.at)
