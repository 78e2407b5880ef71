"""Faults by rule at every boundary of a run: the folder's files, the operating system's calls, the images.

The methods of `LocalObjects` and `S3Objects` themselves are wrapped, so that the whole product meets the faults,
wherever it opens a run folder.
"""

import contextlib
import errno
import fnmatch
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from genenc_core.store.backends import local
from genenc_core.system import files

METHODS = (
    *("read", "open", "size", "digest", "has_group", "names", "walk", "make_folder", "write_new", "create", "replace"),
    *("move", "take_away", "remove", "remove_tree", "sync"),
)
"""The methods of `objects.Objects` that reach a disk or a network."""
SYSTEM_CALLS = ("mkdir", "rmdir", "unlink", "link", "rename", "replace", "fsync")
"""The calls of `os` that change a folder or make it durable."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call at a boundary: `name` is `objects.move`, `os.link` or `image.read`; `key` all its text arguments."""

    name: str
    key: str
    arguments: tuple[Any, ...]
    real: Callable[..., Any]

    def go(self) -> Any:
        """Make the call."""
        return self.real(*self.arguments)


Fault = Callable[[Call], Any]
"""What happens in place of a call."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which calls a fault happens to."""

    call: str
    """Pattern of the call's name."""
    fault: Fault
    key: str = "*"
    """Pattern of its key."""
    nth: int | None = None
    """Only the nth call that matches, from 1; None is every one."""
    chance: float = 1.0
    """How likely each is."""


@dataclass
class Injector:
    """Applies rules to calls, and counts: `met` calls that a rule was made for, `hits` faults that happened."""

    rules: Sequence[Rule]
    seed: int = 0
    met: list[str] = field(default_factory=list)
    hits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._seen = dict.fromkeys(range(len(self.rules)), 0)
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> Any:
        """Make the call, or let its fault happen."""
        for index, rule in enumerate(self.rules):
            if fnmatch.fnmatch(call.name, rule.call) and fnmatch.fnmatch(call.key, rule.key):
                with self._lock:
                    self._seen[index] += 1
                    self.met.append(f"{call.name} {call.key}")
                    due = rule.nth in (None, self._seen[index]) and self._draw.random() < rule.chance
                if due:
                    self.hits.append(f"{call.name} {call.key}")
                    return rule.fault(call)
        return call.go()


def fails(number: int) -> Fault:
    """Fail before anything happened."""

    def fault(call: Call) -> Any:
        raise OSError(number, os.strerror(number), call.key)

    return fault


def fails_after(number: int) -> Fault:
    """Do it, then say that it failed: an answer that was lost."""

    def fault(call: Call) -> Any:
        call.go()
        raise OSError(number, os.strerror(number), call.key)

    return fault


def half_written(number: int) -> Fault:
    """Write half of the bytes, then fail, as a disk that fills up does."""

    def fault(call: Call) -> Any:
        halved = [item[: len(item) // 2] if isinstance(item, bytes | memoryview) else item for item in call.arguments]
        call.real(*halved)
        raise OSError(number, os.strerror(number), call.key)

    return fault


def half_read(call: Call) -> Any:
    """Return half of what was asked for."""
    value = call.go()
    return value[: len(value) // 2]


def missing(call: Call) -> Any:
    """Say that there is no such file, as a network file system with an old cache does."""
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), call.key)


def slow(seconds: float) -> Fault:
    """Take time, then do it."""

    def fault(call: Call) -> Any:
        time.sleep(seconds)
        return call.go()

    return fault


def raises(error: BaseException) -> Fault:
    """Raise what is given."""

    def fault(_call: Call) -> Any:
        raise error

    return fault


def dies(*, after: bool = False, tell: Callable[[str], object] = lambda _: None) -> Fault:
    """End the process as kill -9 does, before the call or right after it."""

    def fault(call: Call) -> Any:
        if after:
            call.go()
        tell(f"{call.name} {'after' if after else 'before'}")
        os.kill(os.getpid(), signal.SIGKILL)

    return fault


@contextlib.contextmanager
def injected(*rules: Rule, seed: int = 0) -> Iterator[Injector]:
    """Let faults happen in this process while the block runs."""
    injector = Injector(rules, seed)
    put_back: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, label in _boundaries(rules):
            real = getattr(owner, name)
            put_back.append((owner, name, real))
            setattr(owner, name, _wrapped(injector, label, real))
        yield injector
    finally:
        for owner, name, real in reversed(put_back):
            setattr(owner, name, real)


def _boundaries(rules: Sequence[Rule]) -> Iterator[tuple[Any, str, str]]:
    """Yield owner, attribute and label of all that any rule is about."""
    kinds = {rule.call.partition(".")[0] for rule in rules}
    remote = sys.modules.get("genenc_core.store.backends.s3_objects")
    if "objects" in kinds:
        for owner in [local.LocalObjects, *([remote.S3Objects] if remote else [])]:
            yield from ((owner, name, f"objects.{name}") for name in METHODS)
    if "os" in kinds:
        yield from ((os, name, f"os.{name}") for name in SYSTEM_CALLS)
    if "files" in kinds:
        yield from ((files, name, f"files.{name}") for name in ("write_new", "sync_folder", "sync_tree"))
    if "image" in kinds:
        from genenc_core.images.decode import load_image

        yield load_image.os, "open", "image.open"
        yield load_image, "read", "image.read"


def _wrapped(injector: Injector, label: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        key = " ".join(_shown(item) for item in arguments if isinstance(item, str | os.PathLike))
        return injector(Call(name=label, key=key, arguments=arguments, real=lambda *given: real(*given, **options)))

    return call


def _shown(path: str | os.PathLike[str]) -> str:
    """Return a path as a person names it: the store reaches files through descriptors of their folders."""
    shown = os.fspath(path)
    return os.path.realpath(shown) if shown.startswith("/proc/self/fd/") else shown
