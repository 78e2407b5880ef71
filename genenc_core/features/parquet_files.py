"""Exports as Parquet: a table of images and one for each product of points, vectors as fixed-size lists.

DuckDB, polars, pandas, Lance and Hugging Face `datasets` read them. The Hub's folder has a card beside its tables.
"""

import json
from pathlib import Path

from pyarrow import parquet

from genenc_core.encoding import cancellation
from genenc_core.features import croissant, ro_crate
from genenc_core.features.tables import IMAGES, Features, Table
from genenc_core.system import files

METADATA = "metadata.json"
README = "README.md"
_FILE_BYTES = 2**29
"""Of values, in one file of a Hub folder."""


def write(features: Features, folder: Path, memory: int) -> None:
    """Write each table as one file of a new folder."""
    files.make_folder(folder)
    for table in features.tables():
        _write_table(features, table, folder / f"{table.name}.parquet", memory, range(len(features.entries(table))))
    _write_text(folder / README, card(features, {table.name: f"{table.name}.parquet" for table in features.tables()}))
    _write_text(folder / METADATA, metadata(features))
    files.write_new(folder / croissant.FILE, croissant.document(features, folder, features.license))


def write_hub(features: Features, folder: Path, memory: int) -> None:
    """Write a folder for the Hugging Face Hub: tables in files of about half a GiB below `data`, and a card."""
    files.make_folder(folder)
    files.make_folder(folder / "data")
    patterns = {}
    for table in features.tables():
        rows = max(_FILE_BYTES // max(sum(array.row_bytes for array in table.arrays), 1), 1)
        count = len(features.entries(table))
        starts = range(0, max(count, 1), rows)
        for number, start in enumerate(starts):
            name = f"{table.name}-{number:05d}-of-{len(starts):05d}.parquet"
            part = range(start, min(start + rows, count))
            _write_table(features, table, folder / "data" / name, memory, part)
        patterns[table.name] = f"data/{table.name}-*.parquet"
    _write_text(folder / README, header(patterns, features.license) + card(features, patterns))
    _write_text(folder / METADATA, metadata(features))


def metadata(features: Features) -> str:
    """Return what the features are, as a JSON document."""
    return json.dumps(features.metadata(), indent=2, ensure_ascii=False) + "\n"


def _write_table(features: Features, table: Table, path: Path, memory: int, rows: range) -> None:
    count, entries = features.block_rows(table, memory), features.entries(table)
    schema = features.schema(table)
    few = ["point", "individual", "region_category", "region_individual", "region_kind"]
    with parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=few) as writer:
        for start in range(rows.start, rows.stop, count):
            cancellation.current().raise_if_cancelled()
            block = features.batch(table, entries[start : min(start + count, rows.stop)])
            writer.write_batch(block.cast(schema))


def _write_text(path: Path, content: str) -> None:
    files.write_new(path, content.encode(errors="backslashreplace"))


def header(patterns: dict[str, str], license: str | None = None) -> str:
    """Return the YAML that the Hub reads: which files are which configuration, and the licence."""
    lines = ["---", *_license_lines(license), "tags:", "- embeddings", "- feature-extraction", "configs:"]
    for name, pattern in patterns.items():
        lines += [f"- config_name: {json.dumps(name)}", f"  data_files: {json.dumps(pattern)}"]
        lines += ["  default: true"] if name == IMAGES else []
    return "\n".join([*lines, "---", "", ""])


def _license_lines(license: str | None) -> list[str]:
    """Return a licence as the Hub names it: in lower case, and others by their name or address."""
    if license is None:
        return []
    url = ro_crate.license_url(license)
    if url is not None and url.startswith(ro_crate.SPDX):
        return [f"license: {json.dumps(url.removeprefix(ro_crate.SPDX).lower())}"]
    return ["license: other", f"license_{'name' if url is None else 'link'}: {json.dumps(license)}"]


def card(features: Features, patterns: dict[str, str]) -> str:
    """Return a page that says what the features are, and how to load them."""
    stored = features.stored
    identity = stored.identity
    lines = [f"# Image features of {_plain(str(identity.get('model')))}", ""]
    lines += [
        f"{len(features.rows)} images; vectors of another model, weights or preprocessing do not mix with these.",
        "",
        "| | |",
        "|---|---|",
        f"| model | `{_plain(str(identity.get('model')))}` |",
        f"| weights, sha256 | `{identity.get('weights')}` |",
        f"| preprocessing | {stored.model_run.preprocessing.describe()} |",
    ]
    without = {**features.kept, **{f"{name} (left out)": count for name, count in features.left_out.items()}}
    lines += [f"| rows without features: {name} | {count} |" for name, count in without.items()]
    lines += ["", "| column | table | shape of a row | type | |", "|---|---|---|---|---|"]
    products = {str(each).partition("=")[0]: str(each) for each in identity.get("products", ())}
    for table in features.tables():
        for array in table.arrays:
            if array.name in products:
                shape = array.shape[1:] if table.points else array.shape
                shown = " x ".join(map(str, shape))
                lines.append(f"| `{array.name}` | {table.name} | {shown} | {array.dtype} | `{products[array.name]}` |")
    lines += [
        "",
        "Rows have the same `row` and `image_id` in every table. `status`: 1 the row has features, 2 the image could "
        "not be read, 0 it is not encoded yet; without features the values are NaN. A column with several axes is a "
        "list of all its values in C order. `metadata.json` says how they were made.",
        "",
        "```python",
        "import glob, numpy, pyarrow.dataset",
        "",
        f'table = pyarrow.dataset.dataset(sorted(glob.glob("{patterns[IMAGES]}"))).to_table()',
    ]
    name = next((each.name for each in features.products if each.name in _columns(features)), "status")
    lines += [
        f'values = numpy.stack(table["{name}"].to_numpy(zero_copy_only=False))',
        "```",
        "",
    ]
    return "\n".join(lines)


def _columns(features: Features) -> list[str]:
    return [array.name for array in features.tables()[0].arrays]


def _plain(words: str) -> str:
    return "".join(char for char in words if char.isprintable() and char not in "|`<>")
