"""Feed damaged images of every format to the loader's own path: python tests/fuzz/images.py --count 10000 --seed 0.

Every input is made from (seed, format, number) alone, and loaded in a child process with a limit of time and memory.
Counted per format: images decoded, reasons by class, errors that are not the decoder's own (tracebacks), hangs,
crashes, and the largest memory that one child took. Inputs that misbehave are kept with --keep.
"""

import argparse
import collections
import dataclasses
import faulthandler
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import image_seeds
import mutation
import PIL
import torch
import torchvision

from genenc_core import spec
from genenc_core.images.decode import decode, decoded, geometry, limits, load_image

PREPROCESSING = spec.Preprocessing(height=32, width=32)
LIMITS = limits.Limits(seconds=10, megapixels=16)
READER = load_image.Reader(geometry.Fitter(PREPROCESSING), LIMITS)
MEMORY = 4 * 2**30
BATCH = 500


@dataclasses.dataclass
class Tally:
    """What became of one format's inputs."""

    tried: int = 0
    decoded: int = 0
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    tracebacks: dict[str, int] = dataclasses.field(default_factory=dict)
    hangs: list[int] = dataclasses.field(default_factory=list)
    crashes: dict[str, int] = dataclasses.field(default_factory=dict)
    slowest_seconds: float = 0.0
    peak_mib: int = 0
    """Of one child, above what its fork began with."""

    @property
    def bad(self) -> int:
        """How many inputs were not answered as they should be."""
        return len(self.tracebacks) + len(self.hangs) + len(self.crashes)


def make(kind: str, seed: int, number: int) -> bytes:
    """Return an input again."""
    return mutation.mutated(random.Random(f"{seed} {kind} {number}"), image_seeds.seeds()[kind])


def fuzz(kind: str, *, seed: int, count: int, until: float, keep: Path | None = None) -> Tally:
    """Try the inputs 0 to `count` of a format, or as many as there is time for."""
    tally = Tally()
    files = image_seeds.seeds()[kind]
    number = 0
    while number < count and time.monotonic() < until:
        last = min(number + BATCH, count)
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=_load_all, args=(theirs, kind, seed, number, last, files)
        )
        child.start()
        theirs.close()
        number = _follow(ours, child, tally, number, last, keep, (kind, seed))
        ours.close()
    return tally


def _follow(
    ours: Connection,
    child: multiprocessing.process.BaseProcess,
    tally: Tally,
    number: int,
    last: int,
    keep: Path | None,
    made: tuple[str, int],
) -> int:
    """Count what a child says until it is done or ends; return the number to go on with."""
    while number < last:
        try:
            answered = ours.poll(LIMITS.seconds)
            said = ours.recv() if answered else None
        except EOFError:
            child.join()
            tally.crashes[f"signal {-(child.exitcode or 0)}, first input {number}"] = number
            said = "crash"
        if said is None:
            os.kill(child.pid or 0, signal.SIGKILL)
            tally.hangs.append(number)
        tally.tried += 1
        bad = not isinstance(said, dict)
        if isinstance(said, dict):
            tally.peak_mib = max(tally.peak_mib, said["mib"])
            tally.slowest_seconds = max(tally.slowest_seconds, said["seconds"])
            if said["error"]:
                tally.tracebacks.setdefault(said["error"], number)
                bad = True
            elif said["failure"]:
                tally.reasons[re.sub(r"(0x)?[\d.,]+|'.*'|\".*\"|\(.*\)", "N", said["failure"])[:80]] += 1
            else:
                tally.decoded += 1
        if bad and keep is not None:
            (keep / f"{made[0]}-{made[1]}-{number}").write_bytes(make(made[0], made[1], number))
        number += 1
        if not isinstance(said, dict):
            break
    child.join()
    return number


def _load_all(theirs: Connection, kind: str, seed: int, start: int, stop: int, files: list[bytes]) -> None:
    """Be the child: load inputs and tell of each."""
    torch.set_num_threads(1)
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") * 1024 + MEMORY,) * 2)
    caught: list[str] = []
    begun = _status("VmRSS")  # a fork begins with its parent's memory
    real = decode.decode_image

    def watched(data: bytearray, *, max_pixels: int, **options: Any) -> decoded.Decoded:
        try:
            done = real(data, max_pixels=max_pixels, **options)
            if done.pixels[0].numel() > max_pixels or done.pixels.dtype != torch.uint8:
                caught.append(f"{tuple(done.pixels.shape)} {done.pixels.dtype} got past the limits")
        except decoded.ImageUnreadable:
            raise
        except Exception as error:
            caught.append(f"{type(error).__name__}: {error}"[:200])
            raise
        return done

    decode.decode_image = watched
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        for number in range(start, stop):
            data = mutation.mutated(random.Random(f"{seed} {kind} {number}"), files)
            os.pwrite(file.fileno(), data, 0)
            os.ftruncate(file.fileno(), len(data))
            started = time.thread_time()
            done = READER.decode(READER.read(load_image.Request(number, file.name, len(data))))
            if not caught and done.failure is None and (done.pixels is None or done.pixels.shape != (3, 32, 32)):
                caught.append("neither pixels nor a reason")
            if not caught and done.affine is not None:
                geometry.plan_fit(done.height, done.width, PREPROCESSING)
            said = {"failure": done.failure, "error": "; ".join(caught), "seconds": time.thread_time() - started}
            theirs.send({**said, "mib": (_status("VmHWM") - begun) // 1024})
            caught.clear()
    theirs.close()
    os._exit(0)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def main() -> int:
    """Fuzz, write the table, return 1 when anything misbehaved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="inputs per format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="end by then")
    parser.add_argument("--only", nargs="*", help="formats")
    parser.add_argument("--keep", type=Path, help="a folder for inputs that misbehave")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + given.seconds
    found = {}
    for kind in given.only or image_seeds.seeds():
        tally = fuzz(kind, seed=given.seed, count=given.count, until=until, keep=given.keep)
        found[kind] = {**dataclasses.asdict(tally), "reasons": dict(tally.reasons.most_common(12))}
        shown = {key: value for key, value in found[kind].items() if key != "reasons"}
        sys.stdout.write(f"{kind}: {json.dumps(shown)}\n")
        sys.stdout.flush()
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
    command = f"python tests/fuzz/images.py --count {given.count} --seed {given.seed}"
    if given.json is not None:
        given.json.write_text(json.dumps({"command": command, "versions": versions, "formats": found}, indent=1) + "\n")
    return int(any(entry["tracebacks"] or entry["hangs"] or entry["crashes"] for entry in found.values()))


if __name__ == "__main__":
    sys.exit(main())
