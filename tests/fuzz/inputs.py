"""Feeds mutated specs, points files, records, configurations, model files and command lines to genenc.

    python tests/fuzz/inputs.py --count 10000 --seed 0 [--only specs] [--write]

Each kind runs in a process of its own, so that a crash is seen, told with its case, and left behind. A case fails when
it ends in anything but an error of genenc's own or acceptance, takes over 10 s, or grows the process by over 1 GiB.
`--case N` repeats one case of a kind and shows its bytes.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parents[1])]

import fuzz_targets
import fuzzing

CHUNK = 500


def _child(kind: str, seed: int, start: int, count: int, at: Any, answers: Any) -> None:
    """Run cases in this process; `at` says which one it is at, should it die."""
    with tempfile.TemporaryDirectory(prefix="genenc-fuzz-") as folder:
        os.environ["XDG_STATE_HOME"] = str(Path(folder) / "state")
        target = fuzz_targets.KINDS[kind](Path(folder))
        found = fuzzing.run(
            target, seed=seed, start=start, count=count, before=lambda index: setattr(at, "value", index)
        )
        answers.put(found)


def _kind(kind: str, seed: int, count: int) -> dict[str, Any]:
    """Run all cases of a kind, going on behind one that killed its process."""
    context = multiprocessing.get_context("spawn")
    total: dict[str, Any] = {
        "cases": 0,
        "outcomes": {},
        "slowest_seconds": 0.0,
        "growth_mib": 0,
        "seconds": 0.0,
        "failures": [],
    }
    start = 0
    while start < count:
        at, answers = context.Value("q", start), context.Queue()
        process = context.Process(target=_child, args=(kind, seed, start, count - start, at, answers))
        process.start()
        found = None
        while found is None and (process.is_alive() or not answers.empty()):
            try:
                found = answers.get(timeout=1)
            except Exception:
                continue
        process.join()
        if found is None:
            done = int(at.value) - start + 1
            crash = {"index": int(at.value), "error": f"the process died, code {process.exitcode}"}
            found = {**total, "cases": done, "outcomes": {"failed": 1, "unknown": done - 1}, "failures": [crash]}
        for name, number in found["outcomes"].items():
            total["outcomes"][name] = total["outcomes"].get(name, 0) + number
        for name in ("slowest_seconds", "growth_mib"):
            total[name] = max(total[name], found[name])
        total["cases"] += found["cases"]
        total["seconds"] += found["seconds"]
        total["failures"] += found["failures"]
        start += found["cases"]
    return total


def main() -> None:
    """Run what the command line asks for; exit 1 when a case failed."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--count", type=int, default=10_000)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", choices=list(fuzz_targets.KINDS), action="append")
    asked.add_argument("--case", type=int)
    asked.add_argument("--write", action="store_true", help="Keep the result in inputs.json.")
    given = asked.parse_args()
    kinds = given.only or list(fuzz_targets.KINDS)
    if given.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            target = fuzz_targets.KINDS[kinds[0]](Path(folder))
            data = target.case(random.Random(f"{given.seed}:{given.case}"))
            sys.stdout.write(f"{data[:4000]!r}\n")
            sys.stdout.write(f"{target.run(data)}\n")
        return
    told: dict[str, Any] = {}
    failed = False
    for kind in kinds:
        found = _kind(kind, given.seed, given.count)
        failed |= bool(found["failures"])
        sys.stdout.write(f"{kind}: {json.dumps({**found, 'failures': len(found['failures'])})}\n")
        groups: dict[str, list[int]] = {}
        for failure in found["failures"]:
            groups.setdefault(failure.get("traceback", failure["error"])[-700:], []).append(failure["index"])
        for end, cases in list(groups.items())[:12]:
            sys.stdout.write(f"  {len(cases)} cases, first {cases[:3]}: ...{end}\n")
        sys.stdout.flush()
        told[kind] = {**found, "failures": [item["error"] for item in found["failures"]][:20], "seed": given.seed}
    if given.write:
        path = HERE / "inputs.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        command = f"python tests/fuzz/inputs.py --count {given.count} --seed {given.seed}"
        about = {"python": platform.python_version(), "date": datetime.date.today().isoformat()}
        kept |= {kind: {"command": f"{command} --only {kind}", **about, **found} for kind, found in told.items()}
        path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
