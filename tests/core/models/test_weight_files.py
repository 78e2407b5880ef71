"""Weight files as others write them: entries, prefixes, leftovers, other grids, and files that are none."""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from genenc_core import errors
from genenc_core.models import resolve, state_files, weights
from genenc_core.models.zoo import sam


class Net(nn.Module):
    """A trunk and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 2)


def load(path: Path, key: str | None = None) -> tuple[nn.Module, weights.Reading]:
    model = Net()
    choice = weights.parse_weights(str(path), key)
    weights.load_file(choice, model=model, trunk=model.body)
    return model.body, choice.reading


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(Net().state_dict())


def quiet(path: Path, key: str | None = None) -> tuple[nn.Module, weights.Reading]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(path, key)


def is_of(body: nn.Module, seed: int) -> bool:
    return torch.equal(body.state_dict()["0.weight"], state(seed)["body.0.weight"])


def prefixed(prefix: str, seed: int = 1) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state(seed).items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "model._orig_mod.",
        "model.module.",
        "encoder.",
        "backbone.",
        "model.backbone.",
        "state.anything.",
    ],
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_wrapper_prefixes_are_removed(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    values = prefixed(prefix)
    torch.save(values if wrapper is None else {wrapper: values, "epoch": 3}, tmp_path / "w.pth")
    body, found = quiet(tmp_path / "w.pth")
    assert is_of(body, 1)
    assert any("is removed" in note for note in found.notes)


def test_prefix_of_one_compiled_module_is_removed(tmp_path: Path) -> None:
    values = {name.replace("body.", "body._orig_mod."): value for name, value in state(1).items()}
    torch.save(values, tmp_path / "w.pth")
    assert is_of(quiet(tmp_path / "w.pth")[0], 1)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("_orig_mod.body.0.weight", "body.0.weight", "body.0.weight"),
        ("body._orig_mod.0.weight", "_orig_mod.body.0.weight", "body.0.weight"),
        ("body.denselayer1.norm.1.weight", "body.denselayer1.norm1.weight", "body.denselayer1.norm1.weight"),
    ],
)
def test_conflicting_renamed_entries_are_refused(one: str, other: str, name: str, turned: bool, tmp_path: Path) -> None:
    """Whichever stands first; equal values are one."""
    values = {key: value for key, value in state(1).items() if key != name}
    pair = (other, one) if turned else (one, other)
    weight = state(1).get(name, torch.ones(4))
    torch.save(values | {pair[0]: weight, pair[1]: weight + 1}, tmp_path / "w.pth")
    with pytest.raises(errors.InputError, match=f"hold both {pair[0]!r} and {pair[1]!r}, two names of the model's"):
        quiet(tmp_path / "w.pth")
    equal = values | {pair[0]: weight, pair[1]: weight.clone()}
    torch.save(equal, tmp_path / "w.pth")
    found, _ = state_files.unwrapped(state_files.read(tmp_path / "w.pth"), tmp_path / "w.pth", key=None, notes=[])
    cleaned = state_files.without_wrappers(found, list(state(1)), tmp_path / "w.pth", [])
    assert len(cleaned) == len(equal) - 1
    assert torch.equal(cleaned[name], weight)


def test_entries_outside_the_prefix_keep_their_names(tmp_path: Path) -> None:
    beside = {name: value for name, value in state(2).items() if name.startswith("fc.")}
    torch.save({**beside, **prefixed("model.", 1)}, tmp_path / "w.pth")
    found, _ = state_files.unwrapped(state_files.read(tmp_path / "w.pth"), tmp_path / "w.pth", key=None, notes=[])
    cleaned = state_files.without_wrappers(found, [n for n in state(1) if n.startswith("body")], tmp_path / "w.pth", [])
    assert torch.equal(cleaned["fc.bias"], beside["fc.bias"])
    assert torch.equal(cleaned["model.fc.bias"], state(1)["fc.bias"])
    assert is_of(quiet(tmp_path / "w.pth")[0], 1)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_conflicting_names_of_sam_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    values = {"blocks.0.mlp.lin1.bias": torch.zeros(2), "blocks.0.mlp.fc1.bias": torch.ones(2)}
    safetensors.torch.save_file(values, path) if suffix == ".safetensors" else torch.save(values, path)
    with pytest.raises(errors.InputError, match=r"hold both .*mlp\.(lin1|fc1).* and .*mlp\.(lin1|fc1)"):
        weights.read_state(weights.parse_weights(str(path)), sam.checkpoint_names)


def test_entries_outside_the_prefix_are_ignored_and_listed(tmp_path: Path) -> None:
    torch.save({**prefixed("model."), "criterion.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.warns(state_files.WeightsWarning, match=r"3 of 10 entries.*fc\.weight, fc\.bias, criterion\.weight"):
        body, found = load(tmp_path / "w.pth")
    assert is_of(body, 1)
    assert any("criterion.weight" in note for note in found.notes)


@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_several_prefixes_need_a_key(tmp_path: Path, wrapper: str | None) -> None:
    """Those of training checkpoints, as of MoCo and DINO."""
    values = {**prefixed("student.backbone.", 1), **prefixed("teacher.backbone.", 2)}
    torch.save(values if wrapper is None else {wrapper: values, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(errors.InputError, match=r"several times, under student\.backbone\., teacher\.backbone\."):
        quiet(tmp_path / "w.pth")
    assert is_of(quiet(tmp_path / "w.pth", "teacher.backbone")[0], 2)
    assert is_of(quiet(tmp_path / "w.pth", "student")[0], 1)
    if wrapper is not None:
        assert is_of(quiet(tmp_path / "w.pth", "state_dict.teacher.backbone")[0], 2)
    with pytest.raises(errors.InputError, match="--weights-key 'ema' is not in the weights"):
        quiet(tmp_path / "w.pth", "ema")


@pytest.mark.parametrize("plain", ["state_dict", "model"])
@pytest.mark.parametrize("ema", ["state_dict_ema", "model_ema"])
def test_ema_is_preferred_with_a_warning(plain: str, ema: str, tmp_path: Path) -> None:
    path = tmp_path / "c.pth.tar"
    torch.save({"epoch": 3, plain: state(1), ema: state(2)}, path)
    with pytest.warns(state_files.WeightsWarning, match=f"entry '{ema}' is used, not {plain}"):
        body, found = load(path)
    assert is_of(body, 2)
    assert torch.equal(timm.models.load_state_dict(path)["body.0.weight"], body.state_dict()["0.weight"])
    assert found.entry == ema
    for key, seed in (("plain", 1), (plain, 1), ("ema", 2), (ema, 2)):
        assert is_of(quiet(path, key)[0], seed), key
    with pytest.raises(errors.InputError, match=f"'best' is not in the weights .* it has {plain}, {ema}"):
        quiet(path, "best")


def test_entry_named_ema_needs_a_key(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    for entry in (state(2), {"module": state(2), "updates": 7}):
        torch.save({"model": state(1), "ema": entry}, path)
        with pytest.warns(state_files.WeightsWarning, match="entry 'model' is used, not ema"):
            assert is_of(load(path)[0], 1)
        assert is_of(quiet(path, "ema")[0], 2)
    torch.save({"model": state(1), "ema": state(2), "model_ema": state(3)}, path)
    assert is_of(quiet(path, "ema")[0], 2)


def test_single_entry_of_any_name_is_used(tmp_path: Path) -> None:
    torch.save({"network_weights": state(1), "epoch": 3}, tmp_path / "w.pth")
    assert is_of(quiet(tmp_path / "w.pth")[0], 1)
    torch.save({"first": state(1), "second": state(2)}, tmp_path / "w.pth")
    with pytest.raises(errors.InputError, match="it has first, second: choose with --weights-key"):
        quiet(tmp_path / "w.pth")
    assert is_of(quiet(tmp_path / "w.pth", "second")[0], 2)
    torch.save({"run": {"nets": {"a": state(1), "b": state(2)}}}, tmp_path / "w.pth")
    assert is_of(quiet(tmp_path / "w.pth", "run.nets.b")[0], 2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({name: value.to(dtype) for name, value in state(1).items()}, tmp_path / "w.pt")
    with pytest.raises(errors.InputError, match=f"quantised, or not floating-point: body.0.weight is {str(dtype)[6:]}"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_weights_are_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({name: value.to(dtype) for name, value in state(1).items()}, tmp_path / "w.pt")
    body, _ = quiet(tmp_path / "w.pt")
    torch.testing.assert_close(body.state_dict()["0.weight"], state(1)["body.0.weight"].to(dtype).float())


def test_key_without_a_file_is_refused() -> None:
    with pytest.raises(errors.InputError, match="needs a weights file"):
        weights.parse_weights("random:0", "ema")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    values = prefixed("model.")
    del values["model.body.0.bias"]
    torch.save(values, tmp_path / "w.pth")
    with pytest.raises(errors.InputError, match=r"missing: body\.0\.bias"):
        quiet(tmp_path / "w.pth")


@pytest.mark.slow
def test_position_embeddings_are_interpolated_as_in_timm(tmp_path: Path) -> None:
    name = "test_vit"
    torch.manual_seed(1)
    trained = timm.create_model(name, num_classes=5)
    path = tmp_path / "w.pth"
    torch.save(trained.state_dict(), path)
    request = resolve.ModelRequest(name=f"timm/{name}", weights=str(path), image_size=(64, 96))
    with pytest.warns(state_files.WeightsWarning, match=r"pos_embed \[1, 101, 64\] is interpolated to \[1, 25, 64\]"):
        built = resolve.build_encoder(request)
    expected = timm.layers.resample_abs_pos_embed(trained.pos_embed, new_size=[4, 6], num_prefix_tokens=1)
    assert torch.equal(built.module.state_dict()["trunk.model.pos_embed"], expected)
    assert any("pos_embed" in note for note in built.weights_notes)


def test_position_embeddings_of_torchvision_are_interpolated(tmp_path: Path) -> None:
    from torchvision.models import vision_transformer

    def small(size: int) -> vision_transformer.VisionTransformer:
        return vision_transformer.VisionTransformer(size, 16, 1, 2, 8, 8)

    from genenc_core.models.sources import torchvision_source

    torch.manual_seed(0)
    convert = torchvision_source._resampling(small(32))
    assert convert is not None
    notes: list[str] = []
    given = small(64).state_dict()
    made = convert(given, notes)
    assert made is not None
    assert made["encoder.pos_embedding"].shape == (1, 5, 8)
    assert notes == ["encoder.pos_embedding [1, 17, 8] is interpolated to [1, 5, 8]"]
    assert given["encoder.pos_embedding"].shape == (1, 17, 8)


class Code:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def _header(length: int, text: bytes) -> bytes:
    return length.to_bytes(8, "little") + text


NO_WEIGHTS: dict[str, bytes | Callable[[Path], None]] = {
    "passwd": b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n",
    "empty.pth": b"",
    "empty.safetensors": b"",
    "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "text.pth": b"hello\n" * 100,
    "protocol.pth": b"\x80\x09abc",
    "one.pth": b"\x80",
    "cut.pth": b"\x80\x02}q\x00(",
    "code.pth": pickle.dumps(Code()),
    "large_header.safetensors": _header(10**9, b"{}"),
    "list.safetensors": _header(2, b"[]"),
    "beyond.safetensors": _header(55, b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "code_in_zip.pth": lambda path: torch.save({"a": Code()}, path),
    "numbers.pth": lambda path: torch.save({1: torch.zeros(3)}, path),
    "mixed.pth": lambda path: torch.save({"model": {"a": torch.zeros(1), "b": "x"}}, path),
    "list.pth": lambda path: torch.save([1, 2], path),
    "tensor.pth": lambda path: torch.save(torch.zeros(3), path),
    "script.pt": lambda path: torch.jit.trace(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)).save(path),
    "sparse.pth": lambda path: path.touch() or os.truncate(path, 60 * 2**30),
    "sparse.safetensors": lambda path: path.touch() or os.truncate(path, 60 * 2**30),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
}


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


NO_WEIGHTS["archive.zip"] = _zip


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_error_of_a_file_without_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = NO_WEIGHTS[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        content(tmp_path / name)
    with pytest.raises(errors.InputError, match=name) as found:
        quiet(tmp_path / name)
    assert len(str(found.value)) < 600 + len(str(tmp_path))
    assert "\n" not in str(found.value)
    assert not (tmp_path / "pwned").exists()


def test_torchscript_file_is_recognised(tmp_path: Path) -> None:
    torch.jit.trace(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)).save(tmp_path / "script.pt")
    with pytest.raises(errors.InputError, match="it is a TorchScript file, a whole model"):
        quiet(tmp_path / "script.pt")
