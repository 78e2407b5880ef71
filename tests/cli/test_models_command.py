"""`models`, `info` of models, `--models DIR` and the general encoder on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr

import tiny_models
from genenc_core.run import model_info
from genenc_core.runtime import model_registry

Call = Callable[..., Any]
SPEC = {
    "model_id": "whisker_tip",
    "display_name": "Whisker tip",
    "weights_path": "whisker.pt",
    "batch_mode": {"dynamic": {"min": 1, "max": 16}},
    "weights_variants": [{"path": "b4.pt", "batch_size": 4, "label": "four"}],
    "inputs": [{"name": "image", "shape": [3, 224, 224]}],
    "outputs": [{"name": "features", "shape": [768, 7, 7]}, {"name": "fine", "shape": [192, 28, 28]}],
}


def write(path: Path, **changes: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**SPEC, **changes}))
    return path


def table(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


@pytest.mark.slow
def test_a_search_lists_names_with_shapes_from_a_run(genenc: Call) -> None:
    said = genenc("models", "--search", "ResNet18")
    assert (said.code, said.err) == (0, "")
    headings, *rows = table(said.out)
    assert headings == ["name", "source", "input", "slots", "pixels per cell"]
    assert ["resnet18", "torchvision", "224x224", "features [512, 7, 7]", "32"] in rows
    assert ["timm/resnet18", "timm", "224x224", "features [512, 7, 7]", "32"] in rows
    assert all("resnet18" in row[0] for row in rows)


@pytest.mark.slow
def test_a_pattern_and_a_source_narrow_the_list(genenc: Call) -> None:
    _, *rows = table(genenc("models", "--search", "*darknet53_fpn", "--source", "genenc").out)
    assert [row[0] for row in rows] == ["cspdarknet53_fpn", "darknet53_fpn"]
    assert rows[1][3:] == ["p3 [256, 52, 52], p4 [256, 26, 26], p5 [256, 13, 13]", "8, 16, 32"]


def test_many_names_come_without_shapes_and_with_a_hint(genenc: Call) -> None:
    said = genenc("models")
    headings, *rows = table(said.out)
    assert headings == ["name", "source", "input"]
    assert len(rows) > 200
    assert ["samvit_base", "genenc", "1024x1024"] in rows
    assert ["inception_v3", "torchvision", "299x299"] in rows
    assert f"{len(rows)} models; --search" in said.err


@pytest.mark.slow
def test_own_encoders_are_listed_and_the_general_one_names_no_shapes(genenc: Call) -> None:
    found = {row["name"]: row for row in json.loads(genenc("models", "--source", "genenc", "--json").out)}
    assert set(found) >= {"samvit_base", "samvit_large", "samvit_huge", "deepseek_sam", "darknet53_maps", "yolov3_tiny"}
    assert found["deepseek_sam"]["outputs"] == [{"name": "features", "shape": [1024, 16, 16], "pixels_per_cell": "64"}]
    assert found["deepseek_sam"]["parameters"] == 95_569_152
    assert found["general_encoder"]["note"] == "those of the exported file"
    assert "outputs" not in found["general_encoder"]


def test_specs_of_a_folder_are_listed_and_broken_ones_named(genenc: Call, tmp_path: Path) -> None:
    write(tmp_path / "specs" / "a.json")
    write(tmp_path / "specs" / "b.json", model_id="")
    said = genenc("models", "--source", "json", "--models", tmp_path / "specs")
    assert table(said.out)[1:] == [
        ["whisker_tip", "json", "224x224", "features [768, 7, 7], fine [192, 28, 28]", "32, 8"]
    ]
    assert "b.json" in said.err
    assert "Validation failed: model_id must not be empty;" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--source", "zoo"), "'zoo' is not one of 'json', 'genenc', 'torchvision', 'timm'"),
        (("--source", "json"), "--models DIR"),
        (("--models", "nowhere"), "no folder 'nowhere'"),
    ],
)
def test_wrong_usage_is_said(genenc: Call, arguments: tuple[str, ...], words: str) -> None:
    said = genenc("models", *arguments)
    assert (said.code, words in said.err) == (2, True)


def test_nothing_fits(genenc: Call) -> None:
    said = genenc("models", "--search", "nosuchmodel")
    assert (said.code, table(said.out)[1:], "no model matches" in said.err) == (0, [], True)


def test_info_of_a_spec_tells_slots_before_and_after_the_post_encoder(genenc: Call, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", recommended_post_encoder="global_avg_pool")
    said = genenc("info", path)
    assert said.code == 0
    for line in (
        "batch    Dynamic(1, 4)",
        "output   features [768, 7, 7], one cell is 32 x 32 pixels",
        "         after global_avg_pool: features [768]",
        "output   fine [192, 28, 28], one cell is 8 x 8 pixels",
        "images   stretch to 224 x 224, bilinear, not antialiased",
        f"variant  batch 4: {tmp_path / 'b4.pt'} (four)",
    ):
        assert line in said.out.splitlines()
    found = json.loads(genenc("info", path, "--json").out)
    assert found["model_id"] == "whisker_tip"
    assert found["effective_outputs"] == [
        {"name": "features", "dims": ["channel"], "shape": [768]},
        {"name": "fine", "dims": ["channel", "y", "x"], "shape": [192, 28, 28]},
    ]


def test_a_spec_of_its_own_post_encoder_goes_before_the_recommended_one(tmp_path: Path) -> None:
    steps = [{"module": "spatial_point", "interpolation": "Bilinear"}]
    path = write(tmp_path / "a.json", recommended_post_encoder="global_avg_pool", post_encoder=steps)
    found = model_info.find(str(path), ())
    first = model_info.effective_outputs(found.spec)[0]
    assert (first.dims, first.shape) == (("point", "channel"), (1, 768))
    assert "         after spatial_point(interpolation=Bilinear): features [768] per point" in model_info.summary(found)


def test_a_post_encoder_that_cannot_be_applied_is_said(genenc: Call, tmp_path: Path) -> None:
    steps = [{"module": "global_avg_pool"}, {"module": "spatial_point"}]
    path = write(tmp_path / "a.json", post_encoder=steps)
    assert "cannot be applied" in genenc("info", path).out
    assert "spatial_point needs a feature map" in json.loads(genenc("info", path, "--json").out)["post_encoder_problem"]
    unknown = write(tmp_path / "b.json", recommended_post_encoder="squeeze")
    assert "'squeeze' is unknown" in genenc("info", unknown).out


def test_an_id_may_hold_a_slash(genenc: Call, tmp_path: Path) -> None:
    write(tmp_path / "specs" / "a.json", model_id="lab/whisker")
    said = genenc("info", "lab/whisker", "--models", str(tmp_path / "specs"))
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("model    lab/whisker: Whisker tip\n")


def test_a_spec_without_outputs_is_described(genenc: Call, tmp_path: Path) -> None:
    path = write(tmp_path / "specs" / "a.json", outputs=[], recommended_post_encoder="global_avg_pool")
    said = genenc("info", str(path))
    assert (said.code, said.err) == (0, "")
    assert "at least one output slot" in said.out


def test_info_of_a_name_needs_no_weights(genenc: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_a, **_k: pytest.fail("a download was tried"))
    said = genenc("info", "resnet18")
    assert "output   features [512, 7, 7], one cell is 32 x 32 pixels" in said.out.splitlines()
    assert "source   torchvision resnet18, 11,176,512 parameters" in said.out.splitlines()
    assert json.loads(genenc("info", "genenc/yolov3_tiny", "--json").out)["source"] == "genenc"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image.png", "neither a spec (.json) nor a model file (.toml, .yaml)"),
        ("noext", "neither a spec (.json) nor a model file"),
        ("model.pt", "--model general_encoder --weights FILE"),
        ("model.ONNX", "--model general_encoder --weights FILE"),
        ("broken.json", "it is not UTF-8 text"),
        ("broken.toml", "cannot be read"),
    ],
)
def test_info_of_another_file_says_what_it_describes(genenc: Call, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"\x89 something else")
    said = genenc("info", tmp_path / name)
    assert said.code == 2
    assert words in said.err


def test_info_of_nothing_is_said(genenc: Call, tmp_path: Path) -> None:
    said = genenc("info", "resnet81")
    assert said.code == 2
    assert "neither a run folder nor a spec file, and" in said.err
    assert "resnet18" in said.err
    assert genenc("info", tmp_path / "absent.json").code == 2
    assert "does not exist" in genenc("info", tmp_path / "absent.json").err


@pytest.mark.slow
def test_a_model_id_is_a_name_where_its_folder_is_given(genenc: Call, photos: Path, tmp_path: Path) -> None:
    genenc("export", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--out", tmp_path / "specs")
    (name,) = model_registry.folders((str(tmp_path / "specs"),))[0].registered()
    config = tmp_path / "options.toml"
    config.write_text(f'models = ["{tmp_path / "specs"}"]\nmodel = "{name}"\n')
    assert genenc("extract", photos, "--config", config, "--out", tmp_path / "run", "--device", "cpu").code == 0
    direct = genenc("extract", photos, "--model", name, "--models", tmp_path / "specs", "--out", tmp_path / "run")
    assert "nothing to do" in direct.out
    assert f"model    {name}: " in genenc("info", name, "--models", tmp_path / "specs").out
    said = genenc("extract", photos, "--model", name, "--out", tmp_path / "other")
    assert (said.code, (tmp_path / "other").exists()) == (2, False)


def test_an_id_in_two_specs_is_refused(genenc: Call, photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "a" / "one.json")
    write(tmp_path / "b" / "two.json")
    folders = ("--models", tmp_path / "a", "--models", tmp_path / "b")
    said = genenc("extract", photos, "--model", "whisker_tip", *folders, "--out", tmp_path / "run")
    assert said.code == 2
    assert "one.json" in said.err
    assert "two.json" in said.err
    assert genenc("info", "whisker_tip", *folders).code == 2


def test_broken_specs_beside_an_unknown_id_are_told(genenc: Call, photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "specs" / "b.json", display_name="")
    said = genenc(
        "extract", photos, "--model", "whisker_tip", "--models", tmp_path / "specs", "--out", tmp_path / "run"
    )
    assert said.code == 2
    assert "b.json is skipped" in said.err


@pytest.mark.slow
def test_the_general_encoder_runs_any_exported_file(genenc: Call, photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.jit.trace(tiny_models.conv().eval(), torch.rand(2, 3, 32, 48)).save(tmp_path / "net.pt")
    general = ("extract", photos, "--model", "general_encoder", "--out", tmp_path / "run", "--device", "cpu")
    said = genenc(*general, "--weights", tmp_path / "net.pt")
    assert (said.code, "--trust" in said.err) == (2, True)
    assert not (tmp_path / "run").exists()
    options = ("--weights", tmp_path / "net.pt", "--trust", "--image-size", "32x48", "--maps")
    said = genenc(*general, *options, "--output-shape", "384,7,7")
    assert (said.code, "first output is 6,4,6" in said.err) == (2, True)
    assert genenc(*general, *options, "--output-shape", "6,4,6").code == 0
    store = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")
    assert store["maps"].shape == (6, 6, 4, 6)
    (tmp_path / "net.pt").unlink()
    (tmp_path / "run" / "_txn" / "commits" / "s0000000.json").unlink()
    assert genenc("resume", tmp_path / "run").code == 0
    assert "general_encoder (torchscript)" in genenc("info", tmp_path / "run").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--weights FILE.pt"),
        (("--weights", "random:0", "--trust"), "there is no file 'random:0'"),
        (("--weights", "net.pt", "--trust", "--layers", "0"), "--layers 0 cannot be used with general_encoder"),
    ],
)
def test_the_general_encoder_says_what_it_lacks(
    genenc: Call, photos: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    said = genenc("extract", photos, "--model", "general_encoder", *options, "--out", tmp_path / "run")
    assert (said.code, words in said.err) == (2, True)


def test_an_output_shape_is_for_the_general_encoder_only(
    genenc: Call, photos: Path, tiny: list[str], tmp_path: Path
) -> None:
    said = genenc("extract", photos, *tiny, "--output-shape", "6,4,4", "--out", tmp_path / "run")
    assert (said.code, "general_encoder only" in said.err) == (2, True)


def test_the_general_encoder_is_not_exported(genenc: Call, tmp_path: Path) -> None:
    said = genenc("export", "general_encoder", "--weights", "random:0", "--out", tmp_path / "out")
    assert (said.code, "runs an exported file" in said.err) == (2, True)


def test_a_model_that_cannot_be_built_is_a_note_and_no_traceback(genenc: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    known = model_registry.ModelRegistry.info

    def info(self: model_registry.ModelRegistry, name: str, **more: object) -> model_registry.ModelInfo:
        if name == "resnet34":
            raise RuntimeError("no kernel\nfor it")
        return known(self, name, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(model_registry.ModelRegistry, "info", info)
    said = genenc("models", "--search", "resnet34", "--source", "torchvision")
    assert said.code == 0
    assert "RuntimeError: no kernel" in said.out
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize("search", ["[", "(", "*[", "\\", "resnet[", "?", "+"])
def test_signs_of_patterns_are_no_error(genenc: Call, search: str) -> None:
    assert genenc("models", "--search", search, "--source", "genenc").code == 0


@pytest.mark.slow
def test_pixels_per_cell_are_a_mean_only_where_nothing_states_them(genenc: Call, tmp_path: Path) -> None:
    assert "features [256, 6, 6], one cell is ~37.3 x ~37.3 pixels" in genenc("info", "alexnet").out
    genenc("export", "alexnet", "--out", str(tmp_path), "--weights", "random:0")
    (path,) = tmp_path.glob("*_spec.json")
    assert "features [256, 6, 6], one cell is 32 x 32 pixels" in genenc("info", str(path)).out
