"""Specs, model files and store documents that would take memory, time or another's file are refused first."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from genenc_core import errors, spec
from genenc_core.factory import model_file
from genenc_core.runtime import describe
from genenc_core.store import commit_record, creation, documents
from genenc_core.store.backends.local import LocalObjects
from genenc_core.system import small_files

SMALL: dict[str, Any] = {
    "model_id": "m",
    "display_name": "M",
    "inputs": [{"name": "image", "shape": [3, 64, 64]}],
    "outputs": [{"name": "features", "shape": [8, 2, 2]}],
}
PREPROCESSING = {"height": 64, "width": 64}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": [{"name": "image", "shape": [3, 10**9, 10**9]}]}, "a tensor has at most"),
        ({"inputs": [{"name": "image", "shape": [3, 20_000, 20_000]}]}, "each side is at most 16384"),
        ({"outputs": [{"name": "features", "shape": [10**9, 10**9]}]}, "a tensor has at most"),
        ({"outputs": [{"name": "features", "shape": [10**400]}]}, "a huge number"),
        ({"outputs": [{"name": "features", "shape": [1] * 100_000 + [0]}]}, r"\.\.\."),
        ({"batch_mode": {"fixed": 10**9}}, "is too large for memory"),
        ({"batch_mode": {"fixed": 10**12}}, "batch_mode.fixed must be <="),
        ({"genenc": {"preprocessing": {**PREPROCESSING, "resize_short": 10**9}}}, "resize_short"),
        ({"genenc": {"preprocessing": {**PREPROCESSING, "pad_value": [0, 0, 256]}}}, "0 to 255"),
    ],
)
def test_invalid_sizes_in_a_spec_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.SpecError, match=said) as raised:
        describe.check_image_spec(spec.RuntimeModelSpec.from_json(json.dumps({**SMALL, **change})))
    assert len(str(raised.value)) < 2000
    describe.check_image_spec(spec.RuntimeModelSpec.from_json(json.dumps(SMALL)))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_nan_and_infinity_in_a_spec_are_refused(number: str) -> None:
    content = json.dumps({**SMALL, "genenc": {"mean": [0.5, 0.5, 0.25]}}).replace("0.25", number)
    with pytest.raises(errors.SpecError, match="finite"):
        spec.RuntimeModelSpec.from_json(content)


@pytest.mark.slow
def test_deep_and_endless_specs_are_refused(tmp_path: Path) -> None:
    deep = json.dumps({**SMALL, "more": 0}).replace('"more": 0', f'"more": {"[" * 100_000}{"]" * 100_000}')
    with pytest.raises(errors.SpecError):
        spec.RuntimeModelSpec.from_json(deep)
    many = json.dumps({**SMALL, "inputs": [{"name": 1}] * 50_000})
    with pytest.raises(errors.SpecError, match="more") as raised:
        spec.RuntimeModelSpec.from_json(many)
    assert len(str(raised.value)) < 5000
    os.mkfifo(tmp_path / "pipe.json")
    for path, said in (
        (tmp_path / "pipe.json", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "directory"),
        (tmp_path / "a\x00b", "null"),
    ):
        with pytest.raises(errors.SpecError, match=said):
            spec.load_spec(path)
    (tmp_path / "large.json").write_bytes(b" " * (small_files.LARGEST_BYTES + 1))
    with pytest.raises(errors.SpecError, match="larger than"):
        spec.load_spec(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]), "more than 20000"),
        (
            "\n".join(["b0: &b0 {x: 1}", *(f"b{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}]}}" for i in range(1, 60))]),
            "more than 20000",
        ),
        ("a: &a [*a]", "contains itself"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: 2001-99-99", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ("? [a]\n: 1", "cannot be read"),
        ("a: b\n" * 20_000, "larger than"),
    ],
)
def test_yaml_bombs_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(errors.InputError, match=said):
        model_file.read_content(tmp_path / "m.yaml")
    (tmp_path / "m.yaml").write_text("a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, e: 2}")
    assert model_file.read_content(tmp_path / "m.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1, "e": 2}}


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "a = " + "9" * 5000, "a = 2001-99-99", "\x00"])
def test_invalid_toml_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.toml").write_text(content)
    with pytest.raises(errors.InputError, match="cannot be read"):
        model_file.read_content(tmp_path / "m.toml")


DIGESTS = {"digest": "blake3:" + "0" * 64, "content_digest": "sha256:" + "0" * 64}
OBJECT = {"key": "status/c.0", "staged": "s0000000-a/0", "size": 3, **DIGESTS}
RECORD: dict[str, Any] = {
    "shard": 0,
    "attempt": "a",
    "fingerprint": "f",
    "rows": [0, 2],
    "status_counts": {"ok": 2},
    "objects": [OBJECT],
    "details": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"objects": [{**OBJECT, "key": key}]}
        for key in ("../../x", "/etc/x", "a/../../x", "a//b", "", "a\\b", "a\nb", "..", 3, ["a"])
    ]
    + [
        {"objects": [{**OBJECT, "staged": "../commits/s0000001.json"}]},
        {"objects": []},
        {"objects": [{**OBJECT, "size": -1}]},
        {"objects": [{**OBJECT, "digest": "0" * 64}]},
        {"objects": [{**OBJECT, "digest": "md5:" + "0" * 64}]},
        {"objects": [{**OBJECT, "sha256": "0" * 64}]},
    ]
    + [{"rows": ["a", {}]}, {"rows": [0, 1, 2]}, {"shard": True}, {"details": []}, {"status_counts": {"ok": "2"}}],
)
def test_forged_commit_record_is_refused(change: dict[str, Any]) -> None:
    """A digest of its own, as anybody can write one, does not make it one of ours."""
    assert commit_record.CommitRecord.from_json(documents.dumps(commit_record.SCHEMA, RECORD)).shard == 0
    with pytest.raises(errors.StoreError, match="is damaged"):
        commit_record.CommitRecord.from_json(documents.dumps(commit_record.SCHEMA, {**RECORD, **change}))


@pytest.mark.parametrize("created", [{"../x": [1, "0" * 64]}, {"a": [1]}, {"a": ["1", "0" * 64]}, []])
def test_forged_store_file_is_refused(tmp_path: Path, created: Any) -> None:
    (tmp_path / "_txn").mkdir()
    (tmp_path / "_txn" / "store.json").write_bytes(documents.dumps(creation.SCHEMA, {"plan": {}, "created": created}))
    with pytest.raises(errors.StoreError, match="is damaged"):
        creation.read(LocalObjects(tmp_path))


def test_deep_documents_are_reported_as_damaged() -> None:
    deep = b'{"schema": "x", "sha256": "' + hashlib.sha256(b"").hexdigest().encode() + b'", "a": ' + b"[" * 100_000
    with pytest.raises(errors.StoreError, match="is damaged"):
        documents.loads(deep, schema="x", subject="it")
