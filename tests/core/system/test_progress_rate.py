"""The pace of work with a clock of the test's own."""

import pytest

from genenc_core.cli import output
from genenc_core.system import progress_rate


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_there_is_no_rate_before_the_first_item() -> None:
    clock = Clock()
    speed = progress_rate.Pace(clock=clock)
    clock.now += 30
    assert speed.per_second is None
    assert speed.seconds_for(5) is None


def test_the_first_batch_counts_from_the_start() -> None:
    clock = Clock()
    speed = progress_rate.Pace(clock=clock)
    clock.now += 20
    speed.add(32)
    clock.now += 0.1
    speed.add(2)
    assert speed.per_second == pytest.approx(34 / 20.1)


def test_the_rate_is_that_of_the_last_minute() -> None:
    clock = Clock()
    speed = progress_rate.Pace(clock=clock)
    for _ in range(100):
        clock.now += 1
        speed.add(200)
    for _ in range(70):
        clock.now += 1
        speed.add(3)
    assert speed.per_second == pytest.approx(3)
    assert speed.seconds_for(60) == pytest.approx(20)


def test_a_stall_lowers_the_rate_and_waiting_for_a_batch_does_not() -> None:
    clock = Clock()
    speed = progress_rate.Pace(clock=clock)
    for _ in range(6):
        clock.now += 10
        speed.add(20)
    clock.now += 9
    assert speed.per_second == pytest.approx(2)
    clock.now += 51
    assert speed.per_second == pytest.approx(1)


def test_shards_that_take_longer_than_the_window_have_a_rate() -> None:
    clock = Clock()
    speed = progress_rate.Pace(clock=clock)
    for _ in range(3):
        clock.now += 300
        speed.add(1)
    assert speed.seconds_for(2) == pytest.approx(600)


@pytest.mark.parametrize(("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (400, "7 min"), (12000, "3 h 20 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert progress_rate.duration(seconds) == words


def test_a_progress_line_says_what_it_does_before_the_first_figure() -> None:
    clock = Clock()
    line = output.ProgressLine(clock=clock)
    shown = line._progress.tasks[0]
    line.plan(116, 116)
    line.phase("loading the model")
    clock.now += 20
    line.phase("choosing the batch size")
    clock.now += 7
    assert (shown.description, line.words) == ("choosing the batch size", "")
    line.phase("encoding")
    clock.now += 20
    line.rows(34, 0)
    clock.now += 0.1
    line.rows(0, 2)
    assert shown.description == "encoding"
    assert line.words == "1.8 images/s, 45 s left, 2 failed"
    assert shown.completed == 36


def test_a_progress_line_of_a_continued_run_tells_what_was_done_before() -> None:
    line = output.ProgressLine(clock=Clock())
    line.phase("encoding")
    line.plan(16, 116)
    assert line._progress.tasks[0].description == "encoding (100 done before)"
