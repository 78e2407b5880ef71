"""Keypoints of COCO and points of LabelMe are read, or refused with what is wrong."""

import glob
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genenc_core import errors
from genenc_core.images.labels import point_table, reading

NAN = float("nan")
PERSON = {"id": 1, "name": "person", "keypoints": ["nose", "eye"], "skeleton": [[1, 2]]}


def annotation(image: int, category: int, keypoints: Any) -> dict[str, Any]:
    return {"annotations": [{"id": 5, "image_id": image, "category_id": category, "keypoints": keypoints}]}


def coco(**more: Any) -> dict[str, Any]:
    images = [{"id": 7, "file_name": "train/a.jpg", "width": 9, "height": 9}, {"id": 8, "file_name": "b.jpg"}]
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "keypoints": [1, 2, 2, 0, 0, 0], "bbox": [0, 0, 1, 1]},
        {"id": 2, "image_id": 8, "category_id": 1, "keypoints": [5.5, 6, 1, 7, 8, 2]},
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": [PERSON], **more}


def read(path: Path, content: object) -> point_table.PointTable:
    path.write_text(json.dumps(content))
    return reading.read_points(path)


def test_coco_keypoints(tmp_path: Path) -> None:
    table = read(tmp_path / "p.json", coco())
    assert (table.names, table.images, table.individuals) == (("nose", "eye"), ("train/a.jpg", "b.jpg"), ())
    np.testing.assert_array_equal(table.xy, [[[1, 2], [NAN, NAN]], [[5.5, 6], [7, 8]]])
    assert table.frame_sizes == {0: (9, 9)}


def test_stated_sizes_of_images(tmp_path: Path) -> None:
    for width, height, found in (
        (640, 480, {0: (640, 480)}),
        ("640", 480.0, {0: (640, 480)}),
        (0, 0, {}),
        (None, 480, {}),
        ("?", 480, {}),
        (float("nan"), 480, {}),
        (float("inf"), 480, {}),
        (10**400, 480, {}),
        (640, -480, {}),
        ([640], 480, {}),
    ):
        content = labelme("a.png", point("tip", 1, 2)) | {"imageWidth": width, "imageHeight": height}
        assert read(tmp_path / "a.json", content).frame_sizes == found
    other = labelme("a.png", point("base", 1, 2)) | {"imageWidth": 320, "imageHeight": 240}
    (tmp_path / "b.json").write_text(json.dumps(other))
    (tmp_path / "a.json").write_text(json.dumps(other | {"shapes": [point("tip", 1, 2)], "imageWidth": 640}))
    with pytest.raises(
        errors.InputError, match=r"b.json: point 1: the image 'a.png' is 320 x 240 .* and 640 x 240 bef"
    ):
        reading.read_points(tmp_path)


def test_coco_with_several_persons_in_an_image(tmp_path: Path) -> None:
    content = coco()
    content["annotations"].append({"id": 3, "image_id": 7, "category_id": 1, "keypoints": [3, 4, 2, 0, 0, 0]})
    content["annotations"].append({"id": 4, "image_id": 7, "category_id": 9, "segmentation": [[1, 2, 3]]})
    table = read(tmp_path / "p.json", content)
    assert (table.names, table.individuals) == (("1.nose", "1.eye", "2.nose", "2.eye"), ("1", "1", "2", "2"))
    assert table.xy[0, 2].tolist() == [3, 4]


def test_visibility_in_other_types(tmp_path: Path) -> None:
    for value, there in (
        (1, True),
        (2.0, True),
        (True, True),
        ("2", True),
        ("0", False),
        (False, False),
        (None, False),
    ):
        content = coco(**annotation(7, 1, [1, 2, value, 3, 4, 2]))
        assert np.isfinite(read(tmp_path / "p.json", content).xy[0, 0]).all() == there


def test_coco_with_two_kinds_of_animals(tmp_path: Path) -> None:
    fly = {"id": 2, "name": "fly", "keypoints": ["nose"]}
    content = coco(categories=[PERSON, fly])
    content["annotations"][1] = {"id": 2, "image_id": 8, "category_id": 2, "keypoints": [1, 1, 2]}
    assert read(tmp_path / "p.json", content).names == ("person.nose", "person.eye", "fly.nose")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"annotations": []}, "COCO without keypoints: its annotations are none"),
        ({"annotations": [{"id": 1, "image_id": 7, "bbox": [1]}]}, "its annotations are boxes or masks"),
        (
            {"annotations": [{"id": 5, "image_id": 9, "category_id": 1, "keypoints": [0] * 6}]},
            "annotation 5 names an image",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 7, "category_id": 3, "keypoints": [0] * 6}]},
            "annotation 5 names an image or category",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 7, "category_id": 1, "keypoints": [0] * 4}]},
            "has 4 numbers.* has 2 keypoints",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 7, "category_id": 1, "keypoints": ["a", 0, 1] * 2}]},
            "annotation 5: x is 'a'",
        ),
        (annotation(7, 1, [1, 2, 2, 3, 4, 0.93]), "annotation 5: the visibility of 'eye' is 0.93, not 0 .*likelihood"),
        (annotation(7, 1, [1, 2, NAN, 3, 4, 2]), "the visibility of 'nose' is nan, not 0"),
        (annotation(7, 1, [1, 2, -1, 3, 4, 2]), "the visibility of 'nose' is -1, not 0"),
        (annotation(7, 1, [1, 2, "v", 3, 4, 2]), "the visibility of 'nose' is 'v', not a finite number"),
        ({"annotations": [{"keypoints": [0] * 6}]}, "is damaged: it lacks 'image_id'"),
        ({"images": [7]}, "is damaged"),
        (
            {"images": [{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}]},
            "image id 7 to 'a' and to 'b': give each image an id of its own",
        ),
        (annotation(7, 1, 5), "annotation 5 has keypoints that are 5, not a list"),
        ({"images": {"a": 1}}, "is damaged"),
    ],
)
def test_wrong_coco_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        read(tmp_path / "p.json", coco(**change))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"version": 1, "frames": []}, "neither COCO .* nor LabelMe .*: it holds 'version', 'frames'"),
        ([1], "it holds a list"),
        ("x", "it holds a str"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        read(tmp_path / "p.json", content)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "binary", "nested"])
def test_damaged_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p.json").write_bytes(data)
    with pytest.raises(errors.InputError, match="is not JSON"):
        reading.read_points(tmp_path / "p.json")


@pytest.mark.parametrize("what", ["image", "point"])
def test_half_a_character_is_refused(tmp_path: Path, what: str) -> None:
    content = labelme("\ud800.png" if what == "image" else "a.png", point("\udc00" if what == "point" else "tip", 1, 2))
    with pytest.raises(errors.InputError, match="is not valid text"):
        read(tmp_path / "a.json", content)


def labelme(image: str, *shapes: dict[str, Any]) -> dict[str, Any]:
    return {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": image, "imageData": None}


def point(label: str, x: float, y: float, **more: Any) -> dict[str, Any]:
    return {"label": label, "points": [[x, y]], "shape_type": "point", **more}


def test_a_folder_of_labelme(tmp_path: Path) -> None:
    box = {"label": "cage", "points": [[0, 0], [5, 5]], "shape_type": "rectangle"}
    (tmp_path / "a.json").write_text(json.dumps(labelme("..\\frames\\a.png", point("tip", 1.5, 2), box)))
    (tmp_path / "b.json").write_text(json.dumps(labelme("b.png", point("base", 3, 4), point("tip", 5, 6), box)))
    with pytest.warns(point_table.LabelsNotUsed, match=r"^a.json and 1 more: not used: .*\(rectangle\)"):
        table = reading.read_points(tmp_path)
    assert (table.names, table.images) == (("tip", "base"), ("frames/a.png", "b.png"))
    np.testing.assert_array_equal(table.xy, [[[1.5, 2], [NAN, NAN]], [[5, 6], [3, 4]]])


def test_labelme_of_several_folders_is_kept_apart(tmp_path: Path) -> None:
    for camera, name in (("cam1", "tip"), ("cam2", "base")):
        (tmp_path / camera).mkdir()
        (tmp_path / camera / "f.json").write_text(json.dumps(labelme("f.png", point(name, 1, 2))))
    assert reading.read_points(tmp_path / "*" / "*.json").images == ("cam1/f.png", "cam2/f.png")


def test_the_folders_of_several_files_are_kept_for_names_without_one(tmp_path: Path) -> None:
    for camera in ("cam1", "cam2"):
        (tmp_path / camera).mkdir()
        image = {"id": 7, "file_name": f"{camera[-1]}.png"}
        (tmp_path / camera / "c.json").write_text(json.dumps(coco(images=[image], **annotation(7, 1, [1, 2, 2] * 2))))
        (tmp_path / camera / "t.csv").write_text(f"image,point,x,y\n{camera[-1]}.png,a,1,2\n{camera}/x.png,a,1,2\n")
    for pattern in ("*/c.json", "*/t.csv"):
        table = reading.read_points(tmp_path / pattern)
        assert {table.images[at]: folders for at, folders in table.folders.items()} == {
            "1.png": {"cam1"},
            "2.png": {"cam2"},
        }
    assert reading.read_points(tmp_path / "cam1" / "*.csv").folders == {}


def test_labelme_in_folders_of_the_folder_is_named(tmp_path: Path) -> None:
    below = tmp_path / "labels[1]" / "cam1"
    below.mkdir(parents=True)
    (below / "f.json").write_text(json.dumps(labelme("f.png", point("tip", 1, 2))))
    with pytest.raises(
        errors.InputError, match=r"quoted glob '.*labels\[\[\]1\]/\*\*/\*.json' reads those in its fold"
    ):
        reading.read_points(below.parent)
    (below.parent / "top.json").write_text(json.dumps(labelme("top.png", point("tip", 1, 2))))
    (below.parent / ".trash").mkdir()
    (below.parent / ".trash" / "old.json").write_text("{}")
    with pytest.warns(point_table.LabelsNotUsed, match=r"not used: 1 .json file in its folders, such as 'cam1/f.json'"):
        assert reading.read_points(below.parent).images == ("top.png",)
    everything = f"{glob.escape(str(below.parent))}/**/*.json"
    assert reading.read_points(everything).images == ("cam1/f.png", "top.png")


def test_individuals_of_several_coco_files_are_named_alike(tmp_path: Path) -> None:
    several, one = coco(), coco()
    several["annotations"].append({"id": 3, "image_id": 7, "category_id": 1, "keypoints": [3, 4, 2, 0, 0, 0]})
    for item in one["images"]:
        item["file_name"] = f"other/{item['file_name']}"
    for name, content in (("a", several), ("b", one)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert reading.read_points(tmp_path / "*.json").names == ("1.nose", "1.eye", "2.nose", "2.eye")


def test_groups_of_labelme_are_individuals(tmp_path: Path) -> None:
    shapes = point("tip", 1, 2, group_id=1), point("tip", 3, 4, group_id=2), point("base", 5, 6, group_id=None)
    table = read(tmp_path / "a.json", labelme("a.png", *shapes))
    assert (table.names, table.individuals) == (("1.tip", "2.tip", "base"), ("1", "2", ""))


@pytest.mark.parametrize("shape", [point("", 1, 2), {**point("", 1, 2), "label": None}])
def test_labelme_without_a_label_is_refused(tmp_path: Path, shape: dict[str, Any]) -> None:
    with pytest.raises(errors.InputError, match="point 1 has an empty image or point"):
        read(tmp_path / "a.json", labelme("a.png", shape))


@pytest.mark.parametrize("shape", [7, {"shape_type": "point"}, {"shape_type": "point", "label": "a", "points": []}])
def test_damaged_labelme_is_refused(tmp_path: Path, shape: Any) -> None:
    with pytest.raises(errors.InputError, match="is damaged"):
        read(tmp_path / "a.json", labelme("a.png", shape))


def test_labelme_without_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="contains no points"):
        read(tmp_path / "a.json", labelme("a.png"))
