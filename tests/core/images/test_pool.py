"""The decoding threads: they take several images at once, and lose none of them whatever becomes of one."""

import itertools
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch

from genenc_core.images import inflight, plain_jpeg, pool, reading

Load = Callable[[reading.Request], reading.LoadedImage]


class Work:
    """Loads images one by one with `load`; rows of `together` in two steps, the second with `finish`."""

    def __init__(
        self,
        load: Load,
        finish: Callable[[list[int]], None] = lambda _rows: None,
        together: Container[int] = (),
    ) -> None:
        self.load, self.finishing, self.together = load, finish, together

    def begin(self, request: reading.Request) -> reading.LoadedImage | reading.Begun:
        done = self.load(request)
        if request.row not in self.together:
            return done
        file = reading._File(request, bytearray(), "", None, 0.0)
        return reading.Begun(file, plain_jpeg.Source(torch.empty(0), (1, 1), (1, 1), (None, None), "bilinear"))

    def finish(self, begun: Sequence[reading.Begun]) -> list[reading.LoadedImage]:
        self.finishing([each.file.request.row for each in begun])
        return [loaded(each.file.request) for each in begun]


def loaded(request: reading.Request) -> reading.LoadedImage:
    return reading.unreadable(request.row, "not looked at")


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[Callable[..., pool.DecodePool]]:
    made: list[pool.DecodePool] = []

    def make(work: Load | Work, *, threads: int = 1, seconds: float = 30.0) -> pool.DecodePool:
        journal = inflight.Journal(tmp_path / "notes", pool.slots(threads))
        loads = work if isinstance(work, Work) else Work(work)
        made.append(pool.DecodePool(loads, threads=threads, seconds=seconds, journal=journal))
        return made[-1]

    yield make
    for each in made:
        each.close()


def requests(count: int) -> list[reading.Request]:
    return [reading.Request(row, f"{row}.png", 0) for row in range(count)]


def noted(folder: Path) -> set[int]:
    (file,) = (folder / "notes").glob("*.rows")
    copied = folder / "copied"
    copied.mkdir(exist_ok=True)
    (copied / "copy.rows").write_bytes(file.read_bytes())
    return inflight.Journal(copied, 1).suspects()


def test_every_image_is_loaded_once_whoever_takes_it(pools: Callable[..., pool.DecodePool]) -> None:
    seen: list[int] = []

    def work(request: reading.Request) -> reading.LoadedImage:
        seen.append(request.row)
        return loaded(request)

    decoding = pools(work, threads=3)
    jobs = [decoding.submit(request) for request in requests(200)]
    assert [decoding.wait(job).row for job in jobs] == list(range(200))
    assert sorted(seen) == list(range(200))
    assert decoding.close()


def test_a_thread_that_draws_the_end_among_its_images_leaves_it_for_the_others(
    pools: Callable[..., pool.DecodePool],
) -> None:
    begun, released = threading.Event(), threading.Event()

    def work(request: reading.Request) -> reading.LoadedImage:
        if request.row == 0:
            begun.set()
            assert released.wait(10)
        return loaded(request)

    decoding = pools(work)
    jobs = [decoding.submit(requests(1)[0])]
    assert begun.wait(10)
    jobs += [decoding.submit(request) for request in requests(4)[1:]]
    for _ in range(21):  # so many that the thread would take more than there are images before the end
        decoding._jobs.put(None)
    released.set()
    assert [decoding.wait(job).row for job in jobs] == [0, 1, 2, 3]
    (worker,) = decoding._workers
    assert worker.thread is not None
    worker.thread.join(10)
    assert not worker.thread.is_alive()


def test_what_a_hanging_thread_had_taken_is_done_by_another(
    pools: Callable[..., pool.DecodePool], tmp_path: Path
) -> None:
    """One thread takes several images and hangs on the second; all that it took is in the notes."""
    begun, queued, released = threading.Event(), threading.Event(), threading.Event()

    def work(request: reading.Request) -> reading.LoadedImage:
        if request.row == 0:
            begun.set()
            assert queued.wait(10)
        if request.row == 2:
            released.wait(30)
        return loaded(request)

    decoding = pools(work, seconds=0.5)
    first, *others = requests(40)
    jobs = [decoding.submit(first)]
    assert begun.wait(10)
    jobs += [decoding.submit(request) for request in others]
    queued.set()
    assert decoding.wait(jobs[1]).row == 1
    with pytest.raises(pool.Overdue):
        decoding.wait(jobs[2])
    assert noted(tmp_path) >= {2, 3, 4}
    assert [decoding.wait(job).row for job in jobs[3:]] == list(range(3, 40))
    released.set()
    (hung,) = decoding._hung
    assert hung.thread is not None
    hung.thread.join(10)
    deadline = time.monotonic() + 10
    while noted(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert noted(tmp_path) == set(), "the one has come back, the other has nothing to do"


class Gate:
    """Lets a thread begin with row 0 only when all the others are queued, so that it then takes eight of them."""

    def __init__(self) -> None:
        self.begun, self.queued = threading.Event(), threading.Event()

    def load(self, request: reading.Request) -> reading.LoadedImage:
        if request.row == 0:
            self.begun.set()
            assert self.queued.wait(10)
        return loaded(request)

    def fill(self, decoding: pool.DecodePool, count: int) -> list[pool.Job]:
        first, *others = requests(count)
        jobs = [decoding.submit(first)]
        assert self.begun.wait(10)
        jobs += [decoding.submit(request) for request in others]
        self.queued.set()
        return jobs


def test_what_can_be_is_finished_together(pools: Callable[..., pool.DecodePool]) -> None:
    """Of eight that are taken, those that are done alone are not waited for, and each has its own result."""
    gate, together = Gate(), []
    decoding = pools(Work(gate.load, together.append, together=set(range(1, 60)) - {3}))
    jobs = gate.fill(decoding, 60)
    assert [decoding.wait(job).row for job in jobs] == list(range(60))
    assert together[0] == [1, 2, 4, 5, 6, 7, 8]
    assert sorted(itertools.chain(*together)) == sorted(set(range(1, 60)) - {3})


def test_all_that_hang_together_are_overdue_and_the_others_are_done(
    pools: Callable[..., pool.DecodePool], tmp_path: Path
) -> None:
    gate, released = Gate(), threading.Event()
    seen: list[list[int]] = []

    def finish(rows: list[int]) -> None:
        seen.append(rows)
        if len(seen) == 1:
            released.wait(30)

    decoding = pools(Work(gate.load, finish, together=range(1, 40)), seconds=0.4)
    jobs = gate.fill(decoding, 40)
    assert decoding.wait(jobs[0]).row == 0
    for job in jobs[1:9]:
        with pytest.raises(pool.Overdue):
            decoding.wait(job)
    assert noted(tmp_path) >= set(range(1, 9)), "a process that dies now leaves them as suspects"
    assert [decoding.wait(job).row for job in jobs[9:]] == list(range(9, 40))
    released.set()
    (hung,) = decoding._hung
    assert hung.thread is not None
    hung.thread.join(10)
    assert not hung.thread.is_alive()
    assert sorted(itertools.chain(*seen)) == list(range(1, 40)), "nothing is done twice"


def test_what_was_begun_before_the_one_that_hangs_is_done_by_another(pools: Callable[..., pool.DecodePool]) -> None:
    gate, released = Gate(), threading.Event()
    begun: list[int] = []
    finished: list[list[int]] = []

    def load(request: reading.Request) -> reading.LoadedImage:
        begun.append(request.row)
        if request.row == 4 and begun.count(4) == 1:
            released.wait(30)
        return gate.load(request)

    decoding = pools(Work(load, finished.append, together=range(1, 40)), seconds=0.4)
    jobs = gate.fill(decoding, 40)
    with pytest.raises(pool.Overdue):
        decoding.wait(jobs[4])
    assert [decoding.wait(jobs[row]).row for row in range(40) if row != 4] == [row for row in range(40) if row != 4]
    released.set()
    (hung,) = decoding._hung
    assert hung.thread is not None
    hung.thread.join(10)
    assert not hung.thread.is_alive()
    assert sorted(itertools.chain(*finished)) == [row for row in range(1, 40) if row != 4], (
        "the one that came back did none"
    )
    assert (begun.count(3), begun.count(5)) == (2, 1)


def test_a_fault_of_several_is_that_of_each(pools: Callable[..., pool.DecodePool]) -> None:
    gate = Gate()

    def finish(rows: list[int]) -> None:
        if 5 in rows:
            raise MemoryError(f"no memory for {len(rows)}")

    decoding = pools(Work(gate.load, finish, together=range(1, 40)))
    jobs = gate.fill(decoding, 40)
    for job in jobs[1:9]:
        with pytest.raises(MemoryError, match="no memory for 8"):
            decoding.wait(job)
    assert [decoding.wait(job).row for job in jobs[9:]] == list(range(9, 40))


def test_a_pool_that_lost_its_threads_works_again_when_they_come_back(pools: Callable[..., pool.DecodePool]) -> None:
    """A volume that stalled for a while fails what was asked for then, and nothing after it."""
    released = threading.Event()

    def work(request: reading.Request) -> reading.LoadedImage:
        if request.row < 5:
            released.wait(30)
        return loaded(request)

    decoding = pools(work, seconds=0.2)
    jobs = [decoding.submit(request) for request in requests(8)]
    faults = set()
    for job in jobs[:5]:
        with pytest.raises((pool.Overdue, pool.TooManyHung)) as caught:
            decoding.wait(job)
        faults.add(caught.type)
    assert pool.TooManyHung in faults
    released.set()
    for hung in decoding._hung:
        assert hung.thread is not None
        hung.thread.join(10)
    assert decoding.wait(decoding.submit(reading.Request(50, "50.png", 0))).row == 50


def test_after_the_end_nothing_is_taken_and_nobody_waits(pools: Callable[..., pool.DecodePool]) -> None:
    decoding = pools(loaded)
    decoding.close()
    with pytest.raises(CancelledError):
        decoding.wait(decoding.submit(requests(1)[0]))


def test_what_waits_when_the_pool_is_closed_is_given_up_and_said_so(pools: Callable[..., pool.DecodePool]) -> None:
    """Also what a thread has taken and not begun; who waits for it is not left waiting."""
    begun, released = threading.Event(), threading.Event()
    seen: list[int] = []

    def work(request: reading.Request) -> reading.LoadedImage:
        seen.append(request.row)
        begun.set()
        released.wait(10)
        return loaded(request)

    decoding = pools(work)
    jobs = [decoding.submit(request) for request in requests(30)]
    assert begun.wait(10)
    closing = threading.Thread(target=decoding.close)
    closing.start()
    with pytest.raises(CancelledError):
        decoding.wait(jobs[-1])
    released.set()
    closing.join()
    assert decoding.wait(jobs[0]).row == 0
    assert len(seen) <= 2
    for job in jobs[len(seen) : -1]:
        with pytest.raises(CancelledError):
            decoding.wait(job)


def test_an_image_that_was_begun_cannot_be_cancelled(pools: Callable[..., pool.DecodePool]) -> None:
    begun, released = threading.Event(), threading.Event()

    def work(request: reading.Request) -> reading.LoadedImage:
        begun.set()
        released.wait(10)
        return loaded(request)

    decoding = pools(work)
    job, waiting = (decoding.submit(request) for request in requests(2))
    assert begun.wait(10)
    decoding.cancel(job)
    decoding.cancel(waiting)
    released.set()
    assert decoding.wait(job).row == 0
    with pytest.raises(CancelledError):
        decoding.wait(waiting)


def test_a_thread_in_place_of_one_that_died_writes_to_no_others_place(
    pools: Callable[..., pool.DecodePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Want of memory ended it before it had an image; the one that hangs meanwhile keeps its own note."""
    hold, held = threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)

    def work(request: reading.Request) -> reading.LoadedImage:
        if request.row == 1:
            held.set()
            hold.wait(30)
        return loaded(request)

    decoding = pools(work, threads=2, seconds=0.4)
    real = decoding._journal.begin

    def begin(slot: int, rows: list[int]) -> None:
        if rows == [0]:
            raise MemoryError
        real(slot, rows)

    monkeypatch.setattr(decoding._journal, "begin", begin)
    slow = decoding.submit(reading.Request(1, "1.png", 0))
    assert held.wait(10)
    with pytest.raises(MemoryError):
        decoding.wait(decoding.submit(reading.Request(0, "0.png", 0)))
    with pytest.raises(pool.Overdue):
        decoding.wait(slow)
    alive = [worker for worker in (*decoding._workers, *decoding._hung) if worker.thread and worker.thread.is_alive()]
    assert len({worker.slot for worker in alive}) == len(alive) == 3
    hold.set()
