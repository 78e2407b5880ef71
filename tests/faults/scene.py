"""A tiny run of the product in this process, with faults: what it says, what readers see, what comes after."""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr

import checks
import command_line
import faulty
import loading
import pictures
from genenc_core.run import status
from genenc_core.store import run_store, store_keys
from genenc_core.store.backends import objects

IMAGES, SHARD_ROWS = 11, 4


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command answered, and which faults it met."""

    code: int
    out: str
    err: str
    injector: faulty.Injector


class Scene:
    """Drawn images, and the run that nothing happened to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = pictures.write_folder(folder / "photos", IMAGES, sizes=((80, 60), (50, 70)))
        self.whole = folder / "whole"
        self.root = folder / "run"
        done = self.genenc(self.command(self.whole))
        assert done.code == 0, done
        group = zarr.open_group(self.whole / store_keys.GROUP, mode="r")
        self.arrays = [item.name for item in run_store.RunStore.open(self.whole).plan.all_arrays]
        self.final = {name: np.asarray(group[name][:]) for name in self.arrays}

    def command(self, root: Path | None = None, *more: str, model: str = "tiny_models:conv") -> list[str]:
        """Return the command that makes the run."""
        options = ["--model", model, "--weights", "random:0", "--image-size", "32", "--device", "cpu", "--plain"]
        rows = ["--shard-rows", str(SHARD_ROWS), "--batch-size", "3"]
        return ["extract", str(self.photos), *options, *rows, "--out", str(root or self.root), *more]

    def genenc(self, arguments: Sequence[str], *rules: faulty.Rule, seed: int = 0) -> Said:
        """Run a command while faults happen; an exception that is not an exit comes out as it is."""
        of_images = any(rule.call.startswith("image") for rule in rules)
        with (
            faulty.injected(*rules, seed=seed) as injector,
            loading.forked_server() if of_images else contextlib.nullcontext(),
        ):
            done = command_line.call(arguments)
        return Said(done.exit_code, done.stdout, done.stderr, injector)

    def clear(self) -> None:
        """Forget the run."""
        shutil.rmtree(self.root, ignore_errors=True)

    def wrong_rows(self) -> list[str]:
        """Return what a plain Zarr reader sees that is neither fill nor final."""
        if not (self.root / store_keys.GROUP).is_dir():
            return []
        group = zarr.open_group(self.root / store_keys.GROUP, mode="r")
        plan = run_store.RunStore.open(self.root).plan
        stated = np.asarray(group["status"][:]) != 0
        wrong = []
        for array in plan.all_arrays:
            seen, final = np.asarray(group[array.name][:]), self.final[array.name]
            same = _equal_rows(seen, final)
            empty = _equal_rows(seen, np.full_like(seen, array.fill))
            wrong += [f"{array.name}[{row}]" for row in np.flatnonzero(~same & (stated | ~empty))]
        return wrong

    def not_whole(self) -> list[str]:
        """Return how the run differs from the one that nothing happened to."""
        found = objects.open_objects(self.root)
        differ = [*checks.compare(found, objects.open_objects(self.whole)), *checks.litter(found)]
        if not status.verify_place(self.root, content=True).ok:
            differ.append("verify --content finds something")
        left = [str(path.relative_to(self.root)) for path in self.root.rglob(".*")]
        return differ + ([f"left behind: {left}"] if left else [])


def _equal_rows(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    same = (one == other) | ((one != one) & (other != other))
    return same.reshape(len(one), -1).all(axis=1)


def problems_of(said: Said) -> list[str]:
    """Return what is wrong with how a command told of a fault."""
    lines = [line for line in said.err.splitlines() if line.strip()]
    wrong = [f"more than a paragraph: {line!r}" for line in lines if line.startswith(" ") or "Traceback" in line]
    if said.code not in (0, 1, 2, 3):
        wrong.append(f"exit code {said.code}")
    told = [line for line in lines if line.startswith(("error: ", "failed: "))]
    if said.code in (1, 2) and not told:
        wrong.append(f"ended with {said.code} without a reason: {said.err!r}")
    return wrong
