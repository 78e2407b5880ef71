"""Who is at which shard, so that processes on one run share its work without a coordinator.

Claims keep work from being done twice. They decide nothing about what is stored: that is the commit's alone, and a
wrong claim costs time, never truth. A claim is a file created exclusively, `s0000123.<n>`; the highest n holds. Whoever
finds its holder dead creates n + 1, and one creator wins. A holder lives as long as its own file, `worker-*`, keeps
changing, as seen by the one who looks: no two clocks are compared, and a clock that jumps changes nothing. On the same
machine a process that is gone is dead at once.
"""

import contextlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from genenc_core import errors
from genenc_core.store import places
from genenc_core.store.objects import Objects

LOGGER = logging.getLogger(__name__)
LEASE_SECONDS: Final = 60.0
BEATS: Final = 4
"""Signs of life in a lease."""
_CLAIM: Final = re.compile(r"s(\d{7,})\.(\d+)")


class Claims:
    """The claims of one worker on one run; may be shared by its threads.

    Args:
        objects: the run folder.
        lease: seconds without a sign of life after which others may take a worker's shards.
        clock: seconds that only go forward.
    """

    def __init__(
        self, objects: Objects, *, lease: float = LEASE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.owner = f"worker-{uuid.uuid4().hex}"
        self._objects = objects
        self._lease = lease
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[int, str] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self._beats = 0

    def take(self, shard: int) -> bool:
        """Claim a shard; False when a living worker is at it, this one included.

        A folder in which no claim can be written is worked on without claims.
        """
        with self._lock:
            if shard in self._held:
                return False
            try:
                self._start()
                taken = self._take(shard)
            except (OSError, errors.StoreError) as error:
                LOGGER.warning("shard %05d is worked on without a claim: %s", shard, error)
                taken = ""
            if taken is not None:
                self._held[shard] = taken
            return taken is not None

    def release(self, shard: int) -> None:
        """Give a shard up, done or not."""
        with self._lock:
            key = self._held.pop(shard, "")
        if key:
            with contextlib.suppress(OSError):
                self._objects.remove(key)

    def close(self) -> None:
        """Give up everything."""
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        for shard in list(self._held):
            self.release(shard)
        with contextlib.suppress(OSError):
            self._objects.remove(_key(self.owner))

    def holder(self, shard: int) -> str:
        """Return who is at a shard, as a person names a process; "" when nobody living is.

        Raises:
            OSError: the folder cannot be read.
        """
        found = self._latest(shard)
        if found is None or not self._alive(found[1]):
            return ""
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(self._objects.read(_key(found[1])))
            return f"process {told['pid']} on {told['host']}"
        return "another process"

    def sweep(self) -> None:
        """Remove what killed workers left, unless a living one is at work; for a run in which all shards are done."""
        with contextlib.suppress(OSError):
            workers = [name for name in self._objects.names(places.CLAIMS, "worker-") if name != self.owner]
            if not any(self._alive(name) for name in workers):
                self._objects.remove_tree(places.CLAIMS)

    def _take(self, shard: int) -> str | None:
        """Return the key of the claim that is ours now, None when another's holds."""
        found = self._latest(shard)
        if found is not None and found[1] == self.owner:
            return _key(f"s{shard:07d}.{found[0]}")  # the answer to its creation or its removal was lost
        if found is not None and self._alive(found[1]):
            return None
        number = 0 if found is None else found[0] + 1
        key = _key(f"s{shard:07d}.{number}")
        try:
            self._objects.create(key, self.owner.encode(), via=_key(f"new-{self.owner}"))
        except FileExistsError:
            found = self._latest(shard)
            return key if found == (number, self.owner) else None  # ours, when the first answer was lost
        return key

    def _latest(self, shard: int) -> tuple[int, str] | None:
        """Return the number and the owner of the claim that holds a shard."""
        try:
            names = self._objects.names(places.CLAIMS, f"s{shard:07d}.")
        except FileNotFoundError:
            return None
        numbers = [int(match[2]) for match in map(_CLAIM.fullmatch, names) if match]
        if not numbers:
            return None
        try:
            owner = self._objects.read(_key(f"s{shard:07d}.{max(numbers)}")).decode(errors="replace")
        except FileNotFoundError:
            return None  # released between the two looks
        return max(numbers), owner

    def _alive(self, owner: str) -> bool:
        if owner == self.owner:
            return True
        try:
            sign = self._objects.read(_key(owner)) if owner.startswith("worker-") and "/" not in owner else b""
        except FileNotFoundError:
            return False
        if not sign or _is_gone(sign):
            return False
        before, since = self._seen.get(owner, (b"", 0.0))
        now = self._clock()
        if sign != before:
            self._seen[owner] = sign, now
            return True
        return now - since < self._lease

    def _start(self) -> None:
        """Give the first sign of life, and keep giving them."""
        if self._heart is not None:
            return
        self._objects.make_folder(places.CLAIMS)
        self._beat()
        heart = threading.Thread(target=self._keep_beating, name="genenc-claims", daemon=True)
        heart.start()
        self._heart = heart

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._lease / BEATS):
            with contextlib.suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        self._beats += 1
        self._objects.replace(_key(self.owner), json.dumps({**_process(), "beat": self._beats}).encode())


def _key(name: str) -> str:
    return f"{places.CLAIMS}/{name}"


def _process() -> dict[str, Any]:
    """Return what tells this process from every other, on this machine and elsewhere."""
    return {"host": os.uname().nodename, "pid": os.getpid(), "machine": _machine(), "began": _began(os.getpid())}


def _is_gone(sign: bytes) -> bool:
    """Return whether the process that gave a sign of life ran on this machine and has ended."""
    try:
        told = json.loads(sign)
        return bool(told["machine"] and told["machine"] == _machine() and told["began"] != _began(int(told["pid"])))
    except (ValueError, KeyError, TypeError):
        return False


def _machine() -> str:
    """Return a name for this boot of this machine and the process numbers that count here; "" where none is known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    """Return when a process began, in the kernel's ticks since the boot; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
