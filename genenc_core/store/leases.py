"""Shard leases, which let processes share a run without a coordinator.

Claims only prevent duplicate work. Correctness rests on the commit: a wrong claim costs time, never data. A claim is a
file created exclusively, `s0000123.<n>`. A worker that finds the holders of all claims on a shard dead creates the next
n; exactly one creator wins, and then looks whether others claimed the shard by another n meanwhile. A holder is alive
while its heartbeat file, `worker-*`, keeps changing by the observer's own monotonic clock, so clocks are never compared
and clock jumps have no effect. A process of the same machine that has exited is dead at once.
"""

import contextlib
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final

from genenc_core import errors
from genenc_core.store import store_keys
from genenc_core.store.backends.objects import Objects
from genenc_core.system import proc

LOGGER = logging.getLogger(__name__)
LEASE_SECONDS: Final = 60.0
BEATS: Final = 4
"""Heartbeats per lease."""
_CLAIM: Final = re.compile(r"s(\d{7,})\.(\d+)")


class Leases:
    """Shard claims of one worker on one run; thread-safe.

    Args:
        objects: the run folder.
        lease: seconds without a heartbeat after which others may take a worker's shards.
        clock: monotonic clock, in seconds.
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
        self._heartbeat: threading.Thread | None = None
        self._beats = 0

    def take(self, shard: int) -> bool:
        """Claim a shard; return False if a live worker, this one included, holds it.

        Where claims cannot be written, work continues without them.
        """
        with self._lock:
            if shard in self._held:
                return False
            try:
                self._start()
                taken = self._take(shard)
            except (OSError, errors.StoreError) as error:
                LOGGER.warning("processing shard %05d without a claim: %s", shard, error)
                taken = ""
            if taken is not None:
                self._held[shard] = taken
            return taken is not None

    def release(self, shard: int) -> None:
        """Release a shard, finished or not."""
        with self._lock:
            key = self._held.pop(shard, "")
        if key:
            with contextlib.suppress(OSError):
                self._objects.remove(key)

    def close(self) -> None:
        """Stop the heartbeat and release all shards."""
        self._ended.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
        for shard in list(self._held):
            self.release(shard)
        with contextlib.suppress(OSError):
            self._objects.remove(_key(self.owner))

    def holder(self, shard: int) -> str:
        """Return who holds a shard, as `process 12 on host`; "" if no live worker does.

        Raises:
            OSError: the folder cannot be read.
        """
        owner = next(iter(self._living(self._claims(shard))), "")
        if not owner:
            return ""
        with contextlib.suppress(OSError, ValueError):
            worker = json.loads(self._objects.read(_key(owner)))
            return f"process {worker['pid']} on {worker['host']}"
        return "another process"

    def sweep(self) -> None:
        """Remove files of killed workers unless a live one remains; call only when all shards are done."""
        with contextlib.suppress(OSError):
            workers = [name for name in self._objects.names(store_keys.CLAIMS, "worker-") if name != self.owner]
            if not any(self._alive(name) for name in workers):
                self._objects.remove_tree(store_keys.CLAIMS)

    def _take(self, shard: int) -> str | None:
        """Return the key of our claim, or None if another worker holds the shard."""
        claims = self._claims(shard)
        for number, owner in claims.items():
            if owner == self.owner:
                return _claim_key(shard, number)  # the reply to its creation or removal was lost
        if self._living(claims):
            return None
        number = max(claims, default=-1) + 1
        key = _claim_key(shard, number)
        with contextlib.suppress(FileExistsError):  # ours if the first reply was lost
            self._objects.create(key, self.owner.encode(), via=_key(f"new-{self.owner}"))
        now = self._claims(shard)
        if now.pop(number, "") != self.owner:
            return None
        if not now.items() <= claims.items():
            # A claim that we saw was released meanwhile, and another worker has claimed the shard since.
            self._objects.remove(key)
            return None
        return key

    def _claims(self, shard: int) -> dict[int, str]:
        """Return the owners of the claims on a shard, by number."""
        try:
            names = self._objects.names(store_keys.CLAIMS, f"s{shard:07d}.")
        except FileNotFoundError:
            return {}
        owners = {}
        for match in filter(None, map(_CLAIM.fullmatch, names)):
            with contextlib.suppress(FileNotFoundError):  # released between listing and reading
                owners[int(match[2])] = self._objects.read(_key(match[0])).decode(errors="replace")
        return owners

    def _living(self, claims: Mapping[int, str]) -> list[str]:
        """Return the owners that are alive; all are looked at, so that the leases of dead ones expire together."""
        return [owner for owner in claims.values() if self._alive(owner)]

    def _alive(self, owner: str) -> bool:
        if owner == self.owner:
            return True
        try:
            heartbeat = self._objects.read(_key(owner)) if owner.startswith("worker-") and "/" not in owner else b""
        except FileNotFoundError:
            return False
        if not heartbeat or _has_ended(heartbeat):
            return False
        before, since = self._seen.get(owner, (b"", 0.0))
        now = self._clock()
        if heartbeat != before:
            self._seen[owner] = heartbeat, now
            return True
        return now - since < self._lease

    def _start(self) -> None:
        """Start the heartbeat."""
        if self._heartbeat is not None:
            return
        self._objects.make_folder(store_keys.CLAIMS)
        self._beat()
        thread = threading.Thread(target=self._keep_beating, name="genenc-claims", daemon=True)
        thread.start()
        self._heartbeat = thread

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._lease / BEATS):
            with contextlib.suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        self._beats += 1
        self._objects.replace(_key(self.owner), json.dumps({**proc.identity(), "beat": self._beats}).encode())


def _claim_key(shard: int, number: int) -> str:
    return _key(f"s{shard:07d}.{number}")


def _key(name: str) -> str:
    return f"{store_keys.CLAIMS}/{name}"


def _has_ended(heartbeat: bytes) -> bool:
    """Return whether a heartbeat's process ran on this machine and has ended."""
    try:
        return proc.has_ended(json.loads(heartbeat))
    except ValueError:
        return False
