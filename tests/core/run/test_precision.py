"""Other number formats and compiled models: part of what a run means, compared with float32, refused where they lie."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from genenc_core import errors
from genenc_core.encoding import batch_size, engine
from genenc_core.run import accuracy, driver, model_cache, precision, records
from genenc_core.run.folder import RunFolder
from genenc_core.runtime import backends

Extract = Callable[..., driver.Result]


@pytest.fixture(autouse=True)
def _own_encoders() -> Iterator[None]:
    """Keep what is made with another `torch.compile` from other tests."""
    model_cache.CACHE.clear()
    yield
    model_cache.CACHE.clear()


def features(root: Path) -> np.ndarray:
    return zarr.open_group(root / "features.zarr", mode="r")["features"][:]


@pytest.mark.slow
@pytest.mark.parametrize(("format_", "bound"), [("bfloat16", 2**-6), ("float16", 2**-9)])
def test_half_precision_is_near_float32(extract: Extract, tmp_path: Path, format_: str, bound: float) -> None:
    extract(out=str(tmp_path / "plain"))
    extract(out=str(tmp_path / "half"), precision=format_)
    plain, half = features(tmp_path / "plain"), features(tmp_path / "half")
    assert half.dtype == np.float32
    assert 0 < np.abs(half - plain).max() <= bound * np.abs(plain).max()
    folder = RunFolder(tmp_path / "half")
    assert folder.identity["execution"] == {"precision": format_}
    record = records.read_json(folder.objects, precision.RECORD)
    assert record["images"] == 8
    error = record["relative_error"]["features"]  # type: ignore[index]
    assert 0 < error["mean"] <= error["largest"] <= bound
    assert f"{format_}; against float32 features differs by" in (precision.describe(folder) or "")


@pytest.mark.parametrize(("times", "told"), [(1.2, False), (30.0, True)])
def test_a_number_format_that_this_machine_is_slow_at_is_told(
    extract: Extract,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    times: float,
    told: bool,
) -> None:
    """By what the comparison took, not by a guess at the CPU."""
    seconds, real = iter((times, 1.0)), accuracy._values
    monkeypatch.setattr(accuracy, "_values", lambda *given, **more: (real(*given, **more)[0], next(seconds)))
    extract(out=str(tmp_path / "half"), precision="bfloat16")
    assert ("bfloat16 took 30.0 times as long as float32 for 8 images on this CPU" in caplog.text) == told


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "told"), [(1.05, False), (1.3, True), (float("nan"), True)])
def test_features_that_are_far_from_those_in_float32_are_told(
    extract: Extract,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    factor: float,
    told: bool,
) -> None:
    factors, real = iter((factor, 1.0)), accuracy._values

    def values(*given: Any, **more: Any) -> tuple[dict[str, torch.Tensor], float]:
        found, _ = real(*given, **more)
        by = next(factors)
        return {slot: value * by for slot, value in found.items()}, 1.0

    monkeypatch.setattr(accuracy, "_values", values)
    extract(out=str(tmp_path / "half"), precision="bfloat16")
    assert ("differ from float32" in caplog.text) == told


def test_comparison_may_lack_memory(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    values, call = accuracy._values, engine.Engine.call

    def compared(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(engine.Engine, "call", limited)
        try:
            return values(*given, **more)
        finally:
            monkeypatch.setattr(engine.Engine, "call", call)

    def limited(self: engine.Engine, encoder: backends.Encoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(images))
        if len(sizes) == 4:
            raise torch.OutOfMemoryError("full")
        return call(self, encoder, images)

    monkeypatch.setattr(accuracy, "_values", compared)
    assert extract(precision="bfloat16").status.complete
    assert max(sizes) == 3
    folder = RunFolder(tmp_path / "run")
    assert precision.describe(folder) == "bfloat16; not yet compared with float32"
    assert len(model_cache.CACHE._encoders) == 1
    assert extract(precision="bfloat16").asked == 0


def test_plain_float32_is_as_it_was(extract: Extract, tmp_path: Path) -> None:
    extract(precision="float32", compile=False)
    folder = RunFolder(tmp_path / "run")
    assert "execution" not in folder.identity
    assert precision.describe(folder) is None
    assert folder.objects.size(precision.RECORD) is None


def test_it_is_part_of_what_a_run_means_and_a_resumed_run_keeps_it(extract: Extract, tmp_path: Path) -> None:
    extract(precision="bfloat16", limit=4)
    with pytest.raises(errors.StoreError, match="execution"):
        extract(limit=4)
    before = features(tmp_path / "run")
    assert extract(precision="bfloat16", limit=4).asked == 0
    assert driver.resume(RunFolder(tmp_path / "run")).asked == 0
    assert np.array_equal(features(tmp_path / "run"), before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "tf32"}, "tf32 needs a CUDA device, but the model would run on cpu: give --precision"),
        ({"precision": "bfloat16", "backend": "torchscript"}, "--precision bfloat16 applies to --backend eager only"),
        ({"compile": True, "backend": "torchscript"}, "--compile applies to --backend eager only"),
        ({"compile": True, "canvas": "64"}, "--compile cannot be used with --canvas"),
    ],
)
def test_impossible_format_is_refused(extract: Extract, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        extract(**changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compiled_model_sees_one_batch_size(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(out=str(tmp_path / "plain"))
    seen: list[int] = []

    def compiled(module: torch.nn.Module, **options: object) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
        assert options == {"dynamic": False, "mode": None}

        def call(images: torch.Tensor) -> Sequence[torch.Tensor]:
            seen.append(len(images))
            assert images.is_contiguous(memory_format=torch.channels_last)
            return module(images)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    extract(compile=True)
    # Three are compared with float32, five are encoded, one begins the watch and three end it.
    assert len(seen) == 12
    assert set(seen) == {3}
    plain = features(tmp_path / "plain")
    np.testing.assert_allclose(features(tmp_path / "run"), plain, rtol=1e-5, atol=1e-5 * np.abs(plain).max())
    told = precision.describe(RunFolder(tmp_path / "run"))
    assert told is not None
    assert told.endswith("of 8 images")
    assert told.startswith("float32, compiled; against float32")


def test_compiled_batches_fill_a_shard_alike(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is filled up: of 8 rows 6 and 2 would cost 12 images."""
    monkeypatch.setattr(batch_size, "find_size", lambda *_arguments, **_options: 6)
    monkeypatch.setattr(torch, "compile", lambda module, **_options: module)
    extract(compile=True, batch_size="auto", shard_rows=8)
    assert RunFolder(tmp_path / "run").store.record(0).details["batch_sizes"] == {"4": 2}


@pytest.mark.slow
def test_uncompilable_model_is_refused_early(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import Unsupported

    def refuse(_images: torch.Tensor) -> None:
        raise Unsupported("data-dependent\n branching")

    monkeypatch.setattr(torch, "compile", lambda _module, **_options: refuse)
    with pytest.raises(errors.InputError, match=r"torch cannot compile this model: data-dep.*Omit --compile"):
        extract(compile=True)
    assert not RunFolder(tmp_path / "run").store.committed()


def test_compiling_without_memory_halves_it(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    def compiled(module: torch.nn.Module, **_options: object) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
        def call(images: torch.Tensor) -> Sequence[torch.Tensor]:
            if len(images) > 2:
                raise InternalTorchDynamoError("OutOfMemoryError: CUDA out of memory. Tried to allocate")
            return module(images)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    assert extract(compile=True).status.ok == 11
    assert precision.describe(RunFolder(tmp_path / "run")) == "float32, compiled; not yet compared with float32"


@pytest.mark.parametrize("told", [[1], 3, {"features": 1}, {"features": {"mean": "x", "largest": 1}}])
def test_a_damaged_record_is_said_to_be_one(told: object) -> None:
    assert precision.describe_difference(told) == "the record is damaged"
