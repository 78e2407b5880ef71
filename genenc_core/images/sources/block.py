"""A block of listed images."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive images: identities, paths, sizes and modification times."""

    image_ids: list[str]
    """Same as `paths`, or the list's `image_id` column."""
    paths: list[str]
    """POSIX; relative to the source's root if below it, else absolute; escaped as by `folders.to_text`."""
    bytes: list[int]
    """File sizes; -1 if the file is missing."""
    mtime_ns: list[int]
    """Modification times in nanoseconds; -1 if the file is missing."""
    members: list[str] | None = None
    """Where each image is in its file, as in `containers.container.Member.at`; None if files are images."""

    columns: dict[str, list[str]] = field(default_factory=dict)
    """Further columns of the list, or of the container, as text; "" for an empty cell."""

    def __len__(self) -> int:
        return len(self.paths)

    def first(self, count: int) -> "Block":
        """Return the first `count` images, or all if there are fewer."""
        if count >= len(self):
            return self
        return Block(
            image_ids=self.image_ids[:count],
            paths=self.paths[:count],
            bytes=self.bytes[:count],
            mtime_ns=self.mtime_ns[:count],
            members=None if self.members is None else self.members[:count],
            columns={name: values[:count] for name, values in self.columns.items()},
        )
