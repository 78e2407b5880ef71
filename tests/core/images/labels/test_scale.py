"""What `--points-scale` accepts, and what it makes of coordinates."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genenc_core import errors
from genenc_core.images.labels import reading
from genenc_core.images.labels.scale import PointsScale


@pytest.mark.parametrize(
    ("text", "written", "result"),
    [
        (None, None, (30, 12)),
        ("1", None, (30, 12)),
        (" 2.0 ", "2", (60, 24)),
        ("0.5", "1/2", (15, 6)),
        ("1/3", "1/3", (10, 4)),
        ("2,1.5", "2,3/2", (60, 18)),
        ("2,2", "2", (60, 24)),
        ("Normalised", "normalized", (30, 12)),
        ("percent", "percent", (0.3, 0.12)),
    ],
)
def test_scales(text: str | None, written: str | None, result: tuple[float, float]) -> None:
    scale = PointsScale.parse(text)
    assert scale.text == written
    assert PointsScale.parse(written) == scale
    np.testing.assert_array_equal(scale.apply(np.array([[30.0, 12.0]])), [result])


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "nan", "inf", "1e9", "1/0", "2,", "2,2,2", "2x2", "1e999999999", "0.0000001", "half", "½"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(errors.InputError, match=r"--points-scale .* factor .* normalized .* percent"):
        PointsScale.parse(text)


def test_a_deeplabcut_table_is_scaled_too(tmp_path: Path) -> None:
    path = tmp_path / "CollectedData_me.csv"
    path.write_text("scorer,me,me\nbodyparts,ear,ear\ncoords,x,y\na.png,3,4\nb.png,,\n")
    table = reading.read_points(path, scale="2,3")
    np.testing.assert_array_equal(table.xy, [[[6, 12]], [[np.nan, np.nan]]])
    assert table.scale.text == "2,3"


@pytest.mark.slow
@given(*(st.fractions(Fraction(1, 20), 20, max_denominator=50) for _ in "xy"))
def test_any_factors_bring_points_back(x: Fraction, y: Fraction) -> None:
    scale = PointsScale.parse(f"{x},{y}")
    assert (scale.x, scale.y) == (x, y)
    xy = np.random.default_rng(1).uniform(0, 4000, (50, 2))
    np.testing.assert_allclose(scale.apply(xy / np.array((float(x), float(y)))), xy, rtol=1e-12)
