"""Weights: seeds, files and digests."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision.models as zoo

import forked
from genenc_core import errors
from genenc_core.models import resolve, weights

NAME, SIZE = "shufflenet_v2_x0_5", (32, 32)


def build(text: str, name: str = NAME) -> resolve.BuiltEncoder:
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights=text, image_size=SIZE))


def state(seed: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return zoo.get_model(NAME, weights=None).state_dict()


def test_random_seeds_torch_right_before_the_constructor() -> None:
    built = build("random:7")
    trunk = {name: tensor for name, tensor in state().items() if not name.startswith("fc.")}
    assert built.weights_sha256 == weights.state_sha256(trunk)
    assert built.weights_sha256 != build("random:8").weights_sha256


def test_building_restores_the_callers_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build("random:7")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_digest_is_the_same_in_another_process() -> None:
    code = (
        "from genenc_core.models import resolve as sources\n"
        f"print(sources.build_encoder(sources.ModelRequest(name={NAME!r}, weights='random:7', image_size={SIZE}))"
        ".weights_sha256)"
    )
    done = forked.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == build("random:7").weights_sha256


def test_digest_covers_names_dtypes_shapes_and_values() -> None:
    one, two = torch.arange(4.0), torch.ones(2)
    base = weights.state_sha256({"a": one, "b": two})
    assert base == weights.state_sha256({"b": two, "a": one})
    others = [
        {"a": one, "c": two},
        {"a": one.reshape(2, 2), "b": two},
        {"a": one.view(torch.int32), "b": two},
        {"a": one.flip(0), "b": two},
    ]
    assert len({base, *(weights.state_sha256(other) for other in others)}) == 5


def test_state_dict_with_non_tensors_has_no_digest() -> None:
    with pytest.raises(errors.InputError, match=r"holds a dtype as 'b.dtype', as after quantize_dynamic.*jit.save"):
        weights.state_sha256({"a": torch.ones(1), "b.dtype": torch.qint8})  # type: ignore[dict-item]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt", "safetensors", "state_dict", "model", "module."])
def test_state_dict_file_restores_the_model(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    values = state()
    if form == "safetensors":
        safetensors.torch.save_file(values, path)
    elif form in ("state_dict", "model"):
        torch.save({form: values, "epoch": 3}, path)
    elif form == "module.":
        torch.save({f"module.{name}": tensor for name, tensor in values.items()}, path)
    else:
        torch.save(values, path)
    assert build(str(path)).weights_sha256 == build("random:7").weights_sha256


@pytest.mark.slow
@pytest.mark.parametrize("head", ["absent", "other size", "several layers"])
def test_classifier_in_a_file_is_ignored(tmp_path: Path, head: str) -> None:
    values = {name: tensor for name, tensor in state().items() if not name.startswith("fc.")}
    if head == "other size":
        values |= {"fc.weight": torch.zeros(5, 1024), "fc.bias": torch.zeros(5)}
    elif head == "several layers":
        values |= {"fc.0.weight": torch.zeros(5, 1024), "fc.2.weight": torch.zeros(2, 5)}
    torch.save(values, tmp_path / "w.pth")
    assert build(str(tmp_path / "w.pth")).weights_sha256 == build("random:7").weights_sha256


@pytest.mark.slow
def test_timm_files_with_a_classifier_load_into_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(7)
    values = timm.create_model("test_convnext").state_dict()
    torch.save(values, tmp_path / "w.pth")
    built = resolve.build_encoder(resolve.ModelRequest(name="test_convnext", weights=str(tmp_path / "w.pth")))
    trunk = {name: tensor for name, tensor in values.items() if not name.startswith("head.")}
    assert len(trunk) < len(values)
    assert built.weights_sha256 == weights.state_sha256(trunk)


@pytest.mark.slow
def test_densenet_files_with_old_names_load(tmp_path: Path) -> None:
    """torchvision's own DenseNet files say norm.1 where the model says norm1."""
    torch.manual_seed(7)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for name, tensor in zoo.densenet121(weights=None).state_dict().items()
    }
    assert any("norm.1." in name for name in old)
    torch.save(old, tmp_path / "w.pth")
    path = str(tmp_path / "w.pth")
    assert build(path, "densenet121").weights_sha256 == build("random:7", "densenet121").weights_sha256


def test_mismatches_of_another_models_file_are_named(tmp_path: Path) -> None:
    values = state()
    del values["conv1.0.weight"]
    values["conv1.9.weight"] = torch.zeros(1)
    torch.save(values, tmp_path / "w.pth")
    with pytest.raises(errors.InputError, match=r"missing: conv1\.0\.weight; not in the model: conv1\.9\.weight"):
        build(str(tmp_path / "w.pth"))
    torch.save(zoo.get_model("shufflenet_v2_x1_0", weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(errors.InputError, match=r"other sizes: .* is \[.* and \d+ more"):
        build(str(tmp_path / "w.pth"))


def test_pickled_model_is_not_loaded(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "w.pth")
    with pytest.raises(errors.InputError, match="never loaded"):
        build(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04broken"])
def test_file_without_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.InputError, match=name):
        build(str(tmp_path / name))


def test_file_with_non_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(errors.InputError, match="hold a dict, not a state dict"):
        build(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("text", ["", "random", "random:", "random:x", "random:-1", "pretrained:", "nowhere.pth"])
def test_invalid_weights_argument_is_refused(text: str) -> None:
    with pytest.raises(errors.InputError, match="random:SEED"):
        weights.parse_weights(text)
