"""The HTML of a report: one file without scripts, which asks no other for anything."""

import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from PIL import Image

from genenc_core import text
from genenc_core.report import broken

MARK: Final = '<meta name="generator" content="genenc report">'
"""By which a file is known as a report, which a new one may replace."""
QUALITY: Final = 82
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6475; --ground: #ffffff; --card: #f5f6f9;
  --line: #d9dde5; --link: #0b5cad; --good: #1b7f4b; --bad: #b3401d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a3acbd; --ground: #14171d; --card: #1e232c;
  --line: #343b48; --link: #7db8f5; --good: #5ccb93; --bad: #ff9d76; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 6px; }
h3 { font-size: 15px; margin: 18px 0 6px; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); padding: 22px 0 18px; }
p { margin: 4px 0 10px; max-width: 78ch; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); font-size: 13px; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 4px 14px; padding: 10px 0 16px; font-size: 14px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin: 16px 0 8px; }
.fact { background: var(--card); border-radius: 8px; padding: 10px 12px; }
.fact b { display: block; font-size: 21px; line-height: 1.25; overflow-wrap: anywhere; }
.fact span { color: var(--soft); font-size: 13px; }
.good b { color: var(--good); } .bad b { color: var(--bad); }
ul.found { padding-left: 20px; margin: 6px 0 10px; } .bad-line::marker { color: var(--bad); }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: 14px; min-width: 100%; }
caption { text-align: left; padding-bottom: 4px; caption-side: top; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: break-word; max-width: 60ch; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border-radius: 8px; padding: 10px 12px; overflow-x: auto; margin: 8px 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 10px; margin: 10px 0; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 6px 0 16px;
  max-width: 980px; }
.strip > figure { max-width: 240px; }
.strips { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 0 20px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 6px; background: var(--card); }
figcaption { overflow-wrap: anywhere; line-height: 1.35; padding-top: 3px; }
.absent { border: 1px dashed var(--line); border-radius: 6px; padding: 10px; font-size: 13px; color: var(--soft);
  overflow-wrap: anywhere; }
.plot { overflow-x: auto; margin: 8px 0; } .plot svg { display: block; width: 100%; min-width: 340px; max-width: 640px;
  height: auto; font-family: system-ui, sans-serif; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--soft); margin: 4px 0; }
.legend span { overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 6px;
  border: 1px solid var(--line); }
.ramp { display: flex; align-items: center; gap: 8px; font-size: 13px; color: var(--soft); margin: 2px 0 8px; }
.ramp i { width: 130px; height: 10px; border-radius: 5px; background: linear-gradient(90deg, #440154, #3e4989, #26828e,
  #35b779, #b5de2b, #fde725); }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--link); }
footer { color: var(--soft); font-size: 13px; padding: 18px 0 40px; border-top: 1px solid var(--line); }
@media (max-width: 480px) { main, header { padding-left: 14px; padding-right: 14px; } h1 { font-size: 22px; }
  .pictures { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); gap: 8px; }
  .strip { grid-template-columns: repeat(auto-fit, minmax(105px, 1fr)); gap: 8px; }
  figcaption { font-size: 12px; }
  .facts { grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); } .fact b { font-size: 18px; } }
@media print { nav { display: none; } section { break-inside: avoid; } }
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page."""

    key: str
    """Letters, by which it is linked to."""
    title: str
    body: str
    """HTML."""


def e(value: object) -> str:
    """Return text as HTML that shows it literally, on one line."""
    return html.escape(text.printable(text.redacted(str(value))), quote=True)


def document(title: str, subtitle: str, facts: str, sections: Sequence[Section], footer: str) -> str:
    """Return the whole page; `title` is text, the others are HTML."""
    links = "".join(f'<a href="#{each.key}">{e(each.title)}</a>' for each in sections)
    body = "\n".join(
        f'<section id="{each.key}">\n<h2>{e(each.title)}</h2>\n{each.body}\n</section>' for each in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
{MARK}
<title>{e(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{e(title)}</h1>
<p class="soft">{subtitle}</p>
{facts}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
<footer>{footer}</footer>
</main>
</body>
</html>
"""


def fact(value: object, words: str, state: str = "") -> str:
    """Return a figure with what it counts; `state` is `good`, `bad` or none."""
    return f'<div class="fact {state}"><b>{e(value)}</b><span>{e(words)}</span></div>'


def soft(words: str) -> str:
    """Return a remark."""
    return f'<p class="soft">{e(words)}</p>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    caption: str = "",
    raw: int = -1,
) -> str:
    """Return a table that scrolls where it is wider than the page.

    Args:
        head: names of the columns; () for none.
        rows: cells as text.
        numbers: columns that hold numbers.
        caption: what it is.
        raw: a column whose cells are HTML.
    """
    shown = f"<caption>{e(caption)}</caption>" if caption else ""
    kind = [' class="number"' if at in numbers else "" for at in range(64)]
    if any(head):
        cells = "".join(f'<th scope="col"{kind[at]}>{e(name)}</th>' for at, name in enumerate(head))
        shown += f"<thead><tr>{cells}</tr></thead>"
    lines = [
        "".join(f"<td{kind[at]}>{cell if at == raw else e(cell)}</td>" for at, cell in enumerate(row)) for row in rows
    ]
    body = "".join(f"<tr>{each}</tr>" for each in lines)
    return f'<div class="scroll" tabindex="0"><table>{shown}<tbody>{body}</tbody></table></div>'


def pairs(items: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values."""
    lines = (f'<tr><th scope="row">{e(name)}</th><td>{e(value)}</td></tr>' for name, value in items)
    return f'<div class="scroll" tabindex="0"><table><tbody>{"".join(lines)}</tbody></table></div>'


def picture(pixels: np.ndarray | Image.Image, alt: str, caption: str = "", note: str = "") -> str:
    """Return a picture as JPEG, with a caption."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    url = broken.url(image.convert("RGB"), "JPEG", quality=QUALITY)
    return _figure(url, image.width, image.height, alt, caption, note)


def linked(url: str, alt: str, caption: str = "", note: str = "") -> str:
    """Return a picture that is a data URL, with a caption."""
    return _figure(url, broken.PIXELS, broken.PIXELS, alt, caption, note)


def absent(words: str, caption: str = "") -> str:
    """Return what stands where a picture cannot be shown."""
    below = f"<figcaption>{e(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="absent">{e(words)}</div>{below}</figure>'


def _figure(url: str, width: int, height: int, alt: str, caption: str, note: str) -> str:
    below = "<br>".join(e(each) for each in (caption, note) if each)
    shown = f"<figcaption>{below}</figcaption>" if below else ""
    return f'<figure><img src="{e(url)}" alt="{e(alt)}" width="{width}" height="{height}">{shown}</figure>'


def pictures(figures: Iterable[str], kind: str = "pictures") -> str:
    """Return figures side by side; `kind` is `pictures`, `strip`, or `strips` of those."""
    return f'<div class="{kind}">{"".join(figures)}</div>'


def plot(svg: str) -> str:
    """Return a plot that scrolls on a narrow page."""
    return f'<div class="plot" tabindex="0">{svg}</div>'


def legend(items: Iterable[tuple[str, str]]) -> str:
    """Return colours with their names; colours are CSS."""
    shown = "".join(f'<span><i style="background: {colour}"></i>{e(name)}</span>' for colour, name in items)
    return f'<div class="legend">{shown}</div>'


def ramp(low: str, high: str) -> str:
    """Return the scale of colours from a low to a high value."""
    return f'<div class="ramp"><span>{e(low)}</span><i></i><span>{e(high)}</span></div>'


def more(summary: str, body: str) -> str:
    """Return HTML that is shown when asked for."""
    return f"<details><summary>{e(summary)}</summary>{body}</details>"


def findings(lines: Sequence[str], none: str) -> str:
    """Return what was found as a list, or one line if there is nothing."""
    if not lines:
        return f"<p>{e(none)}</p>"
    return f'<ul class="found">{"".join(f"<li class=bad-line>{e(line)}</li>" for line in lines)}</ul>'
