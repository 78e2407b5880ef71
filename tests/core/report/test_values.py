"""The audit finds what was put into vectors, and nothing in vectors that are as they should be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genenc_core import api, errors
from genenc_core.report import values
from reported import Values


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read vectors of 24 float32 values five at a time."""
    monkeypatch.setattr(values, "BLOCK_BYTES", 5 * 4 * 24 * 4)


def vectors(count: int = 64, dimensions: int = 24, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, (count, dimensions)).astype(np.float32)


def audited(of: Values, **options: Any) -> values.Audit:
    found = values.audit(of, of.product, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def rows_of(found: values.Found) -> list[int]:
    return [where.row for where in found.first]


def test_nothing_is_found_in_sound_values() -> None:
    made = audited(Values(vectors()))
    assert made.findings == []
    assert (made.vectors, made.dimensions, made.exact) == (64, 24, True)
    lengths = np.linalg.norm(vectors().astype(np.float64), axis=1)
    np.testing.assert_allclose(made.norms, np.quantile(lengths, (0, 0.05, 0.5, 0.95, 1)), rtol=1e-9)
    assert sum(count for _, _, count in made.histogram) == 64


def test_each_finding() -> None:
    given = vectors()
    given[:, 3] = 0
    given[:, 5] = 7
    given[10, 8] = np.nan
    given[11, 9] = -np.inf
    given[20], given[41] = given[2], given[2]
    given[30] = 2.5
    given[50] *= 1000
    given[30, 3] = 2.5
    made = audited(Values(given))
    assert rows_of(made.not_finite) == [10, 11]
    assert rows_of(made.constant) == [30]
    assert (made.repeated.groups, made.repeated.count) == (1, 3)
    assert [[where.row for where in group] for group in made.repeated.first] == [[2, 20, 41]]
    assert rows_of(made.outlying)[0] == 50
    assert made.dead == ()  # row 30 has another value there
    given[30] = vectors()[30]
    given[:, 3], given[:, 5] = 0, 7
    again = audited(Values(given))
    assert again.dead == (3,)
    assert again.fixed == (5,)
    assert again.constant.count == 0
    assert len(again.findings) == 5


def test_one_wild_value_is_found_however_large() -> None:
    """A mean and a variance would be ruined by it; it would hide."""
    for wild in (60.0, 1e6, 3e38):
        given = vectors()
        given[33, 4] = wild
        assert rows_of(audited(Values(given)).outlying) == [33]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_repeated_vectors_are_equal_to_the_last_bit(dtype: str) -> None:
    given = vectors().astype(dtype)
    given[9] = given[1]
    assert audited(Values(given)).repeated.count == 2
    given[9, 0] = np.nextafter(given[9, 0], np.array(9, dtype))
    assert audited(Values(given)).repeated.count == 0


def test_a_shard_that_drifts_is_named_and_random_order_is_not_drift() -> None:
    given = vectors(160)
    made = audited(Values(given, shard_rows=16))
    assert made.drifted == ()
    for each in made.drift:
        assert 0.3 * each.expected < each.distance < 2 * each.expected
    given[48:64] += 3
    assert [each.shard for each in audited(Values(given, shard_rows=16)).drifted] == ["3"]


def test_vectors_of_points_count_where_there_is_a_point() -> None:
    """Points of one image may share a cell; NaN where there is no point is no finding."""
    given = vectors(40 * 3).reshape(40, 3, 24)
    states = np.ones((40, 3), np.uint8)
    states[7, 1] = 4
    given[7, 1] = np.nan
    given[9, 0] = given[9, 2]
    made = audited(Values(given, states=states))
    assert made.vectors == 119
    assert made.findings == []
    given[12, 1] = given[9, 0]
    (group,) = audited(Values(given, states=states)).repeated.first
    assert [(where.row, where.point) for where in group] == [(9, "point 0"), (9, "point 2"), (12, "point 1")]


def test_above_the_budget_a_seeded_sample_is_read() -> None:
    of = Values(vectors(200))
    one, same, other = (audited(of, budget=50 * of.product.row_bytes, seed=seed) for seed in (1, 1, 2))
    assert not one.exact
    assert one.vectors == 50
    assert one == same
    assert one != other


def test_of_a_run(mapped: api.Run) -> None:
    found = {each.product: each for each in api.audit(mapped.place)}
    assert list(found) == ["features", "probes"]
    assert (found["features"].vectors, found["probes"].vectors) == (9, 18)
    assert found["features"].not_finite.count == found["features"].repeated.count == 0
    with pytest.raises(errors.InputError, match=r"product 'maps' has no vectors to audit .*known: features, probes"):
        api.audit(mapped.place, product="maps")


def test_the_same_image_twice_is_a_repeated_vector(photos: Path, extract: Any) -> None:
    (photos / "night" / "again.png").write_bytes((photos / "day" / "img_002.png").read_bytes())
    (audit,) = api.audit(extract(batch_size=1).place)
    assert [[where.row for where in group] for group in audit.repeated.first] == [[2, 5]]
