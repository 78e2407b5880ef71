"""Bottleneck analysis: which resource limits a run, from usage metered between commit records."""

import contextlib
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from genenc_core.system import limits
from genenc_core.text import plural

STAGES = ("start", "reading", "decoding", "copying", "forward", "storing")
_STAGE_SECONDS = ("read", "decode", "decode_workers", "copy", "encode", "reduce")
"""Entries of a shard's stage timings."""
_ZEROS = (0.0,) * len(_STAGE_SECONDS)
_CAPACITIES = ("cores", "workers", "side_by_side", "on_host")
"""Fields of `Work` that are capacities, constant over the process's lifetime."""
_CORES_SATURATED = 0.85
"""Share of the cores above which stages queue for a core, so that their own times are not meaningful."""
_CORES_FREE = 0.7
"""Share of the cores below which there is room for more work."""
_LIMITING = 0.5
"""Share below which a resource does not limit the run."""


class Work(NamedTuple):
    """Resources that a process used, and had, between two of its commit records."""

    wall: float
    """Seconds since its last record, or since its first images."""
    start: float
    """Seconds before its first images; only in its first record."""
    store: float
    """Seconds spent storing shards, up to this record."""
    store_cpu: float
    cpu: float
    """CPU seconds of all its threads, without decode workers, which are separate processes."""
    cores: float
    """Cores that it may use."""
    workers: float
    """Number of decode workers."""
    side_by_side: float
    """Batches computed concurrently."""
    on_host: float
    """1 if batches are computed on the CPU, 0 on another device."""

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Self | None:
        """Return the work in a commit record's details; None for records of earlier versions."""
        found = details.get("work") or {}
        return cls(*(found[name] for name in cls._fields)) if {*cls._fields} <= {*found} else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The stage that limits a run, and the utilisation of every stage."""

    stage: str
    """One of STAGES."""
    share: float
    """Utilisation of what the stage needs, as a share of time: the decode workers for `reading` and `decoding`, the
    encoder, the link to its device, the store, or the cores."""
    shares: Mapping[str, float]
    """By stage. `reading`, `decoding`: share of the decode workers' time; `forward`: of the encoder's; `copying`: of
    the busier direction's; `storing`: share of time with a shard being stored; `start`: share of all time before the
    first images."""
    cores: Mapping[str, float]
    """By stage: share of the available core time."""
    on_host: bool
    """Whether the encoder ran on the CPU for most of the time."""
    of_cores: bool
    """Whether the cores are the limit; `stage` is then the one that uses most of them."""
    workers: int
    """Decode workers per process."""
    start: float
    """Seconds before the first images, of all processes."""
    seconds: float
    """Seconds after that, of all processes."""

    @property
    def words(self) -> str:
        """One line of text: the bottleneck, the other stages, and a remedy if there is one."""
        if self.stage == "start":
            return f"limited by startup: {self.start:.1f} s before the first images, {self.seconds:.1f} s after"
        said = f"{self._resource} {_percent(self.share)} of the time{self._others}"
        if self.share < _LIMITING:
            return f"limited by no single stage; the busiest is {self.stage}: {said}"
        return f"limited by {self.stage}: {said}; {self._remedy} would help"

    @property
    def _others(self) -> str:
        shares = self.cores if self.of_cores else self.shares
        left_out = ("start",) if self.of_cores else ("start", self.stage)
        words = [
            f"{name} {_percent(share)}" for name, share in shares.items() if name not in left_out and share >= 0.01
        ]
        return f" ({', '.join(words)})" if words else ""

    @property
    def _resource(self) -> str:
        if self.of_cores:
            return "the cores are busy"
        return {
            "copying": "the link to the device is busy",
            "forward": "the encoder is busy",
            "storing": "a shard is being stored",
        }.get(self.stage, f"{plural(self.workers, 'decode worker')} busy")

    @property
    def _remedy(self) -> str:
        if self.of_cores:
            return "more cores or a GPU" if self.stage == "forward" else "more cores"
        if self.stage == "reading":
            return "more --decode-workers (they wait for files) or a faster disk"
        if self.stage == "decoding":
            return "more --decode-workers" if self._has_free_cores else "more cores"
        if self.stage == "forward":
            if not self.on_host:
                return "a faster device, or another one,"
            return "a GPU" if self._has_free_cores else "more cores or a GPU"
        if self.stage == "storing":
            return "faster storage for the run, or smaller products,"
        return "a smaller --image-size, or smaller products,"

    @property
    def _has_free_cores(self) -> bool:
        return sum(self.cores.values()) < _CORES_FREE


def find(spent: Iterable[tuple[Mapping[str, float], Sequence[float]]]) -> Bound | None:
    """Return the bottleneck over all processes, weighted by their time; None if nothing is known.

    Args:
        spent: for each shard, the seconds of its stages and the `Work` up to its record.
    """
    names = (*Work._fields, *_STAGE_SECONDS)
    values = itertools.chain.from_iterable(
        (*work, *map(seconds.get, _STAGE_SECONDS, _ZEROS)) for seconds, work in spent
    )
    each = dict(zip(names, np.fromiter(values, np.float64).reshape(-1, len(names)).T, strict=True))
    if not each["wall"].size:
        return None
    with np.errstate(over="ignore"):
        had = {name: _sum(each["wall"] * each[name]) for name in _CAPACITIES}
        total = {name: _sum(values) for name, values in each.items()}
    if not np.isfinite([*had.values(), *total.values()]).all():
        return None
    wall, on_host = total["wall"], 2 * had["on_host"] >= total["wall"]
    shares = {
        "start": _share(total["start"], total["start"] + wall),
        "reading": _share(total["read"], had["workers"]),
        "decoding": _share(total["decode"], had["workers"]),
        "copying": _share(total["copy"], wall),
        "forward": _share(total["encode"] + total["reduce"], had["side_by_side"]),
        "storing": _share(total["store"], wall),
    }
    waited = _share(total["read"], total["read"] + total["decode"])
    cores = {
        "reading": _share(total["decode_workers"] * waited, had["cores"]),
        "decoding": _share(total["decode_workers"] * (1 - waited), had["cores"]),
        "forward": _share(total["cpu"] - total["store_cpu"], had["cores"]),
        "storing": _share(total["store_cpu"], had["cores"]),
    }
    stage, share, of_cores = _limiting(shares, cores, on_host=on_host)
    return Bound(
        stage=stage,
        share=round(share, 4),
        shares={name: round(value, 4) for name, value in shares.items()},
        cores={name: round(value, 4) for name, value in cores.items()},
        on_host=on_host,
        of_cores=of_cores,
        workers=round(had["workers"] / wall) if wall > 0 else 0,
        start=round(total["start"], 3),
        seconds=round(wall, 3),
    )


def _limiting(shares: Mapping[str, float], cores: Mapping[str, float], *, on_host: bool) -> tuple[str, float, bool]:
    """Return the limiting stage, the utilisation of what it needs, and whether that is the cores."""
    if shares["start"] > _LIMITING:
        return "start", shares["start"], False
    in_worker = max(("reading", "decoding"), key=shares.__getitem__)
    used = {name: shares[name] for name in ("copying", "forward", "storing")}
    used[in_worker] = min(shares["reading"] + shares["decoding"], 1.0)
    taken = min(sum(cores.values()), 1.0)
    if taken >= _CORES_SATURATED:  # stages look busy while they wait for a core
        del used[in_worker]
        if on_host:
            del used["forward"]
    stage = max(used, key=used.__getitem__)
    if taken < _CORES_SATURATED or used[stage] > taken:
        return stage, used[stage], False
    on_cores = [name for name in cores if on_host or name != "forward"]
    return max(on_cores, key=cores.__getitem__), taken, True


def _sum(values: np.ndarray) -> float:
    """Return the sum, independent of the order of records; infinite if it overflows."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return math.inf


def _share(amount: float, of: float) -> float:
    return min(max(amount / of, 0.0), 1.0) if of > 0 else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


class Meter:
    """Usage meter of one process working on one run; thread-safe."""

    def __init__(self, began: float) -> None:
        """`began`: start of the command, by `time.perf_counter`."""
        self._lock = threading.Lock()
        self._start = began
        self._since: float | None = None
        self._cpu = self._store = self._store_cpu = 0.0
        self._storing = 0
        self._stored_since = 0.0
        self._had: dict[str, float] = {}

    def begin(self, *, workers: int, side_by_side: int, on_host: bool) -> None:
        """Start the meter when the first images are requested; no-op if started. Arguments as in `Work`."""
        with self._lock:
            if self._since is None:
                self._since, self._cpu = time.perf_counter(), time.process_time()
                self._start = max(self._since - self._start, 0.0)
                self._had = {
                    "cores": limits.cores(),
                    "workers": workers,
                    "side_by_side": side_by_side,
                    "on_host": int(on_host),
                }

    def skip(self, seconds: float) -> None:
        """Exclude time spent waiting for other processes."""
        with self._lock:
            if self._since is not None:
                self._since += seconds

    @contextlib.contextmanager
    def storing(self) -> Iterator[Callable[[], Work]]:
        """Count the block as storing a shard; yield a function that returns the work since its last call."""
        cpu = time.thread_time()
        with self._lock:
            if not self._storing:
                self._stored_since = time.perf_counter()
            self._storing += 1

        def count() -> None:
            nonlocal cpu
            now, before, cpu = time.perf_counter(), cpu, time.thread_time()
            self._store_cpu += cpu - before
            self._store += now - self._stored_since
            self._stored_since = now

        def work() -> Work:
            with self._lock:
                count()
                return self._taken()

        try:
            yield work
        finally:
            with self._lock:
                count()
                self._storing -= 1

    def _taken(self) -> Work:
        assert self._since is not None, "the meter was not started"
        now, cpu = time.perf_counter(), time.process_time()
        work = Work(
            wall=round(max(now - self._since, 0.0), 4),  # skipped time may be longer
            start=round(self._start, 4),
            store=round(self._store, 4),
            store_cpu=round(self._store_cpu, 4),
            cpu=round(cpu - self._cpu, 4),
            **self._had,
        )
        self._since, self._cpu = now, cpu
        self._start = self._store = self._store_cpu = 0.0
        return work
