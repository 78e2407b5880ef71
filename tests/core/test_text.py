"""Text of unknown origin, for a terminal, Markdown and JSON; credentials of addresses hidden."""

import json
import math
import shlex
import time
from pathlib import Path

import numpy as np
import pytest

from genenc_core import errors, text
from genenc_core.run import records
from genenc_core.store.backends import local

NASTY = "a\x1b[31m\r\nb\x07\u202e\u2066\x7f\ud800\u2028<img src=x onerror=alert(1)>`[x](javascript:y)|*_#![red]:bomb:"


def test_printable_escapes_control_characters() -> None:
    shown = text.printable(NASTY)
    assert shown.isprintable()
    assert shown.startswith(r"a\x1b[31m\r\nb\x07\u202e\u2066\x7f\ud800\u2028<img")
    assert text.printable("Grüße, 世界 \N{PILE OF POO}") == "Grüße, 世界 \N{PILE OF POO}"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<img src=x onerror=alert(1)>.jpg", "&lt;img src=x onerror=alert\\(1\\)&gt;.jpg"),
        ("a|b`c`.jpg", "a\\|b\\`c\\`.jpg"),
        ("a\x1b[31m\n.jpg", "a\\\\x1b\\[31m\\\\n.jpg"),
        ("[x](javascript:y)", "\\[x\\]\\(javascript:y\\)"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("abc\u202egpj.exe", "abc\\\\u202egpj.exe"),
    ],
)
def test_markdown_is_escaped(name: str, shown: str) -> None:
    assert text.markdown(name) == shown


def test_code_block_cannot_be_closed_by_its_text() -> None:
    block = text.code_block("x\n```\n<script>\n````\n\x1b[2J", "json")
    first, *inner, last = block.split("\n")
    assert (first, last) == ("`````json", "`````")
    assert all(not line.startswith(last) for line in inner)
    assert "\x1b" not in block


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://AKIA:SECRET@bucket/x", "s3://***@bucket/x"),
        ("s3://AKIA:SEC/RE+T@bucket/x", "s3://***@bucket/x"),
        ("s3:/AKIA:SECRET@bucket/x", "s3:/***@bucket/x"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("https://u:p%40ss@h/x and http://t0ken@h", "https://***@h/x and http://***@h"),
        (
            "https://h/x.csv?X-Amz-Credential=AKIA&X-Amz-Signature=abcd&x=1",
            "https://h/x.csv?X-Amz-Credential=***&X-Amz-Signature=***&x=1",
        ),
        ("https://h/?sig=abc%3D&se=2026&hf_token=t&api_key=k", "https://h/?sig=***&se=***&hf_token=***&api_key=***"),
        ("https://h/?AWSAccessKeyId=A&Signature=b", "https://h/?AWSAccessKeyId=***&Signature=***"),
        ("v=spatial_point(bilinear)@float16", "v=spatial_point(bilinear)@float16"),
        ("https://host/path?size=3#part", "https://host/path?size=3#part"),
        ("me@host: a=b", "me@host: a=b"),
    ],
)
def test_credentials_in_urls_are_redacted(given: str, shown: str) -> None:
    assert text.redacted(given) == shown
    assert str(errors.InputError(f"cannot read {given!r}")) == f"cannot read {shown!r}"
    assert text.holds_credentials(given) == (given != shown)


def test_json_document_is_valid_and_printable() -> None:
    value = {
        "name": NASTY,
        "path": Path("/a"),
        "bad": [math.nan, math.inf, np.float32("nan"), np.int64(3)],
        "set": frozenset((1,)),
        3: (1.5, None, True),
    }
    document = text.json_document(value)
    assert document.replace("\n", "").isprintable()
    found = json.loads(document, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["name"] == NASTY
    assert found["bad"] == [None, None, None, 3]
    assert (found["path"], found["set"], found["3"]) == ("/a", [1], [1.5, None, True])


def test_long_text_is_shortened_in_the_middle() -> None:
    assert text.shortened("a" * 50 + "b" * 50, 11) == "aaaa...bbbb"
    assert len(text.title("x\n" * 500)) <= 200


@pytest.mark.parametrize(
    "piece", ["a.", "token", "xx://a:", "x:/", "?sig=", "?token", "&api_key.secret", "http://a.b@c:/"]
)
def test_redaction_of_long_text_is_fast(piece: str) -> None:
    begin = time.process_time()
    text.redacted("?" + piece * 40_000 + ":/ = @")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("written", "number"),
    [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1), ("9" * 19, None), ("9" * 5000, None), ("²", None), ("٣", None)]
    + [(word, None) for word in ("", "-1", "+1", " 1", "1_0", "1.0")],
)
def test_whole_number_accepts_plain_digits_only(written: str, number: int | None) -> None:
    assert text.whole_number(written) == number


@pytest.mark.parametrize("path", ["runs/a", "my runs/a", "it's", "s3://bucket/a b", "$HOME;ls"])
def test_argument_is_quoted_for_the_shell(path: str) -> None:
    assert shlex.split(f"genenc resume {text.argument(path)}") == ["genenc", "resume", path]


def test_lone_surrogates_are_escaped(tmp_path: Path) -> None:
    """In errors, and in a run's records, which stay readable."""
    assert text.encodable("a\udc80\u00e9") == "a\\udc80\u00e9"
    assert str(errors.InputError("name a\udc80")) == "name a\\udc80"
    objects = local.LocalObjects(tmp_path)
    records.write_json(objects, "r.json", {"reason": "a\udc80", "more": [{"\udcff": "b\udc81"}]})
    assert records.read_json(objects, "r.json")["reason"] == "a\\udc80"
    records.write_text(objects, "README.md", "a\udc80")
