"""Faults that the kernel makes itself: full disks, file size and descriptor limits, folders that may only be read."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import checks
import forked
import store_worker as small
from genenc_core import errors
from genenc_core.store import run_store

PROGRAM = """
import resource, sys
from pathlib import Path
import store_worker as small
from genenc_core import errors
{limit}
try:
    small.resume(Path({root!r}))
except errors.GenencError as error:
    # What torch does at the exit opens files, and prints a traceback of its own where it cannot.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def limited(root: Path, limit: str) -> tuple[int, str]:
    """Fill a run in a process with a limit; return its exit code and what it said."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(small.__file__).parent), *sys.path])}
    program = PROGRAM.format(limit=limit, root=str(root))
    done = forked.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def assert_whole_after(root: Path, tmp_path: Path) -> None:
    """The run goes on where the fault is over, to the bytes of one that had none."""
    small.check_readable(root)
    small.resume(root)
    small.resume(tmp_path / "whole")
    assert small.tree(root) == small.tree(tmp_path / "whole")
    assert list(checks.finish(root)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))", "File too large"),
        (
            "import os; small.commit(small.create(Path({root!r})), 1)\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1, 64))",
            "Too many open files",
        ),
    ],
    ids=["file size", "descriptors"],
)
def test_a_limit_of_the_kernel_is_told_and_the_run_goes_on_without_it(tmp_path: Path, limit: str, words: str) -> None:
    root = tmp_path / "run"
    small.commit(small.create(root), 0)
    code, told = limited(root, limit.replace("{root!r}", repr(str(root))))
    assert code == 1
    assert words in told
    assert "Traceback" not in told
    assert len([line for line in told.splitlines() if line]) == 1
    assert_whole_after(root, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a call that mounts a file system of so many KiB; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{kib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if (
            os.geteuid() != 0
            or shutil.which("mount") is None
            or subprocess.run(command, capture_output=True).returncode
        ):
            pytest.skip("mounting a small file system needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_told_and_rerun_completes(tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    """Filled so that less and less is left: creation, staging, the record and promotion each run out of space once."""
    disk = small_disk(1024)
    where: set[str] = set()
    told: list[str] = []
    small.resume(tmp_path / "whole")
    whole = small.tree(tmp_path / "whole")
    for free in range(0, 160, 16):
        root = disk / f"run{free}"
        ballast = disk / "ballast"
        about = os.statvfs(disk)
        ballast.write_bytes(b"\0" * max(0, about.f_bavail * about.f_frsize - free * 1024))
        try:
            small.resume(root)
            where.add("enough")
        except errors.GenencError as error:
            where.add(type(error).__name__)
            told.append(str(error))
        ballast.unlink()
        small.check_readable(root)
        small.resume(root)
        assert small.tree(root) == whole
        shutil.rmtree(root)
    assert where == {"InputError", "StoreError", "enough"}
    assert all("No space left on device" in text and "free space" in text for text in told)


@pytest.mark.slow
def test_a_folder_that_this_user_may_only_read_is_told(tmp_path: Path) -> None:
    store = small.create(tmp_path / "run")
    small.commit(store, 0)
    program = (
        "import os, sys; from pathlib import Path; import store_worker as small\n"
        "from genenc_core.store import run_store, verify\n"
        f"small.resume(Path({str(tmp_path / 'other')!r}))  # so that everything is imported by who may read it\n"
        "if os.geteuid() == 0:\n    os.setgid(65534)\n    os.setuid(65534)\n"
        f"store = run_store.RunStore.open(Path({str(tmp_path / 'run')!r}))\n"
        "assert verify.verify_store(store).ok\n"
        "try:\n    small.commit(store, 1)\nexcept Exception as error:\n    sys.exit(str(error))\n"
    )
    if os.geteuid() != 0:
        (tmp_path / "run/_txn/staging").chmod(0o555)
    for folder in [tmp_path, *tmp_path.parents][:4]:
        folder.chmod(folder.stat().st_mode | 0o055)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(small.__file__).parent), *sys.path])}
    done = forked.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert "Make the folder writable" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_store.RunStore.open(tmp_path / "run").committed() == {0}
