"""Kills workers on one run folder at every point of the protocol and at random instants, beside readers.

    python tests/faults/crash.py --kills 1000 [--root s3://bucket/prefix] [--seed N] [--product] [--json FILE]

Prints its progress and a table: kills by point, checks made while workers lived and after every kill, violations.
Exit code 1 when anything that must hold did not. This process only forks and counts; every worker, reader and check
is a process of its own.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import zarr

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS / folder) for folder in ("faults", "core/store", "support")]

import checks
import faulty
import store_worker as small
from console import say
from genenc_core.store import repair, run_store, store_keys
from genenc_core.store.backends import objects

POINTS = (
    *("stage:before", "stage:object", "stage:after", "commit:before", "commit:after"),
    *("promote:object", "promote:before-status", "promote:after", "clean:after"),
)
CALLS = ("make_folder", "write_new", "create", "move", "remove_tree")
MAKING = ("os.mkdir", "os.link", "os.rename", "objects.make_folder", "objects.create", "objects.replace")
SCENES = ("alone", "shared", "rivals")
"""One worker after another; three that share the shards; three that all want every shard with bytes of their own."""


@dataclass(frozen=True, kw_only=True)
class Doom:
    """Where a worker dies: at the nth time it passes `point`, before or after the nth `call`, or after `seconds`."""

    point: str = ""
    call: str = ""
    after: bool = False
    nth: int = 1
    seconds: float | None = None


@dataclass(kw_only=True)
class Tally:
    """What a campaign came to."""

    kills: Counter[str] = field(default_factory=Counter)
    live_checks: int = 0
    checks: int = 0
    runs: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of kills."""
        return sum(self.kills.values())

    def result(self) -> dict[str, Any]:
        """Return it as JSON."""
        return vars(self) | {"kills": dict(sorted(self.kills.items())), "total": self.total}


@dataclass(frozen=True)
class Child:
    """A forked process and the pipe that it tells what it found on."""

    pid: int
    pipe: int


Tell = Callable[[str, object], None]
Work = Callable[[store_keys.Observer], object]


def started(work: Callable[[Tell], object]) -> Child:
    """Run `work` in a process of its own; what it tells, and its traceback, go to its pipe."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return Child(child, read)
    code = 1
    try:
        os.close(read)
        os.setsid()  # so that it can be killed with whatever it starts

        def tell(kind: str, value: object) -> None:
            os.write(write, json.dumps([kind, value]).encode() + b"\n")

        work(tell)
        code = 0
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(write, json.dumps(["raised", traceback.format_exc()[-1500:]]).encode() + b"\n")
    finally:
        os._exit(code)


def ended(child: Child, *, seconds: float | None = None) -> tuple[bool, list[tuple[str, object]]]:
    """Wait for a process, killing it after `seconds`; return whether it was killed, and what it told."""
    text = bytearray()
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([child.pipe], [], [], left)[0]:
            os.kill(child.pid, signal.SIGKILL)
            deadline = None
            continue
        part = os.read(child.pipe, 65536)
        if not part:
            break
        text += part
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    told = [tuple(json.loads(line)) for line in text.decode().splitlines() if line.endswith("]")]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, told


class Campaign:
    """Runs after runs, each killed until it is done."""

    def __init__(self, base: objects.Root, *, seed: int, broken: str = "", patience: float = 0.03) -> None:
        self.base = base
        self.draw = random.Random(seed)
        self.broken = broken
        self.tally = Tally()
        if objects.is_remote(base):
            importlib.import_module("genenc_core.store.backends.s3_objects")  # once here, not in every process
        self.salt = 0
        # A network's run needs longer between two kills to get anywhere.
        self.patience_now = self.patience = patience * (10 if objects.is_remote(base) else 1)

    def run(
        self, *, kills: int, seconds: float | None = None, progress: Callable[[str], object] = lambda _: None
    ) -> None:
        """Make and kill runs until there were `kills`; with a broken protocol until it is found out."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.tally.total < kills and (deadline is None or time.monotonic() < deadline):
            if self.broken and self.tally.violations:
                return
            scene = SCENES[self.tally.runs % len(SCENES)]
            root = objects.join(self.base, f"run{self.tally.runs:05d}")
            known = len(self.tally.violations)
            self.one_run(root if objects.is_remote(root) else Path(root), scene)
            self.tally.runs += 1
            for violation in self.tally.violations[known:]:
                progress(violation)
            progress(
                f"{self.tally.total} kills in {self.tally.runs} runs, {self.tally.live_checks} live checks, "
                f"{len(self.tally.violations)} violations"
            )

    def one_run(self, root: objects.Root, scene: str) -> None:
        """Create, fill, now and then damage and repair, and finish one run, with kills at every step."""
        self.patience_now = self.patience
        with tempfile.TemporaryDirectory(prefix="genenc-crash-") as scratch:
            stop = Path(scratch) / "stop"
            readers = [started(lambda tell: read_until(root, stop, tell)) for _ in range(2)]
            try:
                while not self.look(root)["stands"]:
                    self.round(root, [lambda _: checks.create(root)] * self.draw.choice((1, 2)), MAKING, scene="create")
                known = self.fill(root, scene, {})
            finally:
                stop.touch()
                for reader in readers:
                    self.collect(*ended(reader), who="reader")
        if self.draw.random() < 0.3 and not self.broken:
            self.repaired(root, known)
        self.end(root)

    def fill(self, root: objects.Root, scene: str, known: checks.Ledger) -> checks.Ledger:
        """Commit every shard, with kills; return what is final."""
        while True:
            seen = self.look(root)
            self.tally.violations += [
                f"{root}: {what}" for what in (*checks.changed(known, seen["ledger"]), *seen["lost"])
            ]
            known = seen["ledger"]
            if not seen["pending"] or (self.broken and self.tally.violations):
                return known
            count = 1 if scene == "alone" else 3
            salts = [0] * count
            if scene == "rivals":
                salts = [self.salt + 3 * (number + 1) for number in range(count)]
                self.salt += 3 * count
            seeds = [self.draw.random() for _ in salts]
            works = [
                functools.partial(fill_shards, root, salt=salt, seed=seed)
                for salt, seed in zip(salts, seeds, strict=True)
            ]
            self.round(root, works, [f"objects.{name}" for name in CALLS], scene=scene)

    def repaired(self, root: objects.Root, known: checks.Ledger) -> None:
        """Damage a shard, repair with kills, fill again with kills; the other shards keep their bytes."""
        shard = self.draw.randrange(small.SHARDS)
        self.aside(lambda _: checks.damage(run_store.RunStore.open(root), shard))
        for _ in range(3):
            self.round(
                root, [lambda observe: mend(root, observe)], ("objects.take_away", "objects.sync"), scene="repair"
            )
        self.aside(lambda _: mend(root))
        others = {key: digest for key, digest in known.items() if not checks.of_shard(key, shard)}
        self.fill(root, "shared", others)

    def round(self, root: objects.Root, works: Sequence[Work], calls: Sequence[str], *, scene: str) -> None:
        """Let workers run, each with a death of its own."""
        self.patience_now *= 1.1  # so that a loaded machine gets through in the end
        children = []
        for work in works:
            doom = self.doom(calls, scene)
            child = started(lambda tell, work=work, doom=doom: doomed(work, doom, self.broken, tell))
            children.append((child, doom))
        for child, doom in children:
            killed, told = ended(child, seconds=doom.seconds)
            if killed:
                name = next((str(value) for kind, value in told if kind == "killed"), "random instant")
                self.tally.kills[f"{scene}: {name}" if scene in ("create", "repair") else name] += 1
            self.collect(killed, told, who=f"worker of {root}")

    def doom(self, calls: Sequence[str], scene: str) -> Doom:
        """Draw a death."""
        kind = self.draw.choice(("point", "call", "random", "random"))
        nth = self.draw.choice((1, 1, 2, 3, 5))
        if kind == "point" and scene not in ("create", "repair"):
            return Doom(point=self.draw.choice(POINTS), nth=nth)
        if kind == "point" and scene == "repair":
            return Doom(point="repair:moved", nth=nth)
        if kind == "call":
            return Doom(call=self.draw.choice(calls), nth=nth, after=self.draw.random() < 0.5)
        return Doom(seconds=self.draw.uniform(0, self.patience_now * (8 if scene in ("create", "repair") else 1)))

    def look(self, root: objects.Root) -> dict[str, Any]:
        """Look at a run between two rounds."""
        child = started(lambda tell: tell("seen", seen(root)))
        _, told = ended(child)
        self.tally.checks += 1
        for kind, value in told:
            if kind == "seen":
                return cast(dict[str, Any], value)
        self.tally.violations.append(f"{root}: cannot be looked at: {told}")
        return {"stands": True, "pending": [], "ledger": {}, "lost": []}

    def end(self, root: objects.Root) -> None:
        """Finish a run and check everything."""
        self.aside(lambda tell: [tell("violation", what) for what in finished(root, self.broken)])
        self.aside(lambda _: remove(root))

    def aside(self, work: Callable[[Tell], object]) -> None:
        """Do something that nobody kills."""
        self.collect(*ended(started(work)), who="check")

    def collect(self, _killed: bool, told: list[tuple[str, object]], *, who: str) -> None:
        """Count what a process told."""
        for kind, value in told:
            if kind == "checks":
                self.tally.live_checks += int(str(value))
            elif kind in ("violation", "raised"):
                self.tally.violations.append(f"{who}: {value}")


def doomed(work: Work, doom: Doom, broken: str, tell: Tell) -> None:
    """Do the work and die on the way."""
    if broken:
        checks.break_protocol(broken)
    rules = []
    if doom.call:
        dies = faulty.dies(after=doom.after, tell=lambda name: tell("killed", name))
        rules = [faulty.Rule(call=doom.call, nth=doom.nth, fault=dies)]
    passed = 0

    def observe(point: str) -> None:
        nonlocal passed
        passed += point == doom.point
        if point == doom.point and passed == doom.nth:
            tell("killed", point)
            small.kill_self()

    with faulty.injected(*rules):
        work(observe)


def fill_shards(root: objects.Root, observe: store_keys.Observer, *, salt: int, seed: float) -> None:
    """What a user's command does, in an order of its own; with a salt, every shard with bytes of this worker's."""
    draw = random.Random(seed)

    def dawdle(point: str) -> None:
        observe(point)
        time.sleep(draw.uniform(0, 0.003))

    store = run_store.RunStore.open(root, observer=dawdle)
    store.recover()
    wanted = range(small.SHARDS) if salt else store.pending()
    for shard in draw.sample(list(wanted), len(wanted)):
        small.commit(store, shard, salt=salt)


def mend(root: objects.Root, observe: store_keys.Observer = store_keys.silent) -> None:
    """What `genenc verify --repair` does, after what its message says to do on S3 when a repair was killed."""
    store = run_store.RunStore.open(root, observer=observe)
    if objects.is_remote(root):
        store.objects.remove(store_keys.REPAIR)
    repair.repair_store(store, coordinates=small.coordinates())


def read_until(root: objects.Root, stop: Path, tell: Tell) -> None:
    """Read the run through plain zarr, by a group opened long ago and by one opened now, until it is done."""
    count = 0
    kept: zarr.Group | None = None
    while not stop.exists():
        if not checks.stands(root):
            time.sleep(0.001)
            continue
        store = run_store.RunStore.open(root)
        fresh = zarr.open_group(store.zarr_store(), mode="r")
        kept = kept or fresh
        for group in (kept, fresh):
            for what in checks.read_once(store, group):
                tell("violation", what)
            count += 1
    tell("checks", count)


def seen(root: objects.Root) -> dict[str, object]:
    """Return what stands of a run."""
    if not checks.stands(root):
        return {"stands": False, "pending": [], "ledger": {}, "lost": []}
    store = run_store.RunStore.open(root)
    return {
        "stands": True,
        "pending": store.pending(),
        "ledger": checks.ledger(store),
        "lost": list(checks.lost(store)),
    }


def finished(root: objects.Root, broken: str) -> Iterator[str]:
    """Finish a run and yield what is wrong with it."""
    if broken:
        checks.break_protocol(broken)
    yield from checks.finish(root)


def remove(root: objects.Root) -> None:
    """Delete a run."""
    if objects.is_remote(root):
        objects.open_objects(root).remove_tree("")
    else:
        shutil.rmtree(root)


def main() -> int:
    """Run a campaign as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many processes to kill")
    parser.add_argument("--root", help="a folder or s3://bucket/prefix for the runs; a temporary folder if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--product", action="store_true", help="kill the command genenc itself, with a tiny encoder")
    parser.add_argument("--broken", choices=(*checks.BROKEN, "all"), default="", help="a protocol broken on purpose")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="genenc-crash-") as scratch:
        base = asked.root or scratch
        if not objects.is_remote(base):
            Path(base).mkdir(parents=True, exist_ok=True)
        for broken in checks.BROKEN if asked.broken == "all" else (asked.broken,):
            if asked.product:
                import product_crash

                campaign: Campaign = product_crash.ProductCampaign(base, seed=asked.seed)
            else:
                campaign = Campaign(base, seed=asked.seed, broken=broken)
            began = time.monotonic()
            campaign.run(kills=asked.kills, progress=say)
            result = campaign.tally.result() | {"seconds": round(time.monotonic() - began, 1)}
            say(table(result))
            if asked.json:
                write(asked.json, asked, broken, result)
    return 1 if campaign.tally.violations else 0


def write(path: Path, asked: argparse.Namespace, broken: str, result: dict[str, Any]) -> None:
    """Put a result beside the others in a file, under its command."""
    known = json.loads(path.read_text()) if path.exists() else {}
    words = ["python tests/faults/crash.py", f"--kills {asked.kills}", f"--seed {asked.seed}"]
    words += [f"--root {asked.root}"] * objects.is_remote(asked.root or "") + ["--product"] * asked.product
    words += [f"--broken {broken}"] * bool(broken)
    path.write_text(json.dumps({**known, " ".join(words): result}, indent=1) + "\n")


def table(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table and what was wrong."""
    rows = [f"| {name} | {count} |" for name, count in result["kills"].items()]
    lines = ["| killed at | kills |", "|---|---|", *rows, f"| all | {result['total']} |"]
    lines += [
        f"runs: {result['runs']}; checks by readers beside living workers: {result['live_checks']}; checks of a run "
        f"between kills: {result['checks']}; violations: {len(result['violations'])}; {result['seconds']} s"
    ]
    return "\n".join([*lines, *result["violations"][:20]])


if __name__ == "__main__":
    sys.exit(main())
