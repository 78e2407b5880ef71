"""What is stored of an image is the image's alone, and one run's features are of one model."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from genenc_core import errors
from genenc_core.encoding import cancellation, encoder_threads
from genenc_core.run import driver, model_cache, model_export, outputs_check
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes
from genenc_core.runtime import consistency

Extract = Callable[..., driver.Result]

NETS = """
import torch
from torch import nn
F = nn.functional

class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, 8)
        self.how, self.calls, self.before = how, 0, 0.0
        self.hidden = [nn.Dropout()]
        self.noticed = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()).train()
    def forward(self, images):
        maps = self.conv(images)
        if self.how == "training": return self.noticed(maps)
        if self.how == "dropout": return F.dropout(maps)
        if self.how == "a module that is not registered": return self.hidden[0](maps)
        if self.how == "batch statistics": return F.batch_norm(maps, None, None, training=True)
        if self.how == "the mean of the batch": return maps - maps.mean(0, keepdim=True)
        if self.how == "a dark batch": return self.conv(2 * images if images.mean() < 0.2 else images)
        if self.how == "the largest of the batch":
            while float(maps.abs().max()) > 0.5: maps = maps / 2
            return maps
        if self.how == "writes over images": return self.conv(images.sub_(0.5).div_(0.25))
        if self.how == "the first image": return maps + maps[:1]
        if self.how == "its place": return maps * torch.arange(1, len(maps) + 1).reshape(-1, 1, 1, 1)
        if self.how == "the last call":
            maps, self.before = maps + self.before, maps.mean().item()
        if self.how == "how often":
            self.calls += 1
            return maps * self.calls
        if self.how == "five together": return maps * 2 if len(maps) >= 5 else maps
        if self.how == "all after the third": return torch.cat([maps[:3], 2 * maps[3:]])
        if self.how == "the last of four" and len(maps) == 4: return torch.cat([maps[:3], 2 * maps[3:]])
        if self.how.startswith("call "):
            self.calls += 1
            return maps * (2 if self.calls > int(self.how[5:]) else 1)
        if self.how == "the twentieth call":
            self.calls += 1
            return maps * (2 if self.calls > 20 else 1)
        if self.how == "a file": return maps * float(open("factor.txt").read())
        return maps

def __getattr__(name):
    return lambda: Net(name.replace("_", " "))
"""
UNSTEADY = {
    "dropout": "each time",
    "a module that is not registered": "each time",
    "the last call": "each time",
    "how often": "each time",
    "batch statistics": "beside other images",
    "the mean of the batch": "beside other images",
    "a dark batch": "beside other images",
    "the largest of the batch": "beside other images",
    "the first image": "",
    "its place": "",
}


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Return a call that gives the dotted path of a net that does so."""
    (tmp_path / "outputs_nets.py").write_text(NETS)
    (tmp_path / "factor.txt").write_text("1.0")
    monkeypatch.chdir(tmp_path)
    yield lambda how: f"outputs_nets:{how.replace(' ', '_')}"
    model_cache.CACHE.clear()
    sys.modules.pop("outputs_nets", None)


@pytest.mark.parametrize("how", UNSTEADY)
def test_unsteady_model_is_refused(extract: Extract, nets: Callable[[str], str], tmp_path: Path, how: str) -> None:
    with pytest.raises(errors.InputError, match=f"features .*{UNSTEADY[how]}.*model.eval"):
        extract(model=nets(how))
    assert not (tmp_path / "run").exists()


def test_a_model_that_writes_over_its_images_runs(extract: Extract, nets: Callable[[str], str]) -> None:
    assert extract(model=nets("writes over images"), image_size="64").status.complete


@pytest.mark.slow
@pytest.mark.parametrize("how", ["five together", "all after the third"])
def test_batch_dependence_is_refused(extract: Extract, nets: Callable[[str], str], tmp_path: Path, how: str) -> None:
    with pytest.raises(errors.InputError, match=r"in a batch of 5 than in one of 1 .*model\.eval"):
        extract(model=nets(how), batch_size=5)
    assert len(RunFolder(tmp_path / "run").store.pending()) == 3
    assert extract(model=nets(how), batch_size=3, out=str(tmp_path / "small")).status.complete


@pytest.mark.slow
def test_model_changing_in_a_session_fails(extract: Extract, nets: Callable[[str], str], tmp_path: Path) -> None:
    """What was computed after the change is not stored."""
    result = extract(model=nets("the twentieth call"), batch_size=1, shard_rows=2)
    assert result.failures
    assert all("than when the session began" in str(failure) for failure in result.failures)
    features = zarr.open_group(tmp_path / "run" / "features.zarr", mode="r")
    extract(model=nets("steady"), batch_size=1, out=str(tmp_path / "steady"))
    right = zarr.open_group(tmp_path / "steady" / "features.zarr", mode="r")["features"][:]
    stored = features["status"][:] == 1
    assert 0 < stored.sum() < len(stored)
    np.testing.assert_allclose(features["features"][:][stored], right[stored], rtol=1e-5)


def test_every_place_of_a_batch_is_looked_at(extract: Extract, nets: Callable[[str], str]) -> None:
    with pytest.raises(errors.InputError, match="different features for an image in a batch of 4"):
        extract(model=nets("the last of four"), batch_size=4)


def test_features_are_of_one_model(extract: Extract, nets: Callable[[str], str], tmp_path: Path) -> None:
    """At whatever call the model changes: what is stored is what it gave before, or after, and never both."""
    extract(model=nets("steady"), batch_size=4, out=str(tmp_path / "steady"))
    right = zarr.open_group(tmp_path / "steady" / "features.zarr", mode="r")["features"][:]
    for call in range(4, 20):
        out = tmp_path / f"run-{call}"
        with contextlib.suppress(errors.GenencError):
            extract(model=nets(f"call {call}"), batch_size=4, out=str(out))
        if out.exists():
            group = zarr.open_group(out / "features.zarr", mode="r")
            stored = group["status"][:] == 1
            shares = group["features"][:][stored] / right[stored]
            assert np.allclose(shares, 1) or np.allclose(shares, 2), call


def test_a_module_in_training_mode_is_put_in_evaluation_mode(extract: Extract, nets: Callable[[str], str]) -> None:
    assert extract(model=nets("training")).status.complete


@pytest.mark.slow
def test_changed_outputs_are_refused_later(extract: Extract, nets: Callable[[str], str], tmp_path: Path) -> None:
    """It reads a file that it does not declare."""
    watch = cancellation.Control()
    watch.on_rows = lambda _done, _failed: watch.stop()
    with cancellation.use(watch), pytest.raises(errors.Stopped):
        extract(model=nets("a file"))
    committed = RunFolder(tmp_path / "run").store.committed()
    (tmp_path / "factor.txt").write_text("1.001")
    with pytest.raises(errors.StoreError, match=r"different outputs .* slot 'features' by 0\.\d+ %"):
        driver.resume(RunFolder(tmp_path / "run"), "pending", Changes(device="cpu", trust=True))
    with pytest.raises(errors.StoreError, match="different outputs"):
        extract(model=nets("a file"))
    assert RunFolder(tmp_path / "run").store.committed() == committed
    (tmp_path / "factor.txt").write_text("1.000001")  # as far as kernels round
    assert extract(model=nets("a file")).status.complete


def sketch(values: torch.Tensor, device: str = "cpu") -> dict[str, object]:
    sums = [outputs_check._sums(item.double().flatten().numpy()) for item in values]
    return {"device": device, "slots": {"features": sums}}


@pytest.mark.parametrize("shape", [(2, 1), (2, 512), (2, 64, 32, 32)])
@pytest.mark.parametrize("place", ["one channel", "one image", "all"])
def test_a_sketch_shows_a_difference_wherever_it_is(shape: tuple[int, ...], place: str) -> None:
    before = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.3
    after = before.clone()
    chosen = {"one channel": after[:, -1:], "one image": after[1:], "all": after}[place]
    chosen *= 1.1
    assert outputs_check.changes(sketch(before), sketch(after), half=False)
    assert not outputs_check.changes(sketch(before), sketch(before * (1 + 1e-6)), half=False)
    assert not outputs_check.changes(sketch(before), sketch(before * 1.001, "cuda"), half=False)


def test_a_sketch_shows_other_slots_shapes_and_values_that_are_not_finite() -> None:
    ones = torch.ones(2, 4)
    holed = ones.clone()
    holed[0, 0] = torch.nan
    assert outputs_check.changes(sketch(ones), sketch(holed), half=True)
    assert outputs_check.changes(sketch(ones), sketch(torch.ones(2, 5)), half=True)
    other = {"device": "cpu", "slots": {"other": sketch(ones)["slots"]}}
    assert len(outputs_check.changes(sketch(ones), other, half=True)) == 2


def test_the_images_are_the_same_always_and_unlike_each_other() -> None:
    found = consistency.images((24, 40), 3)
    assert torch.equal(found[:2], consistency.images((24, 40), 2))
    assert float(found[0].std()) > 3 * float(found[2].std())
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    assert float(found.double().sum()) == pytest.approx(3984.0706594833173, abs=1e-6)


@pytest.mark.parametrize("kind", ["torchscript", "exported_program"])
@pytest.mark.parametrize("how", ["dropout", "batch statistics"])
def test_a_file_made_in_training_mode_is_refused(extract: Extract, tmp_path: Path, kind: str, how: str) -> None:
    torch.manual_seed(0)
    last = nn.Dropout() if how == "dropout" else nn.BatchNorm2d(4, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 8, 8), last).train()
    images = torch.rand(2, 3, 32, 32)
    path = tmp_path / ("net.pt" if kind == "torchscript" else "net.pt2")
    if kind == "torchscript":
        torch.jit.trace(net, images, check_trace=False).save(str(path))
    else:
        torch.export.save(torch.export.export(net, (images,)), path)
    words = "each time" if how == "dropout" else "beside other images"
    with pytest.raises(errors.InputError, match=words):
        extract(model="general_encoder", weights=str(path), trust=True, batch_size="auto")
    assert not (tmp_path / "run").exists()


def test_an_unsteady_model_is_not_exported(nets: Callable[[str], str], tmp_path: Path) -> None:
    given = model_export.ExportParameters(
        model=nets("batch statistics"), out=str(tmp_path / "model"), weights="random:0", image_size="32"
    )
    with pytest.raises(errors.InputError, match="beside other images"):
        model_export.export(given)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("raised", [SystemExit(0), SystemExit("words"), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_the_process_is_a_failure_of_the_call(raised: BaseException) -> None:
    def model() -> None:
        raise raised

    threads = encoder_threads.CallThreads(torch.device("cpu"))
    with pytest.raises(errors.EncoderError, match=f"the model raised {type(raised).__name__}"):
        threads.submit(model).result()
    with pytest.raises(errors.EncoderError, match=f"the model raised {type(raised).__name__}"):
        encoder_threads.run_in_thread(model)
    threads.close()


EXPORTED = """
import torch
from torch import nn
def any_batch():
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    return torch.export.export(nn.Conv2d(3, 4, 8, 8), (torch.rand(2, 3, 32, 32),), dynamic_shapes=(batch,)).module()
def two_images():
    return torch.export.export(nn.Conv2d(3, 4, 8, 8), (torch.rand(2, 3, 32, 32),)).module()
"""


@pytest.mark.slow
def test_exported_programs_module_runs(extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exported_net.py").write_text(EXPORTED)
    (tmp_path / "points.csv").write_text("image,point,x,y\nimg_000.png,tip,9,9\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = {"image_size": "32", "points": str(tmp_path / "points.csv")}
    assert extract(model="exported_net:any_batch", **given).asked > 0
    with pytest.raises(errors.InputError, match="fails at a batch of 1 images of 32 x 32 pixels"):
        extract(model="exported_net:two_images", out=str(tmp_path / "other"), **given)
