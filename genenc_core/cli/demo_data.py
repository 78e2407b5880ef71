"""Synthetic labelled images, drawn from a seed: animals on textured ground, named points and one broken file."""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZES = ((640, 480), (500, 375), (480, 640), (800, 600))
POINTS = ("snout", "left_ear", "right_ear", "tail_base")
BROKEN = "scene_012.jpg"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Animal:
    """The pose of an animal: centre and half length in pixels, heading in radians."""

    x: float
    y: float
    length: float
    heading: float

    def at(self, along: float, across: float) -> tuple[float, float]:
        """Convert body coordinates, in half lengths, to (x, y) in pixels."""
        cosine, sine = math.cos(self.heading), math.sin(self.heading)
        x = self.x + self.length * (along * cosine - across * sine)
        return x, self.y + self.length * (along * sine + across * cosine)

    def points(self) -> dict[str, tuple[float, float]]:
        """Return the named points in pixels."""
        places = ((1.45, 0.0), (0.95, -0.38), (0.95, 0.38), (-1.0, 0.0))
        return {name: self.at(*place) for name, place in zip(POINTS, places, strict=True)}


def draw_dataset(folder: Path, *, count: int = 48, seed: int = 0) -> Path:
    """Draw `count` scenes (at least 13) under `folder`/images, one truncated; return the path of the points CSV."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    rows: list[tuple[str, str, float, float]] = []
    for index in range(count):
        size = SIZES[index % len(SIZES)]
        name = f"scene_{index:03d}.{'png' if index % 6 == 5 else 'jpg'}"
        animal = _place(generator, size)
        _save(_scene(generator, size, animal), images / name)
        for point, (x, y) in animal.points().items():
            # Leave some points unlabelled, as in real data.
            if generator.random() > 0.05:
                rows.append((name, point, round(x, 2), round(y, 2)))
    broken = images / BROKEN
    broken.write_bytes(broken.read_bytes()[:2000])
    points = folder / "points.csv"
    with points.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "point", "x", "y"))
        writer.writerows(rows)
    return points


def _place(generator: np.random.Generator, size: tuple[int, int]) -> Animal:
    shorter = min(size)
    return Animal(
        x=float(generator.uniform(0.3, 0.7)) * size[0],
        y=float(generator.uniform(0.3, 0.7)) * size[1],
        length=float(generator.uniform(0.10, 0.16)) * shorter,
        heading=float(generator.uniform(0.0, 2.0 * math.pi)),
    )


def _save(image: Image.Image, path: Path) -> None:
    if path.suffix == ".jpg":
        image.save(path, quality=90)
    else:
        image.save(path)


def _scene(generator: np.random.Generator, size: tuple[int, int], animal: Animal) -> Image.Image:
    """Return ground, shadow, animal and sensor noise as one RGB image."""
    ground = _ground(generator, size)
    shadow = Image.new("L", size, 0)
    _body(ImageDraw.Draw(shadow), dataclasses.replace(animal, x=animal.x + 6, y=animal.y + 8), (150,) * 3)
    shadow = shadow.filter(ImageFilter.GaussianBlur(7))
    ground.paste(Image.new("RGB", size, (25, 22, 20)), mask=shadow)
    _body(ImageDraw.Draw(ground), animal, ((92, 84, 78), (120, 108, 100), (196, 140, 138)))
    lit = np.asarray(ground.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.float32)
    noisy = lit + generator.normal(0.0, 3.0, size=lit.shape).astype(np.float32)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _ground(generator: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return texture at several scales under uneven light."""
    width, height = size
    total = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((4, 26.0), (16, 14.0), (64, 8.0)):
        coarse = Image.fromarray(generator.normal(0.0, 1.0, size=(cells, cells)).astype(np.float32))
        total += weight * np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    light = np.linspace(20.0, -20.0, width, dtype=np.float32)[None, :]
    colour = np.array([168.0, 158.0, 140.0], dtype=np.float32) + generator.normal(0.0, 10.0, size=3).astype(np.float32)
    return Image.fromarray(np.clip((total + light)[..., None] + colour, 0, 255).astype(np.uint8))


def _body(draw: ImageDraw.ImageDraw, animal: Animal, colours: tuple[object, object, object]) -> None:
    """Draw tail, trunk, head, ears and snout."""
    fur, head, skin = colours
    tail = [animal.at(-1.0 - 0.25 * step, 0.25 * math.sin(step * 0.9)) for step in range(6)]
    draw.line(tail, fill=skin, width=max(2, int(animal.length * 0.10)), joint="curve")  # type: ignore[arg-type]
    for along, radius in ((-0.55, 0.55), (0.0, 0.60), (0.5, 0.48)):
        _disc(draw, animal, (along, 0.0), radius, fur)
    _disc(draw, animal, (0.95, 0.0), 0.36, head)
    _disc(draw, animal, (1.25, 0.0), 0.20, head)
    for side in (-0.38, 0.38):
        _disc(draw, animal, (0.95, side), 0.17, skin)
    _disc(draw, animal, (1.45, 0.0), 0.07, skin)


def _disc(draw: ImageDraw.ImageDraw, animal: Animal, place: tuple[float, float], radius: float, colour: object) -> None:
    x, y = animal.at(*place)
    reach = radius * animal.length
    draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)  # type: ignore[arg-type]
