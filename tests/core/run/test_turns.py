"""Shards of one process are loaded one after the other; one that stalls, or ends in an error, holds up no other."""

import threading
from collections.abc import Iterator

import pytest

from genenc_core import errors
from genenc_core.encoding import control
from genenc_core.images.reading import LoadedImage, unreadable
from genenc_core.run import turns


def rows(count: int) -> Iterator[LoadedImage]:
    for row in range(count):
        yield unreadable(row, "x")


def test_the_next_begins_when_only_a_window_is_left() -> None:
    shared, entered = turns.Turns(), threading.Event()

    def second() -> None:
        with shared.turn(4, 1) as passing:
            entered.set()
            assert len(list(passing(rows(4)))) == 4

    thread = threading.Thread(target=second)
    with shared.turn(10, 3) as passing:
        thread.start()
        for image in passing(rows(10)):
            if image.row < 6:
                assert not entered.is_set()
            if image.row == 6:
                assert entered.wait(10)
    thread.join(10)
    assert not thread.is_alive()


def test_an_error_ends_a_turn() -> None:
    shared = turns.Turns()

    def broken() -> None:
        with shared.turn(10, 0) as passing:
            next(passing(rows(10)))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    with shared.turn(1, 0) as passing:
        assert len(list(passing(rows(1)))) == 1


def test_a_stalled_shard_lets_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "STALLED_SECONDS", 0.05)
    shared = turns.Turns()
    with shared.turn(10, 0), shared.turn(3, 0) as passing:
        assert len(list(passing(rows(3)))) == 3


def test_waiting_for_a_turn_ends_when_the_work_is_stopped() -> None:
    shared, watch = turns.Turns(), control.Control()
    watch.stop()
    with shared.turn(10, 0), control.use(watch), pytest.raises(errors.Stopped), shared.turn(1, 0):
        pass
