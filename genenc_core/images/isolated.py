"""Processes of their own for images that a process died of or a thread hangs on: they may crash, hang or be killed.

A child imports what loading takes, which needs seconds, and forks once per image, which needs milliseconds. It has one
thread, so that forking it is safe.
"""

import contextlib
import dataclasses
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
from genenc_core.images import geometry, reading
from genenc_core.images.limits import Limits

STARTING_SECONDS = 120.0
_GRACE_SECONDS = 10.0
_CHILD = "from genenc_core.images import isolated; {}"
_SERVE = "isolated.serve()"


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

        Raises:
            OSError: as `Reader.load`, or the child process cannot be started.
        """
        with self._turn:
            process = self._started()
            asked = {"request": request._asdict(), "limits": dataclasses.asdict(self._limits)}
            answer = self._ask(process, asked, self._limits.seconds + _GRACE_SECONDS)
            if answer:
                return _unpacked(request.row, answer, self._limits)
            code = self._end(process, kill=answer is None)
            return reading.unreadable(
                request.row, _ending(signal.SIGALRM if answer is None else -code, "", self._limits)
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
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as answer:
        process = os.fork()
        if process == 0:
            os.dup2(said.fileno(), 2)
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)  # its signal ends even what computes in C
            answer.write(_packed(request, reading.Reader(fitter, limits)))
            answer.flush()
            os._exit(0)
        _process, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            answer.seek(0)
            return answer.read()
        said.seek(0)
        words = said.read(2000).decode(errors="replace").strip().partition("\n")[0]
        return json.dumps({"ended": -code, "said": words[:120]}).encode()


def _packed(request: reading.Request, reader: reading.Reader) -> bytes:
    try:
        done = reader.load(request)
    except OSError as error:
        return json.dumps({"errno": error.errno, "words": error.strerror}).encode() + b"\n"
    fields = {field.name: getattr(done, field.name) for field in dataclasses.fields(done)}
    pixels = fields.pop("pixels")
    fields["affine"] = None if done.affine is None else dataclasses.asdict(done.affine)
    fields["shape"] = None if pixels is None else list(pixels.shape)
    return json.dumps(fields).encode() + b"\n" + (b"" if pixels is None else pixels.numpy().tobytes())


def _unpacked(row: int, answer: bytes, limits: Limits) -> reading.LoadedImage:
    head, _, body = answer.partition(b"\n")
    fields = json.loads(head)
    if "ended" in fields:
        return reading.unreadable(row, _ending(fields["ended"], fields["said"], limits))
    if "errno" in fields:
        raise OSError(fields["errno"], fields["words"])
    shape = fields.pop("shape")
    pixels = None if shape is None else torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)
    affine = None if fields["affine"] is None else geometry.Affine(**fields["affine"])
    return reading.LoadedImage(**{**fields, "row": row, "pixels": pixels, "affine": affine})


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


def _ending(number: int, said: str, limits: Limits) -> str:
    """Return why an image is unreadable whose process ended with a signal (an exit code, when it is negative)."""
    if number == signal.SIGALRM:
        return (
            f"gave no result within {limits.seconds:g} s, in a process of its own: write the file anew, or allow "
            "more time with --image-timeout"
        )
    name = signal.Signals(number).name if number in {*signal.Signals} else f"exit code {-number}"
    more = ", perhaps for want of memory" if number == signal.SIGKILL else f": {said}" if said else ""
    return f"its decoder ends the process ({name}{more}): write the file anew"
