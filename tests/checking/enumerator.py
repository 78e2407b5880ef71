"""Enumerates every state that workers on one store can reach, and checks each.

A state is the contents, where every worker is in its tasks, which requests are still under way and how many answers
were lost. Workers' steps interleave in every order; a worker may be killed before any step. States that were seen are
not entered again, so all schedules are covered without being listed. The search is breadth first: what is found is a
shortest schedule.
"""

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from genenc_core import errors
from simulated_store import (
    CHANGING,
    EXISTS,
    PROCESS,
    UNANSWERED,
    Contents,
    Ended,
    Failed,
    Programs,
    SimulatedObjects,
    Step,
    Task,
    same_names,
    taken,
    without_process,
)

_TWO_KEYS: Final = ("link", "copy", "move")
"""Steps whose second argument is a key, too."""
KILLED: Final = -1
ENDED: Final = -2
FINISHER: Final = "finisher"
State = tuple[int, tuple[int, ...], tuple[int, ...], int]
"""Contents, node of every worker, requests under way, lost answers so far."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Workers on one store, and what must hold."""

    name: str
    kind: str
    """`LOCAL` or `S3`."""
    contents: Contents
    """At the beginning."""
    static: Contents = field(default_factory=dict)
    """Files that nothing changes."""
    workers: Sequence[Sequence[Task]]
    finisher: Task | None = None
    """What runs once all others have ended, undisturbed; requests under way are carried out before it, after it or
    never."""
    kills: int = 99
    lost: int = 0
    """Answers that may be lost, on S3."""
    delays: bool = False
    """Whether a request without an answer may be carried out at any later time."""
    always: Sequence[Callable[[Contents], str]] = ()
    """Return what is wrong with contents, "" if nothing is."""
    steps: Sequence[Callable[[Contents, Contents], str]] = ()
    """The same of two contents, one step apart."""
    returned: Sequence[Callable[[Ended, Contents], str]] = ()
    """The same of a task that ended, and the contents then."""
    end: Sequence[Callable[[Contents], str]] = ()
    """The same of the contents after the finisher."""
    raises: tuple[type[BaseException], ...] = ()
    """What tasks may raise when an answer was lost, beside the errors that commands turn into a message."""
    may_fail: bool = False
    """Whether a task may raise an error although no answer was lost."""


@dataclass(kw_only=True)
class Explored:
    """Outcome of a search."""

    states: int = 0
    transitions: int = 0
    contents: int = 0
    """Different contents."""
    runs: int = 0
    """How often a task ran from its beginning."""
    ends: int = 0
    """States in which nothing is left to do."""
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    """How tasks ended, by distinct end."""
    violation: str = ""
    schedule: list[str] = field(default_factory=list)
    """The steps that lead to the violation."""


class _Found(Exception):
    """Something that must hold does not."""

    def __init__(self, what: str, label: str) -> None:
        super().__init__(what)
        self.label = label


class Search:
    """A search of one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        expected = (errors.StoreError, errors.InputError, *scene.raises)
        self.programs = [
            Programs(scene.kind, name, tasks, scene.static, expected)
            for name, tasks in zip("abcdefgh", scene.workers, strict=False)
        ]
        self.contents: list[Contents] = []
        self._ids: dict[frozenset[tuple[str, Any]], int] = {}
        self._steps: list[Step] = []
        self._step_ids: dict[Step, int] = {}
        self._taken: dict[tuple[int, int], tuple[Hashable, int]] = {}
        self._checked: set[tuple[int, int]] = set()
        self._finished: dict[int, int] = {}
        self._ended: set[int] = set()
        self.outcomes: Counter[str] = Counter()

    def explore(self, *, most: int | None = None) -> Explored:
        """Visit every state, up to `most`."""
        began, result = time.monotonic(), Explored()
        alive = {f"{PROCESS}/{each.worker}/alive": b"" for each in self.programs}
        first = self._known({**self.scene.contents, **alive})
        start: State = (first, tuple(each.roots[0] for each in self.programs), (), 0)
        before: dict[State, State | None] = {start: None}
        queue = deque([start])
        state = start
        try:
            self._check(first, first, "at the beginning")
            while queue and (most is None or len(before) < most):
                state = queue.popleft()
                for _, after in self.following(state):
                    result.transitions += 1
                    if after not in before:
                        before[after] = state
                        queue.append(after)
                if all(node < 0 for node in state[1]):
                    result.ends += 1
                    self._finish(state)
        except _Found as found:
            result.violation = str(found)
            result.schedule = [*self._schedule(before, state), found.label]
        result.states, result.contents = len(before), len(self.contents)
        result.runs, result.outcomes = sum(each.runs for each in self.programs), self.outcomes
        result.seconds = time.monotonic() - began
        return result

    def keys(self) -> dict[str, set[str]]:
        """Return the keys, and beginnings of listed names, in the steps that each task asked for so far."""
        found: dict[str, set[str]] = {}
        for program in self.programs:
            for node, step in enumerate(program.next):
                if isinstance(step, Ended):
                    continue
                texts = ["/".join(step[1:3])] if step[0] == "names" else step[1 : 3 if step[0] in _TWO_KEYS else 2]
                found.setdefault(program.tasks[program.task_of[node]].name, set()).update(texts)
        return found

    def following(self, state: State) -> Iterator[tuple[str, State]]:
        """Yield what can happen next: what it is, and the state after it."""
        contents, nodes, under_way, lost = state
        for at, request in enumerate(under_way):
            left = under_way[:at] + under_way[at + 1 :]
            after = self._take(contents, request)[1]
            self._check(contents, after, label := f"late: {self._text(request)}")
            yield label, (after, nodes, left, lost)
        killed = nodes.count(KILLED)
        for worker, node in enumerate(nodes):
            program = self.programs[worker]
            if node < 0:
                continue
            step = program.next[node]
            assert not isinstance(step, Ended)
            request = self._number(step)
            answer, after = self._take(contents, request)
            yield self._moved(state, worker, answer, after, "")
            if killed < self.scene.kills:
                gone = self._known(without_process(self.contents[contents], program.worker))
                yield f"{program.worker} is killed", (gone, _with(nodes, worker, KILLED), under_way, lost)
            if lost < self.scene.lost and not step[1].startswith(PROCESS):
                yield from self._lost(state, worker, request, answer, after)

    def _lost(
        self, state: State, worker: int, request: int, answer: Hashable, after: int
    ) -> Iterator[tuple[str, State]]:
        """Yield what can happen to a request whose answer is lost."""
        contents, name = state[0], self._steps[request][0]
        if name not in CHANGING:
            yield self._moved(state, worker, UNANSWERED, contents, "no answer", lost=1)
            return
        yield self._moved(state, worker, UNANSWERED, after, "the answer is lost", lost=1)
        yield self._moved(state, worker, UNANSWERED, contents, "never carried out", lost=1)
        if name == "create" and answer is None:
            yield self._moved(state, worker, EXISTS, after, "the answer is lost, asked again", lost=1)
        if self.scene.delays:
            yield self._moved(state, worker, UNANSWERED, contents, "delayed", lost=1, late=(request,))
            yield self._moved(state, worker, answer, after, "asked twice, once delayed", lost=1, late=(request,))

    def _moved(
        self,
        state: State,
        worker: int,
        answer: Hashable,
        after: int,
        how: str,
        *,
        lost: int = 0,
        late: tuple[int, ...] = (),
    ) -> tuple[str, State]:
        """Return a worker's step and the state after it, whose contents are checked."""
        contents, nodes, under_way, before = state
        program = self.programs[worker]
        step = program.next[nodes[worker]]
        shown = answer.kind if isinstance(answer, Failed) else "ok"
        label = f"{program.worker}: {self._text(self._number(step))} -> {shown}{how and f' ({how})'}"
        self._check(contents, after, label)
        node = program.after(nodes[worker], answer)
        while isinstance(ended := program.next[node], Ended):
            after, node = self._end(program, node, ended, after, bool(before + lost), label)
            if node < 0:
                break
        return label, (after, _with(nodes, worker, node), tuple(sorted(under_way + late)), before + lost)

    def _end(
        self, program: Programs, node: int, ended: Ended, contents: int, disturbed: bool, label: str
    ) -> tuple[int, int]:
        """Check how a task ended; return the contents after it and the node of the next task."""
        self.outcomes[f"{ended.task}: {ended.error.partition(':')[0] or ended.value}"] += 1
        if ended.error and not (ended.expected and (disturbed or self.scene.may_fail)):
            raise _Found(f"{program.worker}'s {ended.task} raised {ended.error}", label)
        for check in self.scene.returned:
            if what := check(ended, self.contents[contents]):
                raise _Found(what, label)
        following = program.task_of[node] + 1
        if ended.error or following == len(program.tasks):
            return self._known(without_process(self.contents[contents], program.worker)), ENDED
        return contents, program.roots[following]

    def _take(self, contents: int, request: int) -> tuple[Hashable, int]:
        known = self._taken.get((contents, request))
        if known is None:
            answer, after = taken(self.contents[contents], self._steps[request])
            known = self._taken[contents, request] = (answer, self._known(after))
        return known

    def _known(self, contents: Contents) -> int:
        key = frozenset(contents.items())
        if key not in self._ids:
            self._ids[key] = len(self.contents)
            self.contents.append(contents)
        return self._ids[key]

    def _number(self, step: Step | Ended) -> int:
        assert not isinstance(step, Ended)
        if step not in self._step_ids:
            self._step_ids[step] = len(self._steps)
            self._steps.append(step)
        return self._step_ids[step]

    def _text(self, request: int) -> str:
        name, *arguments = self._steps[request]
        return " ".join([name, *(text for text in arguments if isinstance(text, str))])

    def _check(self, before: int, after: int, label: str) -> None:
        if (before, after) in self._checked:
            return
        self._checked.add((before, after))
        old, new = self.contents[before], self.contents[after]
        found = [check(new) for check in self.scene.always] + [check(old, new) for check in self.scene.steps]
        if any(found):
            raise _Found(next(filter(None, found)), label)

    def _finish(self, state: State) -> None:
        """Let the finisher run, also once more after requests that come late, and check the end."""
        contents, _, under_way, _ = state
        self._check_end(end := self._after_finisher(contents))
        for late in itertools.permutations(under_way):
            changed = end
            for request in late:
                changed = self._take(changed, request)[1]
            self._check_end(self._after_finisher(changed))

    def _after_finisher(self, contents: int) -> int:
        if self.scene.finisher is None:
            return contents
        if contents not in self._finished:
            changed = dict(self.contents[contents])
            objects = SimulatedObjects(self.scene.kind, FINISHER, (), self.scene.static, changed)
            try:
                with same_names(FINISHER):
                    self.scene.finisher.run(objects)
            except Exception as error:
                raise _Found(f"the finisher raised {type(error).__name__}: {error}", "at the end") from error
            self._finished[contents] = self._known(changed)
        return self._finished[contents]

    def _check_end(self, contents: int) -> None:
        if contents not in self._ended:
            self._ended.add(contents)
            for check in self.scene.end:
                if what := check(self.contents[contents]):
                    raise _Found(what, "at the end")

    def _schedule(self, before: Mapping[State, State | None], state: State) -> list[str]:
        labels: list[str] = []
        while (previous := before[state]) is not None:
            labels.append(next(label for label, after in self.following(previous) if after == state))
            state = previous
        return labels[::-1]


def explore(scene: Scene, *, most: int | None = None) -> Explored:
    """Search a scene."""
    return Search(scene).explore(most=most)


def _with(nodes: tuple[int, ...], worker: int, node: int) -> tuple[int, ...]:
    return (*nodes[:worker], node, *nodes[worker + 1 :])
