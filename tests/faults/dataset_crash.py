"""Kills `genenc update`, `compact`, `prune` and `tag` at random instants, on a dataset whose images change.

    python tests/faults/dataset_crash.py --kills 500 [--seed N] [--broken HOW] [--json FILE]

`GENENC_CRASH_WINDOW` widens the window of `--broken last-wins` (3 seconds).

Whatever is killed: versions read what they read before, rows are of what their files held, no file is encoded twice,
and one update that nobody kills brings the dataset to the folder as it is. Exit code 1 when anything is otherwise.
Commands, readers and checks are forked from this process, which only counts.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS / folder) for folder in ("faults", "core/store", "support")]

import xarray

import crash
import dataset_checks as checks
import tiny_models  # noqa: F401 (imported once here, not in every process, as others below)
from changing_photos import Photos
from dataset_checks import Seen
from genenc_core import errors
from genenc_core.cli import app, extraction, options  # noqa: F401
from genenc_core.dataset import reading, summary  # noqa: F401
from genenc_core.dataset.folder import DatasetFolder, exists
from genenc_core.images.load import loader  # noqa: F401
from genenc_core.run import driver, engine_setup, model_export, worker  # noqa: F401

MODEL = ["--model", "tiny_models:colours", "--weights", "random:0", "--image-size", "32", "--device", "cpu"]
PLAIN = ["--plain", "--trust"]
WORK = ["--shard-rows", "3", "--batch-size", "2", "--decode-workers", "1"]
KEPT, HUNG = 2, 120.0
"""Versions that a prune keeps; seconds after which a command hangs."""
TAGS = ("draft", "paper", "talk")
SCENES = {
    "update": 6,
    "compact": 3,
    "prune": 2,
    "tag": 1,
    "update update": 5,
    "update compact": 2,
    "update prune": 2,
    "compact prune": 2,
    "compact compact": 1,
    "prune tag": 2,
    "update update compact": 1,
}
"""Commands that run at once, and how often."""
LIFE, MOST = 60, 20
"""Kills that a dataset goes through; violations after which a campaign ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    command: str
    killed: str
    """The signal that ended it, or ""."""
    code: int | None
    told: str


class Campaign:
    """Datasets one after another, each killed until it is old."""

    def __init__(self, base: Path, *, seed: int, broken: str = "") -> None:
        self.base = base
        self.draw = random.Random(seed)
        self.broken = broken
        self.kills: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.seconds: dict[str, float] = {}
        """What a command took of late, by its name."""

    def run(self, kills: int, say: Callable[[str], object]) -> None:
        """Go on until there were so many kills, or, with a broken protocol, until it is found out."""
        while self.kills.total() < kills and not self._is_found():
            root = self.base / f"d{self.counts['datasets']:04d}" / "dataset"
            self.counts["datasets"] += 1
            life = _Life(self, root)
            last = min(kills, self.kills.total() + LIFE)
            while self.kills.total() < last and not self._is_found():
                before = len(self.violations)
                life.round()
                self.counts["rounds"] += 1
                for violation in self.violations[before:]:
                    say(violation)
            say(f"{self.kills.total()} kills, {dict(self.counts)}, {len(self.violations)} violations")
            if not self.violations:
                crash.remove(root.parent)

    def result(self) -> dict[str, Any]:
        """Return the outcome as JSON data."""
        by_kind = {"kills": dict(sorted(self.kills.items())), "total": self.kills.total()}
        return {**by_kind, **self.counts, "violations": self.violations}

    def _is_found(self) -> bool:
        return len(self.violations) >= (1 if self.broken else MOST)


class _Life:
    """One dataset, its images, and what is known of both."""

    def __init__(self, campaign: Campaign, root: Path) -> None:
        self.campaign = campaign
        self.draw = campaign.draw
        self.root = root
        root.parent.mkdir()
        self.photos = Photos(root.parent / "photos", self.draw)
        self.seen = Seen()

    def round(self) -> None:
        """Change the images; kill commands; then let an update through, and now and then clean up."""
        for _ in range(self.draw.randint(1, 3)):
            self.campaign.counts[f"images {self.photos.change()}"] += 1
        for _ in range(self.draw.randint(2, 5)):
            scene = self._drawn_scene()
            if self.draw.random() < 0.5:
                self.campaign.counts[f"images {self.photos.change()}"] += 1
            self._together(scene, killed=True)
            self._look(scene)
        self._through("update")
        if self.draw.random() < 0.25:
            self._clean()

    def _drawn_scene(self) -> list[str]:
        if not self.seen.versions:
            return ["update"] * self.draw.choice((1, 1, 2))
        scenes = SCENES if not self.campaign.broken else dict.fromkeys(checks.BROKEN[self.campaign.broken], 1)
        return self.draw.choices(list(scenes), list(scenes.values()))[0].split()

    def _through(self, command: str) -> None:
        """Let a command through, and check the dataset."""
        before = self.seen
        (done,) = self._together([command], killed=False)
        self._look([command], more=lambda: self._settled(command))
        if command == "update":
            wanted = {f"{name} {time}" for name, time in self.photos.stamps().items()}
            needless = self.seen.encoded.keys() - before.encoded.keys() - wanted - {*before.pending}
            self._blame(done.command, [f"encoded without need: {sorted(needless)}"] if needless else [])

    def _settled(self, command: str) -> Iterator[str]:
        """Yield what is wrong after a command that nobody killed; in a process of its own."""
        if command == "update":
            yield from checks.exact(self.root, self.photos.now)
        yield from checks.verified(self.root, content=command == "prune")
        if command == "prune":
            yield from checks.litter(self.root)

    def _clean(self) -> None:
        """Let an update with something to do, a compaction and a prune through: only what is needed is left."""
        self.photos.change("new")
        for command in ("update", "compact", "prune"):
            self._through(command)
        self.campaign.counts["clean-ups"] += 1

    def _together(self, scene: Sequence[str], *, killed: bool) -> list[Ended]:
        """Run commands at once beside a reader, killed at instants of their own or not at all."""
        given = [self._arguments(name) for name in scene]
        deaths = [self._death(name) if killed and not self._survives(scene) else None for name in scene]
        stop, held, known = self.root.with_name("stop"), self.photos.held, self.seen
        stop.unlink(missing_ok=True)
        reader = crash.started(functools.partial(read_until, self.root, stop, held, known)) if killed else None
        begun, broken = time.monotonic(), self.campaign.broken
        children = [crash.started(functools.partial(genenc, each, broken)) for each in given]
        waiting = sorted((*death, index) for index, death in enumerate(deaths) if death is not None)
        for seconds, number, index in waiting:
            time.sleep(max(0.0, begun + seconds - time.monotonic()))
            os.kill(children[index].pid, number)  # one that has ended is there until it is waited for
        ends = [_ended(*each) for each in zip(children, given, deaths, strict=True)]
        if not killed:
            self.campaign.seconds[scene[0]] = time.monotonic() - begun
        stop.touch()
        if reader is not None:
            self._collect(crash.ended(reader)[1], f"reader beside {scene}")
        for name, end in zip(scene, ends, strict=True):
            if end.killed:
                self.campaign.kills[f"{name} {end.killed}"] += 1
            elif end.code not in _allowed(name, scene):
                self._blame(end.command, [f"exit code {end.code}: {end.told}"])
        return ends

    def _arguments(self, name: str) -> list[str]:
        """Return a command."""
        if name == "update":
            by = self.draw.choice(("stat", "content"))
            known = bool(self.seen.versions) and self.draw.random() < 0.5
            return [
                "update",
                str(self.root),
                *([] if known else [str(self.photos.folder), *MODEL, *WORK]),
                *PLAIN,
                "--by",
                by,
            ]
        if name == "tag":
            opening = [str(number) for number, text in self.seen.versions.items() if text]
            about = ["--version", self.draw.choice(opening)] if self.draw.random() < 0.8 else ["--delete"]
            which = self.draw.choice(TAGS if about[0] == "--version" else sorted(self.seen.tags) or ["none"])
            return ["tag", str(self.root), which, *about]
        return [name, str(self.root), *(["--keep", str(KEPT)] if name == "prune" else [])]

    def _survives(self, scene: Sequence[str]) -> bool:
        """Draw whether one of several commands is left alone."""
        return len(scene) > 1 and self.draw.random() < 0.5

    def _death(self, name: str) -> tuple[float, int]:
        """Draw when and by what signal a command dies."""
        number = signal.SIGTERM if self.draw.random() < 0.15 else signal.SIGKILL
        return self.draw.uniform(0.0, 1.2 * self.campaign.seconds.get(name, 0.5)), number

    def _look(self, scene: Sequence[str], more: Callable[[], Iterable[str]] = tuple) -> None:
        """Look at everything, in a process of its own, and compare it with what was seen before."""

        def looked(tell: crash.Tell) -> None:
            seen = checks.look(self.root, self.photos.held)
            seen.wrong.extend(more())
            tell("seen", dataclasses.asdict(seen))

        told = crash.ended(crash.started(looked))[1]
        found = [value for kind, value in told if kind == "seen"]
        if not found:
            self._blame(str(scene), [f"cannot be looked at: {told}"])
            return
        now, before = Seen.of_json(cast(dict[str, Any], found[0])), self.seen
        self._blame(str(scene), [*now.wrong, *checks.differs(before, now, kept=KEPT, tagging="tag" in scene)])
        now.encoded.update({file: where for file, where in before.encoded.items() if file not in now.encoded})
        self.seen = now
        self.campaign.counts["checks"] += 1

    def _collect(self, told: Iterable[tuple[str, object]], who: str) -> None:
        for kind, value in told:
            if kind == "reads":
                self.campaign.counts["reads beside commands"] += int(str(value))
            elif kind in ("violation", "raised"):
                self._blame(who, [str(value)[-600:]])

    def _blame(self, who: str, wrong: Iterable[str]) -> None:
        self.campaign.violations += [f"{self.root.parent.name}, after {who}: {what}" for what in wrong]


def _ended(child: crash.Child, given: Sequence[str], death: tuple[float, int] | None) -> Ended:
    """Wait for a command."""
    was_killed, told = crash.ended(child, seconds=HUNG)
    exits = [value for kind, value in told if kind == "exit"]
    code = int(str(exits[0])) if exits else None
    killed = ""
    if death is not None and (was_killed or (death[1] == signal.SIGTERM and code not in (0, 3))):
        killed = signal.Signals(death[1]).name
    said = "".join(str(value) for kind, value in told if kind in ("said", "raised"))
    return Ended(command=" ".join(given), killed=killed, code=code, told=said or ("killed" if was_killed else ""))


def _allowed(name: str, scene: Sequence[str]) -> tuple[int, ...]:
    """Return the exit codes that a command may have."""
    if name == "update":
        return (0, 3)
    # A version that is being pruned cannot be tagged; a tag that is not there cannot be removed.
    return (0, 2) if name == "tag" else (0,)


def genenc(arguments: Sequence[str], broken: str, tell: crash.Tell) -> None:
    """Run the command line in this process; tell the exit code, and what it said if it failed."""
    if broken:
        checks.break_protocol(broken)
    said, code = io.StringIO(), 0
    sys.argv = ["genenc", *arguments]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            app.build_app(None)()
        except SystemExit as leaving:
            code = int(str(leaving.code or 0))
    if code not in (0, 3):
        tell("said", said.getvalue()[-800:])
    tell("exit", code)


def read_until(root: Path, stop: Path, held: checks.Held, known: Seen, tell: crash.Tell) -> None:
    """Read the oldest version that is kept, and the newest, until it is done: they read as ever."""
    count, digests = 0, {number: text for number, text in known.versions.items() if text}
    while not stop.exists():
        numbers = DatasetFolder(root).versions() if exists(root) else []
        if not numbers:
            time.sleep(0.005)
            continue
        pruned = DatasetFolder(root).pruned()
        for number in {next(number for number in numbers if number not in pruned), numbers[-1]}:
            try:
                text, found = checks.read(root, number)
            except errors.GenencError as error:
                if number not in DatasetFolder(root).pruned():
                    tell("violation", f"version {number} does not read: {error}")
                continue
            if digests.setdefault(number, text) != text:
                tell("violation", f"version {number} reads otherwise than before")
            for what in checks.misread(found, number, held):
                tell("violation", what)
            count += 1
        time.sleep(0.1)
    tell("reads", count)


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broken", choices=(*checks.BROKEN, "all"), default="", help="a protocol broken on purpose")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    given = parser.parse_args()
    results = {}
    xarray.backends.list_engines()  # looked for once
    gc.collect()
    gc.freeze()
    for broken in checks.BROKEN if given.broken == "all" else (given.broken,):
        with tempfile.TemporaryDirectory(prefix="genenc-crash-") as scratch:
            campaign, begun = Campaign(Path(scratch), seed=given.seed, broken=broken), time.monotonic()
            campaign.run(given.kills, crash.say)
            results[broken or "as it is"] = campaign.result() | {"seconds": round(time.monotonic() - begun, 1)}
    text = json.dumps(results, indent=1) + "\n"
    crash.say(text[:8000])
    if given.json is not None:
        given.json.write_text(text)
    return 1 if any(result["violations"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
