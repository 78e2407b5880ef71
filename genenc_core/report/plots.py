"""Plots as SVG in the page: text and lines take the page's own colour, so that they suit a light and a dark one.

No name from a run is given to matplotlib; legends are the page's.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from genenc_core import errors

KINDS: Final = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8f7be0", "#b8a900", "#7f7f7f", "#a65628"),
)
"""Told apart by colour-blind readers too (after Okabe and Ito, 2008), on white and on black."""
STAGES: Final = {
    "reading": "#0072b2",
    "decoding": "#56b4e9",
    "waiting for images": "#7f7f7f",
    "encoding": "#e69f00",
    "reducing": "#009e73",
    "storing": "#cc79a7",
}
_INK: Final = "#010203"
"""Stands for the page's colour of text until the SVG is written."""
_WIDTH: Final = 6.2


def require() -> None:
    """Check that matplotlib is there.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise errors.InputError(
            "a report needs matplotlib, which is not installed: pip install 'genenc[report]'"
        ) from error


def scatter(name: str, xy: np.ndarray, values: np.ndarray, kinds: int, axes: tuple[str, str], label: str) -> str:
    """Return points coloured by kind, or by a number where there are no kinds."""

    def draw(figure: Any) -> None:
        plot = figure.subplots()
        size = 26 if len(xy) <= 300 else 12
        if kinds:
            for kind in range(kinds):
                inside = values == kind
                plot.scatter(*xy[inside].T, s=size, c=KINDS[kind % len(KINDS)], linewidths=0, alpha=0.85)
        else:
            drawn = plot.scatter(*xy.T, s=size, c=values, cmap="viridis", linewidths=0)
            figure.colorbar(drawn, ax=plot, fraction=0.04, pad=0.02)
        plot.set_xlabel(axes[0])
        plot.set_ylabel(axes[1])

    return _svg(name, draw, label, height=4.4)


def lengths(name: str, histogram: Sequence[tuple[float, float, int]], label: str) -> str:
    """Return a histogram of the lengths of vectors."""

    def draw(figure: Any) -> None:
        plot = figure.subplots()
        left = [low for low, _, _ in histogram]
        width = [max(high - low, 1e-9 * max(abs(high), 1e-30)) for low, high, _ in histogram]
        plot.bar(left, [count for _, _, count in histogram], width=width, align="edge", color=KINDS[0])
        plot.set_xlabel("length of the vector (L2)")
        plot.set_ylabel("vectors")

    return _svg(name, draw, label, height=2.1)


def drift(name: str, distances: Sequence[float], expected: Sequence[float], drifted: Sequence[bool], label: str) -> str:
    """Return the distances of shards, and what random order gives."""

    def draw(figure: Any) -> None:
        plot = figure.subplots()
        at = np.arange(len(distances))
        colours = [KINDS[5] if far else KINDS[0] for far in drifted]
        if len(distances) <= 200:
            plot.bar(at, distances, color=colours)
        else:
            plot.scatter(at, distances, s=6, c=colours, linewidths=0)
        plot.step(at, expected, where="mid", color=_INK, linewidth=1.2, linestyle=(0, (4, 2)))
        plot.set_xlabel("shard, in order")
        plot.set_ylabel("distance of its mean")
        plot.xaxis.get_major_locator().set_params(integer=True)

    return _svg(name, draw, label, height=2.3)


def stages(name: str, shards: Sequence[str], seconds: Mapping[str, Sequence[float]], label: str) -> str:
    """Return the seconds of each stage of shards, as stacked bars."""

    def draw(figure: Any) -> None:
        plot = figure.subplots()
        at, below = np.arange(len(shards)), np.zeros(len(shards))
        for stage, values in seconds.items():
            plot.bar(at, values, bottom=below, color=STAGES[stage], width=0.85)
            below += np.asarray(values)
        plot.set_xticks(at[:: max(len(shards) // 12, 1)], shards[:: max(len(shards) // 12, 1)])
        plot.set_xlabel("shard")
        plot.set_ylabel("seconds")

    return _svg(name, draw, label, height=2.6)


def timeline(
    name: str,
    began: Sequence[float],
    shards: Sequence[float],
    sessions: Sequence[tuple[float, float]],
    label: str,
) -> str:
    """Return when shards were begun, over the sessions that encoded them; times in seconds since the first."""

    def draw(figure: Any) -> None:
        plot = figure.subplots()
        for start, stop in sessions:
            plot.axvspan(start, max(stop, start + 1e-3), color=KINDS[4], alpha=0.22, linewidth=0)
        plot.scatter(began, shards, s=18 if len(began) <= 200 else 5, c=KINDS[0], linewidths=0)
        plot.set_xlabel("seconds since the first session began")
        plot.set_ylabel("shard begun")
        plot.yaxis.get_major_locator().set_params(integer=True)

    return _svg(name, draw, label, height=2.3)


def _svg(name: str, draw: Callable[[Any], None], label: str, *, height: float) -> str:
    """Return the SVG element of a figure; `name`, of letters, is a prefix of all ids in it."""
    require()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), name, label)


def _inline(document: str, name: str, label: str) -> str:
    """Return a matplotlib document as an element of the page: without prolog and addresses, ids of its own."""
    element = document[document.index("<svg") :].strip()
    element = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", element, flags=re.S)
    element = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", element)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'((?:xlink:)?href)="#', rf'href="#{name}-', element)
    element = element.replace("url(#", f"url(#{name}-").replace(_INK, "currentColor")
    element = re.sub(r"font-family:[^;\"]*; ", "", element)
    head, _, rest = element.partition(">")
    head = re.sub(r'\s(?:width|height|version)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{label}">{rest}'
