"""Too little memory or address space: one sentence, exit code 1, nothing taken for damage, and the run goes on."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import pictures
from genenc_core import errors
from genenc_core.cli import output
from genenc_core.encoding import shard_encoding
from genenc_core.images.decode import decode, decoded
from genenc_core.images.sources import manifest
from genenc_core.store import zarr_bytes
from genenc_core.system import memory

Call = Callable[..., Any]
TIMED_OUT = (124, 137)
LACKING = [
    MemoryError(),
    pa.lib.ArrowMemoryError("malloc of size 64 failed"),
    pa.ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    RuntimeError("could not create a primitive"),
    SystemError("<function _find_and_load> returned NULL without setting an exception"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
]


def limited(megabytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Return what a command answered that had only so much address space."""
    command = [Path(sys.executable).with_name("genenc"), *arguments]
    shell = f'ulimit -v {megabytes * 1024} && exec timeout -k 10 110 "$@"'
    return subprocess.run(
        ["bash", "-c", shell, "limited", *map(str, command)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def run(genenc: Call, photos: Path, tiny: list[str], tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    assert genenc("extract", photos, *tiny, "--out", folder, "--shard-rows", "2").code == 0
    return folder


@pytest.mark.parametrize("error", LACKING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("as_other", [False, True])
def test_it_is_said_in_one_sentence_whatever_the_error_was_taken_for(
    error: Exception, as_other: bool, genenc: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        if as_other:
            raise errors.InputError("cannot get the pretrained weights: connect to the network") from error
        raise error

    monkeypatch.setattr("genenc_core.cli.state.status", fail)
    said = genenc("status", tmp_path)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: not enough memory or address space")
    assert said.err.count("\n") == 1
    assert "network" not in said.err


@pytest.mark.parametrize("error", LACKING[1:4], ids=lambda error: type(error).__name__)
def test_a_shard_that_fails_for_want_of_it_says_so(
    error: Exception, genenc: Call, photos: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(shard_encoding.ShardEncoder, "run", fail)
    said = genenc("extract", photos, *tiny, "--out", tmp_path / "run")
    assert said.code == 1
    assert "shard 00000: not enough memory or address space: free some, or raise the limit" in said.err
    assert f"({error})" in said.err


def test_other_errors_keep_their_words() -> None:
    assert not memory.is_lacking(ValueError("of a model"))
    assert memory.lacking_cause(errors.InputError("no such model")) is None


def test_it_is_said_also_where_the_coloured_console_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.text", None)
    output.tell("not enough memory", label="error:")
    assert capsys.readouterr().err == "error: not enough memory\n"


@pytest.mark.slow
@pytest.mark.parametrize("error", LACKING, ids=lambda error: type(error).__name__)
def test_repair_takes_down_nothing_that_could_not_be_decoded_for_want_of_memory(
    error: Exception, genenc: Call, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(zarr_bytes, "decode", fail)
        said = genenc("verify", run, "--repair")
    assert said.code == 1
    assert "damaged" not in said.err
    assert genenc("status", run).code == 0
    assert genenc("verify", run, "--content").code == 0


@pytest.mark.parametrize("error", LACKING[:3], ids=lambda error: type(error).__name__)
def test_the_list_of_images_is_not_called_damaged_for_want_of_memory(
    error: Exception, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    listed = manifest.Manifest.open(run / "images.parquet")
    for method in ("iter_batches", "read_row_group"):
        monkeypatch.setattr(parquet.ParquetFile, method, fail)
    with pytest.raises(MemoryError):
        listed.content_digest()
    with pytest.raises(MemoryError):
        listed.read(0, 1)


def test_a_decoder_that_wants_memory_says_nothing_of_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (path,) = pictures.write_folder(tmp_path / "one", 1).iterdir()

    def fail(*_arguments: object) -> None:
        raise RuntimeError("OpenCV(4.11): error: (-4:Insufficient memory) Failed to allocate 300 bytes")

    monkeypatch.setattr(decode, "_decode_png", fail)
    with pytest.raises(MemoryError):
        decode.decode_image(path.read_bytes(), max_pixels=10**6)
    assert not issubclass(MemoryError, decoded.ImageUnreadable)


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [300, 4500])
def test_a_run_goes_on_when_there_is_more_address_space(
    megabytes: int, genenc: Call, photos: Path, tmp_path: Path
) -> None:
    """What fails first under a real limit is chance, and so are its words: those are tested above."""
    run = tmp_path / "run"
    options = ["--model", "resnet18", "--weights", "random:0", "--image-size", "32", "--shard-rows", "2", "--plain"]
    said = limited(megabytes, "extract", photos, *options, "--out", run)
    assert said.returncode not in TIMED_OUT
    if megabytes < 1000:
        assert said.returncode != 0
    assert "damaged" not in said.stderr
    assert genenc("extract", photos, *options, "--out", run).code == 0


@pytest.mark.slow
def test_a_run_is_not_called_damaged_and_no_command_hangs(run: Path) -> None:
    for command in (["status"], ["verify", "--content", "--repair"]):
        said = limited(300, command[0], run, *command[1:])
        assert said.returncode not in TIMED_OUT, command
        assert "damaged" not in said.stderr + said.stdout
