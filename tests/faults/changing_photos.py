"""A folder of images that changes: each file is of one colour, never used before, so that a row tells what was read."""

import os
import random
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

Content = tuple[int, int, int] | None
"""A colour; None for what cannot be read."""
KINDS = {"new": 4, "changed": 3, "vanished": 2, "renamed": 2, "swapped": 1, "touched": 2, "broken": 1, "mended": 2}
"""How the folder changes, and how often."""
_FIRST, _FEWEST, _MOST = 24, 16, 48


class Photos:
    """The folder, and what every file holds and ever held."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder = folder
        self.draw = draw
        self.now: dict[str, Content] = {}
        self.held: dict[str, list[Content]] = {}
        """Contents of every name, in order; None also while there was no such file."""
        self._count = 0
        folder.mkdir(parents=True)
        for _ in range(_FIRST):
            self._write(self._name(), self._colour())

    def change(self, kind: str = "") -> str:
        """Change something; return what."""
        kind = kind or self.draw.choices(list(KINDS), list(KINDS.values()))[0]
        if len(self.now) <= _FEWEST or (kind in ("mended", "vanished") and None not in self.now.values()):
            kind = "new"
        elif kind == "new" and len(self.now) >= _MOST:
            kind = "vanished"
        getattr(self, f"_{kind}")(self.draw.randint(1, 3))
        return kind

    def stamps(self) -> Mapping[str, int]:
        """Return the time of every file in nanoseconds."""
        return {name: (self.folder / name).stat().st_mtime_ns for name in self.now}

    def _new(self, count: int) -> None:
        for _ in range(2 * count):
            self._write(self._name(), self._colour())

    def _changed(self, count: int) -> None:
        for name in self._some(count):
            self._write(name, self._colour())

    def _vanished(self, count: int) -> None:
        for name in self._some(count):
            self._hold(name, None)
            del self.now[name]
            (self.folder / name).unlink()

    def _renamed(self, count: int) -> None:
        for name in self._some(count):
            self._move({name: self._name()})

    def _swapped(self, _count: int) -> None:
        one, other = self._some(2)
        self._move({one: other, other: one})
        for name in (one, other):
            self._stamp(self.folder / name)

    def _touched(self, count: int) -> None:
        for name in self._some(count):
            self._stamp(self.folder / name)

    def _broken(self, _count: int) -> None:
        self._write(self._some(1)[0], None)

    def _mended(self, count: int) -> None:
        for name in [name for name, content in self.now.items() if content is None][:count]:
            self._write(name, self._colour())

    def _move(self, names: Mapping[str, str]) -> None:
        contents = {new: self.now[old] for old, new in names.items()}
        for old, new in names.items():
            self._hold(old, None)
            self._hold(new, contents[new])
            (self.folder / old).rename(self.folder.with_name(f"moving-{new}"))
            del self.now[old]
        for new in names.values():
            self.folder.with_name(f"moving-{new}").rename(self.folder / new)
        self.now |= contents

    def _write(self, name: str, content: Content) -> None:
        self._hold(name, content)
        self.now[name] = content
        made = self.folder.with_name(f"making-{name}")
        if content is None:
            made.write_bytes(f"no image {self._next()}".encode())
        else:
            Image.new("RGB", (16, 16), content).save(made)
        self._stamp(made)
        made.rename(self.folder / name)

    def _hold(self, name: str, content: Content) -> None:
        self.held.setdefault(name, []).append(content)

    def _stamp(self, path: Path) -> None:
        time = 10**18 + self._next() * 10**6
        os.utime(path, ns=(time, time))

    def _some(self, count: int) -> list[str]:
        return self.draw.sample(sorted(self.now), count)

    def _name(self) -> str:
        return f"i{self._next():06d}.png"

    def _colour(self) -> Content:
        number = self._next()
        return number % 256, number // 256 % 256, 7

    def _next(self) -> int:
        self._count += 1
        return self._count
