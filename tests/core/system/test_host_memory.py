"""Memory that a CPU encoder frees is kept for its next batch, on the engine's thread, in processes of all kinds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genenc_core import spec
from genenc_core.encoding import batch_size, device, encoder_threads, engine, products
from genenc_core.system import host_memory, limits, proc

TASKS = Path("/proc/self/task")
PAGES = (96 << 20) // os.sysconf("SC_PAGE_SIZE")
"""of the tensor that the model below makes of four images"""

PROGRAM = """
import resource, statistics, sys, threading
import torch
from genenc_core.system import proc as host
from genenc_core import spec
from genenc_core.encoding import batch_size as batching, engine, products
from genenc_core.system import host_memory

for _ in range(3):  # other threads have been here, and their arenas are free again
    threading.Thread(target=lambda: [bytearray(5000) for _ in range(100)]).start()
held = threading.Event()
for _ in range(int(sys.argv[1])):
    threading.Thread(target=held.wait).start()

class Large:
    device, input_size = torch.device("cpu"), (4, 4)
    def __call__(self, images):
        return {"features": torch.ones(len(images), 6 << 20).view(len(images), -1, 4, 4)[:, :3].clone()}

slot = spec.SlotSpec(name="features", shape=(3, 4, 4))
wanted = products.build_products([products.parse_product("v=global_avg_pool")], [slot], point_count=0)
runner = engine.Engine(Large(), wanted, batching.BatchSizer(batching.Bounds(min=1, max=None), 4))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    runner.trial(4, 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults = statistics.median(faults() for _ in range(15))  # what is kept grows by a block now and then at first
resident = host.resident_bytes()
runner.device.release()
print(faults, resident - host.resident_bytes())
runner.close()
held.set()
"""


def measured(threads: int = 0, **environment: str) -> tuple[int, int]:
    """Return the page faults of a batch, and the bytes given back on request, in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, str(threads)]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    faults, given_back = done.stdout.split()
    return int(faults), int(given_back)


pytestmark = pytest.mark.skipif(host_memory._glibc() is None, reason="needs glibc's allocator")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 12])
def test_a_batch_takes_no_new_pages_from_the_system_and_release_gives_them_back(threads: int) -> None:
    faults, given_back = measured(threads)
    assert faults < PAGES // 20
    assert given_back > 90 << 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"MALLOC_MMAP_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_user_set_stands(environment: dict[str, str]) -> None:
    _faults, given_back = measured(**environment)
    assert given_back < 20 << 20


@pytest.mark.slow
def test_another_limit_on_arenas_is_no_hindrance() -> None:
    _faults, given_back = measured(12, MALLOC_ARENA_MAX="4")
    assert given_back > 90 << 20


def test_what_is_kept_has_no_upper_limit() -> None:
    """Three gigabytes, of which not one page is touched, stay on the heap when they are freed."""
    program = """
import ctypes
from genenc_core.system import host_memory
library = host_memory._glibc()
library.sbrk.restype, library.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_long]
host_memory.keep()
library.free(library.malloc(3 << 30))
kept = library.sbrk(0)
host_memory.release()
print(kept - library.sbrk(0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2.9 * 2**30


def test_an_encoder_starts_where_no_more_threads_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def refused(_work: object) -> object:
        made.append(_work)
        raise RuntimeError("can't start new thread")

    pools = encoder_threads._pool

    def pool(*given: object) -> object:
        found = pools(*given)
        if not made:
            found.submit = refused  # type: ignore[method-assign, assignment]
        return found

    monkeypatch.setattr(encoder_threads, "_pool", pool)
    thread = encoder_threads.CallThreads(torch.device("cpu"))
    assert thread.submit(len, "ab").result() == 2
    assert len(made) == 1
    thread.close()


def test_an_encoder_takes_no_more_threads_than_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "cores", lambda: 1)
    thread = encoder_threads.CallThreads(torch.device("cpu"))
    assert thread.submit(torch.get_num_threads).result() == 1
    thread.close()


@pytest.mark.slow
def test_a_search_on_a_cpu_tries_no_size_that_should_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB an image, and 1 GiB for all; without the bound the second size would take 2 GiB."""
    tried: list[int] = []

    class Large:
        device, input_size = torch.device("cpu"), (4, 4)

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            tried.append(len(images))
            return {"features": torch.ones(len(images), 16 << 20)[:, :48].reshape(-1, 3, 4, 4).clone()}

    slot = spec.SlotSpec(name="features", shape=(3, 4, 4))
    wanted = products.build_products([products.parse_product("v=global_avg_pool")], [slot], point_count=0)
    bounds = batch_size.Bounds(min=1, max=None)
    runner = engine.Engine(Large(), wanted, batch_size.BatchSizer(bounds, 4))
    monkeypatch.setattr(limits, "available_bytes", lambda: 1 << 30)
    found = batch_size.find_size(
        lambda count: runner.trial(count, 0),
        bounds,
        image_budget=10_000,
        memory=runner.device.memory,
        release=runner.device.release,
    )
    runner.close()
    assert 1 <= found <= max(tried) < 16
    host_memory.release()


def test_what_a_cpu_has_is_what_it_holds_and_half_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "resident_bytes", lambda: 100)
    monkeypatch.setattr(limits, "available_bytes", lambda: 60)
    assert device.CpuDevice().memory() == device.Memory(peak=100, limit=130)
    monkeypatch.setattr(limits, "available_bytes", lambda: None)
    assert device.CpuDevice().memory() is None


def test_without_glibc_the_encoders_thread_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_glibc", lambda: None)
    assert host_memory.max_arenas() == 0
    host_memory.keep()
    host_memory.release()
    thread = encoder_threads.CallThreads(torch.device("cpu"))
    assert thread.submit(len, "ab").result() == 2
    thread.close()


HELPERS = """
import os, threading, time
import torch
from genenc_core.encoding import encoder_threads as calls, device
images = list(torch.randint(0, 256, (16, 3, 256, 256), dtype=torch.uint8))
def threads():
    return set(os.listdir("/proc/self/task"))
def parallel():
    return torch.ones(1 << 22).erfinv_()
def more(work, patience=300):
    found = []
    def run():
        before = threads()  # among them any that was joined and has yet to leave
        work()
        deadline = time.monotonic() + patience
        while (new := threads() - before) and time.monotonic() < deadline:
            time.sleep(0.01)  # helpers end after their thread
        found.append(len(new))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]
print(more(lambda: device.CpuDevice().join(images)), more(lambda: calls.run_in_thread(parallel)), more(parallel, 0))
"""


@pytest.mark.slow
@pytest.mark.skipif(not TASKS.exists(), reason="needs /proc")
def test_threads_that_make_batches_or_models_leave_no_helpers_of_their_own() -> None:
    """With more of them than cores OpenMP lets the encoder's sleep between operations."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", HELPERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    stacked, alone, plain = map(int, done.stdout.split())
    assert (stacked, alone) == (0, 0)
    assert plain == 1, "the measurement sees a helper where there is one"


def test_parts_of_a_batch_are_joined() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8)
    joined = device.CpuDevice().join([images[:2], images[2:3], images[3:]])
    assert torch.equal(joined, images)
    assert joined.is_contiguous()
