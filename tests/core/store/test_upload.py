"""Creating a run on S3: once, whole, by whoever is first, killed anywhere; what cannot be is said in words."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import ceph
import s3_proxy
import s3_server
from genenc_core import errors
from genenc_core.run import out_folder
from genenc_core.store import run_store, store_keys, upload
from genenc_core.store.backends import local
from genenc_core.store.backends import s3_objects as s3_module
from genenc_core.store.backends.objects import Root, open_objects
from genenc_core.system import s3 as access


@pytest.fixture
def backend(s3: s3_server.Server) -> str:
    """Every test's runs lie on S3."""
    return "s3"


@pytest.fixture
def made(small: ModuleType, tmp_path: Path) -> local.LocalObjects:
    """A run in a local folder."""
    return small.create(tmp_path / "made").objects  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_published_run_is_its_local_original(small: ModuleType, root: Root, made: local.LocalObjects) -> None:
    target = open_objects(root)
    for _ in range(2):  # again, it changes nothing
        upload.publish(made, target)
        assert {key: target.read(key) for key, _ in target.walk("")} == {
            key: made.read(key) for key, _ in made.walk("")
        }
    small.resume(root)
    before = small.tree(root)
    upload.publish(made, target)
    assert small.tree(root) == before


@pytest.mark.slow
def test_publishers_that_race_make_one_run(
    small: ModuleType, start: Callable[..., subprocess.Popen[str]], root: Root, tmp_path: Path
) -> None:
    """Two of one run and two of another: those of the first claim succeed, the others are told."""
    go = tmp_path / "go"
    names = ("f1", "f1", "f2", "f2")
    racers = [start("create", root, "--go", str(go), "--fingerprint", name) for name in names]
    go.touch()
    ends = [(racer.communicate(timeout=300)[1], racer.returncode) for racer in racers]
    store = run_store.RunStore.open(root)
    won = store.plan.fingerprint
    for name, (error, code) in zip(names, ends, strict=True):
        assert (code == 0) == (name == won), error
        assert name == won or "holds another run" in error
    assert set(store.created) == set(small.tree(root))


@pytest.mark.slow
def test_killed_publication_is_finished_by_the_next(report: Callable[..., list[str]], root: Root) -> None:
    """Every fifth of its last; `store_worker.py exhaust s3://BUCKET/PREFIX --stage create` tries more."""
    *violations, count = report("exhaust", root, "--stage", "create", "--every", "5")
    assert violations == []
    assert int(count.split()[1]) >= 2


def test_a_claim_whose_answer_was_lost_is_ours(
    s3: s3_server.Server, root: Root, made: local.LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_proxy.proxy(s3.endpoint) as (endpoint, plan):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        rule = plan.fail("PUT other", "drop", times=3)
        upload.publish(made, open_objects(root))
        assert rule.used == 3
        assert run_store.RunStore.open(root).pending() == [0, 1, 2]


def test_a_run_whose_objects_are_too_large_for_one_request_is_refused(
    small: ModuleType, root: Root, made: local.LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module.S3Objects, "largest", 319)
    with pytest.raises(errors.InputError, match=r"'probes' has 40 bytes .*--shard-rows to 7 or less"):
        upload.publish(made, open_objects(root))
    assert list(open_objects(root).walk("")) == []


def check_is_told(match: str) -> None:
    with pytest.raises(errors.InputError, match=match) as told:
        out_folder.check("s3://runs/tests/told")
    text = str(told.value)
    assert ceph.SECRET not in text
    assert len(text) < 600
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("AWS_ACCESS_KEY_ID", "somebody", "does not know this AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "testsecret2", "AWS_SECRET_ACCESS_KEY is not the one"),
        ("AWS_ENDPOINT_URL", "127.0.0.1:9", "AWS_ENDPOINT_URL is not an address"),
        ("AWS_ENDPOINT_URL", "http://testkey:testsecret@127.0.0.1:9", "AWS_ENDPOINT_URL is not an address"),
    ],
)
def test_what_cannot_be_reached_is_told_with_the_remedy(
    s3: s3_server.Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str, match: str
) -> None:
    monkeypatch.setenv(name, value)
    check_is_told(match)


@pytest.mark.slow
def test_a_server_that_is_down_is_told(s3: s3_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(access.RETRY, "max_retries", 2)  # as it is, half a minute
    check_is_told("no answer from the server: check the endpoint")


def test_a_bucket_that_is_not_there_is_told(s3: s3_server.Server) -> None:
    with pytest.raises(errors.InputError, match="there is no such bucket"):
        out_folder.check("s3://no-such-bucket-here/run")


def test_a_prefix_with_something_else_is_refused(root: Root) -> None:
    open_objects(root).write_new("notes.txt", b"x")
    with pytest.raises(errors.InputError, match=r"is not empty and not a run \(it holds 'notes.txt'\)"):
        out_folder.check(str(root))


@pytest.mark.parametrize("address", ["s3://runs", "s3://runs/", "s3://runs/a//b", "s3://runs/../x", "s3://a b/x"])
def test_an_address_that_is_no_place_for_a_run_is_refused(s3: s3_server.Server, address: str) -> None:
    with pytest.raises(errors.InputError, match=r"with a prefix of the run's own|not a bucket's name"):
        out_folder.check(address)


def test_a_process_forked_from_one_that_used_s3_is_told(small: ModuleType, root: Root) -> None:
    """Otherwise its first request would wait for ever."""
    open_objects(root).names("")
    status, text = small.in_child(lambda: open_objects(root).names(""))
    assert status != 0
    assert "was forked from one that had used S3" in text


def test_the_same_store_file_of_another_creator_is_kept(
    small: ModuleType, root: Root, made: local.LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that makes other bytes, killed before it finished: nothing of ours is mixed with it."""
    target = open_objects(root)
    plan = small.plan(attributes={"title": "another"})
    other = run_store.RunStore.create(made.root.parent / "other", plan, coordinates=small.coordinates())
    target.replace(store_keys.STORE_FILE, other.objects.read(store_keys.STORE_FILE))
    monkeypatch.setattr(upload.creation, "wait_for_group", lambda *_, **__: None)
    with pytest.raises(errors.StoreError, match="did not finish"):
        upload.publish(made, target)
    assert [key for key, _ in target.walk("")] == [store_keys.STORE_FILE]
