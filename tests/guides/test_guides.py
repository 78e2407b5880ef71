"""The guides: their commands run as written, on images drawn here; their options, files and links exist."""

import ast
import importlib.util
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image

import command_line
import pictures
from genenc_core import api
from genenc_core.cli import app

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TOPS = ("genenc_core", "flows", "tasks", "deployments", "tests")
GUIDES = [README, *sorted(path for top in TOPS for path in (ROOT / top).rglob("*.md"))]
TESTED_APART = ("genenc_core/API.md", "genenc_core/export/README.md", "genenc_core/factory/README.md")
"""Guides whose blocks have tests of their own: `test_api.py`, `test_export_guide.py`, `factory/test_guide.py`."""
SMALL = (("--weights", "random:0"), ("--image-size", "64"))
"""What the test adds to commands with a model by name that leave it out: no download, less work."""
IMAGES = 6
TIPS = (("tip", 12.5), ("base", 61))
"""Points of the first four images, and their x in pixels."""
LONGEST_README = 200
FIRST_SCREEN = 40
GROUP: Any = typer.main.get_command(app.build_app())
COMMANDS: dict[str, Any] = {name: GROUP.get_command(None, name) for name in GROUP.list_commands(None)}
OPTIONS = {name for command in COMMANDS.values() for each in command.params for name in each.opts + each.secondary_opts}
OPTIONS |= {"--help", "--version"}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, and the comment right before it."""

    language: str
    text: str
    mark: str

    @property
    def commands(self) -> list[str]:
        """Its lines, those that go on joined, without comments."""
        joined = self.text.replace("\\\n", " ")
        lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
        return [line for line in lines if line]


def blocks(guide: Path) -> list[Block]:
    """Return the blocks of a guide in order."""
    text = guide.read_text(encoding="utf-8")
    found = re.findall(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)
    return [Block(language=language, text=body, mark=mark) for mark, language, body in found]


def named(paths: list[Path]) -> list[Any]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def is_run(block: Block) -> bool:
    return not block.mark.startswith(("not run: ", "ci: "))


def parts(command: str) -> Iterator[list[str]]:
    """Yield the arguments of every call of genenc in a line of shell."""
    if command.split()[0] == "prefect":
        return
    for call in re.findall(r"(?<![\w$(-])genenc ([a-z-][^&|;]*)", command):
        yield shlex.split(call)


WITH_COMMANDS = [guide for guide in GUIDES if any(block.language in ("sh", "python") for block in blocks(guide))]
RUN_HERE = [guide for guide in WITH_COMMANDS if str(guide.relative_to(ROOT)) not in TESTED_APART]


@pytest.mark.slow
@pytest.mark.parametrize("guide", named([guide for guide in RUN_HERE if any(map(is_run, blocks(guide)))]))
def test_blocks_run_as_written(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pictures.write_folder(tmp_path / "photos", IMAGES)
    pictures.write_channels(tmp_path / "bands", IMAGES, channels=6)
    pictures.write_channels(tmp_path / "plate", IMAGES, channels=5, ome=True)
    points = (f"img_{index:03d}.png,{name},{x},{20 + index}\n" for index in range(4) for name, x in TIPS)
    (tmp_path / "points.csv").write_text("image,point,x,y\n" + "".join(points))
    (tmp_path / "boxes.csv").write_text("image,x,y,width,height\nimg_000.png,4,6,40,30\nimg_002.png,10,2,50,40\n")
    if "napari" in map(needed, blocks(guide)) and importlib.util.find_spec("napari"):
        # Its window needs OpenGL; what is put into it does not.
        monkeypatch.setattr("napari.Viewer", importlib.import_module("napari.components").ViewerModel)
    before, found, missing = set(sys.modules), {}, []
    try:
        for block in filter(is_run, blocks(guide)):
            if needed(block) and importlib.util.find_spec(needed(block)) is None:
                missing.append(needed(block))
            else:
                run(block, found)
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
    CHECKS.get(str(guide.relative_to(ROOT)), lambda _found: None)(found)
    if missing:
        pytest.skip(f"all ran but the blocks that need {', '.join(missing)}")


def needed(block: Block) -> str:
    """Return the library that a block needs beyond those of the tests; "" if none."""
    kind, _, library = block.mark.partition(": ")
    return library if kind == "needs" else ""


def run(block: Block, found: dict[str, Any]) -> None:
    """Write the file that a block is marked as, or run it in the working directory."""
    kind, _, rest = block.mark.partition(": ")
    text = block.text
    if kind == "file":
        Path(rest).write_text(text)
        return
    if kind == "run with":
        text = text.replace(*rest.split(" as "))
    if block.language == "python":
        exec(text, found)
    if block.language == "sh":
        for command in Block(language="sh", text=text, mark="").commands:
            assert command.startswith("genenc "), command
            arguments = shlex.split(command)[1:]
            if arguments[0] in ("extract", "export", "inspect", "update") and "resnet18" in arguments:
                arguments += [word for option in SMALL if option[0] not in arguments for word in option]
            done = command_line.call(arguments)
            assert done.exit_code == 0, (command, done.stdout, done.stderr)


def check_readme(found: dict[str, Any]) -> None:
    assert found["done"].status().ok == IMAGES
    assert found["done"].arrays().features.shape == (IMAGES, 512)
    assert found["vectors"].shape == (1, 512)
    assert dict(found["good"].sizes) == {"image": IMAGES, "features_channel": 512}
    assert set(found["run"].features.coords) >= {"image_id", "path", "image_height", "image_width"}
    assert list(found["run"].image_id.values[:2]) == ["img_000.png", "img_001.png"]


def check_points(found: dict[str, Any]) -> None:
    """The picture can be drawn of the run, and shows each labelled point and its cell in a colour of its own."""
    assert int(found["ok"].sum()) == 8
    script = runpy.run_path(str(Path(__file__).with_name("picture.py")))
    drawn: Image.Image = script["draw"](Path("run-points"))
    colours = {colour for _, colour in drawn.getcolors(2**20) or ()}
    assert colours >= set(script["COLOURS"][: len(TIPS)])
    with Image.open(ROOT / "genenc_core" / "images" / "points.png") as shown:
        assert shown.size == drawn.size


def check_first_run(_found: dict[str, Any]) -> None:
    for name in ("look/contact_sheet.png", "run/features.zarr/zarr.json", "pictures/pca.png"):
        assert Path(name).is_file()
    assert importlib.util.find_spec("matplotlib") is None or "img_001.png" in Path("report.html").read_text()


def check_reading(found: dict[str, Any]) -> None:
    """All ways lead to the same values, and what is drawn over the image lies where the point is."""
    assert found["matrix"].shape == (IMAGES, 512)
    assert dict(found["alike"].sizes) == {"image": IMAGES, "y": 2, "x": 2, "point": 2}
    np.testing.assert_array_equal(found["run"].features.values, found["matrix"])
    assert found["tips"].notnull().all("channel").values.tolist() == [True] * 4 + [False] * 2
    if "maps" in found:
        np.testing.assert_array_equal(found["maps"][2].read().result(), found["arrays"].maps.values[2])
    if "mean" in found:
        expected = found["matrix"].mean(axis=0)
        np.testing.assert_allclose(found["chunked"].features.mean("image").values, expected, rtol=1e-5)
    if "nearest" in found:
        wanted = api.search("run", row="img_001.png", top=2).image_ids
        assert [name for name, _ in found["nearest"].fetchall()] == ["img_001.png", *wanted]
    if "table" in found:
        probes = api.open("run").numpy("probes")[:4, 0]
        np.testing.assert_array_equal(found["table"].collect()["probes"].to_numpy()[:8:2], probes)
    if "viewer" in found:
        image, similar, points = found["viewer"].layers
        cell = np.round(similar.world_to_data(points.data[0])).astype(int)
        assert similar.data[tuple(cell)] == similar.data.max()
        assert image.data.shape == (60, 80, 3)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": check_readme,
    "genenc_core/guides/FIRST_RUN.md": check_first_run,
    "genenc_core/guides/READ_RESULTS.md": check_reading,
    "genenc_core/images/POINTS.md": check_points,
}


@pytest.mark.parametrize("guide", named(WITH_COMMANDS))
def test_calls_are_read_by_the_commands_parser(guide: Path) -> None:
    """Those that are not run, too; what needs Prefect is imported and validated."""
    for block in blocks(guide):
        assert not block.mark.startswith("not run") or len(block.mark) > len("not run: "), "a reason is missing"
        if block.language == "sh":
            for arguments in (found for command in block.commands for found in parts(command)):
                if arguments[0].startswith("-"):
                    assert arguments[0] in OPTIONS
                else:
                    COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
            for parameters in re.findall(r"--params '([^']*)'", block.text):
                module: Any = importlib.import_module("genenc_flows.extraction")
                module.extract_features.validate_parameters(json.loads(parameters))
        if block.language == "python" and not is_run(block):
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(str(node.module))
                    assert all(hasattr(module, each.name) for each in node.names)


FOREIGN = {"--keep", "--only", "--broken", "--small"}
"""Options of the fuzzers, of the kill campaign and of the search of schedules, in their pages."""


@pytest.mark.parametrize("guide", named(GUIDES))
def test_named_options_and_files_exist(guide: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", guide.read_text(encoding="utf-8"), flags=re.M | re.S)
    options = set(re.findall(r"(?<=`)--[a-z][a-z-]*", text))
    assert options <= OPTIONS | FOREIGN
    files = set(re.findall(r"`(?:python )?((?:[\w-]+/)*[\w.-]+\.(?:py|md))\b", text))
    known = {f"/{path.relative_to(ROOT)}" for top in TOPS for path in (ROOT / top).rglob("*.*")} | {"/README.md"}
    assert [name for name in sorted(files) if not any(path.endswith(f"/{name}") for path in known)] == []


def links(guide: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and heading of every link of a guide into the project."""
    text = re.sub(r"^```.*?^```$", "", guide.read_text(encoding="utf-8"), flags=re.M | re.S)
    for path, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        yield (guide.parent / path).resolve() if path else guide, heading


@pytest.mark.parametrize("guide", named(GUIDES))
def test_links_lead_somewhere(guide: Path) -> None:
    for path, heading in links(guide):
        assert path.is_file(), path
        if heading:
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
            assert heading in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_is_short_and_leads_to_every_guide() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_README
    assert any("--points" in line for line in lines[:FIRST_SCREEN])
    reached, waiting = {README}, [README]
    while waiting:
        for path, _ in links(waiting.pop()):
            if path.suffix == ".md" and path not in reached:
                reached.add(path)
                waiting.append(path)
    assert reached >= set(GUIDES)
