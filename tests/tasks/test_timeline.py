"""The picture of stages: where its bars lie."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from genenc_core.run import records
from genenc_tasks import timeline


def report(shard: int, **spans: tuple[float, float]) -> records.ShardReport:
    return records.ShardReport(shard=shard, start=0, stop=1, unreadable=0, spans=spans)


def drawn(markdown: str) -> np.ndarray:
    (data,) = re.findall(r"\(data:image/png;base64,(.*)\)", markdown)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def extent(picture: np.ndarray, color: tuple[int, int, int]) -> tuple[float, float]:
    """Return where a colour begins and ends below the legend, as shares of the time axis."""
    columns = np.flatnonzero((picture[timeline.TOP :] == color).all(2).any(0))
    width = timeline.WIDTH - timeline.LEFT - timeline.RIGHT
    return (columns[0] - timeline.LEFT) / width, (columns[-1] - timeline.LEFT) / width


def test_bars_lie_where_the_stages_worked() -> None:
    picture = drawn(
        timeline.markdown(
            [report(7, load=(100.0, 104.0), encode=(102.0, 108.0), reduce=(103.0, 108.0), store=(109.0, 110.0))]
        )
    )
    for stage, expected in {"load": (0, 0.4), "encode": (0.2, 0.8), "reduce": (0.3, 0.8), "store": (0.9, 1)}.items():
        assert extent(picture, timeline.COLORS[stage]) == pytest.approx(expected, abs=0.005)


def test_nothing_is_drawn_of_shards_that_were_done_before() -> None:
    assert timeline.markdown([report(0)]) == ""


def test_of_many_shards_the_last_are_drawn() -> None:
    many = [report(shard, load=(float(shard), shard + 1.0)) for shard in range(100)]
    said = timeline.markdown(many)
    assert said.startswith(f"![{timeline.MOST_SHARDS} shards by stage, over {timeline.MOST_SHARDS} s]")
    assert len(drawn(said)) < 1000
