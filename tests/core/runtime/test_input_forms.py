"""Exported files whose images are not float32 [B, 3, H, W], and whose outputs are not all features."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.helper as oh
import pytest
import torch
from torch import nn

from genenc_core import errors, spec
from genenc_core.runtime import adaptation, artifact_trial, backends, general_encoder

SIZE = (16, 24)


DTYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "float64": onnx.TensorProto.DOUBLE,
    "uint8": onnx.TensorProto.UINT8,
    "int64": onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
    "bfloat16": onnx.TensorProto.BFLOAT16,
}


def images(count: int = 3) -> torch.Tensor:
    """Images whose values are whole steps of 1/255, so that uint8 holds them as they are."""
    drawn = torch.randint(0, 256, (count, 3, *SIZE), generator=torch.Generator().manual_seed(1))
    return drawn.to(torch.float32) / 255


def pooling(
    path: Path, *, dtype: str = "float32", layout: str = "NCHW", channels: int = 3, sizes: Sequence[int | str] = SIZE
) -> Path:
    """Write an ONNX file that halves a map's sides by averages: input cast to float32, pooled, in its own layout."""
    height, width = sizes
    shape = ["b", channels, height, width] if layout == "NCHW" else ["b", height, width, channels]
    nodes = [oh.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT)]
    if layout == "NHWC":
        nodes.append(oh.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]))
    pooled = "t" if layout == "NHWC" else "f"
    nodes.append(oh.make_node("AveragePool", [pooled], ["y"], kernel_shape=[2, 2], strides=[2, 2]))
    if layout == "NHWC":
        nodes.append(oh.make_node("Transpose", ["y"], ["z"], perm=[0, 2, 3, 1]))
    last = "z" if layout == "NHWC" else "y"
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", DTYPES[dtype], shape)],
        [oh.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)],
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), path)
    return path


def traced(module: nn.Module, example: Any, path: Path) -> Path:
    torch.jit.trace(module.eval(), example).save(path)
    return path


def encode(path: Path, given: torch.Tensor | None = None, **options: Any) -> tuple[spec.RuntimeModelSpec, Any]:
    """Return the spec that the general encoder makes of a file, and what it gives for `images`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = general_encoder.spec_of(path, trust=True, **{"image_size": SIZE, **options})
    encoder = backends.load_encoder(spec.RuntimeModelSpec.from_json(found.to_json()), trust=True)
    return found, encoder(images() if given is None else given)


@pytest.mark.parametrize(
    ("dtype", "layout", "channels", "dynamic"),
    list(itertools.product(["float32", "float16", "float64", "uint8"], ["NCHW", "NHWC"], [1, 3], [False, True])),
)
def test_onnx_inputs(dtype: str, layout: str, channels: int, dynamic: bool, tmp_path: Path) -> None:
    sizes = ("h", "w") if dynamic else SIZE
    path = pooling(tmp_path / "m.onnx", dtype=dtype, layout=layout, channels=channels, sizes=sizes)
    found, given = encode(path)
    form = (found.genenc and found.genenc.input) or spec.ArtifactInput()
    assert (form.dtype, form.layout, form.channels) == (dtype, layout, channels)
    expected = images()
    if channels == 1:
        expected = (expected * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    if dtype == "uint8":
        expected = (expected * 255).round()
    expected = nn.functional.avg_pool2d(expected, 2)
    assert found.outputs[0].shape == (channels, 8, 12)
    torch.testing.assert_close(given["features"], expected, rtol=1e-3, atol=1e-3)


def test_fixed_size_of_the_file_is_used(tmp_path: Path) -> None:
    path = pooling(tmp_path / "m.onnx")
    found, _ = encode(path, image_size=None)
    assert found.inputs[0].shape == (3, *SIZE)
    with pytest.raises(errors.InputError, match="of 16 x 24 pixels, not of 64 x 64"):
        general_encoder.spec_of(path, image_size=(64, 64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int64"}, r"takes int64, but images can only be float32.*package\.module:factory"),
        ({"dtype": "bool"}, r"takes bool, but"),
        ({"dtype": "bfloat16"}, r"takes bfloat16, but"),
        ({"channels": 4}, r"takes images of 4 channels \(\[any, 4, 16, 24\]\).*RGB"),
        ({"channels": 6, "layout": "NHWC"}, r"takes images of 6 channels"),
    ],
)
def test_inputs_that_no_image_fits_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match=words) as found:
        general_encoder.spec_of(pooling(tmp_path / "m.onnx", **options), image_size=SIZE)
    assert "--image-size" not in str(found.value)


def test_several_inputs_are_refused_by_every_format(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return image * mask

    example = (torch.rand(2, 3, *SIZE), torch.rand(2, 3, *SIZE))
    traced(Two(), example, tmp_path / "two.pt")
    torch.export.save(torch.export.export(Two(), example), tmp_path / "two.pt2")
    info = [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", 3, *SIZE]) for name in ("image", "mask", "y")]
    graph = oh.make_graph([oh.make_node("Mul", ["image", "mask"], ["y"])], "g", info[:2], info[2:])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "two.onnx")
    for name in ("two.pt", "two.pt2", "two.onnx"):
        with pytest.raises(errors.InputError, match="has the inputs image, mask, but an image encoder takes one"):
            general_encoder.spec_of(tmp_path / name, image_size=SIZE, trust=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_torch_files_of_other_dtypes(dtype: torch.dtype, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    expected = module(images())
    module = module.to(dtype)
    example = torch.rand(2, 3, *SIZE).to(dtype)
    path = tmp_path / f"m.{kind}"
    if kind == "pt":
        traced(module, example, path)
    else:
        batch = torch.export.Dim("b", min=1, max=8)
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=({0: batch},)), path)
    found, given = encode(path)
    assert found.genenc is not None
    assert found.genenc.input is not None
    assert found.genenc.input.dtype == str(dtype).removeprefix("torch.")
    assert given["features"].dtype == torch.float32
    torch.testing.assert_close(given["features"], expected, rtol=0.05, atol=0.05)


class Scripted(nn.Module):
    """A net of one convolution, whose input is permuted first."""

    def __init__(self, channels: int, *, last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 7, 2, stride=2)
        self.last = last

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.conv(given.permute(0, 3, 1, 2) if self.last else given)


@pytest.mark.parametrize(("channels", "last"), [(3, True), (1, False), (1, True)])
def test_torchscript_layouts_are_found_by_trying(channels: int, last: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.rand(2, *SIZE, channels) if last else torch.rand(2, channels, *SIZE)
    found, given = encode(traced(Scripted(channels, last=last), example, tmp_path / "m.pt"))
    assert found.genenc is not None
    assert found.genenc.input == spec.ArtifactInput(layout="NHWC" if last else "NCHW", channels=channels)  # type: ignore[arg-type]
    assert given["features"].shape == (3, 7, 8, 12)


class Asserting(nn.Module):
    """A script that takes nothing but what it asserts."""

    def __init__(self, dtype: torch.dtype, *, last: bool) -> None:
        super().__init__()
        self.dtype, self.last = dtype, last
        self.conv = nn.Conv2d(3, 7, 2, stride=2)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        assert given.dtype == self.dtype
        if self.last:
            assert given.shape[3] == 3, "give images as [B, H, W, 3]"
            given = given.permute(0, 3, 1, 2)
        else:
            assert given.shape[1] == 3
        return self.conv(given.float() / 255 if self.dtype == torch.uint8 else given.float())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_scripts_asserting_dtype_or_layout_run(dtype: torch.dtype, last: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Asserting(dtype, last=last).eval()
    torch.jit.script(module).save(tmp_path / "m.pt")
    found, given = encode(tmp_path / "m.pt")
    form = found.genenc.input if found.genenc and found.genenc.input else spec.ArtifactInput()
    assert (form.dtype, form.layout) == (str(dtype).removeprefix("torch."), "NHWC" if last else "NCHW")
    torch.testing.assert_close(given["features"], module.conv(images()))


def test_script_with_failing_assertion_is_refused(tmp_path: Path) -> None:
    class Never(nn.Module):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            assert given.shape[0] == 99, "one image, please"
            return given

    torch.jit.script(Never()).save(tmp_path / "m.pt")
    match = r"an assertion in its code fails for these images \(one image, please\).*Tried:.*uint8.*wrap it"
    with pytest.raises(errors.InputError, match=match):
        general_encoder.spec_of(tmp_path / "m.pt", image_size=SIZE, trust=True)


def test_torchscript_of_four_channels_is_refused(tmp_path: Path) -> None:
    path = traced(Scripted(4), torch.rand(2, 4, *SIZE), tmp_path / "m.pt")
    with pytest.raises(errors.InputError, match=r"to have 4 channels.*RGB") as found:
        general_encoder.spec_of(path, image_size=SIZE, trust=True)
    assert "--image-size" not in str(found.value)


def test_wrong_size_error_gives_an_accepted_size(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 96 * 96, 4)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.linear(given.flatten(1))

    path = traced(Flat(), torch.rand(2, 3, 96, 96), tmp_path / "m.pt")
    with pytest.raises(errors.InputError, match="It accepts images of 96 x 96 pixels: give --image-size 96x96"):
        general_encoder.spec_of(path, image_size=(64, 64), trust=True)


class Several(nn.Module):
    """A net with outputs of many kinds, of which some are features."""

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.kinds = kinds

    def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = nn.functional.avg_pool2d(given, 4)
        every: dict[str, torch.Tensor] = {
            "map": made,
            "half": made.half(),
            "vector": made.mean((2, 3)),
            "tokens": made.flatten(2),
            "deep": made[:, :, None],
            "int64": made.argmax(1),
            "uint8": (made * 255).to(torch.uint8),
            "bool": made > 0.5,
            "complex": torch.complex(made, made),
            "number": made.sum((1, 2, 3)),
            "scalar": made.sum(),
            "anchors": torch.rand(50, 4),
        }
        return tuple(every[kind] for kind in self.kinds)


LEFT_OUT = ["int64", "uint8", "bool", "complex", "number", "scalar", "anchors"]


@pytest.mark.parametrize("kind", LEFT_OUT)
@pytest.mark.parametrize("first", [True, False])
def test_unusable_outputs_are_omitted_with_a_warning(kind: str, first: bool, tmp_path: Path) -> None:
    order = [kind, "map", "half"] if first else ["map", kind, "half"]
    path = traced(Several(*order), torch.rand(2, 3, *SIZE), tmp_path / "m.pt")
    with pytest.warns(general_encoder.UndeclaredFormatWarning, match=rf"output {order.index(kind)} \("):
        found = general_encoder.spec_of(path, image_size=SIZE, trust=True)
    kept = [index for index, item in enumerate(order) if item != kind]
    assert [slot.name for slot in found.outputs] == [f"features_{index}" for index in kept]
    assert found.genenc is not None
    assert found.genenc.output_positions == tuple(kept)
    given = backends.load_encoder(found, trust=True)(images())
    for slot in given.values():
        torch.testing.assert_close(slot, nn.functional.avg_pool2d(images(), 4), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "shape"), [("vector", (3,)), ("tokens", (24, 3)), ("deep", (3, 1, 4, 6))])
def test_outputs_of_other_ranks_are_kept(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = traced(Several("map", kind), torch.rand(2, 3, *SIZE), tmp_path / "m.pt")
    found, _ = encode(path)
    assert [slot.shape for slot in found.outputs] == [(3, 4, 6), shape]


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_file_without_features_lists_its_outputs(kind: str, tmp_path: Path) -> None:
    path = traced(Several(kind), torch.rand(2, 3, *SIZE), tmp_path / "m.pt")
    with pytest.raises(errors.InputError, match=r"returns no features: output 0 \(") as found:
        general_encoder.spec_of(path, image_size=SIZE, trust=True)
    assert "--image-size" not in str(found.value)


def foreign(path: Path, shape: Sequence[int], outputs: Sequence[Sequence[int]], **more: Any) -> spec.RuntimeModelSpec:
    """Return a spec as somebody else writes it."""
    return spec.RuntimeModelSpec(
        model_id="theirs",
        display_name="Theirs",
        weights_path=str(path),
        inputs=(spec.SlotSpec(name="x", shape=tuple(shape)),),
        outputs=tuple(spec.SlotSpec(name=f"y{at}", shape=tuple(one)) for at, one in enumerate(outputs)),
        **more,
    )


def test_an_integer_output_that_a_spec_declares_is_cast(tmp_path: Path) -> None:
    path = traced(Several("map", "int64"), torch.rand(2, 3, *SIZE), tmp_path / "m.pt")
    encoder = backends.load_encoder(foreign(path, (3, *SIZE), [(3, 4, 6), (4, 6)]), trust=True)
    given = encoder(images())
    assert torch.equal(given["y1"], nn.functional.avg_pool2d(images(), 4).argmax(1).float())


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"dtype": "float16"}, (3, *SIZE)),
        ({"dtype": "uint8", "layout": "NHWC"}, (*SIZE, 3)),
        ({"channels": 1}, (1, *SIZE)),
        ({"layout": "NHWC", "channels": 1}, (*SIZE, 1)),
    ],
)
def test_foreign_spec_gives_layout_file_type(options: dict[str, Any], shape: Sequence[int], tmp_path: Path) -> None:
    path = pooling(tmp_path / "m.onnx", **options)
    last = options.get("layout") == "NHWC"
    count = options.get("channels", 3)
    output = (8, 12, count) if last else (count, 8, 12)
    given = backends.load_encoder(foreign(path, shape, [output]))(images())["y0"]
    found, expected = encode(path)
    wanted = expected["features"]
    assert torch.equal(given, wanted.permute(0, 2, 3, 1) if last else wanted)
    assert found.inputs[0].shape == (3, *SIZE)


MEAN, STD = adaptation.NAMED["imagenet"]


def normalised(given: torch.Tensor) -> torch.Tensor:
    return (given - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_mean_and_std_are_applied_before_the_file(dtype: str, tmp_path: Path) -> None:
    path = pooling(tmp_path / "m.onnx", dtype=dtype)
    found, given = encode(path, normalised=adaptation.parse("imagenet", None))
    assert found.genenc is not None
    assert (found.genenc.mean, found.genenc.normalization_inside) == (MEAN, False)
    expected = nn.functional.avg_pool2d(normalised(images()), 2)
    torch.testing.assert_close(given["features"], expected, rtol=5e-3, atol=5e-3)


def test_mean_and_std_of_a_foreign_spec_apply(tmp_path: Path) -> None:
    path = pooling(tmp_path / "m.onnx")
    block = spec.GenencBlock(mean=MEAN, std=STD, normalization_inside=False)
    given = backends.load_encoder(foreign(path, (3, *SIZE), [(3, 8, 12)], genenc=block))(images())
    torch.testing.assert_close(given["y0"], nn.functional.avg_pool2d(normalised(images()), 2))
    without = block.model_copy(update={"mean": None})
    bytes_ = block.model_copy(update={"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)})
    with pytest.raises(errors.SpecError, match=r"are for pixels from 0 to 255.*divide both by 255"):
        backends.load_encoder(foreign(path, (3, *SIZE), [(3, 8, 12)], genenc=bytes_))
    with pytest.raises(errors.SpecError, match=r"genenc\.mean and genenc\.std are needed"):
        backends.load_encoder(foreign(path, (3, *SIZE), [(3, 8, 12)], genenc=without))
    with pytest.raises(errors.InputError, match="declares its normalisation"):
        adaptation.applied(foreign(path, (3, *SIZE), [(3, 8, 12)], genenc=block), adaptation.parse("half", None))  # type: ignore[arg-type]


def test_undeclared_normalisation_warns(tmp_path: Path) -> None:
    path = pooling(tmp_path / "m.onnx")
    with pytest.warns(adaptation.NormalisationWarning, match=r"RGB values in \[0, 1\]"):
        general_encoder.spec_of(path, image_size=SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        general_encoder.spec_of(path, image_size=SIZE, normalised=adaptation.parse("0.5", "0.5"))


@pytest.mark.parametrize(("inside", "undeclared"), [({}, True), ({"normalization_inside": True}, False)])
def test_a_mean_alone_does_not_say_who_normalises(tmp_path: Path, inside: dict[str, bool], undeclared: bool) -> None:
    block = spec.GenencBlock.model_validate({"mean": MEAN, "std": STD, **inside})
    found = foreign(pooling(tmp_path / "m.onnx"), (3, *SIZE), [(3, 8, 12)], genenc=block)
    assert adaptation.is_undeclared(found) == undeclared


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (None, "1,1,1", "needs a --mean"),
        ("0", "255", "'255' are for pixels from 0 to 255"),
        ("imagenet", "58.4,57.1,57.4", "are for pixels from 0 to 255"),
        ("0.5,0.5,0.5", None, "needs a --std"),
        ("0.5,0.5", "1,1,1", "is invalid: give three"),
        ("nan,0,0", "1,1,1", "is invalid: give three"),
        ("imagnet", "1,1,1", "is invalid: give three"),
        ("123.7,116.3,103.5", "58,57,57", "for pixels from 0 to 255"),
        ("0,0,0", "1,0,1", "above 0"),
    ],
)
def test_invalid_mean_and_std_are_refused(mean: str | None, std: str | None, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        adaptation.parse(mean, std)


def test_uint8_and_grey_files_take_no_colour_mean(tmp_path: Path) -> None:
    wanted = adaptation.parse("imagenet", None)
    with pytest.raises(errors.InputError, match="takes uint8"):
        encode(pooling(tmp_path / "a.onnx", dtype="uint8"), normalised=wanted)
    with pytest.raises(errors.InputError, match="takes grey images"):
        encode(pooling(tmp_path / "b.onnx", channels=1), normalised=wanted)
    _, given = encode(pooling(tmp_path / "b.onnx", channels=1), normalised=adaptation.parse("0.5", "0.5"))
    assert float(given["features"].min()) < 0


@pytest.mark.parametrize(
    ("shape", "size", "last"),
    [
        ((7, 7, 1280), (224, 224), True),
        ((1280, 7, 7), (224, 224), False),
        ((7, 7, 7), (224, 224), True),
        ((8, 12, 3), (16, 24), True),
        ((3, 8, 12), (16, 24), False),
        ((8, 6, 17), (256, 192), True),
    ],
)
def test_channels_last_is_known_by_sides(shape: tuple[int, ...], size: tuple[int, int], last: bool) -> None:
    from genenc_core.runtime import input_form

    assert input_form.is_channels_last(shape, size) is last


def test_the_trial_reports_everything(tmp_path: Path) -> None:
    run: Callable[[torch.Tensor], Any] = lambda given: (given.mean((2, 3)), given.argmax(1))  # noqa: E731
    found = artifact_trial.find(run, name="x", size=(8, 8), bounded=False)
    assert (found.positions, found.outputs, found.form) == ((0,), ((3,),), None)
