"""Processes of their own for images that a process died of or a thread hangs on: they may crash, hang or be killed.

A child imports what loading takes, which needs seconds, and forks once per image, which needs milliseconds. It has one
thread, so that forking it is safe.
"""

import contextlib
import dataclasses
import errno
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import torch

from genenc_core import children, spec
from genenc_core.images import geometry, reading, stamps
from genenc_core.images.limits import Limits

STARTING_SECONDS = 120.0
_GRACE_SECONDS = 10.0
_TRIES = 2
_BROKEN = 213
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_CHILD = "from genenc_core.images import isolated; {}"
_SERVE = "isolated.serve()"


class Killed(Exception):
    """A process was ended by a signal that no decoder sends itself."""


class IsolatedLoader:
    """Loads images outside this process, one at a time; the child is started when first needed."""

    def __init__(self, preprocessing: spec.Preprocessing, limits: Limits) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self._program = _CHILD.format(_SERVE)
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def load(self, request: reading.Request) -> reading.LoadedImage:
        """Return what `Reader.load` returns; an image that ends its process or outlasts the limit has that reason.

        A process that is killed from outside, for want of memory perhaps, says nothing of the image: it is tried again.

        Raises:
            OSError: as `Reader.load`, or the child process cannot be started, or was killed from outside each time.
        """
        asked = {"request": request._asdict(), "limits": dataclasses.asdict(self._limits)}
        with self._turn:
            for _ in range(_TRIES):
                process = self._started()
                answer = self._ask(process, asked, self._limits.seconds + _GRACE_SECONDS)
                if answer is None:
                    self._end(process, kill=True)
                    return _overdue(request.row, self._limits)
                if answer:
                    try:
                        return _unpacked(request.row, answer, self._limits)
                    except Killed as killed:
                        how = str(killed)
                else:  # the child itself decodes nothing
                    how = _name(-self._end(process))
        raise ChildProcessError(
            f"{request.path!r}: its decoding process was killed from outside {_TRIES} times ({how}), perhaps for want "
            "of memory: free some, or give fewer --decode-threads; --max-megapixels leaves out large images"
        )

    def close(self) -> None:
        """End the child process."""
        with self._turn:
            if self._process is not None:
                self._end(self._process, kill=True)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._process is not None:
            self._end(self._process)
        self._process = subprocess.Popen(
            children.command("-c", self._program),
            env=children.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is the parent's to answer
        )
        self._answers = queue.SimpleQueue()
        threading.Thread(
            target=_listen, args=(self._process, self._answers), name="genenc-isolated", daemon=True
        ).start()
        told = {"preprocessing": self._preprocessing.model_dump_json()}
        if not self._ask(self._process, told, STARTING_SECONDS):
            code = self._end(self._process, kill=True)
            raise ChildProcessError(f"the process that loads suspect images alone did not start (exit code {code})")
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], message: dict[str, Any], seconds: float) -> bytes | None:
        """Return the answer; empty when the process ended, None when it takes too long."""
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            return b""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def _end(self, process: subprocess.Popen[bytes], *, kill: bool = False) -> int:
        """End the child and return its exit code; 0 when it waits inside the kernel and cannot be ended."""
        if kill:
            process.kill()
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        self._process = None
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            return 0


def serve() -> None:
    """Answer requests from standard input on standard output until it is closed: the child's whole life."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    torch.set_num_threads(1)
    with contextlib.suppress(OSError):  # of all processes the one to go when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")
    told = json.loads(requests.readline())
    fitter = geometry.Fitter(spec.Preprocessing.model_validate_json(told["preprocessing"]))
    _answer(answers, b"ready")
    for line in requests:
        asked = json.loads(line)
        _answer(answers, _forked(reading.Request(**asked["request"]), fitter, Limits(**asked["limits"])))


def _forked(request: reading.Request, fitter: geometry.Fitter, limits: Limits) -> bytes:
    """Return the answer of a forked process, or how it ended."""
    try:
        with _memory() as said, _memory() as answer:
            return _answer_of_fork(request, fitter, limits, said, answer)
    except OSError as error:  # no process, memory or descriptor: no image's fault
        return _fault(error)


def _answer_of_fork(
    request: reading.Request, fitter: geometry.Fitter, limits: Limits, said: IO[bytes], answer: IO[bytes]
) -> bytes:
    process = os.fork()
    if process == 0:
        try:
            os.dup2(said.fileno(), 2)
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)  # its signal ends even what computes in C
            answer.write(_packed(request, reading.Reader(fitter, limits)))
            answer.flush()
            os._exit(0)
        except BaseException:
            os._exit(_BROKEN)
    _process, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == _BROKEN:
        return _fault(OSError(errno.ENOMEM, "the process that decodes it could not hand over the pixels"))
    answer.seek(0)
    content = answer.read() if code == 0 else b""
    if content:
        return content
    said.seek(0)
    words = said.read(2000).decode(errors="replace").strip().partition("\n")[0]
    return json.dumps({"ended": -code, "said": words[:120]}).encode()


def _memory() -> IO[bytes]:
    """Return a file in memory where the system has such files: a full temporary folder is not an image's fault."""
    create = getattr(os, "memfd_create", None)
    return tempfile.TemporaryFile() if create is None else os.fdopen(create("genenc"), "w+b")


def _fault(error: OSError) -> bytes:
    return json.dumps({"errno": error.errno, "words": error.strerror, "file": error.filename}).encode() + b"\n"


def _packed(request: reading.Request, reader: reading.Reader) -> bytes:
    try:
        done = reader.load(request)
    except OSError as error:
        return _fault(error)
    fields = {field.name: getattr(done, field.name) for field in dataclasses.fields(done)}
    pixels = fields.pop("pixels")
    fields["affine"] = None if done.affine is None else dataclasses.asdict(done.affine)
    fields["shape"] = None if pixels is None else list(pixels.shape)
    return json.dumps(fields).encode() + b"\n" + (b"" if pixels is None else pixels.numpy().tobytes())


def _unpacked(row: int, answer: bytes, limits: Limits) -> reading.LoadedImage:
    head, _, body = answer.partition(b"\n")
    fields = json.loads(head)
    if "ended" in fields and fields["ended"] in _FROM_OUTSIDE:
        raise Killed(_name(fields["ended"]))
    if fields.get("ended") == signal.SIGALRM:
        return _overdue(row, limits)
    if "ended" in fields:
        return reading.unreadable(row, _ending(fields["ended"], fields["said"]))
    if "errno" in fields:
        raise OSError(fields["errno"], fields["words"], fields["file"])
    shape = fields.pop("shape")
    pixels = None if shape is None else torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)
    affine = None if fields["affine"] is None else geometry.Affine(**fields["affine"])
    stamp = None if fields["stamp"] is None else stamps.Stamp(*fields["stamp"])
    return reading.LoadedImage(**{**fields, "row": row, "pixels": pixels, "affine": affine, "stamp": stamp})


def _answer(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(8, "little") + content)
    stream.flush()


def _listen(process: subprocess.Popen[bytes], answers: "queue.SimpleQueue[bytes]") -> None:
    """Pass on whole answers; an empty one says that the process ended."""
    assert process.stdout is not None
    with process.stdout as stream:
        while True:
            size = stream.read(8)
            content = stream.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
            if not content or len(content) < int.from_bytes(size, "little"):
                answers.put(b"")
                return
            answers.put(content)


def _overdue(row: int, limits: Limits) -> reading.LoadedImage:
    reason = (
        f"gave no result within {limits.seconds:g} s, in a separate process: save the file again, or allow more time "
        "with --image-timeout"
    )
    return reading.unreadable(row, reason, cause="file")


def _ending(number: int, said: str) -> str:
    """Return why an image is unreadable whose process ended with a signal (an exit code, when it is not positive)."""
    return f"its decoder ends the process ({_name(number)}{f': {said}' if said else ''}): save the file again"


def _name(number: int) -> str:
    return signal.Signals(number).name if number in {*signal.Signals} else f"exit code {-number}"
