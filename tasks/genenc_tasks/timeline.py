"""A picture of when the stages of shards worked."""

from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from genenc_core import text
from genenc_core.encoding import stages
from genenc_core.report import broken
from genenc_core.run import records
from genenc_core.system import progress_rate

COLORS: Final = {
    stages.LOAD: (230, 159, 0),
    stages.ENCODE: (86, 180, 233),
    stages.REDUCE: (0, 158, 115),
    stages.STORE: (204, 121, 167),
}
"""Told apart by colour-blind readers too (Okabe and Ito, 2008)."""
MOST_SHARDS: Final = 32
WIDTH, LEFT, RIGHT, TOP, BOTTOM, BAR = 900, 70, 20, 30, 30, 5


def markdown(reports: Sequence[records.ShardReport]) -> str:
    """Return a picture of when the stages of the last shards worked, as Markdown; empty if none did."""
    done = sorted((each for each in reports if each.spans), key=lambda each: min(each.spans.values()))[-MOST_SHARDS:]
    if not done:
        return ""
    begin = min(span[0] for each in done for span in each.spans.values())
    end = max(span[1] for each in done for span in each.spans.values())
    height = len(done) * (len(COLORS) * BAR + 6)
    picture = Image.new("RGB", (WIDTH, TOP + height + BOTTOM), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    scale = (WIDTH - LEFT - RIGHT) / max(end - begin, 1e-3)
    _legend(draw, font)
    for at, each in enumerate(done):
        top = TOP + at * (len(COLORS) * BAR + 6)
        draw.text((6, top + 3), f"{each.shard:05d}", fill="black", font=font)
        for lane, (stage, color) in enumerate(COLORS.items()):
            if stage in each.spans:
                left, right = (LEFT + (moment - begin) * scale for moment in each.spans[stage])
                draw.rectangle((left, top + lane * BAR, max(right, left + 1), top + (lane + 1) * BAR - 1), fill=color)
    _axis(draw, font, TOP + height, end - begin)
    words = f"{text.plural(len(done), 'shard')} by stage, over {progress_rate.duration(end - begin)}"
    return f"![{words}]({broken.url(picture)})"


def _legend(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    draw.text((6, 6), "shard", fill="black", font=font)
    for at, (stage, color) in enumerate(COLORS.items()):
        left = LEFT + at * 90
        draw.rectangle((left, 8, left + 12, 18), fill=color)
        draw.text((left + 18, 6), stage, fill="black", font=font)


def _axis(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, top: int, seconds: float
) -> None:
    draw.line((LEFT, top, WIDTH - RIGHT, top), fill="black")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = LEFT + share * (WIDTH - LEFT - RIGHT)
        draw.line((at, top, at, top + 4), fill="black")
        draw.text((at, top + 6), f"{share * seconds:.3g} s", fill="black", font=font, anchor="ma")
