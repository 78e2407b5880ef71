"""Simulated cores: decoders sleep, in the decode workers too, and numbers of images are whole batches."""

import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

import forked
from genenc_core.bench import cores, cores_ways, images, measure, suites, table
from genenc_core.bench.report import Options, Report, Row
from genenc_core.run import status
from genenc_core.run.folder import RunFolder


@pytest.fixture
def no_images(tmp_path: Path) -> Path:
    """Return a folder of files that no decoder can read."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_what_cannot_be_decoded_is_loaded_by_decoders_that_sleep(no_images: Path) -> None:
    for way in (cores_ways.plain_loader, cores_ways.bare_loader):
        with way(str(no_images), 2, 0.001) as once:
            assert once() == 5.0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["loading", "extraction"])
def test_a_run_gives_what_the_sleeping_decoders_gave(no_images: Path, tmp_path: Path, way: str) -> None:
    """Not one of the files is a failed row."""
    code = (
        "import sys; from pathlib import Path; from genenc_core.bench import cores_ways\n"
        f"with cores_ways.{way}(sys.argv[1], 2, 0.001, sys.argv[2] + '/run') as once: print(once())"
    )
    command = [sys.executable, "-c", code, str(no_images), str(tmp_path / "runs")]
    assert forked.run(command, capture_output=True, text=True, check=True).stdout.split() == ["5.0"]
    if way == "extraction":
        (run,) = (tmp_path / "runs").iterdir()
        found = status.run_status(RunFolder(run))
        assert (found.ok, found.unreadable) == (5, 0)


def test_a_process_whose_decode_workers_would_decode_is_no_way() -> None:
    """With a second thread it cannot be forked, and a new process would know nothing of sleeping decoders."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="cannot be simulated"), cores_ways.extraction("", 1, 0.001, ""):
            pass
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("decoders", cores.DECODERS)
@pytest.mark.parametrize("seconds", cores.DECODING)
@pytest.mark.parametrize("quick", [True, False])
def test_each_decoder_has_whole_batches(tmp_path: Path, decoders: int, seconds: float, quick: bool) -> None:
    less, more = cores._counts(Options(folder=tmp_path, quick=quick), decoders, seconds)
    assert 0 < less < more
    assert less % (decoders * cores.BATCH) == more % (decoders * cores.BATCH) == 0


@pytest.mark.parametrize(
    ("cpu", "driver", "expected"), [(0.001, 0.0001, "8,000 / s on 16 cores"), (0.001, 0.001, "1,000 / s on 16 cores")]
)
def test_real_cores_share_decoding_but_not_the_driver(cpu: float, driver: float, expected: str) -> None:
    row = Row(name="r", count=2, cpu_seconds=(2 * cpu,), wall_seconds=(1.0,), driver_seconds=(2 * driver,))
    assert cores._on_real_cores(row, 16, 0.001) == expected


@pytest.mark.slow
def test_the_suite_measures_ways_against_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = types.SimpleNamespace(**{**vars(subprocess), "Popen": forked.Popen})
    monkeypatch.setattr(measure, "subprocess", processes)
    monkeypatch.setattr(cores, "DECODING", (0.001,))
    monkeypatch.setattr(cores, "DECODERS", (1, 1, 2))
    monkeypatch.setattr(cores, "NAMED", {name: cores.NAMED[name] for name in (cores.PLAIN, "genenc")})
    monkeypatch.setattr(cores, "_counts", lambda *_: (2, 12))
    found = suites.measure(["cores"], Options(folder=tmp_path, repeats=1, quick=True), command="c")
    (only,) = found.tables
    assert [row.name for row in only.rows] == ["bound", *cores.NAMED]
    assert all(row.measured for row in only.rows), [row.note for row in only.rows]
    assert only.rows[0].wall == 0.001 / 2
    assert [row.count for row in only.rows[1:]] == [10.0] * 2
    assert "share of bound" in table.report(Report.from_json(found.to_json()))


def test_files_of_a_folder_are_the_networks_size(tmp_path: Path) -> None:
    folder = images.draw(tmp_path / "tiny", 2, width=cores.SIDE, height=cores.SIDE)
    for kind in (cores_ways.SleptFiles, cores_ways.BareFiles):
        files = kind(str(folder), 0.0)
        assert (len(files), files[1].shape) == (2, (3, cores.SIDE, cores.SIDE))
