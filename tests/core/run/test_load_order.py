"""Shards of one process are loaded one after the other; one that stalls, or ends in an error, holds up no other."""

import threading

import pytest

from genenc_core import errors
from genenc_core.encoding import cancellation
from genenc_core.run import load_order


def test_the_next_begins_when_all_of_the_first_is_in_work() -> None:
    shared, entered = load_order.LoadOrder(), threading.Event()

    def second() -> None:
        with shared.turn() as turn:
            entered.set()
            turn.end()
            turn.end()

    thread = threading.Thread(target=second)
    with shared.turn() as turn:
        thread.start()
        turn.moved()
        assert not entered.wait(0.3)
        turn.end()
        assert entered.wait(300)
    thread.join(300)
    assert not thread.is_alive()


def test_an_error_ends_a_turn() -> None:
    shared = load_order.LoadOrder()

    def broken() -> None:
        with shared.turn():
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    with shared.turn():
        assert shared._lock.locked()
    assert not shared._lock.locked()


def test_a_stalled_shard_lets_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_order, "STALLED_SECONDS", 0.05)
    shared = load_order.LoadOrder()
    with shared.turn(), shared.turn() as turn:
        turn.end()
        assert shared._lock.locked(), "it is the first one's"


def test_waiting_for_a_turn_ends_when_the_work_is_stopped() -> None:
    shared, watch = load_order.LoadOrder(), cancellation.Control()
    watch.stop()
    with shared.turn(), cancellation.use(watch), pytest.raises(errors.Stopped), shared.turn():
        pass
