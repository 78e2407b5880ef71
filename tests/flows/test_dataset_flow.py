"""The flow `update_dataset`: the rows of the core alone, one task per step, states that say what happened."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from prefect.client.orchestration import get_client

import pictures
import task_runs
from genenc_core import errors, spec
from genenc_core.dataset import folder as folders
from genenc_core.dataset import update
from genenc_core.dataset.parameters import UpdateParameters
from genenc_core.factory import model_file
from genenc_core.run import records
from genenc_core.run.folder import RunFolder
from genenc_core.system.digests import CODE
from genenc_flows import dataset, pipeline

pytestmark = pytest.mark.usefixtures("prefect_server")


def given(tmp_path: Path, **changes: object) -> UpdateParameters:
    values = {
        "images": str(tmp_path / "photos"),
        "model": "tiny_models:conv",
        "weights": "random:0",
        "image_size": "32",
        "out": str(tmp_path / "dataset"),
        "shard_rows": 2,
        "batch_size": 2,
        "device": "cpu",
        "trust": True,
    }
    return UpdateParameters.model_validate({**values, **changes})


@pytest.mark.slow
def test_a_schedule_that_meets_new_images(tmp_path: Path) -> None:
    """Two firings with the same parameters, as a deployment gives them."""
    pictures.write_folder(tmp_path / "photos", 3)
    first = dataset.update_dataset(given(tmp_path), return_state=True)
    assert first.message == f"{tmp_path / 'dataset'}: version 1, 3 images in 1 part (3 new), 0 unreadable"
    pictures.write_folder(tmp_path / "photos", 5)
    (tmp_path / "photos" / "img_001.png").unlink()
    second = dataset.update_dataset(given(tmp_path), return_state=True)
    assert isinstance(second.result(), update.Updated)
    assert second.result().version.counts["rows"] == 4
    expected = ["compare images with dataset", "plan a part of dataset", "make a version of dataset"]
    expected += ["shard 00000, rows 0-1", "store shard 00000, rows 0-1"]
    shown = task_runs.of(second.state_details.flow_run_id, task_runs.with_names(*expected))
    assert {run.name for run in shown} >= set(expected)
    with get_client(sync_client=True) as client:
        report = task_runs.artifacts(client, second.state_details.flow_run_id)["report"]["data"]
    assert "limited by" in report
    assert "![2 shards by stage" in report
    third = dataset.update_dataset(given(tmp_path), return_state=True)
    assert third.message == f"{tmp_path / 'dataset'}: version {second.result().version.version}, 4 images; nothing new"


@pytest.mark.slow
def test_values_of_the_form_that_are_defaults_are_not_given(tmp_path: Path) -> None:
    """The form gives every field: what was given at first holds on."""
    pictures.write_folder(tmp_path / "photos", 2)
    dataset.update_dataset(given(tmp_path), return_state=True)
    form = UpdateParameters(out=str(tmp_path / "dataset"), trust=True)
    every = UpdateParameters.model_validate({name: getattr(form, name) for name in UpdateParameters.model_fields})
    state = dataset.update_dataset(every, return_state=True)
    assert state.message == f"{tmp_path / 'dataset'}: version 1, 2 images; nothing new"


@pytest.mark.slow
def test_shards_that_are_not_done_fail_the_run_with_their_names(tmp_path: Path) -> None:
    pictures.write_folder(tmp_path / "photos", 3)
    (tmp_path / "photos" / "img_000.png").write_bytes(b"no image")
    state = dataset.update_dataset(given(tmp_path, max_failures="0"), return_state=True)
    assert state.is_failed()
    assert state.message == "1 of 2 shards not done: 0"
    found = state.result(raise_on_failure=False)
    assert isinstance(found, records.Incomplete)
    assert isinstance(found.result, update.Updated)
    assert found.result.version is not None
    assert found.result.version.counts["rows"] == 1


@pytest.mark.slow
def test_a_pipeline_exports_once_and_updates_each_time(tmp_path: Path) -> None:
    pictures.write_folder(tmp_path / "photos", 3)
    folder = str(tmp_path / "model")
    first = pipeline.pipeline(given(tmp_path), folder, return_state=True)
    assert first.is_completed(), first.message
    assert first.message == f"{tmp_path / 'dataset'}: version 1, 3 images in 1 part (3 new), 0 unreadable"
    assert isinstance(first.result(), update.Updated)
    (made,) = (tmp_path / "model").glob("*_spec.json")
    before = made.stat().st_mtime_ns
    pictures.write_folder(tmp_path / "photos", 4)
    second = pipeline.pipeline(given(tmp_path), folder, return_state=True)
    assert second.is_completed(), second.message
    assert made.stat().st_mtime_ns == before
    found = folders.DatasetFolder(tmp_path / "dataset").version()
    assert (found.version, found.counts["rows"]) == (2, 4)
    run = pipeline.pipeline(given(tmp_path, out=str(tmp_path / "run")), folder, single_run=True, return_state=True)
    assert run.is_completed(), run.message
    assert run.message == "4 of 4 images stored, 0 unreadable"
    assert RunFolder(tmp_path / "run").backend == "torchscript"


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False])
def test_a_pipeline_refuses_another_model_than_the_folder_holds(tmp_path: Path, recorded: bool) -> None:
    pictures.write_folder(tmp_path / "photos", 1)
    folder = str(tmp_path / "model")
    path = pipeline.exported(given(tmp_path), folder, "torchscript")
    asked = path.with_name(f"{path.stem}_asked.json")
    assert json.loads(asked.read_text())["model"] == given(tmp_path).model
    if not recorded:
        asked.unlink()
    assert pipeline.exported(given(tmp_path), folder, "torchscript") == path
    assert pipeline.exported(UpdateParameters(out=str(tmp_path / "dataset")), folder, "torchscript") == path
    for same in ({"image_size": "32x32"}, {"model": str(path)}, {"model": path.stem.removesuffix("_spec")}):
        assert pipeline.exported(given(tmp_path, **same), folder, "torchscript") == path
    for changes, said in (
        ({"model": "resnet34"}, "model .* -> resnet34"),
        ({"weights": "random:1"}, "weights random:0 -> random:1"),
        ({"image_size": "48"}, r"image_size .* -> \[48, 48\]"),
        ({"layers": ("layer1",)}, "layers .* -> .*layer1"),
    ):
        with pytest.raises(errors.InputError, match=rf"another exported model than asked for: {said}"):
            pipeline.exported(given(tmp_path, **changes), folder, "torchscript")
    asked.write_text("{")
    with pytest.raises(errors.InputError, match="is damaged"):
        pipeline.exported(given(tmp_path), folder, "torchscript")


@pytest.mark.slow
def test_a_pipeline_refuses_weights_that_changed(tmp_path: Path) -> None:
    file, folder = tmp_path / "weights.pt", str(tmp_path / "model")
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), file)
    options = {"model": "resnet18", "image_size": "32", "weights": str(file)}
    path = pipeline.exported(given(tmp_path, **options), folder, "torchscript")
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), file)
    with pytest.raises(errors.InputError, match="the content of the weights file has changed"):
        pipeline.exported(given(tmp_path, **options), folder, "torchscript")
    file.unlink()
    assert pipeline.exported(given(tmp_path, **options), folder, "torchscript") == path


def written_export(asked: UpdateParameters, folder: Path, name: str, **block: object) -> Path:
    """Write what an export of a model leaves in its folder, but for its file; return the spec."""
    slot = spec.SlotSpec(name="image", shape=(3, 32, 32))
    found = {"model_id": "m", "display_name": "m", "weights_path": "m.pt", "inputs": (slot,), "outputs": (slot,)}
    folder.mkdir()
    path = folder / f"{name}_torchscript_spec.json"
    path.write_text(
        spec.RuntimeModelSpec.model_validate({**found, "genenc": spec.GenencBlock.model_validate(block)}).to_json()
    )
    pipeline._record_of(path).write_text(json.dumps({**pipeline._asked(asked), "weights_sha256": None}))
    return path


def test_a_pipeline_refuses_code_that_was_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, asked = Path("edited_net.py"), given(tmp_path, model="edited_net:make")
    code.write_text("def make(): ...\n")
    source = spec.SourceInfo(kind="python", name="edited_net:make", weights="random:0")
    digests = {code.name: CODE.hex_of_file(code)}
    path = written_export(asked, tmp_path / "model", "edited_net", source=source, code=digests)
    assert pipeline.exported(asked, str(path.parent), "torchscript") == path
    code.write_text("def make(): return 1\n")
    said = r"than asked for: the code of 'edited_net:make' has changed \(edited_net.py changed\). Give another folder"
    with pytest.raises(errors.InputError, match=said):
        pipeline.exported(asked, str(path.parent), "torchscript")
    for other in (given(tmp_path, model=""), given(tmp_path, model=str(path))):
        assert pipeline.exported(other, str(path.parent), "torchscript") == path
    code.unlink()
    assert pipeline.exported(asked, str(path.parent), "torchscript") == path


def test_a_pipeline_refuses_a_model_file_that_was_edited(tmp_path: Path) -> None:
    file, lines = tmp_path / "seg.toml", ["task = 'segmentation'", "backbone = 'timm_resnet18'", "num_classes = 2"]
    lines += ["decoder = 'UNetDecoder'", "decoder_channels = [64, 32, 16, 16]"]
    file.write_text("\n".join(lines))
    asked = given(tmp_path, model=str(file))
    source = spec.SourceInfo(kind="factory", name="seg", weights="random:0", arguments=model_file.read(file))
    path = written_export(asked, tmp_path / "model", "seg", source=source)
    file.write_text("\n".join(["# In another order", *reversed(lines)]))
    assert pipeline.exported(asked, str(path.parent), "torchscript") == path
    file.write_text("\n".join(["outputs = ['logits']", *lines]).replace("resnet18", "resnet34"))
    said = r"than asked for: backbone .*resnet18 -> .*resnet34; outputs None -> \['logits'\]. Give another folder"
    with pytest.raises(errors.InputError, match=said):
        pipeline.exported(asked, str(path.parent), "torchscript")
    assert pipeline.exported(given(tmp_path, model=""), str(path.parent), "torchscript") == path


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"compile": True}, {"backend": "torchscript"}])
def test_a_pipeline_refuses_options_that_exported_files_do_not_take(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(errors.InputError, match="does not apply to an exported model"):
        pipeline.pipeline.fn(given(tmp_path, **options), str(tmp_path / "model"))


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}_torchscript_spec.json").write_text("{}")
    with pytest.raises(errors.InputError, match="several models: a_torchscript_spec"):
        pipeline.exported(given(tmp_path), str(tmp_path), "torchscript")
