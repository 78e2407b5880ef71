"""Reports as Markdown: a sentence on the machine, then one table per measurement, or one of all that is genenc's."""

import statistics
from collections.abc import Sequence

from genenc_core.bench.records import Report, Row, Table

NONE = "-"
OURS = "genenc"


def report(found: Report) -> str:
    """Return a report as Markdown."""
    return "\n\n".join([_head(found), *map(table, found.tables)]) + "\n"


def brief(found: Report) -> str:
    """Return, as Markdown, one table of what a report says of genenc itself: costs, and multiples of the baselines'.

    Of a table without rows of genenc's name all count that are no baseline and, where some have notes, have one; of one
    whose baseline is genenc all do.
    """
    heads = ["what", "way", "CPU", "wall", "CPU / wall, as multiples of", "spread", "peak MiB"]
    rows = [_shortly(row, given) for given in found.tables for row in _ours(given)]
    return f"{_head(found)}\n\n" + "\n".join(map(_line, [heads, ["---"] * len(heads), *rows])) + "\n"


def _head(found: Report) -> str:
    machine = found.machine
    told = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("processor", "cores"))
    return f"`{found.command}` on {machine['processor']}, {machine['cores']} cores; {told}."


def _ours(given: Table) -> list[Row]:
    measured = [row for row in given.rows if row.measured]
    if any(name.startswith(OURS) for name in given.baselines):
        return measured
    others = [row for row in measured if row.name not in given.baselines]
    noted = [row for row in measured if row.note]
    return [row for row in measured if row.name.startswith(OURS)] or noted or others


def _shortly(row: Row, given: Table) -> list[str]:
    scale, prefix = _scale([row])
    bases = {name: _baseline(row, given.rows, name) for name in given.baselines if name != row.name}
    multiples = [f"{' / '.join(_ratios(row, base))} x {name}" for name, base in bases.items() if base is not None]
    return [
        f"{given.title}: {row.group}" if row.group else given.title,
        f"{row.name} ({row.note})" if row.note else row.name,
        NONE if row.cpu is None else f"{_number(row.cpu * scale)} {prefix} / {given.unit}",
        f"{_number(row.wall * scale)} {prefix} / {given.unit}",
        "; ".join(multiples) or NONE,
        _spread(row),
        _peak(row),
    ]


def table(given: Table) -> str:
    """Return one table with its title and settings."""
    measured = [row for row in given.rows if row.measured]
    scale, prefix = _scale(measured)
    grouped = any(row.group for row in given.rows)
    noted = any(row.note for row in given.rows)
    heads = [
        *(["what"] if grouped else []),
        "way",
        f"CPU {prefix} / {given.unit}",
        "spread",
        f"wall {prefix} / {given.unit}",
        *(f"{kind} / {name}" for name in given.baselines for kind in ("CPU", "wall")),
        "peak MiB",
        "foreign cores",
        *(["note"] if noted else []),
    ]
    lines = [heads, ["---"] * len(heads)]
    for row in given.rows:
        figures = _figures(row, given, scale) if row.measured else [NONE] * (5 + 2 * len(given.baselines))
        lines.append([*([row.group] if grouped else []), row.name, *figures, *([row.note] if noted else [])])
    settings = f"\n\n{given.settings}" if given.settings else ""
    return f"**{given.title}**{settings}\n\n" + "\n".join(map(_line, lines))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _figures(row: Row, given: Table, scale: float) -> list[str]:
    ratios = [text for name in given.baselines for text in _ratios(row, _baseline(row, given.rows, name))]
    return [
        NONE if row.cpu is None else _number(row.cpu * scale),
        _spread(row),
        _number(row.wall * scale),
        *ratios,
        _peak(row),
        NONE if row.foreign_cores is None else f"{row.foreign_cores:.1f}",
    ]


def _spread(row: Row) -> str:
    return f"{100 * row.spread:.0f} %"


def _peak(row: Row) -> str:
    return NONE if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"


def _baseline(row: Row, rows: Sequence[Row], name: str) -> Row | None:
    named = [other for other in rows if other.name == name and other.group in (row.group, "") and other.measured]
    return named[0] if named else None


def _ratios(row: Row, base: Row | None) -> tuple[str, str]:
    """Return CPU and wall per unit as ratios to the baseline's: of each repeat to the same repeat's, the median."""
    if base is None:
        return NONE, NONE
    return ratio(row, base, "cpu_seconds"), ratio(row, base, "wall_seconds")


def ratio(row: Row, base: Row, what: str) -> str:
    """Return one cost per unit as a ratio to the baseline's; "-" where one of them is not known."""
    own, other = getattr(row, what), getattr(base, what)
    if not own or not other:
        return NONE
    if len(own) == len(other):
        found = statistics.median(a / b if b else 0.0 for a, b in zip(own, other, strict=True))
    else:
        found = statistics.median(own) / (statistics.median(other) or 1.0)
    return f"{found * base.count / row.count:.2f}"


def _scale(rows: Sequence[Row]) -> tuple[float, str]:
    """Return the factor and the unit in which the table's times are readable."""
    largest = max((max(row.cpu or 0.0, row.wall) for row in rows), default=0.0)
    if largest < 1e-3:
        return 1e6, "µs"
    return (1e3, "ms") if largest < 1 else (1.0, "s")


def _number(value: float) -> str:
    """Return three significant digits without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
