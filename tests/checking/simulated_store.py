"""A simulated object store in memory, one atomic step at a time, and the tasks that use it.

Contents map keys to values; a key that ends with `/` is a folder of a local file system. A task is a function of
`SimulatedObjects`; it runs from its beginning with the answers that it got so far, up to the next step that it asks
for. So real code is taken apart into steps without a thread: what a task does next depends on its answers alone.
"""

import contextlib
import errno
import itertools
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

from genenc_core.store.backends import beneath
from genenc_core.system import digests

Contents = Mapping[str, Any]
Step = tuple[Any, ...]
"""Name of a step and its arguments."""
LOCAL: Final = "local"
S3: Final = "s3"
PROCESS: Final = "process"
"""Folder of what ends with a process: `process/<worker>/...`."""
CHANGING: Final = frozenset(("put", "create", "copy", "move", "link", "remove", "rmdir", "make_folder"))
_ERRORS: Final = {
    "missing": (FileNotFoundError, errno.ENOENT),
    "exists": (FileExistsError, errno.EEXIST),
    "unanswered": (ConnectionError, errno.EIO),
}


@dataclass(frozen=True)
class Failed:
    """The answer to a step that raises an error."""

    kind: str


MISSING: Final = Failed("missing")
EXISTS: Final = Failed("exists")
UNANSWERED: Final = Failed("unanswered")


def taken(contents: Contents, step: Step) -> tuple[Hashable, Contents]:
    """Return the answer to a step and the contents after it."""
    return _STEPS[step[0]](contents, *step[1:])


def without_process(contents: Contents, worker: str) -> Contents:
    """Return the contents after a process ended."""
    return {key: value for key, value in contents.items() if not key.startswith(f"{PROCESS}/{worker}/")}


def _read(contents: Contents, key: str) -> tuple[Hashable, Contents]:
    return contents.get(key, MISSING), contents


def _size(contents: Contents, key: str) -> tuple[Hashable, Contents]:
    if f"{key}/" in contents:
        return "folder", contents
    return (len(contents[key]) if key in contents else None), contents


def _names(contents: Contents, folder: str, prefix: str) -> tuple[Hashable, Contents]:
    start = f"{folder}/" if folder else ""
    found = {key[len(start) :].partition("/")[0] for key in contents if key.startswith(start + prefix)}
    return tuple(sorted(found - {""})), contents


def _walk(contents: Contents, folder: str) -> tuple[Hashable, Contents]:
    start = f"{folder}/"
    found = (key for key in contents if key.startswith(start) and not key.endswith("/"))
    return tuple(sorted((key[len(start) :], len(contents[key])) for key in found)), contents


def _put(contents: Contents, key: str, data: Hashable, new: bool, folder: str) -> tuple[Hashable, Contents]:
    if folder and f"{folder}/" not in contents:
        return MISSING, contents
    if new and key in contents:
        return EXISTS, contents
    return None, {**contents, key: data}


def _create(contents: Contents, key: str, data: Hashable) -> tuple[Hashable, Contents]:
    return (EXISTS, contents) if key in contents else (None, {**contents, key: data})


def _link(contents: Contents, via: str, key: str) -> tuple[Hashable, Contents]:
    return (MISSING, contents) if via not in contents else _create(contents, key, contents[via])


def _copy(contents: Contents, source: str, target: str) -> tuple[Hashable, Contents]:
    return (MISSING, contents) if source not in contents else (None, {**contents, target: contents[source]})


def _move(contents: Contents, source: str, target: str) -> tuple[Hashable, Contents]:
    answer, after = _copy(contents, source, target)
    return answer, (after if answer is MISSING else {key: after[key] for key in after if key != source})


def _remove(contents: Contents, key: str) -> tuple[Hashable, Contents]:
    return None, {other: contents[other] for other in contents if other != key}


def _rmdir(contents: Contents, folder: str) -> tuple[Hashable, Contents]:
    inside = any(key.startswith(f"{folder}/") and key != f"{folder}/" for key in contents)
    return None, (contents if inside else _remove(contents, f"{folder}/")[1])


def _make_folder(contents: Contents, folder: str) -> tuple[Hashable, Contents]:
    return None, {**contents, f"{folder}/": b""}


def _lock(contents: Contents, key: str, worker: str) -> tuple[Hashable, Contents]:
    held = any(name.startswith(f"{PROCESS}/") and name.endswith(f"/lock:{key}") for name in contents)
    return (EXISTS, contents) if held else (None, {**contents, key: b"", f"{PROCESS}/{worker}/lock:{key}": b""})


_STEPS: Final[Mapping[str, Callable[..., tuple[Hashable, Contents]]]] = {
    "read": _read,
    "size": _size,
    "names": _names,
    "walk": _walk,
    "put": _put,
    "create": _create,
    "link": _link,
    "copy": _copy,
    "move": _move,
    "remove": _remove,
    "rmdir": _rmdir,
    "make_folder": _make_folder,
    "lock": _lock,
}


class Paused(BaseException):
    """Ends a task where it asks for a step that was not answered yet."""


class SimulatedObjects:
    """`Objects` of one task: answers recorded steps, then pauses; see `genenc_core.store.backends.objects`.

    Args:
        kind: `LOCAL` (hard links, renames, folders) or `S3` (conditional puts, copies).
        worker: who runs the task.
        answers: the steps and answers so far.
        static: files that nothing changes; reading them is no step.
        contents: take every step at once in these instead; they change.
    """

    largest = 2**40

    def __init__(
        self,
        kind: str,
        worker: str,
        answers: Sequence[tuple[Step, Hashable]],
        static: Contents,
        contents: dict[str, Any] | None = None,
    ) -> None:
        self.kind_of_store, self.worker, self.static, self.contents = kind, worker, static, contents
        self.name = f"{kind}-store"
        self.asked: Step | None = None
        self._answers = iter(answers)

    def step(self, *step: Any) -> Any:
        """Take a step.

        Raises:
            OSError: the answer is a failure.
            Paused: it is not answered yet.
        """
        if self.contents is not None:
            answer, after = taken(dict(self.contents), step)
            self.contents.clear()
            self.contents.update(after)
        else:
            known = None if self.asked else next(self._answers, None)
            if known is None:
                self.asked = self.asked or step
                raise Paused
            assert known[0] == step, f"not the same code twice: {known[0]} before, {step} now"
            answer = known[1]
        if isinstance(answer, Failed):
            kind, number = _ERRORS[answer.kind]
            raise kind(number, answer.kind, str(step[1]))
        return answer

    @property
    def is_local(self) -> bool:
        return self.kind_of_store == LOCAL

    def read(self, key: str, *, most: int | None = None) -> Any:
        return self.static[key] if key in self.static else self.step("read", key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        data: bytes = self.read(key)
        return data[start:][:length]

    def size(self, key: str) -> int | None:
        found = len(self.static[key]) if key in self.static else self.step("size", key)
        return 0 if found == "folder" else found

    def kind(self, key: str) -> str | None:
        if key in self.static:
            return beneath.FILE
        found = self.step("size", key)
        return None if found is None else beneath.FOLDER if found == "folder" else beneath.FILE

    def digest(self, key: str, algorithm: str = digests.CREATED.algorithm, *, size: int | None = None) -> Any:
        data = self.read(key)
        return (len(data), "" if size not in (None, len(data)) else digests.of([data], algorithm).partition(":")[2])

    def has_group(self, folder: str) -> bool:
        start = f"{folder}/zarr.json"
        return start in self.static or self.step("size", start) is not None

    def names(self, folder: str, prefix: str = "") -> list[str]:
        start = f"{folder}/" if folder else ""
        static = {key[len(start) :].partition("/")[0] for key in self.static if key.startswith(start + prefix)}
        return sorted(static.union(self.step("names", folder, prefix)))

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        start = f"{folder}/"
        static = [(key[len(start) :], len(data)) for key, data in self.static.items() if key.startswith(start)]
        yield from sorted([*static, *self.step("walk", folder)])

    def specials(self, folder: str) -> Iterator[tuple[str, str]]:
        return iter(())

    def make_folder(self, folder: str) -> None:
        if self.is_local:
            self.step("make_folder", folder)

    def write_new(self, key: str, *parts: Any) -> None:
        self.step("put", key, b"".join(map(bytes, parts)), self.is_local, self._folder(key))

    def replace(self, key: str, data: Any) -> None:
        self.step("put", key, data, False, "")

    def create(self, key: str, data: Any, *, via: str) -> None:
        if not self.is_local:
            self.step("create", key, data)
            return
        self.step("put", via, data, True, self._folder(via))
        try:
            self.step("link", via, key)
        finally:
            self.step("remove", via)

    def move(self, source: str, target: str, *, size: int | None = None) -> None:
        self.step("move" if self.is_local else "copy", source, target)

    def take_away(self, source: str, target: str) -> None:
        self.move(source, target)
        if not self.is_local:
            try:
                self.step("remove", source)
            except ConnectionError:
                if self.size(source) is not None:
                    raise

    @contextlib.contextmanager
    def lock(self, key: str, note: bytes) -> Iterator[None]:
        if self.is_local:
            self.step("lock", key, self.worker)
        else:
            try:
                self.step("create", key, note)
            except FileExistsError:
                if self.read(key) != note:
                    raise
        try:
            yield
        finally:
            self.remove(key)
            if self.is_local:
                self.step("remove", f"{PROCESS}/{self.worker}/lock:{key}")

    def remove(self, key: str) -> None:
        self.step("remove", key)

    def remove_tree(self, folder: str) -> None:
        with contextlib.suppress(OSError):
            for key, _ in self.step("walk", folder):
                self.step("remove", f"{folder}/{key}")
            if self.is_local:
                self.step("rmdir", folder)

    def sync(self, *folders: str) -> None:
        pass

    def _folder(self, key: str) -> str:
        """Return the folder that must be there; only those of attempts come and go."""
        folder = key.rpartition("/")[0]
        return folder if self.is_local and folder.count("/") > 1 else ""


@dataclass(frozen=True)
class Task:
    """What a worker does; stateless, so that another task of the same worker begins anew."""

    name: str
    run: Callable[[SimulatedObjects], Hashable]


@dataclass(frozen=True)
class Ended:
    """How a task ended."""

    task: str
    value: Hashable = None
    error: str = ""
    """Type and text of what it raised."""
    expected: bool = True
    """Whether it raised what commands turn into a message."""


@dataclass
class Programs:
    """Tasks of one worker as a tree: nodes are what it was answered so far, and hold the step that follows."""

    kind: str
    worker: str
    tasks: Sequence[Task]
    static: Contents
    expected: tuple[type[BaseException], ...]
    next: list[Step | Ended] = field(default_factory=list)
    """By node: the step that follows, or how the task ended."""
    task_of: list[int] = field(default_factory=list)
    _from: list[tuple[int, Hashable]] = field(default_factory=list)
    _after: dict[tuple[int, Hashable], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roots = [self._new(-1, None, index) for index in range(len(self.tasks))]

    @property
    def runs(self) -> int:
        """How often a task was run from its beginning."""
        return len(self.next)

    def after(self, node: int, answer: Hashable) -> int:
        """Return the node after an answer."""
        known = self._after.get((node, answer))
        if known is None:
            known = self._after[node, answer] = self._new(node, answer, self.task_of[node])
        return known

    def _new(self, before: int, answer: Hashable, task: int) -> int:
        self._from.append((before, answer))
        self.task_of.append(task)
        self.next.append(self._run(len(self._from) - 1))
        return len(self._from) - 1

    def _run(self, node: int) -> Step | Ended:
        task, answers = self.tasks[self.task_of[node]], []
        while (before := self._from[node])[0] >= 0:
            step = self.next[before[0]]
            assert not isinstance(step, Ended)
            answers.append((step, before[1]))
            node = before[0]
        objects = SimulatedObjects(self.kind, self.worker, answers[::-1], self.static)
        with same_names(f"{self.worker}{self.task_of[len(self._from) - 1]}"):
            try:
                value = task.run(objects)
            except Paused:
                assert objects.asked is not None
                return objects.asked
            except Exception as error:
                text = f"{type(error).__name__}: {str(error)[:200]}"
                return Ended(task.name, error=text, expected=isinstance(error, self.expected))
        assert objects.asked is None, "a pause was swallowed"
        return Ended(task.name, value)


@contextlib.contextmanager
def same_names(prefix: str) -> Iterator[None]:
    """Let `uuid.uuid4` give the same names whenever a task runs."""
    real, numbers = uuid.uuid4, itertools.count()
    uuid.uuid4 = lambda: SimpleNamespace(hex=f"{prefix}{next(numbers)}".ljust(12, "x"))  # type: ignore[assignment, return-value]
    try:
        yield
    finally:
        uuid.uuid4 = real
