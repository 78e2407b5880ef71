"""Croissant metadata of a Parquet export: its files, tables and columns, for tools that load data sets by it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from genenc_core import text
from genenc_core.features import history, ro_crate
from genenc_core.features.tables import IMAGES, ROW, Features, Table
from genenc_core.system import files

FILE: Final = "croissant.json"
VERSION: Final = "http://mlcommons.org/croissant/1.1"
_WORDS: Final = {
    ROW: "row of the run or version; the same in every table",
    "image_id": "name of the image",
    "path": "path of the image below its source's root",
    "point": "name of the point",
    "individual": "animal or person that the point is of",
}
_OWN_TERMS: Final = (
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileProperty"),
    *("fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5"),
    *("parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator"),
    *("source", "subField", "transform"),
)
_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _OWN_TERMS},
}
"""The terms of Croissant 1.1."""


def document(features: Features, folder: Path, license: str | None) -> bytes:
    """Return the metadata of a folder with one Parquet file for each table."""
    stored = features.stored
    model = stored.identity.get("model")
    about = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": VERSION,
        "name": f"Image features of {model}",
        "description": f"{text.plural(len(features.rows), 'image')}, encoded by {model} (weights, sha256: "
        f"{stored.identity.get('weights')}); images: {stored.model_run.preprocessing.describe()}. Vectors of another "
        "model, weights or preprocessing do not mix with these. metadata.json has the rest.",
        "datePublished": str(stored.made().get("version_time") or history.last_of(stored.model_run) or ""),
        "version": f"{stored.version or 1}.0.0",
        "license": (ro_crate.license_url(license) or license) if license else "",
        "distribution": [_file(table, folder) for table in features.tables()],
        "recordSet": [_records(features, table) for table in features.tables()],
    }
    known = {name: value for name, value in about.items() if value}
    return (json.dumps(known, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _file(table: Table, folder: Path) -> Mapping[str, Any]:
    name = f"{table.name}.parquet"
    size, sha256 = files.digest(folder / name)
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": sha256,
    }


def _records(features: Features, table: Table) -> Mapping[str, Any]:
    each = "image" if table.name == IMAGES else "image and point"
    key = [ROW] if table.name == IMAGES else [ROW, "point"]
    keys = [{"@id": f"{table.name}/{name}"} for name in key if name in features.schema(table).names]
    return {
        "@type": "cr:RecordSet",
        "@id": table.name,
        "name": table.name,
        "description": f"A record for each {each}; without features, values are NaN and `status` says why.",
        "key": keys[0] if len(keys) == 1 else keys,
        "field": list(_fields(features, table)),
    }


def _fields(features: Features, table: Table) -> Iterator[Mapping[str, Any]]:
    arrays = {array.name: array for array in table.arrays}
    for column in features.schema(table):
        known = {} if column.name not in arrays else arrays[column.name].attributes
        words = known.get("description") or known.get("long_name") or _WORDS.get(column.name, column.name)
        is_list = pa.types.is_fixed_size_list(column.type)
        shape = [] if not is_list else list(arrays[column.name].shape)[1 if table.points else 0 :]
        inside = f"; all values of {' x '.join(map(str, shape))}, in C order" if len(shape) > 1 else ""
        field = {
            "@type": "cr:Field",
            "@id": f"{table.name}/{column.name}",
            "name": column.name,
            "description": f"{words}{inside}",
            "dataType": _type(column.type.value_type if is_list else column.type),
            "source": {"fileObject": {"@id": f"{table.name}.parquet"}, "extract": {"column": column.name}},
        }
        yield field | ({"isArray": True, "arrayShape": str(column.type.list_size)} if is_list else {})


_NAMES: Final = {"halffloat": "Float16", "float": "Float32", "double": "Float64"}


def _type(of: pa.DataType) -> str:
    if pa.types.is_string(of) or pa.types.is_large_string(of):
        return "sc:Text"
    name = _NAMES.get(str(of)) or ("UInt" if pa.types.is_unsigned_integer(of) else "Int") + str(of.bit_width)
    return f"cr:{name}"
