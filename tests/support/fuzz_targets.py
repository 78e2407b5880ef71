"""Targets of the input fuzzer: one class per kind of input, whose `run` returns a case's outcome or raises."""

import contextlib
import dataclasses
import hashlib
import io
import json
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from typer.testing import CliRunner

import mutations
import pictures
from genenc_core import errors, spec, text
from genenc_core.cli import app, usage
from genenc_core.cli import models as models_command
from genenc_core.factory import model_file
from genenc_core.images.labels import matching, reading
from genenc_core.run import driver, model_info, planning, status
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.runtime import backends, describe, model_registry
from genenc_core.store import repair, run_store, verify

REFUSALS = (errors.GenencError,)


def refused(error: errors.GenencError) -> str:
    """Check that an error message is one meaningful paragraph; return the error's class name."""
    words = str(error)
    assert words.strip(), "a refusal without words"
    assert "Traceback" not in words, words
    return type(error).__name__


def one_refusal(call: Any) -> str:
    """Return `accepted`, or the class name of genenc's own error."""
    try:
        call()
    except REFUSALS as error:
        return refused(error)
    return "accepted"


SPEC: dict[str, Any] = {
    "model_id": "m",
    "display_name": "M",
    "weights_path": "m.pt",
    "backend": "torchscript",
    "batch_mode": {"dynamic": {"min": 1, "max": 8}},
    "weights_variants": [{"path": "a.pt", "batch_size": 1}, {"path": "b.pt2", "batch_size": 4, "backend": "auto"}],
    "inputs": [{"name": "image", "shape": [3, 64, 64], "recommended_encoder": "ImageEncoder"}],
    "outputs": [{"name": "features", "shape": [8, 2, 2]}, {"name": "cls", "shape": [8]}],
    "post_encoder": [{"module": "spatial_point", "interpolation": "nearest"}],
    "genenc": {
        "source": {"kind": "torchvision", "name": "resnet18", "weights": "random:0", "layers": ["layer2"]},
        "weights_sha256": "0" * 64,
        "preprocessing": {"height": 64, "width": 64, "fit": "crop", "resize_short": 72, "pad_value": [0, 0, 0]},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "artifact": {
            "file": "m.pt", "sha256": "0" * 64, "bytes": 1, "seconds": 1.0, "batches_compared": [1, 2],
            "max_abs_error": 0.0, "max_rel_error": 0.0, "tolerance": 1e-5, "platform": {"torch": "2.11"},
        },
        "dynamic_size": {"min": [32, 32], "max": [128, 128], "multiple": 32},
    },
}  # fmt: skip


class Specs:
    """Spec files: read, checked, described, and loaded as far as possible without an artifact."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "spec.json"
        small = {key: SPEC[key] for key in ("model_id", "display_name", "inputs", "outputs")}
        eager = {**small, "genenc": {"source": SPEC["genenc"]["source"]}}
        code = {**small, "genenc": {"source": {"kind": "python", "name": "os:abort", "weights": "pretrained"}}}
        self.seeds: list[Any] = [SPEC, small, eager, code]
        self.texts = [json.dumps(seed).encode() for seed in self.seeds]

    def case(self, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutations.mutated_bytes(rng, self.texts)
        return mutations.written(mutations.mutated_value(rng, rng.choice(self.seeds)), rng).encode(errors="ignore")

    def run(self, data: bytes) -> str:
        self.path.write_bytes(data)
        return one_refusal(self._read)

    def _read(self) -> None:
        found = spec.load_spec(self.path)
        info = model_registry.ModelInfo(model_id=found.model_id, source="json", spec=found, path=self.path)
        for line in model_info.summary(info):
            text.printable(line)
        json.loads(text.json_document(model_info.as_json(info)))
        spec.RuntimeModelSpec.from_json(found.to_json())
        describe.check_image_spec(found)
        source = found.genenc.source if found.genenc else None
        # Building a zoo's model for each would take seconds; every other way is refused before anything is built.
        if found.weights_path or found.weights_variants or (source and source.kind == "python"):
            backends.load_encoder(found, device="cpu")


class Points:
    """Points files: tidy CSV, DeepLabCut CSV, Parquet; their names are then matched with images."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.path = folder / {"tidy": "points.csv", "dlc": "CollectedData.csv", "parquet": "points.parquet"}[kind]
        self.kind = kind
        rows = [(f"img_{i:03d}.png", name, i + 0.5, 2.0 * i) for i in range(4) for name in ("tip", "paw")]
        if kind == "tidy":
            lines = ["image,point,x,y", *(",".join(map(str, row)) for row in rows)]
            quoted = ['"image","point","x","y","more"', '"a ""b"".png","p,q",1,2,3', "c.png,p,,nan,"]
            self.seeds = ["\n".join(lines).encode(), "\r\n".join(quoted).encode(), b"\xef\xbb\xbfimage,point,x,y\n"]
        elif kind == "dlc":
            plain = "scorer,a,a,a,a\nbodyparts,tip,tip,paw,paw\ncoords,x,y,x,y\nlabeled-data/v/img0.png,1,2,3,4\n"
            animals = (
                "scorer,,,a,a,a\nindividuals,,,m,m,m\nbodyparts,,,tip,tip,tip\ncoords,,,x,y,likelihood\n"
                "labeled-data,v,img0.png,1,2,0.9\nlabeled-data,v,img1.png,,,\n"
            )
            self.seeds = [plain.encode(), animals.encode()]
        else:
            self.seeds = [_parquet(rows, codec) for codec in ("none", "zstd", "snappy")]

    def case(self, rng: random.Random) -> bytes:
        if self.kind == "parquet" and rng.random() < 0.3:
            return _odd_parquet(rng)
        return mutations.mutated_bytes(rng, self.seeds)

    def run(self, data: bytes) -> str:
        self.path.write_bytes(data)
        return one_refusal(self._read)

    def _read(self) -> None:
        table = reading.read_points(self.path)
        assert table.xy.shape == (len(table.images), len(table.names), 2)
        matcher = matching.Matcher(table.images)
        for row, name in enumerate((*table.images[:50], "img_000.png")):
            matcher.add(row, name, f"/data/{name}", named=1)
        matcher.result()


def _parquet(rows: list[tuple[Any, ...]], codec: str) -> bytes:
    columns = dict(zip(("image", "point", "x", "y"), (list(column) for column in zip(*rows, strict=True)), strict=True))
    made = io.BytesIO()
    parquet.write_table(pa.table(columns), made, compression=codec)
    return made.getvalue()


def _odd_parquet(rng: random.Random) -> bytes:
    """Return a valid Parquet file with unusual column types, sizes or names."""
    count = rng.choice((0, 1, 3, 3, 100_000))
    columns: list[pa.Array] = []
    names = [
        rng.choice(("image", "point", "x", "y", "z")) if rng.random() < 0.1 else n for n in ("image", "point", "x", "y")
    ]
    for _ in names:
        value = rng.choice(
            (None, "a", "", "1.5", 7, float("nan"), float("inf"), True, b"\xff", [1, 2], {"a": 1}, 10**17)
        )
        column = pa.array([value] * count if value is not None else pa.nulls(count))
        columns.append(
            column.dictionary_encode() if rng.random() < 0.2 and count and isinstance(value, str) else column
        )
    made = io.BytesIO()
    with contextlib.suppress(pa.ArrowException):
        parquet.write_table(pa.Table.from_arrays(columns, names=names), made, compression="zstd")
    return made.getvalue()


class Records:
    """`store.json` and commit records of a real run: read, verified, surveyed, recovered and repaired."""

    def __init__(self, folder: Path) -> None:
        photos = pictures.write_folder(folder / "photos", 6)
        given = {"images": str(photos), "model": "tiny_models:conv", "weights": "random:0", "image_size": "32"}
        more = {"out": str(folder / "pristine"), "shard_rows": 2, "batch_size": 2, "device": "cpu"}
        driver.extract(ExtractParameters.model_validate({**given, **more}))
        self.pristine, self.root, self.outside = folder / "pristine", folder / "run", folder / "outside"
        self.documents = {
            name: json.loads((self.pristine / name).read_bytes())
            for name in ("_txn/store.json", "_txn/commits/s0000000.json", "_txn/commits/s0000002.json")
        }
        self.clean = False
        self.others = sorted(path for path in folder.iterdir() if path != self.root)

    def case(self, rng: random.Random) -> bytes:
        name = rng.choice(list(self.documents))
        if rng.random() < 0.5:
            data = mutations.mutated_bytes(rng, [(self.pristine / name).read_bytes()])
        else:
            value = mutations.mutated_value(rng, self.documents[name])
            if rng.random() < 0.7 and isinstance(value, dict):
                value = _sealed(value)
            data = mutations.written(value, rng).encode(errors="ignore")
        # Recovery and repair change the folder, so they need one of their own, which costs most of a case.
        return f"{name} {rng.choice(('keep', 'keep', 'keep', 'staged'))}\n".encode() + data

    def run(self, data: bytes) -> str:
        head, _, data = data.partition(b"\n")
        name, state = head.decode().split()
        if state == "staged" or not self.clean:
            shutil.rmtree(self.root, ignore_errors=True)
            shutil.copytree(self.pristine, self.root)
        self.clean = state == "keep"
        if state == "staged":
            (self.root / "features.zarr/status/c.0").unlink()
            for folder, key in (("s0000000-0", "status/c.0"), ("s0000001-0", "features/c.1.0")):
                (self.root / "_txn/staging" / folder).mkdir()
                shutil.copy(self.pristine / "features.zarr" / key, self.root / "_txn/staging" / folder / "0")
        (self.root / name).write_bytes(data)
        changing = (self._recover, self._repair) if state == "staged" else ()
        try:
            outcome = [one_refusal(call) for call in (self._open, self._survey, self._verify, *changing)]
        finally:
            (self.root / name).write_bytes((self.pristine / name).read_bytes())
        assert sorted(path for path in self.root.parent.iterdir() if path != self.root) == self.others, "wrote outside"
        return outcome[0] if len(set(outcome)) == 1 else "mixed"

    def _open(self) -> None:
        store = run_store.RunStore.open(self.root)
        for shard in sorted(store.committed())[:10]:
            if shard < store.shard_count:
                store.record(shard)

    def _survey(self) -> None:
        found = status.survey(RunFolder(self.root))
        status.summary_lines(found, found.status.bound)
        text.json_document(status.describe(found.status))
        assert RunFolder(self.root).preprocessing

    def _recover(self) -> None:
        run_store.RunStore.open(self.root).recover()

    def _verify(self) -> None:
        verify.verify_store(run_store.RunStore.open(self.root))

    def _repair(self) -> None:
        store = run_store.RunStore.open(self.root)
        repair.repair_store(store, coordinates=[])


def _sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Give a changed document a valid digest, as a forger would."""
    body = {key: item for key, item in value.items() if key != "sha256"}
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        plain = json.loads(mutations.written(body))
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
        body["sha256"] = hashlib.sha256(canonical).hexdigest()
    return body


CONFIG = b"""model = "resnet18"
weights = "random:0"
out = "run"
image_size = 224
product = ["v=global_avg_pool", "p=spatial_point(bilinear)@float16"]
fit = "pad"
max_failures = "5%"
batch_size = "auto"
shard-rows = 64
points = "points.csv"
maps = true
layers = ["layer2"]
canvas = "256x256"
tile_overlap = 32
device = "cpu"
limit = 10
"""


class Configs:
    """TOML files of `--config`: merged with flags, validated and checked, as far as possible without a model."""

    def __init__(self, folder: Path) -> None:
        self.path, self.photos, self.folder = (
            folder / "config.toml",
            pictures.write_folder(folder / "photos", 1),
            folder,
        )
        self.lines = CONFIG.splitlines(keepends=True)

    def case(self, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return mutations.mutated_bytes(rng, [CONFIG])
        lines = list(self.lines)
        for _ in range(rng.choice((1, 2, 3))):
            key = rng.choice(list(ExtractParameters.model_fields))
            value = mutations.nasty(rng)
            lines.append(f"{key} = {mutations.written(value)}\n".encode(errors="ignore"))
        kept = {line.partition(b"=")[0].strip().replace(b"-", b"_"): line for line in lines}
        return b"".join(kept.values())

    def run(self, data: bytes) -> str:
        self.path.write_bytes(data)

        def read() -> None:
            import pydantic

            flags = {"images": str(self.photos), "out": str(self.folder / "absent" / "run")}
            try:
                values = usage.merge_config(self.path, flags, ExtractParameters.model_fields)
                given = ExtractParameters.model_validate({k: values[k] for k in values if k not in usage.SWITCHES})
            except pydantic.ValidationError as error:
                raise errors.InputError(str(error)) from error
            assert given.title
            planning.check_parameters(given)

        return one_refusal(read)


MODEL_FILE: dict[str, Any] = {
    "task": "segmentation", "backbone": "resnet18", "backbone_out_indices": [1, 2, 3], "decoder": "UNetDecoder",
    "decoder_channels": [16, 8, 8], "num_classes": 3, "image_size": [64, 96], "mean": [0.5, 0.5, 0.5],
    "necks": [{"name": "SelectIndices", "indices": [0, 1, 2]}], "outputs": ["logits", "decoder"], "fit": "stretch",
    "aux_decoders": [{"name": "aux", "decoder": "FCNDecoder", "decoder_args": {"decoder_channels": 8}}],
}  # fmt: skip


class ModelFiles:
    """Model files in TOML and YAML: read and checked, without importing anything or expanding alias bombs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own_code = {**MODEL_FILE, "backbone": "os:abort"}
        configuration = {
            "trainer": {"max_epochs": 1},
            "model": {"class_path": "x.SemanticSegmentationTask", "init_args": {"model_args": MODEL_FILE}},
        }
        self.values = [MODEL_FILE, own_code, configuration]
        import yaml

        laughs = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
        merges = ["b0: &b0 {x: 1}"] + [f"b{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}, *b{i - 1}]}}" for i in range(1, 30)]
        self.yaml = [yaml.safe_dump(value).encode() for value in self.values]
        self.yaml += ["\n".join(laughs).encode(), "\n".join(merges).encode(), b"a: &a [*a]", b"? [a]\n: 1"]
        self.toml = [
            "\n".join(f"{key} = {json.dumps(value)}" for key, value in MODEL_FILE.items() if not isinstance(value, list)
                      or not isinstance(value[0], dict)).encode()
        ]  # fmt: skip

    def case(self, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return b".toml\n" + mutations.mutated_bytes(rng, self.toml)
        if rng.random() < 0.5:
            return b".yaml\n" + mutations.mutated_bytes(rng, self.yaml)
        value = mutations.mutated_value(rng, rng.choice(self.values))
        return b".yml\n" + mutations.written(value, rng).encode(errors="ignore")

    def run(self, data: bytes) -> str:
        suffix, _, content = data.partition(b"\n")
        path = self.folder / f"model{suffix.decode()}"
        path.write_bytes(content)
        return one_refusal(lambda: model_file.read(path))


class Idle:
    """A runner that only reports what it was asked to do."""

    def session(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def extract(self, given: Any) -> Any:
        raise errors.GenencError(f"would extract {given.title}")

    def resume(self, run: Any, shards: str, changes: Any) -> Any:
        raise errors.GenencError(f"would resume {run} {shards} {dataclasses.asdict(changes)}")

    def probe(self, given: Any) -> Any:
        raise errors.GenencError(f"would probe {given.title}")

    def update(self, given: Any) -> Any:
        raise errors.GenencError(f"would update {given.title}")

    def export(self, given: Any) -> Any:
        raise errors.GenencError(f"would export {given.title}")

    def rerun(self, given: Any) -> Any:
        raise errors.GenencError(f"would make {given.title} again")

    def serve(self, *, port: int, pool: str | None, limit: int) -> None:
        raise errors.GenencError(f"would serve {pool} on port {port}, {limit} at a time")

    def deploy(self, *, pool: str | None, notify: str | None) -> list[str]:
        raise errors.GenencError(f"would deploy to {pool} and notify {notify}")

    def check(self, pool: str | None) -> list[Any]:
        raise errors.GenencError(f"would check {pool}")


class CommandLines:
    """Command lines through the whole app with an idle runner; the output is checked too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = str(pictures.write_folder(folder / "photos", 1))
        self.records = Records(folder)
        self.files = [self.photos, str(self.records.pristine), str(folder / "absent"), str(folder)]
        (folder / "spec.json").write_text(json.dumps(SPEC))
        (folder / "config.toml").write_bytes(b'weights = "random:0"\n')
        self.files += [str(folder / "spec.json"), str(folder / "config.toml")]
        import typer.main

        group: Any = typer.main.get_command(app.build_app(Idle()))
        names = [name for name in group.list_commands(None) if name not in ("demo", "bench")]
        self.commands = {name: group.get_command(None, name).params for name in names}
        # Shapes of dozens of models for one command line take a minute, and are no question of the command line.
        models_command._with_shapes = lambda rows, _known: list(rows)  # type: ignore[assignment]

    def case(self, rng: random.Random) -> bytes:
        name = rng.choice(list(self.commands))
        arguments = [name if rng.random() < 0.97 else self._word(rng)]
        required = [item for item in self.commands[name] if item.param_type_name == "argument"]
        arguments += [self._word(rng) for _ in required]
        if name == "extract" and rng.random() < 0.7:
            arguments[1] = self.photos
            arguments += ["--model", self._word(rng), "--out", str(self.folder / "absent")]
        flags = [item for item in self.commands[name] if item.param_type_name == "option"]
        for item in rng.sample(flags, k=min(len(flags), rng.randrange(4))):
            if item.name == "out" and name in ("schema", "export"):
                arguments += ["--out", str(self.folder / "absent" / "x")]
                continue
            if item.name == "shapes":
                continue
            arguments.append(rng.choice((*item.opts, item.opts[0][: rng.randrange(2, 12)])))
            if not getattr(item, "is_flag", False) or rng.random() < 0.05:
                arguments.append(self._word(rng))
        if rng.random() < 0.1:
            rng.shuffle(arguments)
        return json.dumps(arguments).encode()

    def _word(self, rng: random.Random) -> str:
        way = rng.randrange(5)
        if way < 2:
            return rng.choice(self.files)
        if way == 2:
            return str(rng.choice(mutations.NUMBERS))[:300]
        if way == 3:
            return rng.choice(
                ("resnet18", "cpu", "pad", "1,2", "0-3", "v=global_avg_pool", "224", "64x64", "5%", "--json")
            )
        # An operating system passes no NUL and no longer word than this.
        word = rng.choice(mutations.WORDS).replace("\x00", "")[:50_000]
        # What is typed is the user's own word, and this one ends the process.
        return word if word != "os:abort" else "os.path:join"

    def run(self, data: bytes) -> str:
        arguments = json.loads(data)
        done = CliRunner().invoke(app.build_app(Idle()), arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code in (0, 1, 2, 3), done.exit_code
        told = (done.stdout + done.stderr).replace("\n", "").replace("\t", "")
        assert told.isprintable(), f"control characters in {told[:200]!r}"
        if "--json" in arguments and done.exit_code in (0, 1, 3) and done.stdout.startswith("{"):
            json.loads(done.stdout)
        return f"exit {done.exit_code}"


KINDS = {
    "specs": Specs,
    "points-tidy": lambda folder: Points(folder, "tidy"),
    "points-dlc": lambda folder: Points(folder, "dlc"),
    "points-parquet": lambda folder: Points(folder, "parquet"),
    "records": Records,
    "configs": Configs,
    "model-files": ModelFiles,
    "command-lines": CommandLines,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings: mutated inputs raise thousands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
