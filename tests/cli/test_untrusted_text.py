"""Names of files and models that want to steer terminals, tables and JSON, and secrets, through the commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console

import pictures
from genenc_core.cli import output

GOOD = "g\x1b]0;owned\x07\x1b[31m\u202egnp<b>[red]:bomb:`|.png"
BAD = "b\r\n\x1b[2J\u2066error: none[red]\\.png"


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    folder = pictures.write_folder(tmp_path / "photos", 2)
    (folder / "img_000.png").rename(folder / GOOD)
    (folder / BAD).write_bytes(b"no image")
    return folder


def harmless(words: str) -> bool:
    return words.replace("\n", "").replace("\t", "").isprintable()


def test_a_run_over_nasty_names_prints_none_of_them_raw(
    genenc: Callable[..., Any], nasty: Path, tmp_path: Path, tiny: list[str]
) -> None:
    out = tmp_path / "run"
    made = genenc("extract", nasty, *tiny, "--out", out)
    assert made.code == 3
    listed, told = genenc("status", out), genenc("status", out, "--json")
    for said in (made, listed, told, genenc("verify", out), genenc("info", out), genenc("info", out, "--json")):
        assert harmless(said.out), said.out
        assert harmless(said.err), said.err
    assert r"b\r\n\x1b[2J\u2066error: none[red]\.png" in made.out
    assert made.out.count("\n") < 12
    (failed,) = json.loads(told.out)["unreadable_images"]
    assert failed["image_id"] == BAD
    assert harmless((out / "README.md").read_text())


@pytest.mark.parametrize("terminal", [False, True])
def test_errors_warnings_and_tables_are_text_not_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    console = rich.console.Console
    monkeypatch.setattr(
        rich.console,
        "Console",
        lambda **options: console(force_terminal=terminal, color_system=None, width=500, **options),
    )
    words = "a[red]b[/red] :bomb: [/] \\[x] \x1b[31m\nerror: forged"
    output.tell(words, label="error:", style="bold red")
    output.say_table(["name"], [[words]])
    said = capsys.readouterr()
    for shown in (said.err, said.out):
        plain = shown.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[1;31m", "").rstrip()
        assert r"a[red]b[/red] :bomb: [/] \[x] \x1b[31m\nerror: forged" in plain
        assert harmless(plain)


@pytest.mark.parametrize(
    "option",
    [
        ("--out", "s3://AKIACANARY:canarysecret@bucket/run"),
        ("--points", "https://user:canarysecret@host/points.csv"),
        ("--weights", "https://host/w.pth?X-Amz-Signature=canarysecret"),
        ("--model", "https://user:canarysecret@host/m.json"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(
    genenc: Callable[..., Any], photos: Path, tmp_path: Path, tiny: list[str], option: tuple[str, str]
) -> None:
    for json_wanted in ((), ("--json",)):
        said = genenc("extract", photos, *tiny, "--out", tmp_path / "run", *option, *json_wanted)
        assert said.code == 2
        assert "credentials" in said.err or "given more than once" in said.err
        assert "canarysecret" not in said.out + said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["status", "verify", "resume", "info"])
@pytest.mark.parametrize("secret", ["canarysecret", "canary/secret"])
def test_credentials_in_the_name_of_a_run_are_not_repeated(
    genenc: Callable[..., Any], command: str, secret: str
) -> None:
    said = genenc(command, f"s3://AKIACANARY:{secret}@bucket/run")
    assert said.code in (1, 2)
    assert "canary" not in said.out + said.err
    assert "bucket/run" in said.err


def test_code_in_a_configuration_is_not_the_users_word(
    genenc: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    config = tmp_path / "theirs.toml"
    config.write_text('model = "tiny_models:pooled"\nweights = "random:0"\nimage_size = 32\ndevice = "cpu"\n')
    arguments = ("extract", photos, "--config", config, "--out", tmp_path / "run")
    said = genenc(*arguments)
    assert (said.code, "names the code 'tiny_models:pooled'" in said.err) == (2, True)
    assert genenc(*arguments, "--trust").code == 0
    assert genenc(*arguments).code == 0
    config.write_text("trust = true\n")
    said = genenc(*arguments, "--model", "tiny_models:pooled")
    assert (said.code, "cannot set trust" in said.err) == (2, True)


@pytest.mark.slow
def test_somebody_elses_run_imports_nothing_without_trust(
    genenc: Callable[..., Any], photos: Path, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their machine remembers what they named; this one does not, whatever the folder says of trust."""
    out = tmp_path / "run"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    assert genenc("extract", photos, *tiny, "--out", out, "--shard-rows", "2", "--trust").code == 0
    record = out / "_txn" / "commits" / "s0000001.json"
    record.unlink()
    (out / "features.zarr" / "status" / "c.1").unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    from genenc_core.run import model_cache

    model_cache.CACHE.clear()
    said = genenc("resume", out)
    assert (said.code, "names the code 'tiny_models:conv'" in said.err, "--trust" in said.err) == (2, True, True)
    assert not record.exists()
    assert genenc("resume", out, "--trust").code == 0
    assert record.exists()
    assert genenc("resume", out).code == 0


@pytest.mark.parametrize(
    "arguments", [("status", "run", "é\u202e\x1b[2J"), ("é\u202e\x1b[2J",), ("status", "--é\u202e")]
)
def test_wrong_usage_is_told_in_printable_words(genenc: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    said = genenc(*arguments)
    assert said.code == 2
    assert harmless(said.err)
    assert r"\u202e" in said.err
