"""Writes the reference of the public API from its docstrings: `python tests/support/api_page.py`."""

import inspect
from pathlib import Path

from genenc_core import api
from genenc_core.run import options, parameters

PAGE = Path(api.__file__).parent / "API.md"


def page() -> str:
    """Return the page as Markdown."""
    lines = ["# genenc from Python", "", "```python", "from genenc_core import api", "```", ""]
    lines += [*(inspect.getdoc(api) or "").splitlines(), ""]
    for name in api.__all__:
        found = getattr(api, name)
        lines += [f"## `{name}{_signature(found)}`", "", *_body(found), ""]
        if inspect.isclass(found) and found.__module__ == api.__name__:
            members = [(each, value) for each, value in vars(found).items() if not each.startswith("_")]
            for each, value in members:
                work = getattr(value, "__func__", getattr(value, "fget", value))
                signature = "" if isinstance(value, property) else _signature(work)
                lines += [f"### `{name}.{each}{signature}`", "", *_body(work), ""]
    lines += [
        "## Options of `Run.create`, `extract` and `encode`",
        "",
        "| option | type | default |  |",
        "|---|---|---|---|",
    ]
    for name, field in parameters.ExtractParameters.model_fields.items():
        kind = inspect.formatannotation(field.annotation).replace("|", "or")
        unless = "required" if field.is_required() else options.usually(field) or ""
        lines.append(f"| `{name}` | {kind} | {unless} | {options.shown(field).help} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


def _signature(found: object) -> str:
    if isinstance(found, type) or not callable(found):
        return ""
    return str(inspect.signature(found)).replace('"', "").replace("'", "")


def _body(found: object) -> list[str]:
    """Convert a docstring to Markdown, with sections as lists and examples as code."""
    lines: list[str] = []
    in_code = False
    section = ""
    for line in (inspect.getdoc(found) or "").splitlines():
        text = line.strip()
        if text in ("Args:", "Returns:", "Raises:", "Example:"):
            section = text
            lines += [f"**{text[:-1]}**", ""] if text != "Example:" else ["```python"]
            in_code = text == "Example:"
        elif in_code:
            lines.append(line[4:])
        elif section in ("Args:", "Raises:") and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = text.partition(":")
            lines.append(f"- `{name}`:{rest}" if colon else text)
        else:
            lines.append(text)
    return [*lines, "```"] if in_code else lines


if __name__ == "__main__":
    PAGE.write_text(page())
