"""A run names the stage that limits it: of stages that are slow on purpose, and of times as machines have them."""

import dataclasses
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from genenc_core import errors
from genenc_core.encoding import cancellation
from genenc_core.images.decode import decode, load_image
from genenc_core.run import bound, driver, identity, status, status_cache
from genenc_core.run.bound import Work
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes
from genenc_core.store import run_store
from loading import fork_workers
from tiny_models import Colours

__all__ = ["fork_workers"]
Extract = Callable[..., driver.Result]
ON_GPU = Work(wall=100.0, start=10.0, store=2.0, store_cpu=1.0, cpu=20.0, cores=8, workers=8, side_by_side=1, on_host=0)
ON_CPU = Work(wall=100.0, start=10.0, store=2.0, store_cpu=1.0, cpu=90.0, cores=2, workers=2, side_by_side=2, on_host=1)


def found(work: Work, **seconds: float) -> bound.Bound:
    named = bound.find([(seconds, work)])
    assert named is not None
    return named


@pytest.mark.parametrize(
    ("work", "seconds", "stage", "share", "words"),
    [
        (
            ON_GPU,
            {"read": 40, "decode": 200, "decode_workers": 220, "encode": 90, "reduce": 6, "copy": 20},
            "forward",
            0.96,
            "limited by forward: the encoder is busy 96 % of the time (reading 5 %, decoding 25 %, copying 20 %, "
            "storing 2 %); a faster device, or another one, would help",
        ),
        (
            ON_GPU._replace(workers=2),
            {"read": 6, "decode": 186, "decode_workers": 190, "encode": 41},
            "decoding",
            0.96,
            "limited by decoding: 2 decode workers busy 96 % of the time (reading 3 %, forward 41 %, storing 2 %); "
            "more --decode-workers would help",
        ),
        (
            ON_GPU,
            {"read": 30, "decode": 760, "decode_workers": 750, "encode": 41},
            "decoding",
            0.9625,
            "limited by decoding: the cores are busy 96 % of the time (reading 4 %, decoding 90 %, forward 2 %); more "
            "cores would help",
        ),
        (
            ON_GPU._replace(workers=1),
            {"read": 95, "decode": 3, "decode_workers": 4, "encode": 41},
            "reading",
            0.98,
            "limited by reading: 1 decode worker busy 98 % of the time (decoding 3 %, forward 41 %, storing 2 %); more "
            "--decode-workers (they wait for files) or a faster disk would help",
        ),
        (
            ON_GPU,
            {"read": 5, "decode": 10, "encode": 41, "copy": 93},
            "copying",
            0.93,
            "limited by copying: the link to the device is busy 93 % of the time (decoding 1 %, forward 41 %, storing "
            "2 %); a smaller --image-size, or smaller products, would help",
        ),
        (
            ON_GPU._replace(store=97.0),
            {"decode": 10, "encode": 41},
            "storing",
            0.97,
            "limited by storing: a shard is being stored 97 % of the time (decoding 1 %, forward 41 %); faster storage "
            "for the run, or smaller products, would help",
        ),
        (
            # Workers and encoder all wait for two cores: both seem busy all the time.
            ON_CPU,
            {"read": 10, "decode": 190, "decode_workers": 105, "encode": 199},
            "decoding",
            0.975,
            "limited by decoding: the cores are busy 98 % of the time (reading 3 %, decoding 50 %, forward 44 %); more "
            "cores would help",
        ),
        (
            ON_CPU._replace(cpu=180.0),
            {"read": 10, "decode": 190, "decode_workers": 15, "encode": 199},
            "forward",
            0.975,
            "limited by forward: the cores are busy 98 % of the time (decoding 7 %, forward 90 %); more cores or a GPU "
            "would help",
        ),
        (
            # A model whose threads leave cores free.
            ON_CPU,
            {"encode": 190},
            "forward",
            0.95,
            "limited by forward: the encoder is busy 95 % of the time (storing 2 %); a GPU would help",
        ),
        (
            ON_CPU._replace(wall=4.0),
            {"encode": 8.0},
            "start",
            0.7143,
            "limited by startup: 10.0 s before the first images, 4.0 s after",
        ),
        (
            ON_GPU,
            {"encode": 30},
            "forward",
            0.3,
            "limited by no single stage; the busiest is forward: the encoder is busy 30 % of the time (storing 2 %)",
        ),
    ],
)
def test_bound_is_most_used(work: Work, seconds: Mapping[str, float], stage: str, share: float, words: str) -> None:
    named = found(work, **seconds)
    assert (named.stage, named.share, named.words) == (stage, share, words)
    assert tuple(named.shares) == bound.STAGES


def test_processes_count_by_their_time() -> None:
    """A long session on the CPU and a short one on a GPU; of records that say nothing, nothing is said."""
    long = ({"encode": 190.0}, ON_CPU)
    short = ({"decode": 75.0}, ON_GPU._replace(wall=10.0, start=0.0, store=0.2))
    both = bound.find([long, short])
    assert both is not None
    assert both.stage == "forward"
    assert both.shares["forward"] == pytest.approx(190 / 210, abs=1e-4)
    assert both.shares["decoding"] == pytest.approx(75 / 280, abs=1e-4)
    assert (both.seconds, both.start) == (110.0, 10.0)
    for cpu, gpu in ((100.0, 10.0), (10.0, 100.0)):
        mixed = bound.find([({}, ON_CPU._replace(wall=cpu)), ({}, ON_GPU._replace(wall=gpu))])
        assert mixed is not None
        assert mixed.on_host == (cpu > gpu)
    assert bound.find([]) is None
    assert Work.of({"seconds": {}}) is None
    assert Work.of({"work": {"wall": 1.0}}) is None
    assert Work.of({"work": {**ON_GPU._asdict(), "later": 1}}) == ON_GPU


def test_absurd_times_are_no_traceback() -> None:
    details = {"points": {}, "unreadable": [], "seconds": {}, "work": ON_GPU._asdict()}
    identity.check_details(details, subject="it")
    for name in ("seconds", "work"):
        with pytest.raises(errors.StoreError, match="finite"):
            identity.check_details(details | {name: {"wall": 10**400}}, subject="it")
    assert bound.find([({"encode": 1e308}, ON_GPU._replace(wall=1e308, workers=1e308))]) is None
    for wall in (0.0, -5.0):
        assert found(ON_GPU._replace(wall=wall), encode=5).share >= 0


def test_shards_stored_at_once_are_counted_once_and_nothing_is_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    for clock in ("perf_counter", "process_time", "thread_time"):
        monkeypatch.setattr(bound.time, clock, lambda: now[0])
    clocks = bound.Meter(-7.0)
    clocks.begin(workers=3, side_by_side=1, on_host=True)
    now[0] = 10.0
    clocks.begin(workers=3, side_by_side=1, on_host=True)
    with clocks.storing() as first:
        now[0] = 12.0
        with clocks.storing():
            now[0] = 15.0
        now[0] = 16.0
        work = first()
        assert (work.wall, work.start, work.store) == (16.0, 7.0, 6.0)
        now[0] = 17.0
    now[0] = 27.0
    clocks.skip(8.0)
    with clocks.storing() as second:
        work = second()
    assert (work.wall, work.start, work.store, work.workers) == (3.0, 0.0, 1.0, 3)


class Sleeps(Colours):
    """`Colours` that takes a fifth of a second for the images of a shard, and none while a run is planned."""

    def forward(self, images: Any) -> Any:
        time.sleep(0.2 * SHARDS.is_set())
        return super().forward(images)


SHARDS = threading.Event()


def slow_model() -> Sleeps:
    return Sleeps()


def late(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, seconds: float) -> None:
    """Let a function sleep first."""
    real = getattr(where, name)

    def slow(*given: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return real(*given, **options)

    monkeypatch.setattr(where, name, slow)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reading", "decoding", "forward", "storing"])
def test_a_slow_stage_is_named(
    stage: str, extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None]
) -> None:
    """Each stage in turn takes a fifth of a second for what takes the others milliseconds."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    options: dict[str, object] = {"decode_workers": 1, "shard_rows": 6, "batch_size": 1, "limit": 6}
    if stage == "forward":
        options["model"] = "test_bound:slow_model"
        begin = bound.Meter.begin

        def begun(meter: bound.Meter, **told: Any) -> None:
            sys.modules["test_bound"].SHARDS.set()
            begin(meter, **told)

        monkeypatch.setattr(bound.Meter, "begin", begun)
    elif stage == "storing":
        late(monkeypatch, run_store.RunStore, "commit", 1.2)
    else:
        late(monkeypatch, *((load_image, "read") if stage == "reading" else (decode, "decode_image")), 0.2)
    fork_workers()
    watch = cancellation.Control()
    watch.began = math.inf  # how long a model takes to be built is another matter
    with cancellation.use(watch):
        result = extract(**options)
    named = status.run_status(RunFolder(tmp_path / "run")).bound
    assert named is not None
    assert (named.stage, named.of_cores, named.workers) == (stage, False, 1)
    assert named.shares[stage] == max(named.shares.values())
    assert named == result.status.bound
    assert result.bound is not None
    assert (result.bound.stage, result.bound.share) == (stage, pytest.approx(named.share, abs=0.01))
    found = status.survey(RunFolder(tmp_path / "run"))
    assert named.words in status.summary_lines(found, found.status.bound)
    (tmp_path / "run" / status_cache.TALLY).unlink()
    assert status.run_status(RunFolder(tmp_path / "run")).bound == named


@pytest.mark.slow
def test_rows_that_are_tried_again_change_nothing_of_what_limited_the_run(
    extract: Extract, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None]
) -> None:
    run, file = tmp_path / "run", sorted(photos.iterdir())[0]
    good = file.read_bytes()
    file.write_bytes(b"broken")
    assert extract().status.unreadable == 1
    before = status.run_status(RunFolder(run)).bound
    file.write_bytes(good)
    late(monkeypatch, load_image, "read", 0.5)
    fork_workers()
    again = driver.resume(RunFolder(run), "unreadable", Changes(accept_changed=True, trust=True))
    assert (again.status.unreadable, again.bound) == (0, None)
    assert before is not None
    assert again.status.bound == before


def test_a_run_of_a_few_images_is_limited_by_its_start(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = cancellation.Control()
    watch.began -= 3600
    with cancellation.use(watch):
        named = extract(limit=2).bound
    assert named is not None
    assert named.stage == "start"
    assert named.share > 0.9
    assert named.start > 3600


@pytest.mark.slow
def test_each_session_has_its_bound(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    real, done = run_store.RunStore.commit, []

    def fails_later(*given: Any, **options: Any) -> Any:
        if done:
            raise errors.StoreError("no space")
        done.append(True)
        return real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run_store.RunStore, "commit", fails_later)
        first = extract()
    assert (first.status.committed, len(first.failures)) == (1, 2)
    assert first.bound is not None
    assert status.run_status(RunFolder(run)).bound is not None
    second = extract()
    assert second.bound is not None
    whole = status.run_status(RunFolder(run)).bound
    assert whole is not None
    assert whole.seconds == pytest.approx(first.bound.seconds + second.bound.seconds, abs=0.01)
    assert extract().bound is None, "nothing to do"
    ended = [json.loads(path.read_text()) for path in sorted((run / "provenance/runs").iterdir())]
    recorded = [session["bound"] for session in ended if "bound" in session]
    for named in (first.bound, second.bound):
        assert json.loads(json.dumps(dataclasses.asdict(named))) in recorded
    assert len(recorded) == 2
