"""Every message that the page on troubleshooting names is one that the code says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "genenc_core" / "guides" / "TROUBLESHOOTING.md"
LEAST_LETTERS = 8
"""Letters that a part of a message must have to be told from others."""


def said(node: ast.expr) -> str:
    """Return a text of the code, with `…` for what differs; "" of what is none."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[\w.]+", "…", node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return said(node.left) + said(node.right)
    return ""


def texts() -> list[str]:
    """Return all texts of the code but docstrings."""
    paths = [path for top in ("genenc_core", "flows", "tasks") for path in sorted((ROOT / top).rglob("*.py"))]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    return [
        text for node in nodes if isinstance(node, ast.expr) and id(node) not in alone and " " in (text := said(node))
    ]


def messages() -> list[str]:
    """Return the messages of the page: the first column of its tables."""
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) == len(lines), "a row is not of the form | `message` | cause | remedy |"
    return rows


def test_every_message_is_one_of_the_code() -> None:
    known = set(texts())
    assert len(known) > 1000
    missing = []
    for message in messages():
        parts = [re.escape(part.strip()) for part in message.split("…") if part.strip(" :,;()")]
        assert sum(len(part) for part in parts) >= LEAST_LETTERS, message
        pattern = re.compile(r".*".join(parts), re.S)
        if not any(pattern.search(text) for text in known):
            missing.append(message)
    assert missing == []


def test_no_message_is_named_twice() -> None:
    found = messages()
    assert len(found) > 80
    assert sorted(set(found)) == sorted(found)
