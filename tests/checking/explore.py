"""Searches every scene, small and full, and prints what was visited.

    python tests/checking/explore.py [--only TEXT] [--small]

Exit code 1 when something that must hold does not; the shortest schedule that leads there is printed.
"""

import argparse
import sys
import time
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "support")]

import real_store
import scenes
from console import say
from enumerator import explore


def main() -> int:
    """Search as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="search only scenes whose name has this text")
    parser.add_argument("--small", action="store_true", help="search only what the tests search")
    asked = parser.parse_args()
    violations = 0
    say("| scene | workers | lost | states | transitions | ends | CPU s |\n|---|---|---|---|---|---|---|")
    with real_store.steady():
        for scene in (*scenes.small(), *([] if asked.small else scenes.full())):
            if asked.only not in scene.name:
                continue
            began = time.process_time()
            found = explore(scene)
            lost = f"{scene.lost}{', delays' if scene.delays else ''}"
            say(
                f"| {scene.name} | {len(scene.workers)} | {lost} | {found.states} | {found.transitions} | "
                f"{found.ends} | {time.process_time() - began:.1f} |"
            )
            if found.violation:
                violations += 1
                say("\n".join([found.violation, *(f"    {step}" for step in found.schedule)]))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
