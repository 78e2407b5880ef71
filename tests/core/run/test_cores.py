"""A batch on each core: for which models, and that rows do not depend on how many cores there are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from genenc_core.encoding import encoder_threads
from genenc_core.models import resolve
from genenc_core.run import driver, engine_setup, model_export, records
from genenc_core.run.folder import RunFolder
from genenc_core.runtime import backends
from genenc_core.runtime.execution import Execution

Extract = Callable[..., driver.Result]


def stored(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of the store."""
    store = folder / "features.zarr"
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def side_by_side(folder: Path) -> int:
    made = engine_setup.make_engine(RunFolder(folder), records.Options(session="next", trust=True))
    made.close()
    return made.side_by_side


def check_cores(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **model: object) -> None:
    """Extract with one, two and three cores, and compare the stores."""
    found = []
    for cores in (1, 2, 3):
        monkeypatch.setattr(encoder_threads, "cores", lambda cores=cores: cores)
        out = tmp_path / f"on-{cores}"
        assert extract(**model, out=str(out)).status.complete
        assert side_by_side(out) == cores
        found.append(stored(out))
    assert {"status/c.0", "status/c.2"} < found[0].keys()
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"model": "resnet50", "image_size": "64"},
        {"model": "yolov3_tiny", "image_size": "64"},
        {"model": "resnet18", "image_size": "64", "layers": ("layer2", "layer4")},
        {"model": "resnet18", "image_size": "32", "precision": "bfloat16"},
    ],
    ids=lambda model: "-".join(map(str, model.values())),
)
def test_the_bytes_are_the_same_on_any_number_of_cores(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, object]
) -> None:
    check_cores(extract, tmp_path, monkeypatch, **model)


@pytest.mark.slow
def test_trace_gives_same_bytes_on_any_cores(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"model": "resnet18", "weights": "random:0", "image_size": "64", "formats": ["torchscript"]}
    (made,) = model_export.export(model_export.ExportParameters(**wanted, out=str(tmp_path / "model")))
    check_cores(extract, tmp_path, monkeypatch, model=str(made.spec_path), weights=None, image_size=None)


@pytest.mark.slow
def test_users_modules_get_one_lane(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may keep state from call to call; a model file's backbone may be a user's."""
    monkeypatch.setattr(encoder_threads, "cores", lambda: 2)
    extract()
    assert side_by_side(tmp_path / "run") == 1
    file = tmp_path / "own.toml"
    file.write_text(
        'task = "segmentation"\nbackbone = "tiny_backbones:pyramid"\ndecoder = "FCNDecoder"\nnum_classes = 2\n'
    )
    request = resolve.ModelRequest(name=str(file), weights="random:0", image_size=(32, 32), trust=True)
    assert not backends.eager_encoder(resolve.build_encoder(request)).concurrent


def test_modules_with_hooks_get_one_batch_at_a_time() -> None:
    """Those that timm makes of some of its models keep on the module what they see."""
    request = resolve.ModelRequest(name="resnet18", weights="random:0", image_size=(64, 64), layers=("layer2",))
    built = resolve.build_encoder(request)
    assert backends.eager_encoder(built).concurrent, "its own hooks keep nothing"
    next(built.module.children()).register_forward_hook(lambda *_: None)
    assert not backends.eager_encoder(built).concurrent


@pytest.mark.slow
def test_compiled_models_get_one_lane(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads are its own."""
    monkeypatch.setattr(encoder_threads, "cores", lambda: 2)
    built = resolve.build_encoder(resolve.ModelRequest(name="resnet18", weights="random:0", image_size=(64, 64)))
    assert backends.eager_encoder(built).concurrent
    assert not backends.eager_encoder(built, how=Execution(compile=True)).concurrent
    extract(model="resnet18", image_size="64", backend="exported_program")
    assert side_by_side(tmp_path / "run") == 1


@pytest.mark.slow
def test_small_runs_feed_all_cores(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_threads, "cores", lambda: 5)
    extract(model="resnet18", image_size="64", batch_size="auto", shard_rows=11)
    made = engine_setup.make_engine(RunFolder(tmp_path / "run"), records.Options(session="next"))
    made.close()
    assert made.sizer.size == 3


@pytest.mark.slow
def test_a_batch_so_large_that_cores_are_idle_is_told(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoder_threads, "cores", lambda: 5)
    extract(model="resnet18", image_size="64", batch_size=2)
    folder = RunFolder(tmp_path / "run")
    for size, told in ((4, True), (1, False)):
        caplog.clear()
        engine_setup.make_engine(folder, records.Options(session="next", batch_size=size)).close()
        assert ("batches of 4 keep only 2 of 5 cores busy" in caplog.text) == told
