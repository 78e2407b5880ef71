"""A process of its own for images that a process died of or a thread hangs on: it may crash, hang or be killed."""

import contextlib
import dataclasses
import json
import math
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

from genenc_core import spec
from genenc_core.images import geometry, reading
from genenc_core.images.limits import Limits

STARTING_SECONDS = 120.0
_CHILD = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from genenc_core.images import isolated; {}"
_SERVE = "isolated.serve()"


class IsolatedLoader:
    """Loads images in a child process, one at a time; started when first needed, and again after it died."""

    def __init__(self, preprocessing: spec.Preprocessing, limits: Limits) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self._program = _CHILD.format(_SERVE)
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def load(self, request: reading.Request) -> reading.LoadedImage:
        """Return what `reading.load` returns; an image that ends its process or outlasts the limit has that reason.

        Raises:
            OSError: as `reading.load`, or the child process cannot be started.
        """
        with self._turn:
            process = self._started()
            asked = {"row": request.row, "path": str(request.path), "bytes": request.planned_bytes}
            answer = self._ask(process, asked, self._limits.seconds)
            if answer is None:
                return reading.unreadable(request.row, self._end(process, hung=True))
            if not answer:
                return reading.unreadable(request.row, self._end(process, hung=False))
            return _unpacked(request.row, answer)

    def close(self) -> None:
        """End the child process."""
        with self._turn:
            if self._process is not None:
                self._end(self._process, hung=False)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._process is not None:
            self._end(self._process, hung=False)
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._program, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C is the parent's to answer
        )
        self._answers = queue.SimpleQueue()
        threading.Thread(
            target=_listen, args=(self._process, self._answers), name="genenc-isolated", daemon=True
        ).start()
        told = {"preprocessing": self._preprocessing.model_dump_json(), "limits": dataclasses.asdict(self._limits)}
        if not self._ask(self._process, told, STARTING_SECONDS):
            reason = self._end(self._process, hung=False)
            raise ChildProcessError(f"the process that loads suspect images alone did not start: {reason}")
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

    def _end(self, process: subprocess.Popen[bytes], *, hung: bool) -> str:
        """End the child; return in words how it came to that."""
        if hung:
            process.kill()
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it waits inside the kernel, for a volume that does not answer
            process.kill()
            code = 0
        self._process = None
        if hung:
            return (
                f"gave no result within {self._limits.seconds:g} s, in a process of its own: write the file anew, or "
                "allow more time with --image-timeout"
            )
        return f"its decoder ends the process ({_signal_name(code)}{self._last_words()}): write the file anew"

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        with self._errors as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 2000, 0))
            lines = file.read().decode(errors="replace").split("\n")
        self._errors = None
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:120]}" if last else ""


def serve() -> None:
    """Answer requests from standard input on standard output until it is closed: the child's whole life."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    torch.set_num_threads(1)
    with contextlib.suppress(OSError):  # of all processes the one to go when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")
    told = json.loads(requests.readline())
    preprocessing = spec.Preprocessing.model_validate_json(told["preprocessing"])
    limits = Limits(**told["limits"])
    _answer(answers, b"ready")
    for line in requests:
        asked = json.loads(line)
        signal.alarm(math.ceil(limits.seconds) + 5)  # should the parent be gone by then
        request = reading.Request(asked["row"], Path(asked["path"]), asked["bytes"])
        _answer(answers, _packed(request, preprocessing, limits))
        signal.alarm(0)


def _packed(request: reading.Request, preprocessing: spec.Preprocessing, limits: Limits) -> bytes:
    try:
        done = reading.load(request, preprocessing, limits)
    except OSError as error:
        return json.dumps({"errno": error.errno, "words": error.strerror}).encode() + b"\n"
    fields = {field.name: getattr(done, field.name) for field in dataclasses.fields(done)}
    pixels = fields.pop("pixels")
    fields["affine"] = None if done.affine is None else dataclasses.asdict(done.affine)
    fields["shape"] = None if pixels is None else list(pixels.shape)
    return json.dumps(fields).encode() + b"\n" + (b"" if pixels is None else pixels.numpy().tobytes())


def _unpacked(row: int, answer: bytes) -> reading.LoadedImage:
    head, _, body = answer.partition(b"\n")
    fields = json.loads(head)
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


def _signal_name(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in iter(signal.Signals) else f"signal {-code}"
    return f"{name}, perhaps out of memory" if code == -signal.SIGKILL else name
