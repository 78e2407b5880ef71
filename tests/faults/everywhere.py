"""Lets every call of a run at every boundary fail once in every way, and checks what came of it.

    python tests/faults/everywhere.py [--every N] [--kinds ENOSPC,EIO,...] [--json FILE]

For each: the exit code and the words, nothing wrong readable, and the same command without the fault makes the same
bytes. Exit code 1 when anything that must hold did not.
"""

import argparse
import errno
import json
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS / folder) for folder in ("faults", "core/store", "support")]

import faulty
import scene
from console import say

KINDS: dict[str, faulty.Fault] = {
    **{name: faulty.fails(getattr(errno, name)) for name in ("ENOSPC", "EIO", "EACCES", "EROFS", "EMFILE", "ESTALE")},
    "not found": faulty.missing,
    "EIO, but it happened": faulty.fails_after(errno.EIO),
}
WRITING = ("make_folder", "write_new", "create", "replace", "move", "remove", "remove_tree", "sync")
LAYERS = ("objects.*", "os.*", "files.*")


def calls_of(at: scene.Scene, layer: str) -> int:
    """Return how many calls a run makes at a layer."""
    at.clear()
    said = at.genenc(at.command(), faulty.Rule(call=layer, nth=0, fault=faulty.missing))
    assert said.code == 0, said
    return len(said.injector.met)


def one(at: scene.Scene, layer: str, nth: int, kind: str) -> tuple[str, str, list[str]]:
    """Let one call fail; return which it was, what was said, and what is wrong."""
    at.clear()
    rule = faulty.Rule(call=layer, nth=nth, fault=KINDS[kind])
    try:
        said = at.genenc(at.command(), rule)
    except BaseException:
        return "?", "", [f"raised: {traceback.format_exc()[-1500:]}"]
    where = said.injector.hits[0] if said.injector.hits else "nothing"
    wrong = scene.problems_of(said)
    try:
        wrong += [f"wrong rows: {rows}" for rows in [at.wrong_rows()] if rows]
        again = at.genenc(at.command())
        wrong += scene.problems_of(again)
        if again.code != 0:
            wrong.append(f"the same command without the fault ended with {again.code}: {again.err}")
        else:
            wrong += at.not_whole()
    except BaseException:
        wrong.append(f"afterwards: {traceback.format_exc()[-1500:]}")
    return where, f"{said.code}: {said.err.strip()}", wrong


def main() -> int:
    """Go through all calls as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every Nth call")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    counts: Counter[str] = Counter()
    violations: list[str] = []
    with tempfile.TemporaryDirectory(prefix="genenc-faults-") as scratch:
        at = scene.Scene(Path(scratch))
        for layer in asked.layers.split(","):
            count = calls_of(at, layer)
            for kind in asked.kinds.split(","):
                if kind == "not found" and layer != "objects.*":
                    continue  # a local system call does not lose sight of a file that is there
                for nth in range(asked.first, count + 1, asked.every):
                    where, said, wrong = one(at, layer, nth, kind)
                    counts[f"{layer} {kind}, exit {said[:1] or '?'}"] += 1
                    if wrong:
                        violations.append(f"{kind} at {layer} {nth} ({where}) [{said}]: {wrong}")
                        say(violations[-1])
                say(f"{layer} {kind}: {count} calls, {len(violations)} violations so far")
    result: dict[str, Any] = {"faults": counts, "total": sum(counts.values()), "violations": violations}
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, number in sorted(counts.items()):
        say(f"{number:5d} {name}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
