"""A short form of the input fuzzer, and the proof that it sees tracebacks, hangs, memory and raw characters."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import fuzz_targets
import fuzzing
import mutations

COUNTS = {"specs": 250, "points-tidy": 250, "points-dlc": 250, "points-parquet": 40, "configs": 200, "model-files": 60}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*COUNTS, "records", "command-lines"])
def test_mutated_inputs_are_answered_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    from genenc_core.cli import models

    # The fuzzer takes the slow part of the table of models out; this gives it back.
    monkeypatch.setattr(models, "_with_shapes", models._with_shapes)
    found = fuzzing.run(fuzz_targets.KINDS[kind](tmp_path / "work"), seed=1, start=0, count=COUNTS.get(kind, 40))
    assert found["failures"] == []
    assert len(found["outcomes"]) > 1


class _Broken:
    """A target that fails as it is told."""

    def __init__(self, fail: Callable[[], Any]) -> None:
        self.fail = fail

    def case(self, rng: random.Random) -> bytes:
        return rng.randbytes(3)

    def run(self, _data: bytes) -> str:
        return fuzz_targets.one_refusal(self.fail)


def _forever() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (lambda: {}["absent"], "KeyError"),
        (_forever, "Hang"),
        (lambda: bytearray(8 << 30), "MemoryError"),
        (lambda: bytearray(b"x" * (1 << 27)), "memory grew"),
        (lambda: (_ for _ in ()).throw(fuzz_targets.errors.InputError("")), "without words"),
    ],
)
def test_the_fuzzer_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch, fail: Callable[[], Any], said: str) -> None:
    monkeypatch.setattr(fuzzing, "SECONDS", 3.0)
    monkeypatch.setattr(fuzzing, "GROWTH_BYTES", 1 << 26)
    bytearray(b"x" * (1 << 28))  # an earlier peak of the process hides nothing
    found = fuzzing.run(_Broken(fail), seed=0, start=0, count=1)
    assert said in found["failures"][0]["error"]


def test_raw_characters_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line that prints a name as it is."""
    careless = typer.Typer()
    careless.command()(lambda name: typer.echo(name))
    monkeypatch.setattr(fuzz_targets.app, "build_app", lambda _runner: careless)
    target = fuzz_targets.CommandLines.__new__(fuzz_targets.CommandLines)
    assert target.run(b'["harmless"]') == "exit 0"
    with pytest.raises(AssertionError, match="control characters"):
        target.run(b'["a\\u202eb"]')


def test_cases_can_be_repeated() -> None:
    first, second = (mutations.mutated_bytes(random.Random("3:7"), [b"abc" * 50]) for _ in range(2))
    assert first == second
