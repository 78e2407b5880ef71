"""Forms of region files: tables of boxes, COCO, LabelMe, mask images; what is refused and why."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from PIL import Image
from pyarrow import parquet

from genenc_core import errors
from genenc_core.images.labels import region_reading, region_table
from genenc_core.images.labels.masks import Mask
from genenc_core.images.labels.point_table import LabelsNotUsed
from genenc_core.images.labels.region_table import RegionTable


def read(*places: Path, **options: Any) -> RegionTable:
    return region_reading.read_regions(places, **options)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def rows(table: RegionTable) -> list[tuple[str, str, str, list[float]]]:
    images = [table.images[at] for at in table.image]
    return list(zip(images, table.names, table.categories, table.boxes.tolist(), strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "image,region,x,y,width,height,category\na.png,l,1,2,3,4,mouse\n",
        "image,region,x_min,y_min,x_max,y_max,class\na.png,l,1,2,4,6,mouse\n",
        "filename;xmin;ymin;xmax;ymax;label;region_id\na.png;1;2;4;6;mouse;l\n",
        "file_name\tx1\ty1\tx2\ty2\tspecies\tid\na.png\t1\t2\t4\t6\tmouse\tl\n",
        "image,cx,cy,w,h,category_name,box_id\na.png,2.5,4,3,4,mouse,l\n",
        # width and height of the image, as TensorFlow's tables have them
        "filename,width,height,class,xmin,ymin,xmax,ymax,region\na.png,640,480,mouse,1,2,4,6,l\n",
    ],
)
@pytest.mark.filterwarnings("ignore::genenc_core.images.labels.point_table.LabelsNotUsed")
def test_every_form_of_a_table_is_the_same_box(tmp_path: Path, text: str) -> None:
    assert rows(read(written(tmp_path / "b.csv", text))) == [("a.png", "l", "mouse", [1, 2, 4, 6])]


def test_regions_without_a_name_are_numbered_in_their_image(tmp_path: Path) -> None:
    table = pa.table(
        {"image": ["a.png", "b.png", "a.png"], "x": [0, 1, 2], "y": [0, 0, 0], "width": [1, 1, 1], "height": [2, 2, 2]}
        | {"score": [0.9, 0.2, 0.8], "individual": ["m1", "m1", "m2"]}
    )
    parquet.write_table(table, tmp_path / "b.parquet")
    found = read(tmp_path / "b.parquet")
    assert found.names == ("1", "1", "2")
    assert found.individuals == ("m1", "m1", "m2")
    assert found.scores.tolist() == [0.9, 0.2, 0.8]
    likely = read(tmp_path / "b.parquet", min_score=0.5)
    assert (likely.names, sum(likely.uncertain.values())) == (("1", "2"), 1)


def test_scales_and_other_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "b.csv", "frame_no,links,oben,w,h\na.png,1,2,3,4\n")
    found = read(path, columns="image=frame_no,x=links,y=oben", scale="2,0.5")
    assert found.boxes.tolist() == [[2, 1, 8, 3]]
    assert not read(path, columns="image=frame_no,x=links,y=oben", scale="normalized").boxes.max() > 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,x,y\na.png,1,2\n", "has no boxes: .*x_min.*--regions-columns"),
        ("image,x_min,y_min,x_max,y_max,cx,cy,w,h\na.png,1,2,3,4,1,1,1,1\n", "by corners and by centres"),
        ("image,x,y,width,height\na.png,1,2,-3,4\n", "row 2: the box of 'a.png' ends before it begins"),
        ("image,x,y,width,height\na.png,1,2,,4\n", "row 2: the box of 'a.png' lacks a number"),
        ("image,x,y,width,height\na.png,1,zwei,3,4\n", "row 2: y is 'zwei', not a finite number"),
        ("image,region,x,y,width,height\na.png,l,1,2,3,4\na.png,l,1,2,3,4\n", "row 3 repeats the region 'l'"),
        ("image,x,y,width,height\n,1,2,3,4\n", "names no image"),
        ("image,x,y,width,height\na.png,,,,\n", "holds no regions"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        read(written(tmp_path / "b.csv", text))


COCO: dict[str, Any] = {
    "images": [{"id": 5, "file_name": "a.png", "width": 6, "height": 5}, {"id": 6, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "mouse"}, {"id": 2, "name": "rat"}],
    "annotations": [
        {"id": 10, "image_id": 6, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5, "track_id": 7},
        {"id": 11, "image_id": 5, "category_id": 1, "bbox": [1, 1, 3, 2], "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]},
        {
            "id": 12,
            "image_id": 5,
            "category_id": 1,
            "iscrowd": 1,
            "segmentation": {"size": [5, 6], "counts": [0, 2, 28]},
        },
        {
            "id": 13,
            "image_id": 5,
            "category_id": 2,
            "segmentation": {"size": [5, 6], "counts": Mask.from_counts([29, 1], (5, 6)).text},
        },
    ],
}


def test_coco(tmp_path: Path) -> None:
    found = read(written(tmp_path / "c.json", json.dumps(COCO)))
    assert found.kinds == ("box", "mask", "crowd", "mask")
    assert found.names == ("10", "11", "12", "13")
    assert found.individuals[0] == "7"
    assert found.boxes.tolist() == [[1, 2, 4, 6], [1, 1, 4, 3], [0, 0, 1, 2], [5, 4, 6, 5]]
    assert [None if mask is None else mask.area for mask in found.masks] == [None, 6, 2, 1]
    assert dict(found.frame_sizes) == {1: (6, 5)}


def changed(**annotation: Any) -> str:
    return json.dumps({**COCO, "annotations": [{"id": 1, "image_id": 5, "category_id": 1, **annotation}]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed(bbox=[1, 2, 3]), r"annotation 1 has the bbox \[1, 2, 3\], not four numbers"),
        (changed(segmentation=[[1, 2, 3, 4]]), "polygon that is not x, y of at least three corners"),
        (
            changed(segmentation={"size": [6, 5], "counts": [30]}),
            "run lengths of 5 x 6 pixels, but the file states 6 x 5",
        ),
        (changed(segmentation={"size": [5, 6], "counts": [3]}), "annotation 1: its run lengths add up to 3 pixels"),
        (changed(segmentation={"size": [5, 6], "counts": "\x01"}), "annotation 1: .*none of COCO's"),
        (changed(keypoints=[1, 2, 2]), "COCO without regions: .*Keypoints are points: --points"),
        (changed(image_id=6, segmentation=[[1, 1, 4, 1, 4, 3]]), "does not state the size of 'b.png'"),
        (changed(image_id=9, bbox=[1, 2, 3, 4]), "names an image or category that the file lacks"),
        (json.dumps([{"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4]}]), "results of COCO"),
        (json.dumps({"things": []}), "neither COCO .* nor LabelMe"),
        ("{", "is not JSON"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        read(written(tmp_path / "c.json", text))


def test_labelme(tmp_path: Path) -> None:
    shapes = [
        {"label": "mouse", "shape_type": "rectangle", "points": [[4, 6], [1, 2]], "group_id": 3},
        {"label": "rat", "shape_type": "polygon", "points": [[1, 1], [4, 1], [4, 3], [1, 3]]},
        {"label": "eye", "shape_type": "circle", "points": [[10, 10], [10, 13]]},
        {"label": "nose", "shape_type": "point", "points": [[1, 1]]},
    ]
    document = {"imagePath": "../a.png", "imageWidth": 20, "imageHeight": 20, "shapes": shapes}
    written(tmp_path / "a.json", json.dumps(document))
    with pytest.warns(LabelsNotUsed, match=r"shapes that are no regions \(point\)"):
        found = read(tmp_path)
    assert found.kinds == ("box", "mask", "mask")
    assert found.categories == ("mouse", "rat", "eye")
    assert found.individuals == ("3", "", "")
    assert found.boxes[0].tolist() == [1, 2, 4, 6]
    circle = found.masks[2]
    assert circle is not None
    assert circle.area == pytest.approx(np.pi * 9, rel=0.15)


def save(path: Path, values: Any, kind: Any = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, kind)).save(path)


def test_a_mask_of_labelme_is_placed_at_its_corner(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(file, "PNG")
    shape = {
        "label": "m",
        "shape_type": "mask",
        "points": [[3, 1], [4, 2]],
        "mask": base64.b64encode(file.getvalue()).decode(),
    }
    document = {"imagePath": "a.png", "imageWidth": 6, "imageHeight": 4, "shapes": [shape]}
    (mask,) = read(written(tmp_path / "a.json", json.dumps(document))).masks
    assert mask is not None
    expected = np.zeros((4, 6), bool)
    expected[1, 4] = expected[2, 3:5] = True
    assert (mask.pixels() == expected).all()
    shape["points"] = [[5, 1], [6, 2]]
    with pytest.raises(errors.InputError, match="reaches beyond its image of 6 x 4 pixels"):
        read(written(tmp_path / "a.json", json.dumps(document)))
    shape["mask"] = "no PNG"
    with pytest.raises(errors.InputError, match="no PNG in base64"):
        read(written(tmp_path / "a.json", json.dumps(document)))


@pytest.mark.parametrize(
    ("size", "corner", "words"),
    [
        (10**8, 3, "would be 100000000 x 100000000 pixels, of which masks are at most 131072"),
        (9, 10**9, "a corner of the polygon lies more than 262144 pixels from 'a.png'"),
    ],
)
def test_absurd_polygons_are_refused_at_once(tmp_path: Path, size: int, corner: int, words: str) -> None:
    shapes = [{"label": "m", "shape_type": "polygon", "points": [[0, 0], [corner, 0], [0, 3]]}]
    document = {"imagePath": "a.png", "imageWidth": size, "imageHeight": size, "shapes": shapes}
    with pytest.raises(errors.InputError, match=words):
        read(written(tmp_path / "a.json", json.dumps(document)))


def test_label_images(tmp_path: Path) -> None:
    save(tmp_path / "a.png", [[0, 2, 2], [0, 0, 7]])
    save(tmp_path / "deep/b.tif", [[0, 300], [300, 0]], np.uint16)
    found = read(tmp_path)
    assert found.by_stem
    assert [(found.images[at], name) for at, name in zip(found.image, found.names, strict=True)] == [
        ("a", "2"),
        ("a", "7"),
        ("deep/b", "300"),
    ]
    assert found.boxes[0].tolist() == [1, 0, 3, 1]


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([[0, 255, 0]], {}, {"1": 1}),
        ([[0, 1, 0]], {"bitspersample": 1}, {"1": 1}),
        ([[0, 5, 15]], {"bitspersample": 4}, {"5": 1, "15": 1}),
        ([[0, 7, 7]], {}, {"7": 2}),
    ],
)
def test_labels_of_a_tiff_are_what_it_stores(
    values: list[list[int]], options: dict[str, int], expected: dict[str, int], photometric: str, tmp_path: Path
) -> None:
    """ImageJ writes masks whose white is 0 and whose inside is 255."""
    kind = bool if options.get("bitspersample") == 1 else np.uint8
    stated = {} if kind is bool else options
    tifffile.imwrite(tmp_path / "a.tif", np.array(values, kind), photometric=photometric, **stated)
    found = read(tmp_path)
    assert {name: mask.area for name, mask in zip(found.names, found.masks, strict=True) if mask} == expected


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_a_png_of_few_bits(bits: int, tmp_path: Path) -> None:
    line = bytes([0, 0b00_01_10_11]) if bits == 2 else bytes([0, 0x05, 0x0F])
    packed = zlib.compress(line)
    chunks = ((b"IHDR", struct.pack(">II5B", 4, 1, bits, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(x)) + n + x + struct.pack(">I", zlib.crc32(n + x)) for n, x in chunks)
    )
    assert read(tmp_path).names == (("1", "2", "3") if bits == 2 else ("5", "15"))


def test_masks_that_are_refused_for_what_they_hold(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, 4, 4), np.uint8), photometric="minisblack")
    with pytest.raises(errors.InputError, match="has several pages: write one label image per image"):
        read(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, -1]], np.int32))
    with pytest.raises(errors.InputError, match="has values from -1, of type int32"):
        read(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 1.5]], np.float32))
    with pytest.raises(errors.InputError, match="of type float32: write whole numbers"):
        read(tmp_path)


@pytest.mark.parametrize("stated", [[0, 0, 0, 0], [1, 1, 3, 3], [9, 9, 1, 1]])
def test_the_box_of_a_mask_is_that_of_its_pixels(stated: list[int], tmp_path: Path) -> None:
    """Converters leave other numbers in `bbox`."""
    shape = {"segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]], "bbox": stated}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 12}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **shape}],
        "categories": [{"id": 1, "name": "m"}],
    }
    assert read(written(tmp_path / "c.json", json.dumps(document))).boxes.tolist() == [[1, 1, 3, 3]]


def test_binary_masks_named_after_their_images(tmp_path: Path) -> None:
    save(tmp_path / "a_mask.png", [[0, 255], [0, 0]])
    save(tmp_path / "b_mask.png", [[255, 255], [0, 255]])
    save(tmp_path / "c_mask.png", [[0, 0], [0, 0]])
    found = read(tmp_path)
    assert (found.images, found.names) == (("a", "b"), ("1", "1"))
    assert [mask.area for mask in found.masks if mask] == [1, 3]


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([[[0, 255]], [[0, 3]]], "of two kinds: .*a.png.* has the values 0 and 255.* and .*b.png"),
        ([[[0, 255, 128]]], "has the value 255 beside 1 others, such as 128"),
        ([[[[0, 0, 0], [255, 0, 0]]]], "has 3 channels: which colour is which region"),
    ],
)
def test_masks_that_are_ambiguous(tmp_path: Path, masks: list[Any], words: str) -> None:
    for name, values in zip("ab", masks, strict=False):
        save(tmp_path / f"{name}.png", values)
    with pytest.raises(errors.InputError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["masks", "YOLO", "LabelMe"])
def test_folders_below_the_one_that_is_given_count(kind: str, tmp_path: Path) -> None:
    """Also if all files are in one of them, as where only one animal has labels so far."""
    below = tmp_path / "labels" / "mouse2"
    below.mkdir(parents=True)
    if kind == "masks":
        save(below / "a.png", [[0, 1, 1]])
    elif kind == "YOLO":
        (below / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    else:
        shape = {"label": "m", "shape_type": "rectangle", "points": [[4, 6], [1, 2]]}
        document = {"imagePath": "a.png", "imageWidth": 20, "imageHeight": 20, "shapes": [shape]}
        written(below / "a.json", json.dumps(document))
    found, direct = read(tmp_path / "labels"), read(below)
    name = "a.png" if kind == "LabelMe" else "a"
    assert (found.images, direct.images) == ((f"mouse2/{name}",), (name,))
    assert len(found) == 1


def test_a_glob_leaves_out_the_file_of_class_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "classes.txt").write_text("mouse\n")
    assert read(tmp_path / "*.txt").categories == ("mouse",)


@pytest.mark.parametrize("column", ["region", "category", "individual"])
def test_names_that_pandas_made_floats_are_refused_with_the_reason(column: str, tmp_path: Path) -> None:
    box = {"x": [1, 1, 1], "y": [1, 1, 1], "width": [2, 2, 2], "height": [2, 2, 2]}
    table = {"image": ["a", "b", "c"], **box, column: [1.0, float("nan"), 2.0]}
    parquet.write_table(pa.table(table), tmp_path / "p.parquet")
    with pytest.raises(errors.InputError, match=f"'{column}' of .* neither text nor whole .* names of a {column} are"):
        read(tmp_path / "p.parquet")


def test_other_places_that_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "masks/a.png", [[0, 1]])
    boxes = written(tmp_path / "b.csv", "image,x,y,width,height\na.png,1,2,3,4\n")
    with pytest.raises(errors.InputError, match=r"mask images.*and other files"):
        read(tmp_path / "masks", boxes)
    with pytest.raises(errors.InputError, match="cannot scale"):
        read(tmp_path / "masks", scale="2")
    written(tmp_path / "masks/a.json", "{}")
    with pytest.raises(errors.InputError, match=r"holds mask images and \.json files"):
        read(tmp_path / "masks")
    with pytest.raises(errors.InputError, match="file does not exist"):
        read(tmp_path / "none.csv")
    with pytest.raises(errors.InputError, match="is not a table of boxes"):
        read(written(tmp_path / "b.xml", "<annotation/>"))


def test_yolo(tmp_path: Path) -> None:
    (tmp_path / "labels/train").mkdir(parents=True)
    written(tmp_path / "labels/train/a.txt", "1 0.5 0.5 0.5 0.25\n0 0.25 0.5 0.5 1 0.75\n")
    written(tmp_path / "labels/train/b.txt", "")
    written(tmp_path / "data.yaml", "names: {0: mouse, 1: rat}\n")
    found = read(tmp_path / "labels")
    assert (found.by_stem, found.scale.text) == (True, "normalized")
    assert rows(found) == [
        ("train/a", "1", "rat", [0.25, 0.375, 0.75, 0.625]),
        ("train/a", "2", "mouse", [0, 0, 0.5, 1]),
    ]
    assert found.scores[1] == 0.75
    written(tmp_path / "labels/classes.txt", "m\nr\n")
    assert read(tmp_path / "labels" / "train").categories == ("r", "m")
    with pytest.raises(errors.InputError, match="cannot be used with YOLO's files"):
        read(tmp_path / "labels", scale="2")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 100 100 50 50", "no fractions of an image's size"),
        ("0 0.1 0.1 0.2 0.2 0.3 9.1", "no fractions of an image's size"),
        ("0 0.2 0.2 0.4 0.4 0.3 0.1", "is a polygon, or a box with keypoints in it.*without it if they are polygons"),
        ("mouse 0.1 0.1 0.2 0.2", "not a class number"),
        ("0 0.1 0.1", "not a class number"),
    ],
)
def test_lines_that_are_not_yolos(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        read(written(tmp_path / "a.txt", line))


def test_polygons_of_yolo_are_those_of_coco(tmp_path: Path) -> None:
    """Masks once the size of the image is known; a box of another class beside them; a confidence at the end."""
    written(tmp_path / "a.txt", "0 0.1 0.1 0.8 0.2 0.5 0.9\n1 0.5 0.5 0.25 0.5\n0 0 0 1 0 1 1 0 1 0.5\n")
    table = read(tmp_path / "a.txt")
    assert table.kinds == ("mask", "box", "mask")
    assert table.scores[2] == 0.5
    np.testing.assert_allclose(table.boxes[0], [0.1, 0.1, 0.8, 0.9])
    found = region_table.rasterised(table, {0: (80, 60)})
    corners = np.array([[8, 6], [64, 12], [40, 54]])
    mask = found.masks[0]
    assert mask is not None
    assert mask.text == Mask.from_polygons([corners], (60, 80)).text
    np.testing.assert_allclose(found.boxes[0] * [80, 60, 80, 60], mask.box)
    whole = found.masks[2]
    assert whole is not None
    assert whole.area == 80 * 60
    assert found.masks[1] is None
    unknown = region_table.rasterised(table, {}).masks[0]
    assert unknown is not None
    assert (unknown.size, unknown.area) == ((1, 1), 0)


def test_boxes_of_keypoints_are_regions(tmp_path: Path) -> None:
    line = "0 0.5 0.5 0.2 0.4 0.45 0.4 2 0 0 0\n"
    written(tmp_path / "labels.txt", line)
    assert read(tmp_path / "labels.txt").kinds == ("box",)
    written(tmp_path / "data.yaml", "kpt_shape: [3, 3]\n")
    with pytest.raises(errors.InputError, match=r"11 words are neither .* nor a box with 3 keypoints of 3 numbers"):
        read(tmp_path / "labels.txt")


def test_several_files(tmp_path: Path) -> None:
    for name in "ab":
        written(tmp_path / f"{name}.csv", f"image,x,y,width,height\n{name}.png,1,2,3,4\n")
    assert read(tmp_path / "*.csv").images == ("a.png", "b.png")
    assert len(read(tmp_path / "a.csv", tmp_path / "b.csv")) == 2
    written(tmp_path / "c.csv", "image,region,x,y,width,height\na.png,1,1,2,3,4\n")
    with pytest.raises(errors.InputError, match=r"c.csv: row 2 repeats the region '1' of 'a.png' from .*a.csv: row 2"):
        read(tmp_path / "a.csv", tmp_path / "c.csv")
