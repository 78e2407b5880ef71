"""Runs over images of other channels than RGB: values, identity, resuming, bad rows, tiles, points, artifacts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image

from genenc_core import api, errors
from genenc_core.encoding import cancellation
from genenc_core.factory import build_model
from genenc_core.models import resolve
from genenc_core.run import driver, model_export, status
from genenc_core.run.folder import RunFolder

Extract = Callable[..., driver.Result]
HEIGHT, WIDTH = 32, 32


@pytest.fixture
def six(tmp_path: Path) -> np.ndarray:
    """Write nine TIFFs of six bands, planar and chunky in turn; return their values, uint16 `[9, 6, H, W]`."""
    values = np.random.default_rng(0).integers(0, 10_000, (9, 6, HEIGHT, WIDTH), np.uint16)
    (tmp_path / "six").mkdir()
    for at, each in enumerate(values):
        planar = bool(at % 2)
        stored = each if planar else np.ascontiguousarray(each.transpose(1, 2, 0))
        tifffile.imwrite(
            tmp_path / "six" / f"{at}.tif",
            stored,
            photometric="minisblack",
            planarconfig="separate" if planar else "contig",
            metadata=None,
        )
    return values


@pytest.fixture
def run(extract: Extract, tmp_path: Path) -> Extract:
    """Return a call that extracts from the six-band TIFFs with the model of six channels."""

    def go(**changes: Any) -> driver.Result:
        values: dict[str, Any] = {"images": str(tmp_path / "six"), "model": "tiny_models:six_bands", "image_size": None}
        return extract(**{**values, **changes})

    return go


def stored(root: Path, name: str = "features") -> np.ndarray:
    found: np.ndarray = zarr.open_group(root / "features.zarr", mode="r")[name][:]  # type: ignore[index,assignment]
    return found


def by_hand(model: str, images: np.ndarray, **request: Any) -> np.ndarray:
    """Return the mean of the model's map of float32 images in [0, 1]."""
    built = resolve.build_encoder(resolve.ModelRequest(name=model, weights="random:0", **request))
    with torch.inference_mode():
        return built.module(torch.from_numpy(images.astype(np.float32)))[0].mean((2, 3)).numpy()


@pytest.mark.usefixtures("six")
def test_features_are_those_of_the_model_called_by_hand(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    run(value_range="0,10000")
    assert np.allclose(stored(tmp_path / "run"), by_hand("tiny_models:six_bands", six / 10_000), rtol=0, atol=1e-6)
    identity = RunFolder(tmp_path / "run").identity
    assert identity["preprocessing"]["channels"] == {"count": 6, "chosen": None, "value_range": [[0.0, 10_000.0]]}
    spec = json.loads((tmp_path / "run" / "model_spec.json").read_text())
    assert spec["inputs"][0]["shape"] == [6, 32, 32]
    assert spec["genenc"]["preprocessing"]["channels"]["count"] == 6


def test_without_a_range_integers_are_scaled_by_their_type(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    run()
    assert np.allclose(stored(tmp_path / "run"), by_hand("tiny_models:six_bands", six / 65_535), rtol=0, atol=1e-6)


def test_three_chosen_channels_are_those_of_a_model_of_three(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    run(model="tiny_models:conv", channels="3,2,1", value_range="0,10000", image_size="32")
    expected = by_hand("tiny_models:conv", six[:, [3, 2, 1]] / 10_000, image_size=(32, 32))
    assert np.allclose(stored(tmp_path / "run"), expected, rtol=0, atol=1e-6)


def test_statistics_may_be_in_the_unit_of_the_values(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    mean, std = "1000,1100,1200,1300,1400,1500", "800,900,1000,1100,1200,1300"
    with pytest.raises(errors.InputError, match=r"give --value-range 0,1, which takes values as they are"):
        run(model="resnet18", image_size="32", channels="0:6", mean=mean, std=std)
    run(model="resnet18", image_size="32", fit="stretch", channels="0:6", mean=mean, std=std, value_range="0,1")
    numbers = [tuple(map(float, text.split(","))) for text in (mean, std)]
    built = resolve.build_encoder(
        resolve.ModelRequest(
            name="resnet18", weights="random:0", image_size=(32, 32), channels=6, statistics=(numbers[0], numbers[1])
        )
    )
    with torch.inference_mode():
        expected = built.module(torch.from_numpy(six.astype(np.float32)))[0].mean((2, 3)).numpy()
    assert np.allclose(stored(tmp_path / "run"), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_other_channels_or_ranges_are_another_run(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    del six
    run(model="tiny_models:conv", image_size="32", channels="3,2,1", value_range="0,10000")
    for changes in ({"channels": "1,2,3"}, {"value_range": "0,20000"}, {"value_range": None}):
        with pytest.raises(errors.OtherRunError, match="preprocessing"):
            run(
                **{"model": "tiny_models:conv", "image_size": "32", "channels": "3,2,1", "value_range": "0,10000"}
                | changes
            )
    before = stored(tmp_path / "run")
    run(model="tiny_models:conv", image_size="32", channels="3,2,1", value_range="0,10000")
    assert np.array_equal(stored(tmp_path / "run"), before)


def test_a_run_is_resumed_from_its_folder_alone(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    del six
    options = {"model": "resnet18", "image_size": "32", "channels": "0:6", "value_range": "0,10000"}
    run(**options, out=str(tmp_path / "whole"))
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        run(**options)
    assert not status.survey(RunFolder(tmp_path / "run")).status.complete
    assert driver.resume(RunFolder(tmp_path / "run")).status.complete
    assert np.array_equal(stored(tmp_path / "run"), stored(tmp_path / "whole"))


def test_files_of_other_channels_or_values_are_unreadable_rows(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    del six
    folder = tmp_path / "six"
    tifffile.imwrite(folder / "4.tif", np.zeros((4, 32, 32), np.uint16), photometric="minisblack", metadata=None)
    tifffile.imwrite(folder / "5.tif", np.full((6, 32, 32), 2.5, np.float32), photometric="minisblack", metadata=None)
    (folder / "6.tif").write_bytes((folder / "6.tif").read_bytes()[:5000])
    run()
    states = stored(tmp_path / "run", "status").tolist()
    assert states == [1, 1, 1, 1, 2, 2, 2, 1, 1]
    reasons = {row["row"]: row["reason"] for row in status.survey(RunFolder(tmp_path / "run"), most=9).unreadable}
    assert reasons[4] == "the file has 4 channels, but the model takes 6: choose 6 with --channels (numbered from 0)"
    assert "give --value-range LOW,HIGH" in reasons[5]
    assert "truncated TIFF" in reasons[6]


def test_planning_refuses_a_set_without_the_channels(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    del six
    with pytest.raises(errors.InputError, match=r"'0.tif': the file has 6 channels, but the model takes 4: choose 4"):
        run(
            model="resnet18",
            image_size="32",
            mean="0",
            std="1",
            value_range="0,10000",
            images=str(tmp_path / "six"),
            weights=_four_channels(tmp_path),
        )
    with pytest.raises(errors.InputError, match=r"there is no channel 6: the file has 6 channels, 0 to 5"):
        run(channels="1:7")
    with pytest.raises(errors.InputError, match=r"tiny_models:six_bands.* takes 6 channels, not 3"):
        run(channels="0:3")
    assert not (tmp_path / "run").exists()


def _four_channels(folder: Path) -> str:
    built = resolve.build_encoder(
        resolve.ModelRequest(name="resnet18", weights="random:0", image_size=(32, 32), channels=4)
    )
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    state = {
        f"{names[int(name.split('.')[0])]}.{name.partition('.')[2]}": value
        for name, value in built.module.trunk.state_dict().items()
    }
    torch.save(state, folder / "four.pt")
    return str(folder / "four.pt")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"channels": "a,"}, "numbers from 0, such as 3,2,1"),
        ({"channels": "4:2"}, "'4:2' holds no channel"),
        ({"value_range": "5"}, "give LOW,HIGH"),
        ({"value_range": "5,5"}, "5 is not below 5"),
        ({"value_range": "0,1,0,1"}, "2 pairs for 6 channels"),
        ({"decode": "scaled"}, "--decode scaled is for JPEGs as RGB"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    option: dict[str, str], reason: str, run: Extract, six: np.ndarray
) -> None:
    del six
    with pytest.raises(errors.InputError, match=reason):
        run(**option)


def test_points_find_their_cells_in_every_channel(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(
        "image,point,x,y\n" + "".join(f"{at}.tif,a,{4 + 3 * at},12\n" for at in range(9))
    )
    run(model="tiny_models:bands", value_range="0,10000", points=str(tmp_path / "points.csv"))
    probes = stored(tmp_path / "run", "probes")
    cells = (six / 10_000).reshape(9, 6, 4, 8, 4, 8).mean((3, 5))
    for at in range(9):
        assert np.allclose(probes[at, 0], cells[at, :, 1, (4 + 3 * at) // 8], atol=1e-6)


def test_tiles_of_a_canvas_have_all_channels(run: Extract, tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 255, (2, 6, 64, 96), np.uint8)
    (tmp_path / "large").mkdir()
    for at, each in enumerate(values):
        tifffile.imwrite(tmp_path / "large" / f"{at}.tif", each, photometric="minisblack", metadata=None)
    run(
        images=str(tmp_path / "large"),
        model="tiny_models:bands",
        canvas="64x96",
        tile_overlap=0,
        products=("map=features:none@float32",),
    )
    expected = (values / 255).reshape(2, 6, 8, 8, 12, 8).mean((3, 5))
    assert np.allclose(stored(tmp_path / "run", "map"), expected, atol=1e-6)


def test_an_array_of_channels_first_is_encoded(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "six.npy", six)
    run(images=str(tmp_path / "six.npy"), value_range="0,10000")
    assert np.allclose(stored(tmp_path / "run"), by_hand("tiny_models:six_bands", six / 10_000), rtol=0, atol=1e-6)


def test_one_channel_of_16_bits_keeps_its_depth(extract: Extract, tmp_path: Path) -> None:
    grey = np.random.default_rng(3).integers(0, 65_535, (3, 32, 32), np.uint16)
    (tmp_path / "grey").mkdir()
    for at, each in enumerate(grey):
        Image.fromarray(each).save(tmp_path / "grey" / f"{at}.png")
    extract(images=str(tmp_path / "grey"), model="tiny_models:colours", channels="0,0,0")
    assert np.allclose(stored(tmp_path / "run"), (grey / 65_535).mean((1, 2))[:, None].repeat(3, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["torchscript", "exported_program", "onnx"])
def test_an_exported_model_of_six_channels_gives_the_same(
    kind: str, run: Extract, six: np.ndarray, tmp_path: Path
) -> None:
    (made,) = model_export.export(
        model_export.ExportParameters(
            model="resnet18",
            weights="random:0",
            image_size="32",
            in_channels=6,
            formats=(kind,),
            batch_max=4,
            out=str(tmp_path / "made"),
        )
    )
    assert made.spec.inputs[0].shape == (6, 32, 32)
    run(model=str(made.spec_path), weights=None, value_range="0,10000")
    run(model="resnet18", image_size="32", channels="0:6", value_range="0,10000", out=str(tmp_path / "eager"))
    one, other = stored(tmp_path / "run"), stored(tmp_path / "eager")
    assert np.allclose(one, other, rtol=0, atol=2e-6 * np.abs(other).max())


@pytest.mark.slow
def test_an_aotinductor_package_of_six_channels_runs(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    del six
    (made,) = model_export.export(
        model_export.ExportParameters(
            model="tiny_models:six_bands", weights="random:0", formats=("aotinductor",), out=str(tmp_path / "made")
        )
    )
    run(model=str(made.spec_path), weights=None, value_range="0,10000")
    run(value_range="0,10000", out=str(tmp_path / "eager"))
    assert np.allclose(stored(tmp_path / "run"), stored(tmp_path / "eager"), atol=1e-5)


def test_a_file_without_a_spec_takes_the_channels_that_are_chosen(
    run: Extract, six: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(6, 4, 4, stride=4), torch.nn.GELU()).eval()
    torch.jit.trace(net, torch.rand(2, 6, 32, 32)).save(str(tmp_path / "net.pt"))
    run(
        model="general_encoder",
        weights=str(tmp_path / "net.pt"),
        image_size="32",
        channels="5:6,0:5",
        value_range="0,10000",
        mean="0",
        std="1",
        trust=True,
    )
    with torch.inference_mode():
        images = torch.from_numpy((six[:, [5, 0, 1, 2, 3, 4]] / 10_000).astype(np.float32))
        expected = net(images).mean((2, 3)).numpy()
    assert np.allclose(stored(tmp_path / "run"), expected, atol=1e-6)


def test_a_third_party_spec_of_six_channels_runs(run: Extract, six: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(6, 4, 4, stride=4), torch.nn.GELU()).eval()
    torch.jit.trace(net, torch.rand(2, 6, 32, 32)).save(str(tmp_path / "net.pt"))
    content = {
        "model_id": "net",
        "display_name": "net",
        "weights_path": "net.pt",
        "backend": "torchscript",
        "inputs": [{"name": "image", "shape": [6, 32, 32]}],
        "outputs": [{"name": "features", "shape": [4, 8, 8]}],
        "genenc": {"mean": [0.1] * 6, "std": [0.5] * 6, "normalization_inside": False},
    }
    (tmp_path / "net.json").write_text(json.dumps(content))
    run(model=str(tmp_path / "net.json"), weights=None, value_range="0,10000", trust=True)
    with torch.inference_mode():
        expected = net(torch.from_numpy(((six / 10_000 - 0.1) / 0.5).astype(np.float32))).mean((2, 3)).numpy()
    assert np.allclose(stored(tmp_path / "run"), expected, atol=1e-6)
    content["genenc"]["mean"] = [0.1] * 3  # type: ignore[index]
    (tmp_path / "net.json").write_text(json.dumps(content))
    with pytest.raises(errors.SpecError, match=r"mean has 3 numbers, but inputs\[0\] 6 channels"):
        run(model=str(tmp_path / "net.json"), weights=None, out=str(tmp_path / "other"), trust=True)


def test_a_run_of_rgb_says_nothing_of_channels(extract: Extract, tmp_path: Path) -> None:
    extract()
    assert "channels" not in RunFolder(tmp_path / "run").identity["preprocessing"]
    assert "channels" not in json.loads((tmp_path / "run" / "model_spec.json").read_text())["genenc"]["preprocessing"]


def test_a_task_model_of_six_bands_gives_the_logits_of_its_own_forward(
    run: Extract, six: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    mean, std = [1087.0, 1342, 1433, 2734, 1958, 1363], [2248.0, 2179, 2178, 1850, 1242, 1049]
    options: dict[str, Any] = {
        "task": "segmentation",
        "backbone": "timm_test_resnet",
        "backbone_out_indices": [1, 2, 3],
        "decoder": "FCNDecoder",
        "decoder_channels": 8,
        "num_classes": 3,
    }
    torch.manual_seed(5)
    model = build_model.build_model(**options, backbone_in_chans=6).eval()
    # As TerraTorch's Lightning module saves it.
    torch.save(
        {"state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "t.ckpt"
    )
    bands = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]
    content = {"image_size": 32, "mean": mean, "std": std, "model_args": {**options, "backbone_bands": bands}}
    content["task"] = content["model_args"].pop("task")  # type: ignore[attr-defined]
    (tmp_path / "six.yaml").write_text(json.dumps(content))
    run(
        model=str(tmp_path / "six.yaml"),
        weights=str(tmp_path / "t.ckpt"),
        value_range="0,1",
        products=("masks=logits:none@float32",),
    )
    images = (torch.from_numpy(six.astype(np.float32)) - torch.tensor(mean).reshape(1, 6, 1, 1)) / torch.tensor(
        std
    ).reshape(1, 6, 1, 1)
    with torch.inference_mode():
        expected = model(images).output.numpy()
    assert np.allclose(stored(tmp_path / "run", "masks"), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_arrays_of_channels_are_encoded_in_memory(six: np.ndarray) -> None:
    frames = [np.ascontiguousarray(each.transpose(1, 2, 0)) for each in six[:3]]
    found = api.encode(frames, "tiny_models:six_bands", weights="random:0", value_range="0,10000")["features"]
    assert np.allclose(found, by_hand("tiny_models:six_bands", six[:3] / 10_000), rtol=0, atol=1e-6)
    plain = api.encode(frames, "tiny_models:six_bands", weights="random:0")["features"]
    assert np.allclose(plain, by_hand("tiny_models:six_bands", six[:3] / 65_535), rtol=0, atol=1e-6)
    grey = api.encode([frames[0][..., :1]], "tiny_models:conv", weights="random:0", image_size=32, channels="0,0,0")
    assert grey["features"].shape == (1, 6)
    with pytest.raises(errors.InputError, match=r"uint16 .*: give uint8 RGB"):
        api.encode([frames[0][..., :3]], "tiny_models:conv", weights="random:0", image_size=32)


def test_grey_arrays_are_encoded_in_memory() -> None:
    """By a model of RGB as their replica, and by one of a single channel as they are."""
    grey = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    given: dict[str, Any] = {"model": "tiny_models:conv", "weights": "random:0", "image_size": 32, "fit": "stretch"}
    expected = api.encode([np.dstack([grey] * 3)], **given)["features"]
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(api.encode([image], **given)["features"], expected)
    given["model"] = "resnet18"
    alone = {**given, "mean": "0.5", "std": "0.2", "value_range": "0,255", "channels": "0"}
    expected = api.encode([grey], **alone)["features"]
    np.testing.assert_allclose(
        api.encode([grey / np.float32(255)], **{**alone, "value_range": "0,1"})["features"], expected, rtol=1e-5
    )


def test_channels_by_name(run: Extract, tmp_path: Path) -> None:
    """Each file has its own order of channels; one that lacks a name is a recorded row; no file has it: refused."""
    values = np.random.default_rng(1).integers(0, 255, (3, 32, 32), np.uint8)
    (tmp_path / "ome").mkdir()
    for name, order in (("a", "ABC"), ("b", "CAB"), ("c", "ABX")):
        of = {letter: values["ABCX".index(letter) % 3] for letter in order}
        metadata = {"axes": "CYX", "Channel": {"Name": list(order)}}
        tifffile.imwrite(tmp_path / "ome" / f"{name}.tif", np.stack(list(of.values())), ome=True, metadata=metadata)
    given = {"images": str(tmp_path / "ome"), "model": "resnet18", "mean": "0.5", "std": "0.2", "image_size": "32"}
    done = run(**given, channels="C,A,B", max_failures="100%")
    found = stored(Path(done.run.root))
    np.testing.assert_array_equal(found[0], found[1])
    record = done.run.store.record(0)
    assert record is not None
    assert record.details["unreadable"][0]["reason"] == "there is no channel 'C': the file has A, B, X"
    assert done.run.identity["preprocessing"]["channels"] == {
        "count": 3,
        "chosen": None,
        "names": ["C", "A", "B"],
        "value_range": None,
    }
    with pytest.raises(errors.InputError, match=r"a\.tif.*there is no channel 'Q': the file has A, B, C"):
        run(**given, channels="C,A,Q", out=str(tmp_path / "other"))
