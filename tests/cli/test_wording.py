"""The words of messages: those of the field, none of a private language."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [path for root in ("genenc_core", "flows", "tasks") for path in sorted((ROOT / root).rglob("*.py"))]
AVOIDED = re.compile(
    r"\b(anew|mend|sooner|somebody|nobody|absurd|told|laid|whereof|thereof)\b"
    r"|be had\b|at your word|for ever\b|give the command again|of its own kind|in a process of its own|cannot be[:;.]"
)


def messages(path: Path) -> list[str]:
    """Return the texts of a module that are no docstrings, comments or names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
    return [node.value for node in texts if isinstance(node.value, str) and " " in node.value]


def test_messages_are_in_the_words_of_the_field() -> None:
    assert len(SOURCES) > 200
    found = {str(path.relative_to(ROOT)): [text for text in messages(path) if AVOIDED.search(text)] for path in SOURCES}
    assert {name: texts for name, texts in found.items() if texts} == {}
