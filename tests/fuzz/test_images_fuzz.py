"""Damaged images are answered by pixels or a reason: the short form of images.py, and that it would notice."""

import dataclasses
import importlib.util
import math
import os
import sys
import threading
from multiprocessing import connection
from pathlib import Path
from types import ModuleType

import pytest
import torch

from genenc_core.images.decode import decode, decoded


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    """The program beside this file, whose own helpers lie beside it, too."""
    here = Path(__file__).parent
    sys.path.insert(0, str(here))
    try:
        found = importlib.util.spec_from_file_location("fuzz_images", here / "images.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules["fuzz_images"] = module
        found.loader.exec_module(module)
    finally:
        sys.path.remove(str(here))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp", "gif", "bmp", "ppm"])
def test_no_traceback_hang_or_crash(fuzzer: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(fuzzer, "LIMITS", dataclasses.replace(fuzzer.LIMITS, seconds=300))
    tally = fuzzer.fuzz(kind, seed=20261121, count=120, until=math.inf)
    assert tally.tried == 120
    assert tally.bad == 0, tally
    assert tally.decoded > 5, "damage so great that nothing is reached"
    assert tally.reasons.total() > 5, "no damage at all"
    assert tally.peak_mib < 2000


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raises", "hangs", "aborts", "lies"])
def test_the_fuzzer_notices(fuzzer: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str) -> None:
    """A decoder that misbehaves for one input of twenty is found, and that input is kept."""
    real, poison, hanging = decode.decode_image, fuzzer.make("gif", 0, 7), tmp_path / "hanging"
    ready = connection.Connection.poll

    def poll(answers: connection.Connection, _seconds: float) -> bool:
        """Time passes when an input hangs."""
        while not ready(answers, 0.02):
            if hanging.exists():
                hanging.unlink()
                return ready(answers, 0)
        return True

    def broken(data: bytearray, *, max_pixels: int, hint: object = None) -> decoded.Decoded:
        if data != poison:
            return real(data, max_pixels=max_pixels)
        if fault == "raises":
            raise KeyError("tag")
        if fault == "hangs":
            hanging.touch()
            threading.Event().wait()
        if fault == "aborts":
            os.abort()
        return decoded.Decoded(pixels=torch.zeros(3, 5000, 5000, dtype=torch.uint8), orientation=1, size=(5000, 5000))

    monkeypatch.setattr(decode, "decode_image", broken)
    monkeypatch.setattr(connection.Connection, "poll", poll)
    tally = fuzzer.fuzz("gif", seed=0, count=20, until=math.inf, keep=tmp_path)
    assert tally.tried == 20
    assert tally.bad == 1
    assert {"raises": tally.tracebacks, "hangs": tally.hangs, "aborts": tally.crashes, "lies": tally.tracebacks}[fault]
    assert (tmp_path / "gif-0-7").read_bytes() == fuzzer.make("gif", 0, 7)
