"""Labels of animals, likelihoods and projects reach the store; every form of the same labels gives the same rows."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray
from PIL import Image

import sleap_files
from genenc_core import api
from genenc_core.run import driver, planning, status

Extract = Callable[..., driver.Result]
ANIMALS, PARTS = ("m1", "m2"), ("nose", "tail")
LABELS = {
    ("img1.png", "m1", "nose"): (3.0, 4.0, 0.9),
    ("img1.png", "m1", "tail"): (20.5, 10.0, 0.2),
    ("img1.png", "m2", "nose"): (11.0, 30.0, 1.0),
    ("img2.png", "m2", "tail"): (31.0, 2.0, 0.7),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A DeepLabCut project of two frames."""
    frames = tmp_path / "project" / "labeled-data" / "v"
    frames.mkdir(parents=True)
    draw = np.random.default_rng(1)
    for name in ("img1.png", "img2.png"):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(frames / name)
    columns = [(animal, part, axis) for animal in ANIMALS for part in PARTS for axis in ("x", "y")]
    with (frames / "CollectedData_me.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scorer", *("me" for _ in columns)])
        for at, level in enumerate(("individuals", "bodyparts", "coords")):
            writer.writerow([level, *(column[at] for column in columns)])
        for name in ("img1.png", "img2.png"):
            cells = [LABELS.get((name, animal, part), ("", "", ""))[axis == "y"] for animal, part, axis in columns]
            writer.writerow([f"labeled-data/v/{name}", *cells])
    return tmp_path / "project"


def tidy(place: Path) -> Path:
    lines = ["image,individual,point,x,y,likelihood"]
    lines += [f"{image},{animal},{part},{x},{y},{p}" for (image, animal, part), (x, y, p) in LABELS.items()]
    place.write_text("\n".join(lines) + "\n")
    return place


def labelme(folder: Path) -> Path:
    folder.mkdir()
    for name in ("img1.png", "img2.png"):
        shapes = [
            {"label": part, "points": [[x, y]], "shape_type": "point", "group_id": animal}
            for (image, animal, part), (x, y, _) in LABELS.items()
            if image == name
        ]
        text = json.dumps({"imagePath": f"..\\labeled-data\\v\\{name}", "shapes": shapes})
        (folder / f"{name}.json").write_text(text)
    return folder


def opened(root: Path) -> xarray.Dataset:
    return xarray.open_zarr(root / "features.zarr", consolidated=False).load()


def test_every_form_of_the_same_labels_gives_the_same_rows(extract: Extract, project: Path, tmp_path: Path) -> None:
    forms = {"project": project, "tidy": tidy(tmp_path / "tidy.csv"), "labelme": labelme(tmp_path / "shapes")}
    for name, place in forms.items():
        result = extract(images=str(project), points=str(place), out=str(tmp_path / f"run-{name}"))
        assert api.Run(result.run).verify(content=True).problems == ()
    own = opened(tmp_path / "run-project")
    assert own.probes.coords["individual"].values.tolist() == ["m1", "m1", "m2", "m2"]
    assert own.point.values.tolist() == ["m1.nose", "m1.tail", "m2.nose", "m2.tail"]
    chosen = own.set_xindex("point").sel(point=own.individual == "m2")
    np.testing.assert_array_equal(chosen.point_status, [[1, 4], [4, 1]])
    for name in ("tidy", "labelme"):
        other = opened(tmp_path / f"run-{name}").sortby("point")
        for array in ("probes", "point_x", "point_status", "individual"):
            np.testing.assert_array_equal(own[array], other[array], err_msg=f"{name}: {array}")


def test_sleap_names_animals_and_points_as_deeplabcut_does(extract: Extract, project: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    files = [f"C:\\lab\\labeled-data\\v\\{name}" for name in ("img1.png", "img2.png")]
    frames: dict[tuple[int, int], list[sleap_files.Instance]] = {}
    for at, image in enumerate(("img1.png", "img2.png")):
        for track, animal in enumerate(ANIMALS):
            found = [LABELS.get((image, animal, part)) for part in PARTS]
            if any(found):
                points = [None if each is None else (each[0] - 0.5, each[1] - 0.5) for each in found]
                scores = [float("nan") if each is None else each[2] for each in found]
                frames.setdefault((0, at), []).append(sleap_files.Instance(points, track, scores))
    video = {"backend": {"type": "ImageVideo", "filename": files}}
    labels = sleap_files.write_slp(tmp_path / "a.slp", frames, videos=[video], tracks=ANIMALS, nodes=PARTS)
    for name, points in (("dlc", project), ("sleap", labels), ("tidy", tidy(tmp_path / "tidy.csv"))):
        extract(images=str(project), points=str(points), out=str(tmp_path / name))
    own, other = opened(tmp_path / "dlc"), opened(tmp_path / "sleap")
    for array in ("point", "individual", "point_x", "point_y", "point_status", "probes"):
        np.testing.assert_array_equal(own[array], other[array], err_msg=array)
    likelihood = opened(tmp_path / "tidy").sortby("point").point_likelihood
    np.testing.assert_array_equal(other.sortby("point").point_likelihood, likelihood)


def test_uncertain_labels_are_missing_points_and_counted(extract: Extract, project: Path, tmp_path: Path) -> None:
    given = {"images": str(project), "points": str(tidy(tmp_path / "tidy.csv")), "out": str(tmp_path / "run")}
    run = extract(**given, min_likelihood=0.5).run
    rows = opened(tmp_path / "run").sortby("point")
    np.testing.assert_array_equal(rows.point_status, [[1, 4, 1, 4], [4, 4, 4, 1]])
    assert "1 label left out: below the least likelihood" in "\n".join(status.summary_lines(status.survey(run), None))
    extract(**given, min_likelihood=0.5)  # goes on with it
    with pytest.raises(api.GenencError, match="points differ in 1 image"):
        extract(**given)


def test_likelihoods_are_stored_where_labels_have_them(extract: Extract, project: Path, tmp_path: Path) -> None:
    given = {"images": str(project), "points": str(tidy(tmp_path / "tidy.csv")), "out": str(tmp_path / "run")}
    run = api.Run(extract(**given).run)
    rows = opened(tmp_path / "run").sortby("point")
    nan = float("nan")
    np.testing.assert_array_equal(rows.probes.coords["point_likelihood"], [[0.9, 0.2, 1, nan], [nan, nan, nan, 0.7]])
    assert run.verify(content=True).problems == ()
    extract(**given)  # nothing to do
    text = (tmp_path / "tidy.csv").read_text()
    (tmp_path / "tidy.csv").write_text(text.replace(",0.9", ",0.8"))
    with pytest.raises(api.GenencError, match="likelihoods of points differ"):
        extract(**given)
    without = {**given, "points": str(project), "out": str(tmp_path / "other")}
    extract(**without)
    assert "point_likelihood" not in opened(tmp_path / "other")


def test_a_run_without_likelihoods_goes_on_without(
    extract: Extract, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions planned it: the labels have likelihoods, which the run does not record."""
    given = {"images": str(project), "points": str(tidy(tmp_path / "tidy.csv")), "out": str(tmp_path / "run")}
    with monkeypatch.context() as patched:
        read = planning.read_labels
        patched.setattr(planning, "read_labels", lambda asked: dataclasses.replace(read(asked), likelihood=None))
        extract(**given)
    assert "point_likelihood" not in opened(tmp_path / "run")
    extract(**given)
    assert "point_likelihood" not in opened(tmp_path / "run")


def test_probes_of_stored_maps_have_the_likelihoods_of_their_points(
    extract: Extract, project: Path, tmp_path: Path
) -> None:
    labels = tidy(tmp_path / "tidy.csv")
    extract(images=str(project), points=str(labels), out=str(tmp_path / "run"), maps=True)
    nan = float("nan")
    for name, points in (("own", None), ("others", str(labels))):
        api.probe(tmp_path / "run", out=tmp_path / name, points=points, products=["probes=spatial_point(cell)"])
        rows = opened(tmp_path / name).sortby("point")
        np.testing.assert_array_equal(rows.point_likelihood, [[0.9, 0.2, 1, nan], [nan, nan, nan, 0.7]])
        api.probe(tmp_path / "run", out=tmp_path / name, points=points, products=["probes=spatial_point(cell)"])


def test_a_dataset_keeps_the_individuals_of_its_points(project: Path, tmp_path: Path) -> None:
    options = {"weights": "random:0", "image_size": 32, "device": "cpu"}
    labels, second = tidy(tmp_path / "tidy.csv"), project / "labeled-data" / "v" / "img3.png"
    api.update(tmp_path / "set", project, "resnet18", points=labels, **options)
    Image.new("RGB", (40, 40)).save(second)
    labels.write_text("image,individual,point,x,y\nimg3.png,m1,tail,5,6\nimg1.png,m1,nose,3,4\n")
    made = api.update(tmp_path / "set", project, "resnet18", points=labels, **options)
    arrays = made.arrays()
    assert arrays.individual.values.tolist() == ["m1", "m1", "m2", "m2"]
    assert arrays.sel(point="m1.tail").point_x.sel(image_id="labeled-data/v/img3.png").item() == 5
