"""Specs that genenc wrote and somebody edited: what changes the meaning of numbers is refused, the rest is free."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genenc_core import errors, spec, spec_edits
from genenc_core.runtime import model_registry

SOURCE = spec.SourceInfo(kind="python", name="nets:two", weights="random:0", layers=("a", "b"))
INFO = spec.ArtifactInfo(
    file="two.pt",
    sha256="ab" * 32,
    bytes=9,
    seconds=1.0,
    batches_compared=(1, 3),
    max_abs_error=0.0,
    max_rel_error=0.0,
    tolerance=1e-5,
)
WRITTEN = spec.RuntimeModelSpec(
    model_id="two",
    display_name="Two",
    weights_path="two.pt",
    backend="TorchScript",
    batch_mode=spec.BatchModeSpec(dynamic=spec.DynamicBatch(min=1, max=4)),
    inputs=(spec.SlotSpec(name="image", shape=(3, 64, 64)),),
    outputs=(spec.SlotSpec(name="zeta", shape=(8, 4, 4)), spec.SlotSpec(name="alpha", shape=(8, 4, 4))),
    genenc=spec.GenencBlock(
        source=SOURCE,
        weights_sha256="cd" * 32,
        preprocessing=spec.Preprocessing(height=64, width=64),
        mean=(0.485, 0.456, 0.406),
        std=(1.0, 0.224, 0.225),
        artifact=INFO,
    ),
)
Edit = Callable[[dict[str, Any]], object]

CHANGES: dict[str, Edit] = {
    "outputs reversed": lambda own: own["outputs"].reverse(),
    "outputs sorted": lambda own: own["outputs"].sort(key=lambda slot: slot["name"]),
    "names swapped": lambda own: [own["outputs"][at].update(name=name) for at, name in enumerate(("alpha", "zeta"))],
    "renamed": lambda own: own["outputs"][0].update(name="other"),
    "one output less": lambda own: own["outputs"].pop(),
    "grey": lambda own: own["inputs"][0].update(shape=[1, 64, 64]),
    "channels last": lambda own: own["inputs"][0].update(shape=[64, 64, 3]),
    "uint8": lambda own: own["genenc"].update(input={"dtype": "uint8"}),
    "one channel": lambda own: own["genenc"].update(input={"channels": 1}),
    "outside": lambda own: own["genenc"].update(normalization_inside=False),
    "mean": lambda own: own["genenc"]["mean"].reverse(),
    "no std": lambda own: own["genenc"].pop("std"),
    "positions": lambda own: own["genenc"].update(output_positions=[1, 0]),
    "names": lambda own: own["genenc"].update(output_names=["alpha", "zeta"]),
    "maps channels last": lambda own: own["genenc"].update(channels_last_outputs=[0]),
    "lists channels first": lambda own: own["genenc"].update(channels_first_lists=[0]),
    "layers": lambda own: own["genenc"]["source"]["layers"].reverse(),
    "no source": lambda own: own["genenc"].pop("source"),
    "another file": lambda own: own["genenc"]["artifact"].update(sha256="ef" * 32),
    "no digest": lambda own: own["genenc"].pop("artifact"),
    "another range": lambda own: own["genenc"].update(dynamic_size={"min": [32, 32], "max": [64, 64], "multiple": 32}),
}
OF_EARLIER_VERSIONS = (
    "grey",
    "channels last",
    "uint8",
    "one channel",
    "outside",
    "positions",
    "maps channels last",
    "lists channels first",
)
FREE: dict[str, Edit] = {
    "names and words": lambda own: own.update(model_id="mine", display_name="Mine", description="of mice"),
    "words of slots": lambda own: own["outputs"][0].update(description="x", recommended_decoder="TensorToMask2D"),
    "hints": lambda own: own.update(recommended_post_encoder="spatial_point", preferred_batch_size=2),
    "batch": lambda own: own["batch_mode"]["dynamic"].update(max=2),
    "path": lambda own: own.update(weights_path="elsewhere/two.pt"),
    "fit": lambda own: own["genenc"]["preprocessing"].update(fit="pad"),
    "resized": lambda own: own["genenc"]["source"].update(weights="/moved/weights.pth"),
    "whole numbers": lambda own: own["genenc"].update(std=[1, 0.224, 0.225]),
    "keys sorted": lambda own: [own.update({key: own.pop(key)}) for key in sorted(own)],
    "own keys": lambda own: own.update(lab="mine"),
    "no block": lambda own: own.pop("genenc"),
}


def edited(folder: Path, edit: Edit, *, earlier: bool = False) -> Path:
    written = json.loads(spec_edits.with_digests(WRITTEN).to_json())
    if earlier:
        del written["genenc"]["written_sha256"]
    edit(written)
    path = folder / "spec.json"
    path.write_text(json.dumps(written))
    return path


@pytest.mark.parametrize("name", CHANGES)
def test_edits_of_protected_parts_are_refused(tmp_path: Path, name: str) -> None:
    path = edited(tmp_path, CHANGES[name])
    with pytest.raises(errors.SpecError, match="edited after genenc wrote the spec: export the model again, or remove"):
        spec.load_spec(path)
    with pytest.raises(errors.InputError, match="edited after genenc wrote"):
        model_registry.ModelRegistry().register_from_json(path)


@pytest.mark.parametrize("name", OF_EARLIER_VERSIONS)
def test_impossible_edits_of_older_specs_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.SpecError, match=r"edited after genenc wrote the spec, whose files take float32 RGB"):
        spec.load_spec(edited(tmp_path, CHANGES[name], earlier=True))


@pytest.mark.filterwarnings("ignore::genenc_core.spec.UnknownKeyWarning")
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("name", FREE)
def test_other_edits_are_allowed(tmp_path: Path, name: str, earlier: bool) -> None:
    assert spec.load_spec(edited(tmp_path, FREE[name], earlier=earlier)).inputs == WRITTEN.inputs


def test_message_names_the_edited_parts(tmp_path: Path) -> None:
    def both(own: dict[str, Any]) -> None:
        own["outputs"].reverse()
        own["genenc"]["mean"].reverse()

    with pytest.raises(errors.SpecError, match="genenc, outputs edited after"):
        spec.load_spec(edited(tmp_path, both))


def test_foreign_specs_get_no_digests() -> None:
    theirs = WRITTEN.model_copy(update={"genenc": None})
    assert spec_edits.with_digests(theirs) is theirs
