"""The registry: specs by id, folders with broken files, names without weights, one rule for duplicates."""

import json
import threading
from pathlib import Path

import pytest
import torch

from genenc_core import errors, spec
from genenc_core.export import exporter
from genenc_core.models import resolve, weights
from genenc_core.runtime import model_registry

NAMED = {"model_id": "mine", "display_name": "Mine", "weights_path": "mine.pt"}
SLOTS = {"inputs": [{"name": "image", "shape": [3, 8, 8]}], "outputs": [{"name": "features", "shape": [4, 2, 2]}]}


def write(folder: Path, name: str, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({**NAMED, **SLOTS, **changes}))
    return path


def test_a_spec_file_is_registered_under_its_id(tmp_path: Path) -> None:
    known = model_registry.ModelRegistry()
    path = write(tmp_path / "models", "any_name.json")
    assert known.register_from_json(path) == "mine"
    assert known.registered() == ["mine"]
    found = known.info("mine")
    assert (found.source, found.path, found.spec.outputs[0].shape) == ("json", path, (4, 2, 2))
    assert found.spec.weights_path == str(tmp_path / "models" / "mine.pt")


def test_registration_error_uses_whiskertoolbox_wording(tmp_path: Path) -> None:
    path = write(tmp_path, "broken.json", model_id="", inputs=[{"name": "", "shape": []}])
    with pytest.raises(errors.SpecError) as caught:
        model_registry.ModelRegistry().register_from_json(path)
    told = (
        "Validation failed: model_id must not be empty; inputs[0]: name must not be empty;"
        " inputs[0]: shape must not be empty;"
    )
    assert str(caught.value) == f"model spec {str(path)!r}: {told}"
    assert len(caught.value.problems) == 3


def test_missing_spec_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(errors.SpecError, match="Failed to open"):
        model_registry.ModelRegistry().register_from_json(tmp_path / "absent.json")


def test_registered_id_needs_replace(tmp_path: Path) -> None:
    known = model_registry.ModelRegistry()
    first, second = (write(tmp_path, f"{name}.json", display_name=name) for name in ("first", "second"))
    known.register_from_json(first)
    with pytest.raises(errors.InputError, match=r"'mine' is already registered \(from .*first\.json"):
        known.register_from_json(second)
    assert known.info("mine").spec.display_name == "first"
    known.register_from_json(second, replace=True)
    assert known.info("mine").spec.display_name == "second"
    assert known.unregister("mine") is True
    assert known.unregister("mine") is False
    assert known.find("mine") is None


def test_a_spec_in_memory_is_registered_too() -> None:
    known = model_registry.ModelRegistry()
    whole = spec.RuntimeModelSpec.from_json(json.dumps({**NAMED, **SLOTS}))
    assert known.register(whole) == "mine"
    with pytest.raises(errors.SpecError, match="display_name must not be empty"):
        known.register(whole.model_copy(update={"display_name": ""}))


def test_folder_problems_are_listed_by_file(tmp_path: Path) -> None:
    write(tmp_path, "good.json", model_id="good")
    write(tmp_path, "nameless.json", model_id="")
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "notes.txt").write_text("{")
    report = model_registry.ModelRegistry().register_folder(tmp_path)
    assert report.registered == ("good",)
    assert sorted(report.problems) == ["nameless.json", "text.json"]
    assert "Validation failed: model_id must not be empty;" in report.problems["nameless.json"]


def test_ambiguous_id_error_names_both_files(tmp_path: Path) -> None:
    write(tmp_path / "a", "one.json")
    write(tmp_path / "b", "two.json")
    write(tmp_path / "b", "three.json", model_id="three")
    known, problems = model_registry.folders((str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(errors.InputError, match=r"'mine' is in 2 specs: .*one\.json, .*two\.json"):
        known.info("mine")
    assert list(problems) == [str(tmp_path / "b" / "two.json")]
    assert known.info("three").source == "json"
    known.register_from_json(tmp_path / "b" / "two.json", replace=True)
    assert known.info("mine").path == tmp_path / "b" / "two.json"


def test_a_folder_may_be_named_twice(tmp_path: Path) -> None:
    write(tmp_path / "a", "one.json")
    known, problems = model_registry.folders((str(tmp_path / "a"), str(tmp_path / "a"), f"{tmp_path}/a/../a"))
    assert problems == {}
    assert known.info("mine").spec.display_name == "Mine"


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="no folder"):
        model_registry.folders((str(tmp_path / "absent"),))


def test_ids_are_sorted_and_complete(tmp_path: Path) -> None:
    known = model_registry.ModelRegistry()
    known.register_from_json(write(tmp_path, "mine.json"))
    ids = known.ids()
    assert ids == sorted(set(ids))
    assert {"mine", "resnet18", "timm/resnet18", "samvit_base", "deepseek_sam", "general_encoder"} <= set(ids)


def test_unknown_id_offers_close_ones(tmp_path: Path) -> None:
    known = model_registry.ModelRegistry()
    known.register_from_json(write(tmp_path, "mine.json", model_id="whisker_tip_v2"))
    with pytest.raises(errors.InputError, match="Close ids of specs: whisker_tip_v2"):
        known.info("whisker_tip_v1")
    with pytest.raises(errors.InputError, match=r"closest names are: .*resnet18"):
        known.create("resnet81")


def test_info_of_a_name_loads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(weights, "read_state", refuse)
    found = model_registry.ModelRegistry().info("resnet18")
    assert [(slot.name, slot.shape) for slot in found.spec.outputs] == [("features", (512, 7, 7))]
    assert found.spec.genenc is not None
    assert found.spec.genenc.parameters == 11_176_512
    assert found.spec.genenc.weights_sha256 is None
    assert found.source == "torchvision"


def test_registered_id_precedes_a_source_name(tmp_path: Path) -> None:
    known = model_registry.ModelRegistry()
    known.register_from_json(write(tmp_path, "mine.json", model_id="resnet18"))
    assert known.info("resnet18").source == "json"
    assert known.info("torchvision/resnet18").source == "torchvision"


@pytest.mark.slow
def test_created_encoders_share_nothing() -> None:
    known = model_registry.ModelRegistry()
    options = {"weights": "random:1", "image_size": (16, 16), "device": "cpu"}
    one, other = (known.create("tiny_models:conv", **options) for _ in range(2))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = other(images)["features"]
    with torch.no_grad():
        for parameter in one._run.parameters():
            parameter.zero_()
    assert torch.equal(other(images)["features"], before)
    assert before.abs().max() > 0


def test_a_registered_spec_runs(exported: dict[str, exporter.ExportedModel]) -> None:
    done = exported["torchscript"]
    known = model_registry.ModelRegistry()
    name = known.register_from_json(done.spec_path)
    images = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    assert set(known.create(name, device="cpu")(images)) == {"deep", "fine"}
    with pytest.raises(errors.InputError, match="with its own weights and size"):
        known.create(name, weights="random:0")


def test_registry_creates_the_general_encoder(exported: dict[str, exporter.ExportedModel]) -> None:
    path = exported["torchscript"].artifact_path
    known = model_registry.ModelRegistry()
    encoder = known.create("general_encoder", weights=str(path), image_size=(32, 40), device="cpu", trust=True)
    assert {slot.name: slot.shape for slot in encoder.outputs} == {"features_0": (8, 4, 5), "features_1": (4, 8, 10)}
    with pytest.raises(errors.InputError, match="runs an exported file"):
        resolve.build_encoder(resolve.ModelRequest(name="general_encoder", weights="random:0"))


def test_registry_is_thread_safe(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"m{index:02d}.json", model_id=f"m{index:02d}") for index in range(24)]
    known, faults = model_registry.ModelRegistry(), []

    def work(own: list[Path]) -> None:
        try:
            for path in own:
                known.register_from_json(path)
                assert known.info(path.stem).path == path
                known.registered()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(paths[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert known.registered() == [path.stem for path in paths]
