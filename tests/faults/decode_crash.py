"""Kills decode workers and their server at random instants of `genenc extract`; no row may be lost or changed by it.

    python tests/faults/decode_crash.py --kills 200 [--seed N] [--json FILE]

Prints the kills by kind, and what differs from a run that nobody killed. Exit code 1 when anything does.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS / folder) for folder in ("faults", "core/store", "support")]

import checks
import pictures
from genenc_core.store.backends import objects
from genenc_core.text import plural

IMAGES, SIZES = 600, ((500, 375), (80, 60), (1024, 768), (33, 71))
KINDS = {"worker": 8, "server": 1, "server stopped": 1}
"""What is killed, and how often of ten times."""


def command(photos: Path, out: Path) -> list[str]:
    """Return the command that makes a run."""
    model = ["--model", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--device", "cpu"]
    work = ["--decode-workers", "3", "--batch-size", "7", "--shard-rows", "10", "--plain", "--out", str(out)]
    return [str(Path(sys.executable).with_name("genenc")), "extract", str(photos), *model, *work]


def children(process: int) -> list[int]:
    """Return a process's children, of all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def victims(process: int) -> tuple[list[int], list[int]]:
    """Return the decode servers of a command, and their workers: servers are the children that have children."""
    servers = {child: children(child) for child in children(process)}
    return [child for child, its in servers.items() if its], [worker for its in servers.values() for worker in its]


def kill(process: int, chance: random.Random) -> list[str]:
    """Kill one of a command's workers, or its server; return what it was, or nothing."""
    servers, workers = victims(process)
    if not workers:
        return []
    (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
    with contextlib.suppress(ProcessLookupError):
        if kind == "worker":
            os.kill(chance.choice(workers), chance.choice((signal.SIGKILL, signal.SIGTERM)))
        else:
            server = chance.choice(servers)
            os.kill(server, signal.SIGSTOP if kind == "server stopped" else signal.SIGKILL)
            if kind == "server stopped":
                time.sleep(chance.uniform(0.0, 0.2))
                os.kill(server, signal.SIGCONT if chance.random() < 0.5 else signal.SIGKILL)
        return [kind]
    return []


def run(photos: Path, out: Path, chance: random.Random | None = None) -> tuple[Counter[str], list[str]]:
    """Make a run, with a `chance` of kills; return the kills by kind, and what went wrong.

    A kill waits for a new shard: on a busy machine a row could else lose its worker so often that its shard fails.
    """
    kills, wrong, stored = Counter[str](), list[str](), 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command(photos, out), env=environment, **pipes) as process:
        while process.poll() is None:
            time.sleep(0.05 if chance is None else chance.uniform(0.0, 0.1))
            before, stored = stored, len([*(out / "_txn/commits").glob("s*.json")])
            if chance is not None and stored > before:
                kills.update(kill(process.pid, chance))
        said = process.stdout.read() if process.stdout is not None else ""
    if process.returncode != 0:
        wrong.append(f"{out.name}: exit code {process.returncode}: {said[-500:]}")
    return kills, wrong


def campaign(count: int, seed: int) -> dict[str, Any]:
    """Kill as often as asked for, run after run; return the counts and the violations."""
    chance, kills, runs = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="genenc-crash-") as scratch:
        photos = pictures.write_folder(Path(scratch) / "photos", IMAGES, sizes=SIZES)
        whole = Path(scratch) / "whole"
        _, violations = run(photos, whole)
        while kills.total() < count and not violations:
            out = Path(scratch) / f"run-{runs}"
            killed, violations = run(photos, out, chance)
            violations += checks.compare(objects.open_objects(out), objects.open_objects(whole))
            kills += killed
            runs += 1
            sys.stdout.write(f"{kills.total()} kills in {plural(runs, 'run')}\n")
            sys.stdout.flush()
            shutil.rmtree(out)
    return {"kills": dict(sorted(kills.items())), "total": kills.total(), "runs": runs, "violations": violations}


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = campaign(given.kills, given.seed)
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
