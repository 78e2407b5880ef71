"""`genenc bench`: what is asked wrongly is refused at once, and figures go where they were asked to go."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from genenc_core.bench import suites, table
from genenc_core.bench.report import Options, Report, Row, Table


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Put a suite of two rows in place of all, one of which failed; return the options that it is given."""
    seen: list[Options] = []

    def run(options: Options) -> list[Table]:
        seen.append(options)
        assert options.folder.is_dir()
        good = Row(name="good", count=1, cpu_seconds=(1.0,), wall_seconds=(1.0,))
        return [Table(name="t", title="T", rows=(good, Row(name="bad", note="failed: it broke")))]

    module = ModuleType("tiny_suite")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "tiny_suite", module)
    monkeypatch.setattr(suites, "SUITES", {"tiny": "tiny_suite"})
    return seen


def test_figures_are_written_and_what_failed_is_the_exit_code(
    genenc: Callable[..., Any], tiny: list[Options], tmp_path: Path
) -> None:
    said = genenc("bench", "--suite", "tiny", "--quick", "--out", tmp_path / "found.json", "--folder", tmp_path)
    found = Report.from_json((tmp_path / "found.json").read_text())
    assert said.out == table.report(found)
    assert said.code == 1
    assert "failed: t: bad: failed: it broke" in said.err
    assert found.command == "genenc bench --suite tiny --quick"
    assert (tiny[0].repeats, tiny[0].quick, tiny[0].flows) == (3, True, None)
    assert list(tmp_path.iterdir()) == [tmp_path / "found.json"]


def test_what_was_measured_before_a_ctrl_c_is_kept(
    genenc: Callable[..., Any], tiny: list[Options], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(_options: Options) -> Iterator[Table]:
        yield Table(name="done", title="D", rows=(Row(name="good", count=1, cpu_seconds=(1.0,), wall_seconds=(1.0,)),))
        raise KeyboardInterrupt

    monkeypatch.setattr("tiny_suite.run", run)
    said = genenc("bench", "--out", tmp_path / "found.json")
    found = Report.from_json((tmp_path / "found.json").read_text())
    assert ([item.name for item in found.tables], found.stopped) == (["done"], True)
    assert said.code == 130
    assert "stopped after 1 tables" in said.err


def test_json_is_the_report(genenc: Callable[..., Any], tiny: list[Options]) -> None:
    assert Report.from_json(genenc("bench", "--json").out).tables[0].name == "t"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--suite", "nope"], "--suite 'nope' is unknown: choose all, or some of"),
        (["--suite", ""], "--suite '' is unknown"),
        (["--out", "nowhere/found.json"], "no such folder"),
        (["--folder", "nowhere"], "--folder 'nowhere' is not a folder"),
        (["--suite", "data,peers"], "--suite 'peers' is not in the package"),
        (["--repeats", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_options_are_refused_in_words(genenc: Callable[..., Any], options: list[str], words: str) -> None:
    said = genenc("bench", *options)
    assert said.code == 2
    assert words in said.err


def test_refusals_are_json_too(genenc: Callable[..., Any]) -> None:
    assert json.loads(genenc("bench", "--suite", "nope", "--json").out)["exit_code"] == 2
