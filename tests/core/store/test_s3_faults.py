"""S3 that loses, delays or invents answers: one commit, nothing lost, and what failed is done by the next attempt."""

from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType

import pytest

import s3_proxy
import s3_server
from genenc_core import errors
from genenc_core.store import repair, run_store, store_keys, verify
from genenc_core.store.backends.objects import Root
from genenc_core.system import s3
from s3_server import ON_S3

pytestmark = ON_S3


@pytest.fixture
def plan(s3: s3_server.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_proxy.Plan]:
    """The proxy that every request of the test goes through."""
    with s3_proxy.proxy(s3.endpoint) as (endpoint, plan):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield plan


@pytest.fixture
def proxied(plan: s3_proxy.Plan, store: run_store.RunStore) -> run_store.RunStore:
    """A created run behind the proxy."""
    return store


TOLERATED = ("drop", "503 after", "503 before", "500 before", "late")


@pytest.mark.slow
@pytest.mark.parametrize("fault", TOLERATED)
def test_an_answer_that_is_lost_or_late_costs_nothing(
    small: ModuleType, plan: s3_proxy.Plan, root: Root, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A `PUT` of the record whose answer is lost is sent again, and then refused because it is there: by us."""
    monkeypatch.setitem(s3.CLIENT, "timeout", timedelta(seconds=0.75))
    monkeypatch.setitem(s3.BULK, "timeout", timedelta(seconds=0.75))
    store = small.create(root)
    for shard, kinds in enumerate((("PUT staged", "LIST"), ("GET record", "COPY"), ("PUT record", "DELETE"))):
        rules = [plan.fail(kind, fault, times=2 if "before" in fault else 1) for kind in kinds]
        small.commit(store, shard)
        assert all(rule.used for rule in rules)
        small.check_readable(root)
    small.check_finished(root, small.tree(root))
    assert {store.record(shard).details["salt"] for shard in range(small.SHARDS)} == {0}  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["drop", "cut", "503 before"])
def test_broken_read_is_repeated(small: ModuleType, plan: s3_proxy.Plan, full: run_store.RunStore, fault: str) -> None:
    rules = [plan.fail(kind, fault) for kind in ("GET record", "GET other", "LIST")]
    assert verify.verify_store(full, content=True).problems == ()
    assert all(rule.used for rule in rules)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_what_cannot_be_reached_is_not_damaged(
    small: ModuleType, plan: s3_proxy.Plan, full: run_store.RunStore, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Repair would make intact shards again, an hour's work for a moment without a network."""
    monkeypatch.setitem(s3.RETRY, "max_retries", 1)
    store = run_store.RunStore.open(full.name)
    for kind in ("GET other", "GET record"):
        rule = plan.fail(kind, "503 before", times=1000)
        with pytest.raises(errors.StoreError, match=r"the run folder 's3://.*503.*rerun the command"):
            verify.verify_store(store, content=True, threads=threads)
        rule.times = 0
    rule = plan.fail("GET record", "503 before", times=1000)
    with pytest.raises(errors.StoreError, match=r"503"):
        repair.repair_store(store, coordinates=small.coordinates())
    rule.times = 0
    assert verify.verify_store(store).ok
    assert not list(store.objects.walk(store_keys.SET_ASIDE))


@pytest.mark.slow
def test_conflict_does_not_lose_the_shard(small: ModuleType, plan: s3_proxy.Plan, proxied: run_store.RunStore) -> None:
    """The staging stays, because the request may have been done; the next attempt commits."""
    for fault in ("409", "412"):
        rule = plan.fail("PUT record", fault, times=30)
        with pytest.raises(errors.StoreError, match="shard 00000"):
            small.commit(proxied, 0)
        rule.times = 0
        assert proxied.committed() == set()
    assert [name[:8] for name in proxied.objects.names(store_keys.STAGING)] == ["s0000000"] * 2
    small.check_readable(proxied.name)
    small.resume(proxied.name)
    small.check_finished(proxied.name, small.tree(proxied.name))


@pytest.mark.slow
def test_a_server_that_stays_broken_is_said_and_the_next_command_goes_on(
    small: ModuleType, plan: s3_proxy.Plan, proxied: run_store.RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(s3.RETRY, "max_retries", 2)
    store = run_store.RunStore.open(proxied.name)
    for kind in ("GET record", "PUT staged", "PUT record", "COPY", "LIST"):
        rule = plan.fail(kind, "503 before", times=1000)
        with pytest.raises(errors.StoreError, match=r"shard 00000 of 's3://.*503.*resume the run"):
            small.commit(store, 0)
        rule.times = 0
        small.check_readable(proxied.name)
    rule = plan.fail("DELETE", "503 before", times=1000)
    small.commit(store, 0)  # what is not cleaned now is cleaned by the next
    assert len(small.litter(store)) > 1
    rule.times = 0
    small.resume(proxied.name)
    small.check_finished(proxied.name, small.tree(proxied.name))


def test_requests_of_a_commit_are_counted(small: ModuleType, plan: s3_proxy.Plan, proxied: run_store.RunStore) -> None:
    """One more is one too many: on S3 each costs money and a tenth of a second."""
    plan.seen.clear()
    small.commit(proxied, 0)
    objects = len(proxied.plan.all_arrays)
    assert dict(plan.count()) == {
        "GET record": 1,
        "GET other": objects + 1,  # every array's metadata, and store.json once more
        "PUT staged": objects,
        "PUT record": 1,
        "COPY": objects,
        "LIST": 2,
        "DELETE": 1,
    }
