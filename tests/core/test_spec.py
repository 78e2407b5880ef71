"""RuntimeModelSpec: WhiskerToolbox's fields, messages and order; what it lets through; our own block."""

import json
import warnings
from pathlib import Path

import jsonschema
import pytest

from genenc_core import errors, spec

FULL = {
    "model_id": "efficient_sam",
    "display_name": "EfficientSAM",
    "description": "Video segmentation",
    "weights_path": "weights/model.pte",
    "backend": "executorch",
    "preferred_batch_size": 1,
    "max_batch_size": 4,
    "inputs": [
        {"name": "image", "shape": [3, 256, 256], "recommended_encoder": "ImageEncoder"},
        {"name": "memory_images", "shape": [4, 3, 256, 256], "is_static": True, "sequence_dim": 0},
        {"name": "memory_mask", "shape": [4], "is_boolean_mask": True},
    ],
    "outputs": [{"name": "heatmap", "shape": [1, 256, 256], "recommended_decoder": "TensorToMask2D"}],
    "recommended_post_encoder": "global_avg_pool",
    "post_encoder": [{"module": "spatial_point", "interpolation": "bilinear"}],
}
MINIMAL = {
    "model_id": "m",
    "display_name": "M",
    "inputs": [{"name": "x", "shape": [3, 64, 64]}],
    "outputs": [{"name": "y", "shape": [1, 64, 64]}],
}


def parsed(**changes: object) -> spec.RuntimeModelSpec:
    return spec.RuntimeModelSpec.from_json(json.dumps({**MINIMAL, **changes}))


def with_input(**changes: object) -> spec.RuntimeModelSpec:
    return parsed(inputs=[{**MINIMAL["inputs"][0], **changes}])


def test_full_spec_is_valid() -> None:
    found = spec.RuntimeModelSpec.from_json(json.dumps(FULL))
    assert found.problems() == []
    assert found.inputs[1].shape == (4, 3, 256, 256)
    assert found.inputs[1].sequence_dim == 0
    assert found.inputs[2].is_boolean_mask is True


def test_minimal_spec_leaves_every_optional_unset() -> None:
    found = parsed()
    required = {"model_id", "display_name", "inputs", "outputs"}
    assert {name for name in type(found).model_fields if getattr(found, name) is not None} == required
    assert found.problems() == []


def test_round_trip_keeps_every_field() -> None:
    changes = {
        "batch_mode": {"dynamic": {"min": 2, "max": 16}},
        "weights_variants": [{"path": "b4.pt", "batch_size": 4, "label": "four", "backend": "jit"}],
        "genenc": {
            "source": {"kind": "timm", "name": "vit", "weights": "random:0"},
            "preprocessing": {"height": 64, "width": 64, "fit": "pad", "pad_value": [127, 127, 127]},
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    found = spec.RuntimeModelSpec.from_json(json.dumps({**FULL, **changes}))
    again = spec.RuntimeModelSpec.from_json(found.to_json())
    assert again == found
    written = json.loads(found.to_json())
    for key, value in FULL.items():
        assert written[key] == value, key


def test_null_means_absent() -> None:
    assert parsed(description=None, batch_mode=None).description is None


@pytest.mark.parametrize("missing", ["model_id", "display_name", "inputs", "outputs"])
def test_missing_required_field_is_named(missing: str) -> None:
    text = json.dumps({key: value for key, value in MINIMAL.items() if key != missing})
    with pytest.raises(errors.SpecError, match=f"missing required field '{missing}'"):
        spec.RuntimeModelSpec.from_json(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "JSON"), ("[]", "object"), ('{"model_id": 3}', "model_id"), ('{"inputs": [{"shape": ["a"]}]}', "shape")],
)
def test_malformed_text_is_a_parse_error(text: str, word: str) -> None:
    with pytest.raises(errors.SpecError, match=word):
        spec.RuntimeModelSpec.from_json(text)


def test_parse_errors_are_listed_together() -> None:
    with pytest.raises(errors.SpecError) as caught:
        spec.RuntimeModelSpec.from_json("{}")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (parsed(model_id=""), "model_id must not be empty"),
        (parsed(display_name=""), "display_name must not be empty"),
        (with_input(name=""), "inputs[0]: name must not be empty"),
        (parsed(inputs=[*MINIMAL["inputs"]] * 2), "inputs[1]: duplicate name 'x'"),
        (with_input(shape=[]), "inputs[0]: shape must not be empty"),
        (with_input(sequence_dim=5), "inputs[0]: sequence_dim (5) exceeds shape rank (3)"),
        (parsed(outputs=[{"name": "", "shape": [1]}]), "outputs[0]: name must not be empty"),
        (parsed(outputs=[{"name": "y", "shape": []}]), "outputs[0]: shape must not be empty"),
        (parsed(preferred_batch_size=-1), "preferred_batch_size must be >= 0"),
        (parsed(max_batch_size=-1), "max_batch_size must be >= 0"),
        (
            parsed(batch_mode={"fixed": 4, "recurrent_only": True}),
            "batch_mode: only one of fixed, dynamic, or recurrent_only may be set",
        ),
        (parsed(batch_mode={"fixed": 0}), "batch_mode.fixed must be >= 1"),
        (parsed(batch_mode={"dynamic": {"min": 0, "max": 4}}), "batch_mode.dynamic.min must be >= 1"),
        (
            parsed(batch_mode={"dynamic": {"min": 4, "max": 2}}),
            "batch_mode.dynamic.max must be >= min (or 0 for unlimited)",
        ),
        (parsed(weights_variants=[{"path": "", "batch_size": 1}]), "weights_variants[0]: path must not be empty"),
        (parsed(weights_variants=[{"path": "a", "batch_size": 0}]), "weights_variants[0]: batch_size must be >= 1"),
        (
            parsed(weights_variants=[{"path": "a", "batch_size": 4}, {"path": "b", "batch_size": 4}]),
            "weights_variants[1]: duplicate batch_size 4",
        ),
    ],
)
def test_whiskertoolbox_rules_keep_their_messages(changed: spec.RuntimeModelSpec, message: str) -> None:
    assert changed.problems() == [message]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (with_input(shape=[3, 0, 64]), "inputs[0]: shape dimensions must be >= 1, got [3, 0, 64]"),
        (parsed(batch_mode={"dynamic": {"min": 1, "max": -1}}), "batch_mode.dynamic.max must be >= 0"),
        (with_input(sequence_dim=-2), "inputs[0]: sequence_dim must be >= -1, got -2"),
    ],
)
def test_stricter_rules_report_invalid_values(changed: spec.RuntimeModelSpec, message: str) -> None:
    assert changed.problems() == [message]


def test_unknown_backend_error_lists_known_ones() -> None:
    (problem,) = parsed(backend="tensorrt").problems()
    assert problem.startswith("backend: unknown name 'tensorrt'")
    assert "aotinductor" in problem


def test_all_messages_are_in_whiskertoolbox_order() -> None:
    broken = parsed(
        model_id="",
        display_name="",
        inputs=[{"name": "", "shape": []}],
        outputs=[{"name": "", "shape": []}],
        preferred_batch_size=-1,
        batch_mode={"fixed": 0},
        weights_variants=[{"path": "", "batch_size": 0}],
    )
    assert broken.problems() == [
        "model_id must not be empty",
        "display_name must not be empty",
        "inputs[0]: name must not be empty",
        "inputs[0]: shape must not be empty",
        "outputs[0]: name must not be empty",
        "outputs[0]: shape must not be empty",
        "preferred_batch_size must be >= 0",
        "batch_mode.fixed must be >= 1",
        "weights_variants[0]: path must not be empty",
        "weights_variants[0]: batch_size must be >= 1",
    ]
    with pytest.raises(errors.SpecError) as caught:
        broken.check()
    assert list(caught.value.problems) == broken.problems()


@pytest.mark.parametrize(
    ("mode", "bounds", "words"),
    [
        ({"fixed": 1}, (1, 1), "Fixed(1)"),
        ({"fixed": 4}, (4, 4), "Fixed(4)"),
        ({"dynamic": {"min": 1, "max": 0}}, (1, 0), "Dynamic(1, unlimited)"),
        ({"dynamic": {"min": 2, "max": 16}}, (2, 16), "Dynamic(2, 16)"),
        ({"recurrent_only": True}, (1, 1), "RecurrentOnly"),
        ({"recurrent_only": False}, (1, 0), "Dynamic(1, unlimited)"),
        ({"recurrent_only": True, "fixed": 4}, (1, 1), "RecurrentOnly"),
        ({"fixed": 4, "dynamic": {"min": 2, "max": 8}}, (4, 4), "Fixed(4)"),
    ],
)
def test_batch_modes(mode: dict[str, object], bounds: tuple[int, int], words: str) -> None:
    found = parsed(batch_mode=mode).resolved_batch_mode()
    assert ((found.min, found.max), found.describe()) == (bounds, words)


def test_max_batch_size_applies_only_without_batch_mode() -> None:
    assert parsed(max_batch_size=8).resolved_batch_mode().max == 8
    assert parsed(max_batch_size=8, batch_mode={"dynamic": {"min": 1, "max": 0}}).resolved_batch_mode().max == 0


@pytest.mark.parametrize(
    ("named", "path", "expected"),
    [
        ("aot_inductor", "x.pt", "AOTInductor"),
        ("JIT", "x.pt2", "TorchScript"),
        ("exec_torch", "x", "ExecuTorch"),
        (None, "x.PT2", "AOTInductor"),
        ("auto", "x.pt", "TorchScript"),
        (None, "x.pte", "ExecuTorch"),
        (None, "x.onnx", "ONNX"),
        ("Exported_Program", "x.pt2", "ExportedProgram"),
        ("onnx", "x.bin", "ONNX"),
        (None, "x.bin", "Auto"),
        (None, None, "Auto"),
    ],
)
def test_backend_by_name_then_extension(named: str | None, path: str | None, expected: str) -> None:
    assert parsed(backend=named, weights_path=path).resolved_backend() == expected


def test_batch_mode_of_variants() -> None:
    variants = [{"path": "b1.pt", "batch_size": 1}, {"path": "b8.pt", "batch_size": 8}]
    assert (
        parsed(weights_variants=variants, batch_mode={"fixed": 1}).resolved_batch_mode().describe() == "Dynamic(1, 8)"
    )
    recurrent = parsed(weights_variants=variants, batch_mode={"recurrent_only": True})
    assert recurrent.resolved_batch_mode().describe() == "RecurrentOnly"
    assert parsed(weights_variants=[], batch_mode={"fixed": 4}).resolved_batch_mode().describe() == "Fixed(4)"


def test_relative_weights_are_joined_to_the_spec_folder(tmp_path: Path) -> None:
    path = tmp_path / "models" / "spec.json"
    path.parent.mkdir()
    variants = [{"path": "b1.pt", "batch_size": 1}, {"path": "/abs/b4.pt", "batch_size": 4}]
    path.write_text(json.dumps({**FULL, "weights_variants": variants}))
    found = spec.load_spec(path)
    assert found.weights_path == str(path.parent / "weights/model.pte")
    assert [variant.path for variant in found.weights_variants or ()] == [str(path.parent / "b1.pt"), "/abs/b4.pt"]


def test_empty_variant_path_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({**MINIMAL, "weights_path": "", "weights_variants": [{"path": "", "batch_size": 1}]}))
    assert spec.RuntimeModelSpec.from_json_file(path).weights_path == ""
    with pytest.raises(errors.SpecError, match=r"weights_variants\[0\]: path must not be empty"):
        spec.load_spec(path)


def test_missing_file_says_failed_to_open(tmp_path: Path) -> None:
    with pytest.raises(errors.SpecError, match="Failed to open"):
        spec.load_spec(tmp_path / "none.json")


def test_unknown_keys_are_named_in_one_warning() -> None:
    text = json.dumps(
        {**MINIMAL, "weigths_path": "x", "inputs": [{"name": "x", "shape": [1], "dtype": "f"}], "genenc": {"extra": 1}}
    )
    with pytest.warns(spec.UnknownKeyWarning) as caught:
        spec.RuntimeModelSpec.from_json(text)
    (message,) = [str(item.message) for item in caught]
    for name in ("'weigths_path'", "'inputs[0].dtype'", "'genenc.extra'"):
        assert name in message


@pytest.mark.slow
def test_known_keys_emit_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec.RuntimeModelSpec.from_json(json.dumps(FULL))


def test_shipped_schema_is_up_to_date() -> None:
    shipped = Path(spec.__file__).with_name("runtime_model_spec.schema.json").read_text(encoding="utf-8")
    assert shipped == spec.json_schema(), "run: genenc schema --out genenc_core/runtime_model_spec.schema.json"


def test_schema_agrees_with_the_parser() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(spec.json_schema()))
    assert validator.is_valid(FULL)
    assert validator.is_valid(MINIMAL)
    assert not validator.is_valid({**MINIMAL, "inputs": [{"name": "x", "shape": "3x64"}]})
    assert not validator.is_valid({})


def test_default_decode_is_omitted() -> None:
    """Specs and runs made before it could be chosen keep their bytes and their identity."""
    usual, scaled = (spec.Preprocessing(height=8, width=8, decode=way) for way in ("full", "scaled"))
    assert "decode" not in usual.model_dump(mode="json")
    assert spec.Preprocessing.model_validate_json(usual.model_dump_json()) == usual
    assert spec.Preprocessing.model_validate_json(scaled.model_dump_json()) == scaled
