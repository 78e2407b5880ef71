"""The processes that decode: a server that imports what decoding takes and forks workers, and the workers themselves.

The server has one thread, so that forking it is safe, and decodes nothing. It ends when its parent does, for then its
socket is closed; a worker ends with its server (Linux), or when its own socket is closed.

A worker gets pieces of work, rows of a manifest, over its socket. It puts their pixels into the slab that it shares
with the process that asks, and answers with one record per row; only failures come with words.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from genenc_core import spec
from genenc_core.images import geometry, reading
from genenc_core.images.limits import Limits
from genenc_core.images.slab import Slab
from genenc_core.images.stamps import NO_STAMP, STAMP

RECORD = np.dtype(
    [
        ("readable", np.uint8),
        ("orientation", np.uint8),
        ("height", np.int32),
        ("width", np.int32),
        ("affine", np.float64, 4),
        ("sha256", "V32"),
        ("hashed", np.uint8),
        ("stamp", STAMP),
    ]
)
"""What is known of a row after it was read; `affine` is scale x, scale y, offset x, offset y."""
_HEAD, _DONE = struct.Struct("<qq"), struct.Struct("<dq")
_LENGTH = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)


class Piece(NamedTuple):
    """Rows to read: where their pixels go in the slab, and of each its path, and its planned bytes and time."""

    slot: int
    paths: Sequence[str]
    planned_bytes: np.ndarray
    planned_mtime_ns: np.ndarray

    def packed(self) -> bytes:
        """Return it as a message."""
        head = _HEAD.pack(self.slot, len(self.paths))
        numbers = np.stack([self.planned_bytes, self.planned_mtime_ns]).astype("<i8")
        return head + numbers.tobytes() + os.fsencode("\0".join(self.paths))

    @classmethod
    def of(cls, message: bytes) -> "Piece":
        """Return what was packed."""
        slot, count = _HEAD.unpack_from(message)
        numbers = np.frombuffer(message, "<i8", 2 * count, _HEAD.size).reshape(2, count)
        paths = os.fsdecode(message[_HEAD.size + numbers.nbytes :]).split("\0")
        return cls(slot, paths, *numbers)


class Answer(NamedTuple):
    """What came of a piece: its CPU time, a record per row, and words for those that need them."""

    seconds: float
    records: np.ndarray
    words: dict[int, dict[str, Any]]
    """By position in the piece: `failure` and `cause`, `changed`, or `fault` [errno, text, file]: not the image's."""

    def packed(self) -> bytes:
        """Return it as a message."""
        words = json.dumps(self.words).encode() if self.words else b""
        return _DONE.pack(self.seconds, len(self.records)) + self.records.tobytes() + words

    @classmethod
    def of(cls, message: bytes) -> "Answer":
        """Return what was packed."""
        seconds, count = _DONE.unpack_from(message)
        records = np.frombuffer(message, RECORD, count, _DONE.size)
        words = message[_DONE.size + records.nbytes :]
        return cls(seconds, records, {int(at): each for at, each in json.loads(words or b"{}").items()})


def serve(control: socket.socket) -> NoReturn:
    """Fork workers as asked and tell of those that ended, until the other end of the socket is closed."""
    torch.set_num_threads(1)
    waking, woken = os.pipe()
    for end in (waking, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(waking, select.POLLIN)
    with contextlib.suppress(OSError):  # the other end is closed: nobody asks any more
        while True:
            ready = {descriptor for descriptor, _event in poll.poll()}
            if waking in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(waking, 4096)
                _tell_of_the_ended(control)
            if control.fileno() in ready:
                _answer(control, (waking, woken))
    os._exit(0)


def send(control: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message of the server's socket, with descriptors."""
    content = json.dumps(message).encode()
    socket.send_fds(control, [_LENGTH.pack(len(content)) + content], descriptors)


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return the next message of the server's socket, and its descriptors.

    Raises:
        OSError: the other end is closed.
    """
    head, descriptors, _flags, _address = socket.recv_fds(control, _LENGTH.size, 8)
    while len(head) < _LENGTH.size:
        head += _some(control, _LENGTH.size - len(head))
    (size,) = _LENGTH.unpack(head)
    content = b""
    while len(content) < size:
        content += _some(control, size - len(content))
    return json.loads(content), descriptors


def _some(control: socket.socket, size: int) -> bytes:
    found = control.recv(size)
    if not found:
        raise ConnectionResetError("the other end is closed")
    return found


def _tell_of_the_ended(control: socket.socket) -> None:
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        send(control, {"ended": process, "code": os.waitstatus_to_exitcode(status)})


def _answer(control: socket.socket, own: Sequence[int]) -> None:
    asked, descriptors = receive(control)
    if "kill" in asked:
        # Nobody else waits for it, so its number is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.kill(asked["kill"], signal.SIGKILL)
        return
    try:
        process = os.fork()
    except OSError as error:
        process = -(error.errno or 1)
    if process == 0:
        try:
            signal.set_wakeup_fd(-1)
            for descriptor in own:
                os.close(descriptor)
            control.close()
            _work(asked["fork"], *descriptors)
        finally:
            os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    send(control, {"forked": process})


def _work(setup: dict[str, Any], connection: int, slab: int, said: int) -> NoReturn:
    """Be a worker: read, decode and fit what the connection asks for until it is closed."""
    _be_a_worker(setup["server"], said)
    preprocessing = spec.Preprocessing.model_validate_json(setup["preprocessing"])
    memory = Slab.attached(slab, setup["slots"], preprocessing.height, preprocessing.width, workers=setup["workers"])
    reader = reading.Reader(geometry.Fitter(preprocessing), Limits(**setup["limits"]))
    counter = memory.counters[setup["worker"] : setup["worker"] + 1]
    asked = Connection(connection)
    while True:
        try:
            piece = Piece.of(asked.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        os.ftruncate(said, 0)
        answer = _read(piece, reader, memory, counter)
        try:
            asked.send_bytes(answer.packed())
        except OSError:
            os._exit(0)


def _be_a_worker(server: int, said: int) -> None:
    os.dup2(said, 2)  # the decoders' own words, of which the last may say why the process ends
    faulthandler.disable()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to answer
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # it ended before
            os._exit(0)
    with contextlib.suppress(OSError):  # of all processes the ones to go when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")


def _read(piece: Piece, reader: reading.Reader, slab: Slab, counter: np.ndarray) -> Answer:
    started = time.thread_time()  # for all: to ask for it takes a tenth of a small image's time
    records = np.zeros(len(piece.paths), RECORD)
    words: dict[int, dict[str, Any]] = {}
    columns = (piece.paths, piece.planned_bytes.tolist(), piece.planned_mtime_ns.tolist())
    for at, (path, planned_bytes, mtime_ns) in enumerate(zip(*columns, strict=True)):
        counter += 1  # whoever waits sees that this row was begun
        request = reading.Request(at, path, planned_bytes, mtime_ns)
        try:
            found = reader.load(request, into=slab.images[piece.slot + at])
        except OSError as error:
            words[at] = {"fault": [error.errno, error.strerror or str(error), error.filename]}
            continue
        if found.failure is not None:
            words[at] = {"failure": found.failure, "cause": found.cause}
        if found.changed is not None:
            words.setdefault(at, {})["changed"] = found.changed
        records[at] = (
            found.pixels is not None,
            found.orientation,
            found.height,
            found.width,
            (0, 0, 0, 0) if found.affine is None else found.affine.row,
            bytes.fromhex(found.sha256),
            bool(found.sha256),
            found.stamp or tuple(NO_STAMP),
        )
    return Answer(time.thread_time() - started, records, words)
