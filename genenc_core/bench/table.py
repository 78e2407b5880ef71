"""Markdown reports: a line on the machine, then one table per measurement or one summary table for genenc."""

import functools
import statistics
from collections.abc import Callable, Sequence

from genenc_core.bench.report import Report, Row, Table

NONE = "-"
OURS = "genenc"


def report(found: Report) -> str:
    """Format a report as Markdown."""
    return "\n\n".join([_head(found), *map(table, found.tables)]) + "\n"


def brief(found: Report) -> str:
    """Format one summary table of genenc's own rows as Markdown: costs, and multiples of the baselines.

    From a table without rows named genenc, the rows with notes are taken, or else all that are not baselines; from a
    table whose baseline is genenc, all rows.
    """
    heads = ["what", "way", "CPU", "wall", "CPU / wall, as multiples of", "spread", "peak MiB"]
    rows = [_summary_row(row, given) for given in found.tables for row in _ours(given)]
    return f"{_head(found)}\n\n" + "\n".join(map(_line, [heads, ["---"] * len(heads), *rows])) + "\n"


def _head(found: Report) -> str:
    machine = found.machine
    described = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("processor", "cores"))
    return f"`{found.command}` on {machine['processor']}, {machine['cores']} cores; {described}."


def _ours(given: Table) -> list[Row]:
    measured = [row for row in given.rows if row.measured]
    if any(name.startswith(OURS) for name in given.baselines):
        return measured
    others = [row for row in measured if row.name not in given.baselines]
    noted = [row for row in measured if row.note]
    return [row for row in measured if row.name.startswith(OURS)] or noted or others


def _summary_row(row: Row, given: Table) -> list[str]:
    scale, prefix = _scale([row])
    bases = {name: _baseline(row, given.rows, name) for name in given.baselines if name != row.name}
    multiples = [f"{' / '.join(_ratios(row, base))} x {name}" for name, base in bases.items() if base is not None]
    return [
        f"{given.title}: {row.group}" if row.group else given.title,
        f"{row.name} ({row.note})" if row.note else row.name,
        _cpu_summary(row, given, scale, prefix),
        wall(row, given),
        "; ".join(multiples) or NONE,
        _spread(row),
        _peak(row),
    ]


def wall(row: Row, given: Table) -> str:
    """Format the wall time per unit of a row."""
    scale, prefix = _scale([row])
    return f"{_number(row.wall * scale)} {prefix} / {given.unit}"


def _cpu_summary(row: Row, given: Table, scale: float, prefix: str) -> str:
    if row.cpu is None:
        return NONE
    described = (given.driving or given.kind == "rates") and row.driver is not None
    own = (
        f", {_number(row.driver * 1e6)} µs of it in the driving process" if described and row.driver is not None else ""
    )
    return f"{_number(row.cpu * scale)} {prefix} / {given.unit}{own}"


def table(given: Table) -> str:
    """Format one table with its title and settings."""
    columns = _columns(given)
    grouped = any(row.group for row in given.rows)
    noted = any(row.note for row in given.rows)
    heads = [*(["what"] if grouped else []), "way", *columns, *(["note"] if noted else [])]
    lines = [heads, ["---"] * len(heads)]
    for row in given.rows:
        figures = [shown(row) if row.measured else NONE for shown in columns.values()]
        lines.append([*([row.group] if grouped else []), row.name, *figures, *([row.note] if noted else [])])
    settings = f"\n\n{given.settings}" if given.settings else ""
    return f"**{given.title}**{settings}\n\n" + "\n".join(map(_line, lines))


def _columns(given: Table) -> dict[str, Callable[[Row], str]]:
    """Return the formatter of each column, by its heading."""
    scale, prefix = _scale([row for row in given.rows if row.measured])
    unit = f"{prefix} / {given.unit}"

    driving: dict[str, Callable[[Row], str]] = {
        f"CPU µs / {given.unit}, driving process": lambda row: _cost(row.driver, 1e6),
    }
    foreign: dict[str, Callable[[Row], str]] = {
        "foreign cores": lambda row: NONE if row.foreign_cores is None else f"{row.foreign_cores:.1f}",
    }
    if given.kind == "memory":
        return {"MiB": _peak}
    if given.kind == "rates":
        return {
            f"{given.unit}s / s": lambda row: f"{1 / row.wall:,.0f}" if row.wall > 0 else NONE,
            "spread": _spread,
            **{f"share of {name}": functools.partial(_share, given, name) for name in given.baselines},
            f"CPU µs / {given.unit}": lambda row: _cost(row.cpu, 1e6),
            **driving,
            **foreign,
        }
    return {
        f"CPU {unit}": lambda row: _cost(row.cpu, scale),
        "spread": _spread,
        f"wall {unit}": lambda row: _cost(row.wall, scale),
        **{
            f"{kind} / {name}": functools.partial(_one_ratio, given, name, f"{kind.lower()}_seconds")
            for name in given.baselines
            for kind in ("CPU", "wall")
        },
        **({f"CPU {unit} beyond {given.beyond}": functools.partial(_excess, given, scale)} if given.beyond else {}),
        **(driving if given.driving else {}),
        "peak MiB": _peak,
        **foreign,
    }


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _cost(seconds: float | None, scale: float) -> str:
    return NONE if seconds is None else _number(seconds * scale)


def _one_ratio(given: Table, name: str, what: str, row: Row) -> str:
    base = _baseline(row, given.rows, name)
    return NONE if base is None else ratio(row, base, what)


def _share(given: Table, name: str, row: Row) -> str:
    """Return a row's rate relative to the baseline's, as the median over pairs of repeats."""
    base = _baseline(row, given.rows, name)
    return NONE if base is None else ratio(base, row, "wall_seconds")


def _excess(given: Table, scale: float, row: Row) -> str:
    """Return the CPU time per unit above the baseline's, as the median over pairs of repeats."""
    base = _baseline(row, given.rows, given.beyond)
    if base is None or len(row.cpu_seconds) != len(base.cpu_seconds) or not row.cpu_seconds:
        return NONE
    pairs = zip(row.cpu_seconds, base.cpu_seconds, strict=True)
    return _number(scale * statistics.median(own / row.count - other / base.count for own, other in pairs))


def _spread(row: Row) -> str:
    return f"{100 * row.spread:.0f} %"


def _peak(row: Row) -> str:
    return NONE if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"


def _baseline(row: Row, rows: Sequence[Row], name: str) -> Row | None:
    named = [other for other in rows if other.name == name and other.group in (row.group, "") and other.measured]
    return named[0] if named else None


def _ratios(row: Row, base: Row | None) -> tuple[str, str]:
    """Return CPU and wall time per unit relative to the baseline's, as medians over pairs of repeats."""
    if base is None:
        return NONE, NONE
    return ratio(row, base, "cpu_seconds"), ratio(row, base, "wall_seconds")


def ratio(row: Row, base: Row, what: str) -> str:
    """Return one cost per unit relative to the baseline's; "-" if either is unknown."""
    own, other = getattr(row, what), getattr(base, what)
    if not own or not other:
        return NONE
    if len(own) == len(other):
        found = statistics.median(a / b if b else 0.0 for a, b in zip(own, other, strict=True))
    else:
        found = statistics.median(own) / (statistics.median(other) or 1.0)
    return f"{found * base.count / row.count:.2f}"


def _scale(rows: Sequence[Row]) -> tuple[float, str]:
    """Return the factor and unit that make the table's times readable."""
    largest = max((max(row.cpu or 0.0, row.wall) for row in rows), default=0.0)
    if largest < 1e-3:
        return 1e6, "µs"
    return (1e3, "ms") if largest < 1 else (1.0, "s")


def _number(value: float) -> str:
    """Format to three significant digits without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
