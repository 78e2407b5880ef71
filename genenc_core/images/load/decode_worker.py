"""Decode processes: a server that imports the decoders once and forks workers, and the workers.

The server decodes nothing and has one thread, so forking it is safe. It exits with its parent, when its socket is
closed; a worker exits with its server (Linux), or when its own socket is closed.

A worker receives pieces of work, rows of a manifest, over its socket. It writes their pixels to the shared slab and
answers with one record per row; only failures carry text.
"""

import contextlib
import ctypes
import faulthandler
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from genenc_core import spec
from genenc_core.images.decode import decoded, geometry, gpu_decode, load_image
from genenc_core.images.decode.limits import Limits
from genenc_core.images.load.slab import Form, Slab
from genenc_core.images.sources.file_stamps import NO_STAMP, STAMP

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
        ("on_gpu", np.uint8),
        ("has_more", np.uint8),
    ]
)
"""Record of a row that was read; `affine` is scale x, scale y, offset x, offset y."""
READ_BYTES = 4 * 2**20
"""Size of files that a worker reads before decoding them."""
_HEAD, _DONE = struct.Struct("<qq"), struct.Struct("<dddq")
_LENGTH = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)


def _packed_form(kind: np.dtype[Any]) -> str:
    """Return a dtype in the letters of `struct`."""
    if kind.names:
        return "".join(_packed_form(kind[name]) for name in kind.names)
    if kind.subdtype:
        part, shape = kind.subdtype
        return f"{math.prod(shape)}{_packed_form(part)}"
    return f"{kind.itemsize}s" if kind.kind == "V" else {"u1": "B", "i4": "i", "i8": "q", "f8": "d"}[kind.str[1:]]


_ROW = struct.Struct("=" + _packed_form(RECORD))
"""A record of one row: NumPy takes a tenth of a small image's time to put values together."""


class Piece(NamedTuple):
    """Rows to read: their first slot in the slab, paths, members, and planned sizes and times."""

    slot: int
    paths: Sequence[str]
    members: Sequence[str]
    """Where the images are in these files; empty if the files are images."""
    planned: np.ndarray
    """int64 `[n, 2]`."""

    def packed(self) -> bytes:
        """Serialise to a message."""
        names = os.fsencode("\0".join([*self.paths, *self.members]))
        return _HEAD.pack(self.slot, len(self.paths)) + self.planned.tobytes() + names

    @classmethod
    def of(cls, message: bytes) -> "Piece":
        """Parse a message."""
        slot, count = _HEAD.unpack_from(message)
        planned = np.frombuffer(message, np.int64, 2 * count, _HEAD.size).reshape(count, 2)
        names = os.fsdecode(message[_HEAD.size + planned.nbytes :]).split("\0")
        return cls(slot, names[:count], names[count:], planned)


class Seconds(NamedTuple):
    """Worker time spent on pieces."""

    cpu: float = 0.0
    reading: float = 0.0
    """Reading files into memory, waiting included."""
    decoding: float = 0.0
    """The rest: hashing, decoding and fitting, with waits for a core."""

    @classmethod
    def total(cls, each: Iterable["Seconds"]) -> "Seconds":
        """Return the sums."""
        return cls(*map(sum, zip(*each, strict=True)))


class Answer(NamedTuple):
    """Result of a piece: its time, a record per row, and notes for rows that need them."""

    seconds: Seconds
    records: bytes
    """Bytes of an array of RECORD, which the receiver joins with those of other pieces."""
    notes: dict[int, dict[str, Any]]
    """By position in the piece: `failure` and `cause`; `changed`; or `fault`, [errno, text, file] of a system fault."""

    @property
    def rows(self) -> int:
        """Number of rows of the piece."""
        return len(self.records) // RECORD.itemsize

    def packed(self) -> bytes:
        """Serialise to a message."""
        notes = json.dumps(self.notes).encode() if self.notes else b""
        return _DONE.pack(*self.seconds, self.rows) + self.records + notes

    @classmethod
    def of(cls, message: bytes) -> "Answer":
        """Parse a message."""
        *seconds, count = _DONE.unpack_from(message)
        end = _DONE.size + count * RECORD.itemsize
        notes = json.loads(message[end:]) if len(message) > end else {}
        return cls(Seconds(*seconds), message[_DONE.size : end], {int(at): each for at, each in notes.items()})


def serve(control: socket.socket) -> NoReturn:
    """Fork workers on request and report exited ones, until the other end of the socket is closed."""
    torch.set_num_threads(1)
    waking, woken = os.pipe()
    for end in (waking, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(waking, select.POLLIN)
    with contextlib.suppress(OSError):  # the other end was closed
        while True:
            ready = {descriptor for descriptor, _event in poll.poll()}
            if waking in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(waking, 4096)
                _report_exits(control)
            if control.fileno() in ready:
                _handle_request(control, (waking, woken))
    os._exit(0)


def send(control: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message, with descriptors, over the server's socket."""
    content = json.dumps(message).encode()
    socket.send_fds(control, [_LENGTH.pack(len(content)) + content], descriptors)


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive the next message from the server's socket, with its descriptors.

    Raises:
        OSError: the other end was closed.
    """
    head, descriptors, _flags, _address = socket.recv_fds(control, _LENGTH.size, 8)
    while len(head) < _LENGTH.size:
        head += _receive_bytes(control, _LENGTH.size - len(head))
    (size,) = _LENGTH.unpack(head)
    content = b""
    while len(content) < size:
        content += _receive_bytes(control, size - len(content))
    return json.loads(content), descriptors


def _receive_bytes(control: socket.socket, max_size: int) -> bytes:
    data = control.recv(max_size)
    if not data:
        raise ConnectionResetError("the other end was closed")
    return data


def _report_exits(control: socket.socket) -> None:
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        send(control, {"ended": process, "code": os.waitstatus_to_exitcode(status)})


def _handle_request(control: socket.socket, own: Sequence[int]) -> None:
    request, descriptors = receive(control)
    if "kill" in request:
        # Only this process reaps it, so its id cannot be reused.
        with contextlib.suppress(ProcessLookupError):
            os.kill(request["kill"], signal.SIGKILL)
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
            _run_worker(request["fork"], *descriptors)
        finally:
            os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    send(control, {"forked": process})


def _run_worker(setup: dict[str, Any], connection: int, slab: int, stderr: int) -> NoReturn:
    """Read, decode and fit the pieces that the connection sends, until it is closed."""
    _set_up_process(setup["server"], stderr)
    os.environ.update(setup["environment"])
    preprocessing = spec.Preprocessing.model_validate_json(setup["preprocessing"])
    memory = Slab.attached(slab, setup["slots"], Form.of(preprocessing), workers=setup["workers"])
    fitter, limits = geometry.Fitter(preprocessing), Limits(**setup["limits"])
    reader = load_image.Reader(fitter, limits)
    gpu = None
    counter = memory.counters.data[setup["worker"] : setup["worker"] + 1]
    requests = Connection(connection)
    while True:
        try:
            piece = Piece.of(requests.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        os.ftruncate(stderr, 0)
        try:
            if setup["device"] is not None and gpu is None:
                decoder = gpu_decode.NvJpeg(setup["device"])
                gpu = gpu_decode.GpuDecoder(decoder, preprocessing, fitter.hint, limits.pixels)
            answer = _read(piece, reader, gpu, memory, counter)
        except OSError as error:  # a device fault
            count = len(piece.paths)
            answer = Answer(Seconds(), bytes(count * RECORD.itemsize), dict.fromkeys(range(count), _fault(error)))
        try:
            requests.send_bytes(answer.packed())
        except OSError:
            os._exit(0)


def _set_up_process(server: int, stderr: int) -> None:
    os.dup2(stderr, 2)  # output of the decoders, which may explain a crash
    faulthandler.disable()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # it exited before the call
            os._exit(0)
    with contextlib.suppress(OSError):  # first choice of the OOM killer
        Path("/proc/self/oom_score_adj").write_text("1000")


def _read(
    piece: Piece, reader: load_image.Reader, gpu: gpu_decode.GpuDecoder | None, slab: Slab, counter: memoryview
) -> Answer:
    """Process a piece.

    Raises:
        OSError: a fault of the decoding device.
    """
    # Measured per piece; per image it would take a tenth of the time of a small one.
    cpu, began, read_before = time.thread_time(), time.perf_counter(), reader.seconds
    records = [bytes(RECORD.itemsize)] * len(piece.paths)
    notes: dict[int, dict[str, Any]] = {}
    files = _files(piece, reader, counter)
    image: decoded.Decoded | None
    for file, image in ((file, None) for file in files) if gpu is None else gpu.images(files):
        counter[0] += 1  # shows the pool that this row was begun
        at = file.request.row
        try:
            loaded = reader.decode(file, into=slab.images[piece.slot + at], image=image)
        except OSError as error:
            notes[at] = _fault(error)
            continue
        if loaded.failure is not None:
            notes[at] = {"failure": loaded.failure, "cause": loaded.cause}
        if loaded.changed is not None:
            notes.setdefault(at, {})["changed"] = loaded.changed
        records[at] = _ROW.pack(
            loaded.pixels is not None,
            loaded.orientation,
            loaded.height,
            loaded.width,
            *((0, 0, 0, 0) if loaded.affine is None else loaded.affine.row),
            bytes.fromhex(loaded.sha256),
            bool(loaded.sha256),
            *(loaded.stamp or NO_STAMP.item()),
            image is not None,
            loaded.has_more,
        )
    waited = reader.seconds - read_before
    seconds = Seconds(time.thread_time() - cpu, waited, time.perf_counter() - began - waited)
    return Answer(seconds, b"".join(records), notes)


def _fault(error: OSError) -> dict[str, Any]:
    return {"fault": [error.errno, error.strerror or str(error), error.filename]}


def _files(piece: Piece, reader: load_image.Reader, counter: memoryview) -> Iterator[load_image.ReadFile]:
    """Read the files of a piece in groups, because alternating with decoding slows Python down."""
    files: list[load_image.ReadFile] = []
    size = 0
    reader.expect(piece.paths, piece.members)
    members = piece.members or [""] * len(piece.paths)
    rows = zip(piece.paths, members, piece.planned.tolist(), strict=True)
    for at, (path, member, (planned_bytes, mtime_ns)) in enumerate(rows):
        counter[0] += 1
        files.append(reader.read(load_image.Request(at, path, planned_bytes, mtime_ns, member)))
        size += files[-1].size
        if size >= READ_BYTES:
            yield from files
            files, size = [], 0
    yield from files
