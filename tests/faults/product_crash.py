"""The same campaign against the command itself: `genenc extract` and `genenc resume --plain`, a tiny encoder."""

import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zarr

import checks
import crash
import pictures
from genenc_core.cli import app
from genenc_core.images.load import loader  # noqa: F401 (imported once here, not in every process)
from genenc_core.run import driver, status  # noqa: F401
from genenc_core.store import run_store, store_keys
from genenc_core.store.backends import objects

IMAGES, SHARD_ROWS = 24, 3
CALLS = ("objects.write_new", "objects.create", "objects.move", "objects.replace", "objects.remove_tree", "os.rename")


def command(photos: Path, root: objects.Root) -> list[str]:
    """Return the command that makes a run."""
    options = [
        "--model",
        "tiny_models:conv",
        "--weights",
        "random:0",
        "--image-size",
        "32",
        "--device",
        "cpu",
        "--plain",
    ]
    rows = ["--shard-rows", str(SHARD_ROWS), "--batch-size", "2"]
    return ["extract", str(photos), *options, *rows, "--out", str(root)]


def genenc(arguments: Sequence[str], observe: store_keys.Observer = store_keys.silent) -> int:
    """Run the command line in this process, quietly; return its exit code."""
    run_store.RunStore.open.__func__.__kwdefaults__["observer"] = observe  # type: ignore[attr-defined]
    sys.argv = ["genenc", *arguments]
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            app.build_app(None)()
        except SystemExit as leaving:
            return int(str(leaving.code or 0))
    return 0


class ProductCampaign(crash.Campaign):
    """Kills the command; every run must come to the bytes of one that nobody killed."""

    def __init__(self, base: objects.Root, *, seed: int) -> None:
        super().__init__(base, seed=seed, patience=0.4)
        self._scratch = tempfile.TemporaryDirectory(prefix="genenc-crash-")
        scratch = Path(self._scratch.name)
        self.photos = pictures.write_folder(scratch / "photos", IMAGES)
        self.whole = scratch / "whole"
        self.aside(lambda _: require(genenc(command(self.photos, self.whole)) == 0))

    def one_run(self, root: objects.Root, scene: str) -> None:
        """Make one run by commands that are killed, then by one that is not."""
        self.patience_now = self.patience
        with tempfile.TemporaryDirectory(prefix="genenc-crash-") as scratch:
            stop = Path(scratch) / "stop"
            reader = crash.started(lambda tell: read_until(root, self.whole, stop, tell))
            known: checks.Ledger = {}
            try:
                while True:
                    seen = self.look(root)
                    wrong = (*checks.changed(known, seen["ledger"]), *seen["lost"])
                    self.tally.violations += [f"{root}: {what}" for what in wrong]
                    known = seen["ledger"]
                    if seen["stands"] and not seen["pending"]:
                        break
                    asked = command(self.photos, root)
                    if seen["stands"] and self.draw.random() < 0.5:
                        asked = ["resume", str(root), "--plain"]
                    count = 1 if scene == "alone" else 2
                    self.round(root, [functools.partial(genenc, asked)] * count, CALLS, scene=scene)
            finally:
                stop.touch()
                self.collect(*crash.ended(reader), who="reader")
        self.aside(lambda tell: [tell("violation", what) for what in finish(root, self.photos, self.whole)])
        self.aside(lambda _: crash.remove(root))


def require(held: bool) -> None:
    """Raise where an uninterrupted command failed."""
    if not held:
        raise RuntimeError("an uninterrupted command failed")


def read_until(root: objects.Root, whole: Path, stop: Path, tell: crash.Tell) -> None:
    """Read the run through plain zarr until it is done: every row is as in the whole run, or not there at all."""
    group = zarr.open_group(whole / store_keys.GROUP, mode="r")
    final = {name: np.asarray(group[name][:]) for name in written(whole)}
    count = 0
    while not stop.exists():
        if not checks.stands(root):
            time.sleep(0.002)
            continue
        store = run_store.RunStore.open(root)
        seen_group = zarr.open_group(store.zarr_store(), mode="r")
        for shard in range(store.shard_count):
            rows = slice(*store.shard_range(shard))
            stated = np.asarray(seen_group["status"][rows])
            for array in store.plan.all_arrays:
                block = np.asarray(seen_group[array.name][rows])
                wanted = np.array_equal(block, final[array.name][rows], equal_nan=block.dtype.kind == "f")
                empty = np.array_equal(block, np.full_like(block, array.fill), equal_nan=block.dtype.kind == "f")
                if not wanted and (stated.any() or not empty):
                    tell("violation", f"shard {shard}: {array.name} is neither fill nor final: {block}")
        count += 1
    tell("checks", count)


def written(whole: Path) -> list[str]:
    """Return the names of the arrays that shards fill."""
    return [array.name for array in run_store.RunStore.open(whole).plan.all_arrays]


def finish(root: objects.Root, photos: Path, whole: Path) -> Iterator[str]:
    """Give the same command once more, and compare the run with the one that nobody killed."""
    if genenc(command(photos, root)) != 0:
        yield "the same command, uninterrupted, did not end with 0"
    if not status.verify_place(root, content=True).ok:
        yield "verify --content finds something"
    found = objects.open_objects(root)
    yield from checks.compare(found, objects.open_objects(whole))
    yield from checks.litter(found)
    if not objects.is_remote(root):
        left = [
            str(path)
            for path in Path(root).rglob("*")
            if ".partial" in path.name or path.name.startswith((".plan", ".claim"))
        ]
        if left:
            yield f"left behind: {left}"
