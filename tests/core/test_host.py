"""What a host leaves to a process: cores, and memory within the limits of control groups of both kinds."""

import os
from pathlib import Path

import pytest

from genenc_core import host

LINUX = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int, droppable: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 5\n{names[2]} {droppable}\n")


@LINUX
def test_cores_are_those_it_may_run_on() -> None:
    before = os.sched_getaffinity(0)
    assert host.cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@LINUX
def test_memory_that_is_taken_is_held_and_no_longer_available() -> None:
    held = host.resident_bytes()
    block = bytearray(b"x") * (1 << 28)
    after = host.resident_bytes()
    assert held is not None
    assert after is not None
    assert 0.95 * len(block) < after - held < 2.2 * len(block)
    system = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = host.available_bytes()
    assert available is not None
    assert 0 < available < system - len(block)


@pytest.mark.parametrize(
    ("line", "top", "names"),
    [("0::/jobs/7", "", host._V2), ("4:cpuset,memory:/jobs/7", "memory", host._V1)],
)
def test_every_group_above_counts_and_what_it_could_drop(
    tmp_path: Path, line: str, top: str, names: tuple[str, str, str]
) -> None:
    own = tmp_path / "cgroup"
    own.write_text(f"9:pids:/elsewhere\n{line}\n")
    jobs = tmp_path / "groups" / top / "jobs"
    group(jobs / "7", names, "max", 10, 0)
    group(jobs, names, "1000", 700, 50)
    group(jobs.parent, names, "5000", 900, 0)
    assert list(host._left_in_groups(tmp_path / "groups", own)) == [350, 4100]


def test_a_container_that_does_not_see_its_own_group_takes_the_limit_at_the_top(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/docker/0123\n")
    group(tmp_path / "groups" / "memory", host._V1, "1000", 400, 0)
    assert list(host._left_in_groups(tmp_path / "groups", own)) == [600]
    assert list(host._left_in_groups(tmp_path / "groups", tmp_path / "none")) == []


@LINUX
def test_the_tightest_limit_is_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_left_in_groups", lambda: iter([5000, 300]))
    assert host.available_bytes() == 300
    monkeypatch.setattr(host, "_left_in_groups", lambda: iter([-40]))
    assert host.available_bytes() == 0
