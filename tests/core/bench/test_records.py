"""Reports: as JSON and back, and as Markdown whose ratios are of the same repeats."""

import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from genenc_core import errors
from genenc_core.bench import measure, model, suites, table
from genenc_core.bench.report import Options, Report, Row, Table

BASE = Row(name="floor", count=10, cpu_seconds=(1.0, 2.0, 4.0), wall_seconds=(1.0, 1.0, 1.0), foreign_cores=0.25)
TWICE = Row(
    name="whole | thing", count=5, cpu_seconds=(1.0, 2.0, 4.0), wall_seconds=(1.5, 1.5, 1.5), peak_bytes=3 * 2**20
)
ABSENT = Row(name="other", note="not installed")


def report(*rows: Row, **more: object) -> Report:
    given = {"name": "t", "title": "Title", "rows": rows, "baselines": ("floor",), **more}
    machine = {"processor": "P", "cores": "2", "torch": "2"}
    return Report(machine=machine, command="genenc bench", seconds=1.5, tables=(Table(**given),))  # type: ignore[arg-type]


def test_a_report_survives_json() -> None:
    found = report(BASE, TWICE, ABSENT)
    assert Report.from_json(found.to_json()) == found


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {}, "command": 3, "seconds": "x", "tables": [1]}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(errors.InputError, match="not a report"):
        Report.from_json(text)


def test_the_table_shows_medians_ratios_and_what_was_not_measured() -> None:
    lines = table.report(report(BASE, TWICE, ABSENT)).splitlines()
    assert lines[0] == "`genenc bench` on P, 2 cores; torch 2."
    assert [line for line in lines if line.startswith("|")] == [
        "| way | CPU ms / image | spread | wall ms / image | CPU / floor | wall / floor | peak MiB | foreign cores "
        "| note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| floor | 200 | 75 % | 100 | 1.00 | 1.00 | - | 0.2 |  |",
        "| whole / thing | 400 | 75 % | 300 | 2.00 | 3.00 | 3 | - |  |",
        "| other | - | - | - | - | - | - | - | not installed |",
    ]


def test_what_a_baseline_takes_is_taken_off_and_the_driving_process_is_shown() -> None:
    """In each repeat, and the median of that; one without figures of its driving process has none."""
    row = Row(
        name="r", count=5, cpu_seconds=(1.0, 2.0, 6.0), wall_seconds=(1.0,) * 3, driver_seconds=(1e-3, 3e-3, 2e-3)
    )
    lines = table.report(report(BASE, row, beyond="floor", driving=True)).splitlines()
    heads, shown = lines[-4], lines[-1]
    assert "| CPU ms / image beyond floor | CPU µs / image, driving process |" in heads
    assert "| 200 | 400 |" in shown
    assert "| 0.00 | - |" in lines[-2]
    brief = table.brief(report(BASE, row, driving=True))
    assert "| 400 ms / image, 400 µs of it in the driving process |" in brief


def test_rates_are_shown_per_second_and_as_shares() -> None:
    bound = Row(name="bound", count=1, wall_seconds=(0.0005, 0.0005))
    row = Row(
        name="r", count=1000, cpu_seconds=(0.1, 0.1), wall_seconds=(1.0, 1.0), driver_seconds=(0.01, 0.01), note="n"
    )
    backwards = Row(name="noise", count=1000, cpu_seconds=(0.1,), wall_seconds=(-1.0,))
    lines = table.report(report(bound, row, backwards, baselines=("bound",), kind="rates")).splitlines()
    assert lines[-5:] == [
        "| way | images / s | spread | share of bound | CPU µs / image | CPU µs / image, driving process "
        "| foreign cores | note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| bound | 2,000 | 0 % | 1.00 | - | - | - |  |",
        "| r | 1,000 | 0 % | 0.50 | 100 | 10.0 | - | n |",
        "| noise | - | 0 % | -0.50 | 100 | - | - |  |",
    ]


def test_memory_is_shown_without_times() -> None:
    row = Row(name="r", count=1, cpu_seconds=(1.0,), wall_seconds=(1.0,), peak_bytes=3 * 2**20, note="n")
    lines = table.report(report(row, baselines=(), kind="memory")).splitlines()
    assert (lines[-3], lines[-1]) == ("| way | MiB | note |", "| r | 3 | n |")


def test_in_brief_it_is_the_rows_of_genenc_and_their_multiples() -> None:
    ours = Row(name="genenc", count=10, cpu_seconds=(1.0, 3.0, 4.0), wall_seconds=(2.0, 2.0, 2.0), group="g", note="n")
    both = table.brief(report(BASE, TWICE, ABSENT, ours, baselines=("floor", "whole | thing"))).splitlines()
    assert both[0] == "`genenc bench` on P, 2 cores; torch 2."
    assert both[-1] == (
        "| Title: g | genenc (n) | 300 ms / image | 200 ms / image | 1.00 / 2.00 x floor; 0.50 / 0.67 x whole / thing "
        "| 50 % | - |"
    )
    assert len(both) == 5
    # Without rows of that name: those with notes, else all but the baselines; never what was not measured.
    without = table.brief(report(BASE, TWICE, ABSENT)).splitlines()
    assert [line.split(" | ")[1] for line in without[4:]] == ["whole / thing"]
    others = table.brief(report(BASE, TWICE, ABSENT, ours, baselines=("genenc",))).splitlines()
    assert [line.split(" | ")[1] for line in others[4:]] == ["floor", "whole / thing", "genenc (n)"]
    noted = Row(name="b", count=1, cpu_seconds=(1.0,), wall_seconds=(1.0,), note="chosen")
    assert [line.split(" | ")[1] for line in table.brief(report(BASE, TWICE, noted)).splitlines()[4:]] == ["b (chosen)"]


def test_a_ratio_is_of_each_repeat_to_the_same_repeat() -> None:
    """A machine that is four times slower in one repeat is so for both ways."""
    slow = Row(name="a", count=1, cpu_seconds=(2.0, 8.0, 2.2), wall_seconds=(1.0,))
    base = Row(name="b", count=1, cpu_seconds=(1.0, 4.0, 4.0), wall_seconds=(1.0,))
    assert table.ratio(slow, base, "cpu_seconds") == "2.00"


def test_cpu_seconds_that_are_not_known_are_not_shown() -> None:
    more, less = (Row(name="genenc", count=count, wall_seconds=(count, 2 * count, 6 * count)) for count in (15.0, 5.0))
    row = measure.difference(more, less)
    assert (row.measured, row.cpu, row.wall) == (True, None, 2.0)
    lines = table.report(report(BASE, row, baselines=("floor",))).splitlines()
    assert lines[-1] == "| genenc | - | 125 % | 2.00 | - | 20.00 | - | - |"
    assert table.brief(report(BASE, row)).splitlines()[-1] == (
        "| Title | genenc | - | 2.00 s / image | - / 20.00 x floor | 125 % | - |"
    )


def test_a_group_has_its_own_baseline() -> None:
    rows = [Row(name=name, group=group, count=1, cpu_seconds=(cpu,), wall_seconds=(cpu,)) for group, name, cpu in
            (("one", "floor", 1.0), ("one", "whole", 2.0), ("two", "floor", 4.0), ("two", "whole", 4.0))]  # fmt: skip
    lines = table.report(report(*rows)).splitlines()
    assert [line.split(" | ")[5] for line in lines if line.startswith(("| one", "| two"))] == ["1.00", "2.00"] + [
        "1.00"
    ] * 2


@pytest.mark.parametrize(("seconds", "prefix"), [(2e-6, "µs"), (0.5, "ms"), (20.0, "s")])
def test_times_are_in_a_unit_that_is_read_easily(seconds: float, prefix: str) -> None:
    row = Row(name="a", count=1, cpu_seconds=(seconds,), wall_seconds=(seconds,))
    assert f"CPU {prefix} / image" in table.report(report(row))


def test_a_slope_leaves_the_fixed_part_out() -> None:
    less = Row(name="8", count=8, cpu_seconds=(1.8, 1.9), wall_seconds=(2.8, 2.8))
    more = Row(name="40", count=40, cpu_seconds=(5.0, 5.1), wall_seconds=(6.0, 6.0))
    slope = measure.difference(more, less)
    assert (slope.count, slope.cpu, slope.wall) == (32, pytest.approx(0.1), pytest.approx(0.1))
    assert not measure.difference(more, ABSENT).measured


def test_suites_are_chosen_by_name() -> None:
    assert suites.chosen("all") == [*suites.SUITES]
    assert suites.chosen("model, data") == ["model", "data"]
    with pytest.raises(errors.InputError, match="'modle' is unknown: choose all, or some of data"):
        suites.chosen("modle")


def test_only_what_should_have_been_measured_counts_as_failed() -> None:
    broken = Row(name="genenc", note="failed: OSError: no space")
    assert suites.failures(report(BASE, ABSENT, broken)) == ["t: genenc: failed: OSError: no space"]


def test_failing_suite_keeps_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_options: Options) -> Iterator[Table]:
        yield Table(name="first", title="", rows=(BASE,))
        raise errors.ExportError("no such batch")

    modules = {"bad": breaks, "good": lambda _options: [Table(name="second", title="", rows=(BASE,))]}
    monkeypatch.setattr(suites, "SUITES", {name: name for name in modules})
    monkeypatch.setattr(suites.importlib, "import_module", lambda name: types.SimpleNamespace(run=modules[name]))
    found = suites.measure(["bad", "good"], Options(folder=tmp_path), command="genenc bench")
    assert [each.name for each in found.tables] == ["first", "bad", "second"]
    assert suites.failures(found) == ["bad: bad: failed: no such batch"]


def test_unexportable_format_costs_only_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def artifact(_options: Options, _model: str, form: str) -> str:
        if form == "aotinductor":
            raise measure.WayError("no compiler")
        return form

    monkeypatch.setattr(model, "artifact", artifact)
    monkeypatch.setattr(model, "compare", lambda _ways, _options: [BASE])
    monkeypatch.setattr(model, "_batches", lambda _options, _model: Table(name="batch", title="", rows=()))
    encoders, _batch = model.run(Options(folder=tmp_path, quick=True, compiled=True))
    notes = [row.note for row in encoders.rows]
    assert notes == ["", "", "failed: no compiler"] * 2
