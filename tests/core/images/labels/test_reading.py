"""Points are read from tables and DeepLabCut CSVs, or refused with the row that is wrong."""

import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from genenc_core import errors
from genenc_core.images.labels import point_table, reading

NAN = float("nan")


def read(path: Path, text: str) -> point_table.PointTable:
    path.write_text(text)
    return reading.read_points(path)


def test_tidy_csv(tmp_path: Path) -> None:
    """First appearance gives the order; pairs that are not given, empty cells and nan are missing."""
    table = read(
        tmp_path / "p.csv",
        "\ufefflikelihood,y,image,point,x\n0.9,2,b.png,nose,1\n0.9,4.5,a.png,tail,3\n,,b.png,tail,\n1,nan,a.png,nose,NaN\n",
    )
    assert table.names == ("nose", "tail")
    assert table.images == ("b.png", "a.png")
    np.testing.assert_array_equal(table.xy, [[[1, 2], [NAN, NAN]], [[NAN, NAN], [3, 4.5]]])
    assert table.xy.dtype == np.float64


def test_tidy_parquet(tmp_path: Path) -> None:
    columns = {"image": ["a", "a"], "point": ["l", "r"], "x": [1.5, None], "y": [2, None], "more": [0, 0]}
    parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
    table = reading.read_points(tmp_path / "p.parquet")
    assert table.names == ("l", "r")
    np.testing.assert_array_equal(table.xy, [[[1.5, 2], [NAN, NAN]]])


def test_dlc_single_animal(tmp_path: Path) -> None:
    table = read(
        tmp_path / "CollectedData_me.csv",
        "scorer,me,me,me,me\nbodyparts,snout,snout,tail,tail\ncoords,x,y,x,y\n"
        "labeled-data/m1/img0.png,1.5,2,,\nlabeled-data/m1/img1.png,3,4,5,6\n",
    )
    assert table.names == ("snout", "tail")
    assert table.images == ("labeled-data/m1/img0.png", "labeled-data/m1/img1.png")
    np.testing.assert_array_equal(table.xy, [[[1.5, 2], [NAN, NAN]], [[3, 4], [5, 6]]])


def test_dlc_with_a_spreadsheets_empty_columns(tmp_path: Path) -> None:
    rows = ["scorer,me,me", "bodyparts,snout,snout", "coords,x,y", "labeled-data/m1/img0.png,1.5,2"]
    table = read(tmp_path / "p.csv", "".join(f"{row},,,\n" for row in rows))
    assert table.names == ("snout",)
    np.testing.assert_array_equal(table.xy, [[[1.5, 2]]])


def test_dlc_multi_animal_with_three_index_columns_and_likelihood(tmp_path: Path) -> None:
    table = read(
        tmp_path / "p.csv",
        "scorer,,,me,me,me,me,me,me,me\n"
        "individuals,,,m1,m1,m1,m2,m2,single,single\n"
        "bodyparts,,,ear,ear,ear,ear,ear,box,box\n"
        "coords,,,x,y,likelihood,x,y,x,y\n"
        "labeled-data,vid,img1.png,1,2,0.9,3,4,5,6\n"
        "labeled-data,vid,img2.png,,,,7,8,,\n",
    )
    assert table.names == ("m1.ear", "m2.ear", "single.box")
    assert table.images == ("labeled-data/vid/img1.png", "labeled-data/vid/img2.png")
    np.testing.assert_array_equal(table.xy[0], [[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(table.xy[1], [[NAN, NAN], [7, 8], [NAN, NAN]])


DLC = "scorer,me,me\nbodyparts,nose,nose\ncoords,x,y\n"
TIDY = "image,point,x,y,note\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TIDY + "a,n,12,5,30,5\n", "line 2 has 6 cells, its header has 5: .* decimal point"),
        (DLC + "a,12,5,30,5\n", "line 4 has 5 cells, its header has 3"),
        ("image,point,x,x,y\na,n,1,2,3\n", "has 2 columns 'x': rename or remove all but one"),
        ("image,image,point,x,y\na,b,n,1,2\n", "has 2 columns 'image'"),
        (TIDY + 'a,n,1,2,"5 inch\nb,n,3,4,\nc,n,5,6,\n', "after line 1: unexpected end of data"),
        (TIDY + 'a,n,1,2,"5 inch\nb,n,3,4,"6 inch\nc,n,5,6,\n', "after line 1: .* Quote cells that contain a quote"),
        (
            TIDY + 'a,n,1,2,"5 inch\nb,n,3,4,\nc,n,5,6,ok"\n',
            "a quoted cell that begins in line 2 contains lines that look like rows",
        ),
        (TIDY + "a,n,,2,\n", "row 2 has y but no x for the point 'n' of 'a'; leave both empty"),
        (TIDY + "a,n,1,nan,\n", "row 2 has x but no y for the point 'n' of 'a'"),
        (DLC + "a,1,2\nb,1,\n", "row 5 has x but no y for the point 'nose' of 'b'"),
        (DLC + "a,1,2\nb,1\n", "line 5 has 2 cells, its header has 3: is the file truncated"),
    ],
)
def test_a_table_whose_cells_are_not_where_they_seem_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        read(tmp_path / "p.csv", text)


@pytest.mark.parametrize("name", ["image_id", "path"])
def test_numbers_beside_names_of_images_are_refused_unless_they_are_chosen(tmp_path: Path, name: str) -> None:
    """As xarray's `to_dataframe` writes what genenc stored: `image` is the row."""
    path = tmp_path / "points.csv"
    path.write_text(f"image,point,point_x,point_y,{name}\n0,nose,1,2,b.png\n1,nose,3,4,a.png\n")
    with pytest.raises(errors.InputError, match=rf"row 2 has the image '0' as 'image' and 'b.png' as '{name}'"):
        reading.read_points(path)
    assert reading.read_points(path, columns=f"image={name}").images == ("b.png", "a.png")
    assert reading.read_points(path, columns="image=image").images == ("0", "1")
    path.write_text(f"image,point,x,y,{name}\na.png,nose,1,2,17\n7,nose,3,4,7\n")
    assert reading.read_points(path).images == ("a.png", "7")


def test_coordinates_in_two_units_are_not_told_apart_by_guessing(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("image,point,x,y,x_px,y_px\na.png,nose,1.5,2.5,15,25\n")
    with pytest.raises(errors.InputError, match=r"several possible columns for 'x': 'x', 'x_px'.*--points-columns x="):
        reading.read_points(path)
    assert reading.read_points(path, columns="x=x_px,y=y_px").xy.tolist() == [[[15.0, 25.0]]]


def test_two_columns_of_one_name_in_a_parquet_file_are_refused(tmp_path: Path) -> None:
    columns = [pa.array([cell]) for cell in ("a", "n", 1.0, 2.0, 3.0)]
    parquet.write_table(pa.table(columns, names=["image", "point", "x", "x", "y"]), tmp_path / "p.parquet")
    with pytest.raises(errors.InputError, match="has 2 columns 'x'"):
        reading.read_points(tmp_path / "p.parquet")


def test_empty_cells_beyond_the_header_and_lines_in_quotes_are_fine(tmp_path: Path) -> None:
    table = read(tmp_path / "p.csv", TIDY + 'a,n,1,2,"two\nlines, and ""quotes""",,\nb,n,3,4\n')
    np.testing.assert_array_equal(table.xy, [[[1, 2]], [[3, 4]]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,point,x\na,n,1\n", "no column 'y'; its columns are: image, point, x"),
        (
            "picture,joint,x,y\na,n,1,2\n",
            "no column 'image', 'point'; its .*--points-columns image=COLUMN,point=COLUMN",
        ),
        ("image,label,bodypart,x,y\na,n,m,1,2\n", "several possible columns for 'point': 'bodypart', 'label'"),
        ("image;point;x;y\na;n;1,5;2\n", "row 2: x is '1,5', with a decimal comma"),
        ("image,point,x,y\na,n,1,2\na,n,3,4\n", "row 3 repeats the point 'n' of 'a' from row 2"),
        ("image,point,x,y\na,n,1,two\n", "row 2: y is 'two', not a finite number"),
        ("image,point,x,y\na,n,inf,2\n", "row 2: x is 'inf'"),
        ("image,point,x,y\n,n,1,2\n", "row 2 has an empty image or point"),
        ("image,point,x,y\n", "contains no points"),
        ("", "no column 'image', 'point', 'x', 'y'; its columns are: none"),
        (DLC, "contains no points"),
        (DLC + "a.png,1,2\na.png,1,2\n", "row 5 repeats the point 'nose' of 'a.png'"),
        (DLC + "a.png,1,q\n", "row 4: y is 'q'"),
        (DLC + ",1,2\n", "line 4 names no image"),
        ("scorer,me,me\nbodyparts,nose,nose\na.png,1,2\n", "line 3 begins with 'a.png'"),
        ("scorer,me,me\ncoords,x,y\na.png,1,2\n", "needs the header rows bodyparts and coords"),
        ("scorer,me,me\nbodyparts,nose,nose\ncoords,x,z\n", "column 3 has the coords 'z'"),
        ("scorer,me,me\nbodyparts,nose,tail\ncoords,x,y\n", "'nose' has no x or no y"),
        ("scorer,a,a,a,a\nbodyparts,n,n,n,n\ncoords,x,y,x,y\n", "'n' has two x columns"),
        ("scorer,a,a,b,b\nbodyparts,n,n,n,n\ncoords,x,y,x,y\n", "labels of 2 scorers, 'a', 'b'"),
        (DLC + "0,1,2\n1,3,4\n", "frame 0 of a video"),
        ("image,point,x,y\n./a/b,n,1,2\na\\b,n,3,4\n", "row 3 repeats the point 'n' .* from row 2"),
        ("image,point,x,y\n\u00fc,n,1,2\nu\u0308,n,3,4\n", "from row 2"),
        ("scorer,me\nbodyparts,nose,nose\ncoords,x,y\n", "different numbers of cells"),
    ],
)
def test_bad_points(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(errors.InputError, match=words):
        read(tmp_path / "p.csv", text)


def test_wrong_file(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="does not exist"):
        reading.read_points(tmp_path / "gone.csv")
    (tmp_path / "p.txt").write_bytes(b"x")
    with pytest.raises(errors.InputError, match=r"is not a table \(\.csv"):
        reading.read_points(tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("coco.json", "is not JSON"),
        ("labels.mat", "MATLAB"),
        ("labels.xlsx", "spreadsheet.*CSV UTF-8"),
        ("labels.pickle", "could run code"),
    ],
)
def test_other_formats_are_named_with_the_way_to_convert_them(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(errors.InputError, match=words):
        reading.read_points(tmp_path / name)


@pytest.mark.parametrize(
    ("header", "delimiter", "columns"),
    [
        ("image,point,x,y", ",", None),
        ("Image,Point,X,Y", ",", None),
        ("filename,bodypart,x,y", ",", None),
        ("file name;Body Part;x;y", ";", None),
        ("image\tpoint\tx\ty", "\t", None),
        ("img,keypoint,x_px,y_px", ",", None),
        ("frame_file,who,col,row", ",", "image=frame_file, point=who,x=col,y=row"),
        ("image,label,bodypart,x,y", ",", "point=label"),
    ],
)
def test_columns_by_usual_names_or_choice(tmp_path: Path, header: str, delimiter: str, columns: str | None) -> None:
    cells = ["a.png", "nose", "1.5", "2"] if header.count(delimiter) == 3 else ["a.png", "nose", "other", "1.5", "2"]
    path = tmp_path / "p.csv"
    path.write_bytes(("\ufeff" + header + "\r\n" + delimiter.join(cells) + "\r\n\r\n").encode())
    table = reading.read_points(path, columns=columns)
    assert (table.images, table.names, table.xy.tolist()) == (("a.png",), ("nose",), [[[1.5, 2.0]]])


@pytest.mark.parametrize("columns", ["image", "image=", "image=a,image=b", "visible=p", "=a", "image=a,,"])
def test_chosen_columns_of_another_form(tmp_path: Path, columns: str) -> None:
    (tmp_path / "p.csv").write_text("image,point,x,y\na,n,1,2\n")
    with pytest.raises(errors.InputError, match="use NAME=COLUMN"):
        reading.read_points(tmp_path / "p.csv", columns=columns)


def test_chosen_columns_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,point,x,y\na,n,1,2\n")
    with pytest.raises(errors.InputError, match="no column 'frame'; its columns are: image, point, x, y"):
        reading.read_points(tmp_path / "p.csv", columns="image=frame")


def test_numbered_names_are_refused_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name is a column of every image: a thousand of each are a million places for a thousand points."""
    monkeypatch.setattr(point_table, "LARGEST_TABLE", 999_999)
    path = tmp_path / "points.csv"
    path.write_text("image,point,x,y\n" + "".join(f"img_{i}.png,p{i},1,2\n" for i in range(1000)))
    with pytest.raises(errors.InputError, match=r"1000 images times 1000 point names.*instead of unique ones"):
        reading.read_points(path)


@pytest.mark.parametrize("cell", ["1_0", "1e999", "0x10", "9" * 400, "-inf"])
def test_cells_that_only_python_takes_for_numbers_are_refused(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(f"image,point,x,y\na.png,p,{cell},2\n")
    with pytest.raises(errors.InputError, match="not a finite number"):
        reading.read_points(path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("image,point,x,y,visible", "not used: the columns 'visible'"),
        (",image,individual,point,x,y,Likelihood", "the column 'Likelihood' is stored as.*--min-likelihood"),
        (",image,point,x,y", None),
        ("index,frame,bodypart,x,y", None),
    ],
)
def test_columns_that_are_not_used_are_named(tmp_path: Path, header: str, said: str | None) -> None:
    (tmp_path / "p.csv").write_text(f"{header}\n{','.join('7' for _ in header.split(','))}\n")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        reading.read_points(tmp_path / "p.csv")
    assert [bool(re.search(said or "", str(one.message))) for one in seen] == ([] if said is None else [True])


def test_a_likelihood_of_deeplabcut_is_said_not_to_be_used(tmp_path: Path) -> None:
    with pytest.warns(
        point_table.LabelsNotUsed,
        match="the likelihood of each label is stored",
    ):
        read(tmp_path / "p.csv", "scorer,S,S,S\nbodyparts,a,a,a\ncoords,x,y,likelihood\na.png,1,2,0.1\n")


@pytest.mark.parametrize("index", [",,img1.png", "labeled-data,,img1.png", "labeled-data,vid,"])
def test_a_dlc_line_without_its_folders_is_refused(tmp_path: Path, index: str) -> None:
    """A spreadsheet's merged cells: the name alone could be a frame of another video."""
    with pytest.raises(errors.InputError, match="line 5 names its image in 3 cells, some of which are empty"):
        read(
            tmp_path / "p.csv",
            "scorer,,,me,me\nbodyparts,,,n,n\ncoords,,,x,y\nlabeled-data,vid,img0.png,1,2\n" + index + ",3,4\n",
        )


def test_individuals_and_likelihoods_of_a_tidy_table(tmp_path: Path) -> None:
    text = "image,individual,point,x,y,score\na,m1,nose,1,2,0.9\na,m2,nose,3,4,0.2\nb,m2,nose,5,6,0.6\nb,,nose,7,8,1\n"
    (tmp_path / "p.csv").write_text(text)
    table = reading.read_points(tmp_path / "p.csv", min_likelihood=0.6)
    assert (table.names, table.individuals) == (("m1.nose", "m2.nose", "nose"), ("m1", "m2", ""))
    expected = [[[1, 2], [NAN, NAN], [NAN, NAN]], [[NAN, NAN], [5, 6], [7, 8]]]
    np.testing.assert_array_equal(table.xy, expected)
    assert sum(table.uncertain.values()) == 1
    with pytest.warns(point_table.LabelsNotUsed, match="'score'"):
        assert np.isfinite(reading.read_points(tmp_path / "p.csv").xy).sum() == 8


def test_a_likelihood_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,point,x,y,likelihood\na,n,1,2,1\nb,n,,,\nc,n,1,2,\n")
    with pytest.raises(errors.InputError, match=r"--min-likelihood 0.5 needs a likelihood.*row 4 has none"):
        reading.read_points(tmp_path / "p.csv", min_likelihood=0.5)
    with pytest.raises(errors.InputError, match="--min-likelihood 2 is not between 0 and 1"):
        reading.read_points(tmp_path / "p.csv", min_likelihood=2)


def test_boxes_by_corners_are_no_points(tmp_path: Path) -> None:
    for header in (
        "image,x_min,y_min,x_max,y_max",
        "image,min_x,min_y,max_x,max_y",
        "image,b_min_x,b_min_y,b_max_x,b_max_y",
    ):
        with pytest.raises(errors.InputError, match="has no column 'point', 'x', 'y'"):
            read(tmp_path / "p.csv", f"{header}\na.png,10,20,30,40\n")
        with pytest.warns(point_table.LabelsNotUsed, match="They name no point"):
            assert read(tmp_path / "p.csv", f"{header},n_x,n_y\na.png,10,20,30,40,5,6\n").names == ("n",)
    assert read(tmp_path / "p.csv", "image,min_x,min_y,other_max_x,other_max_y\na,1,2,3,4\n").names == (
        "min",
        "other_max",
    )


def test_a_chosen_likelihood_that_does_not_count_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,point,x,y,p\na,n,1,2,0.1\n")
    with pytest.warns(point_table.LabelsNotUsed, match="the column 'p' is stored as.*--min-likelihood"):
        assert reading.read_points(tmp_path / "p.csv", columns="likelihood=p").names == ("n",)
    table = reading.read_points(tmp_path / "p.csv", columns="likelihood=p", min_likelihood=0.5)
    assert sum(table.uncertain.values()) == 1


def test_names_that_are_no_text_are_refused_with_the_reason(tmp_path: Path) -> None:
    for name, values in (("point", [1.0, float("nan")]), ("individual", [float("nan"), 1.0])):
        table = {"image": ["a", "b"], "point": ["n", "n"], "x": [1.0, 2], "y": [3.0, 4]} | {name: values}
        parquet.write_table(pa.table(table), tmp_path / "p.parquet")
        with pytest.raises(errors.InputError, match=f"'{name}' of .* neither text nor whole .* names of a {name} are"):
            reading.read_points(tmp_path / "p.parquet")


def test_a_likelihood_that_is_none_is_refused_where_it_counts(tmp_path: Path) -> None:
    for text, said in (
        ("image,point,x,y,likelihood\na,n,1,2,0.9\nb,n,1,2,12\n", "row 3: the likelihood is 12, not .*percent by 100"),
        ("image,point,x,y,likelihood\na,n,1,2,-3\n", "row 2: the likelihood is -3, not between 0 and 1"),
        ("image,a_x,a_y,a_likelihood\ni,1,2,1.5\n", "row 2: the likelihood is 1.5"),
        ("scorer,S,S,S\nbodyparts,a,a,a\ncoords,x,y,likelihood\na.png,1,2,95\n", "row 4: the likelihood is 95"),
    ):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(errors.InputError, match=said):
            reading.read_points(tmp_path / "p.csv", min_likelihood=0.5)
        assert np.isfinite(reading.read_points(tmp_path / "p.csv").xy).all()
    (tmp_path / "p.csv").write_text("image,point,x,y,likelihood\na,n,1,2,1.0000001\nb,n,,,12\nc,n,1,2,0\n")
    assert sum(reading.read_points(tmp_path / "p.csv", min_likelihood=0.5).uncertain.values()) == 1


def test_two_points_of_one_full_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,individual,point,x,y\na,m,1.nose,1,2\na,m.1,nose,3,4\n")
    with pytest.raises(errors.InputError, match=r"row 3: .* would both be named 'm.1.nose': rename one"):
        reading.read_points(tmp_path / "p.csv")


@pytest.mark.parametrize(
    "header",
    [
        "frame,nose_x,nose_y,left ear_x,left ear_y",
        "nose.x,nose.y,frame,left ear.x,left ear.y",
        "y_nose,x_nose,frame,left ear x,left ear y",
    ],
)
def test_wide_table(tmp_path: Path, header: str) -> None:
    cells = {"x": "1.5", "y": "2", "e": "a.png"}
    columns = header.split(",")
    row = ["2.5" if name[0] == "x" else "3.5" if name[0] == "y" else cells[name[-1]] for name in columns]
    (tmp_path / "p.csv").write_text(f"{header}\n{','.join(row)}\n")
    table = reading.read_points(tmp_path / "p.csv")
    assert sorted(table.names) == ["left ear", "nose"]
    assert table.images == ("a.png",)
    nose = [2.5, 3.5] if "x_nose" in columns else [1.5, 2]
    assert dict(zip(table.names, table.xy[0].tolist(), strict=True)) == {"nose": nose, "left ear": [1.5, 2]}


def test_likelihoods_of_a_wide_table(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,a_x,a_y,a_likelihood,b_x,b_y,b_likelihood\ni,1,2,0.4,3,4,0.6\n")
    table = reading.read_points(tmp_path / "p.csv", min_likelihood=0.5)
    np.testing.assert_array_equal(table.xy, [[[NAN, NAN], [3, 4]]])


def test_a_table_of_boxes_is_not_one_of_points(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,bbox_x,bbox_y,bbox_w,bbox_h\ni,1,2,3,4\n")
    with pytest.raises(errors.InputError, match="has no column 'point', 'x', 'y'"):
        reading.read_points(tmp_path / "p.csv")


def test_several_files_are_one_table(tmp_path: Path) -> None:
    for name, x in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.csv").write_text(f"image,point,x,y,note\n{name}.png,nose,{x},9,\n")
    with pytest.warns(point_table.LabelsNotUsed, match=r"^a.csv and 1 more: not used: the columns 'note'") as seen:
        table = reading.read_points(tmp_path / "*.csv")
    assert (table.images, table.xy.tolist()) == (("a.png", "b.png"), [[[1, 9]], [[2, 9]]])
    assert len(seen) == 1
    (tmp_path / "c.csv").write_text("image,point,x,y,note\na.png,nose,1,9,\n")
    with pytest.raises(errors.InputError, match=r"c.csv: row 2 repeats .* from .*a.csv: row 2"):
        reading.read_points(tmp_path / "*.csv")
    with pytest.raises(errors.InputError, match="glob matches no file"):
        reading.read_points(tmp_path / "*.tsv")


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("image,point,x,y,confidence", "a,n,1,2,high", "the column 'confidence'"),
        ("image,point,x,y,score,confidence", "a,n,1,2,0.1,0.2", "the columns 'score', 'confidence'"),
        ("image,point,x,y,track,instance", "a,n,1,2,7,8", "the columns 'track', 'instance'"),
    ],
)
def test_further_columns_refuse_no_table(tmp_path: Path, header: str, row: str, said: str) -> None:
    with pytest.warns(point_table.LabelsNotUsed, match=said):
        table = read(tmp_path / "p.csv", f"{header}\n{row}\n")
    assert (table.names, table.individuals) == (("n",), ())


def test_a_wide_table_with_a_chosen_image_column(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("picture,nose_x,nose_y\na.png,1,2\n")
    assert reading.read_points(tmp_path / "p.csv", columns="image=picture").images == ("a.png",)


def test_a_point_of_two_pairs_of_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match=r"has x of the point 'nose' as 'nose_x' and 'x_nose'"):
        read(tmp_path / "p.csv", "image,nose_x,nose_y,x_nose,y_nose\na.png,1,2,3,4\n")


def test_names_too_long_for_a_file_are_refused() -> None:
    with pytest.raises(errors.InputError, match=r"cannot read the points file|does not exist"):
        reading.read_points("n" * 300)


def test_names_without_their_individuals(tmp_path: Path) -> None:
    table = read(tmp_path / "p.csv", "image,individual,point,x,y\na,m1,n,1,2\na,m2,e,3,4\n")
    assert table.without_individuals().names == ("n", "e")
    both = read(tmp_path / "p.csv", "image,individual,point,x,y\na,m1,n,1,2\na,m2,n,3,4\n")
    assert both.without_individuals() is both
