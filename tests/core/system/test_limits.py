"""What a host leaves to a process: cores, and memory within the limits of control groups of both kinds."""

import os
from pathlib import Path

import pytest

from genenc_core.system import host_memory, limits, proc

LINUX = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def group(folder: Path, kind: limits._Kind, limit: str, used: int, droppable: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / kind.memory[0]).write_text(f"{limit}\n")
    (folder / kind.used).write_text(f"{used}\n")
    stat = "".join(f"{name} {droppable // 2}\n" for name in kind.droppable)
    (folder / "memory.stat").write_text(f"cache 5\n{stat}")


@LINUX
def test_cores_are_those_it_may_run_on() -> None:
    before = os.sched_getaffinity(0)
    assert limits.cores() <= len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert limits.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@LINUX
def test_memory_that_is_taken_is_held_and_no_longer_available() -> None:
    host_memory.release()
    held = proc.resident_bytes()
    block = bytearray(b"x") * (1 << 28)
    after = proc.resident_bytes()
    assert held is not None
    assert after is not None
    assert 0.95 * len(block) < after - held < 2.2 * len(block)
    system = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = limits.available_bytes()
    assert available is not None
    assert 0 < available < system - len(block)


@pytest.mark.parametrize(
    ("line", "top", "kind"), [("0::/jobs/7", "", limits._V2), ("4:cpuset,memory:/jobs/7", "memory", limits._V1)]
)
def test_every_limiting_group_counts(tmp_path: Path, line: str, top: str, kind: limits._Kind) -> None:
    own = tmp_path / "cgroup"
    own.write_text(f"9:pids:/elsewhere\n{line}\n")
    jobs = tmp_path / "groups" / top / "jobs"
    group(jobs / "7", kind, "max", 10, 0)
    group(jobs, kind, "1000", 700, 50)
    group(jobs.parent, kind, "5000", 900, 0)
    assert list(limits._left_in_groups(tmp_path / "groups", own)) == [350, 4100]


def test_the_size_from_which_a_group_is_slowed_down_counts_too(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    group(tmp_path / "groups", limits._V2, "1000", 400, 0)
    (tmp_path / "groups" / "memory.high").write_text("700\n")
    assert list(limits._left_in_groups(tmp_path / "groups", own)) == [600, 300]


@pytest.mark.parametrize(
    ("line", "top", "files", "cores"),
    [
        ("0::/jobs", "jobs", {"cpu.max": "250000 100000\n"}, [3]),
        ("0::/jobs", "jobs", {"cpu.max": "max 100000\n"}, []),
        ("0::/jobs", "", {"cpu.max": "50000 100000\n"}, [1]),
        ("4:cpu,cpuacct:/jobs", "cpu/jobs", {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, [4]),
        ("4:cpu,cpuacct:/jobs", "cpu/jobs", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, []),
        ("4:cpu,cpuacct:/jobs", "cpu/jobs", {"cpu.cfs_quota_us": "400000\n"}, []),
        ("4:memory:/jobs", "cpu/jobs", {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, []),
    ],
)
def test_group_share_is_cores(tmp_path: Path, line: str, top: str, files: dict[str, str], cores: list[int]) -> None:
    """As `docker run --cpus 2.5` sets it."""
    own = tmp_path / "cgroup"
    own.write_text(f"{line}\n")
    folder = tmp_path / "groups" / top
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    assert list(limits._groups_cores(tmp_path / "groups", own)) == cores


@LINUX
def test_the_fewest_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_groups_cores", lambda: iter([5000, 1]))
    assert limits.cores() == 1


def test_a_container_that_does_not_see_its_own_group_takes_the_limit_at_the_top(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/docker/0123\n")
    group(tmp_path / "groups" / "memory", limits._V1, "1000", 400, 0)
    assert list(limits._left_in_groups(tmp_path / "groups", own)) == [600]
    assert list(limits._left_in_groups(tmp_path / "groups", tmp_path / "none")) == []


@LINUX
def test_the_tightest_limit_is_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_left_in_groups", lambda: iter([5000, 300]))
    assert limits.available_bytes() == 300
    monkeypatch.setattr(limits, "_left_in_groups", lambda: iter([-40]))
    assert limits.available_bytes() == 0
