"""Draws regions on what a model sees, by `genenc inspect`, of scenes and animals as `genenc demo` draws them.

Run: python tests/guides/region_picture.py genenc_core/images/regions.png
"""

import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from genenc_core import api
from genenc_core.cli import demo_data

SHOWN = 6
AROUND = ("snout", "right_ear", "tail_base", "left_ear")


def regions(points: Path, images: Path) -> dict[str, Any]:
    """Return COCO regions of animals from their points: a box around all, and the polygon of trunk and head."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with points.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not (images / row["image"]).exists():
                continue
            found.setdefault(row["image"], {})[row["point"]] = float(row["x"]), float(row["y"])
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, places) in enumerate(sorted(found.items())):
        with Image.open(images / name) as opened:
            width, height = opened.size
        listed.append({"id": number, "file_name": name, "width": width, "height": height})
        xs, ys = zip(*places.values(), strict=True)
        left, top = min(xs) - 25, min(ys) - 25
        box = [left, top, max(xs) + 25 - left, max(ys) + 25 - top]
        annotations.append({"id": 2 * number, "image_id": number, "category_id": 1, "bbox": box})
        if {*AROUND} <= places.keys():
            corners = [coordinate for point in AROUND for coordinate in places[point]]
            mask = {"id": 2 * number + 1, "image_id": number, "category_id": 2, "segmentation": [corners]}
            annotations.append(mask)
    categories = [{"id": 1, "name": "animal (box)"}, {"id": 2, "name": "trunk (mask)"}]
    return {"images": listed, "annotations": annotations, "categories": categories}


def main() -> None:
    """Draw the picture to the path given."""
    with tempfile.TemporaryDirectory() as folder:
        points = demo_data.draw_dataset(Path(folder), count=13)
        images = Path(folder) / "images"
        for path in sorted(images.iterdir())[SHOWN:]:
            path.unlink()
        document = regions(points, images)
        (Path(folder) / "coco.json").write_text(json.dumps(document))
        found = api.inspect(str(images), regions=[str(Path(folder) / "coco.json")])
        assert found.contact_sheet is not None
        found.contact_sheet.save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
