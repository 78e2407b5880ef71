"""Programs of the suite `peers`, run by the other tools' interpreters, so genenc is not imported here."""

import contextlib
import importlib.abc
import importlib.machinery
import itertools
import os
import sys
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Once = Callable[[], float]
BATCH = 32


def transform() -> Any:
    """Return torchvision's evaluation transform for Pillow images."""
    from torchvision import transforms

    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


@contextlib.contextmanager
def ray_data(folder: str, out: str) -> Iterator[Once]:
    """Read images, transform them, pool them in an actor, write Parquet."""
    import logging

    import ray
    import torch
    from PIL import Image

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    steps, numbers = transform(), itertools.count()

    def fitted(row: dict[str, Any]) -> dict[str, Any]:
        return {"pixels": steps(Image.fromarray(row["image"])).numpy()}

    class Pool:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            pixels = torch.from_numpy(batch["pixels"])
            return {"features": pixels.mean((2, 3)).numpy()}

    def once() -> float:
        images = ray.data.read_images(folder, mode="RGB").map(fitted)
        images.map_batches(Pool, batch_size=BATCH, concurrency=1).write_parquet(f"{out}-{next(numbers)}")
        return float(len(os.listdir(folder)))  # noqa: PTH208

    yield once
    ray.shutdown()


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Placeholder for modules that a tool imports only for other kinds of models."""

    names = ("tensorflow", "torchtyping", "numba", "sklearn", "skimage", "open_clip", "dreamsim", "transformers")

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = name.partition(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return unittest.mock.MagicMock(name=spec.name, __spec__=spec, __path__=[], __name__=spec.name)

    def exec_module(self, module: Any) -> None:
        """Do nothing."""


@contextlib.contextmanager
def thingsvision(folder: str, out: str) -> Iterator[Once]:
    """Extract the activations of a pooling layer into an array."""
    import numpy
    import torch

    sys.meta_path.append(_Absent())
    numpy.AxisError = numpy.exceptions.AxisError  # type: ignore[attr-defined]
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader, ImageDataset

    extractor = get_extractor(model_name="resnet18", source="torchvision", device="cpu", pretrained=False)
    extractor.model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1)).eval()
    torch.set_num_threads(1)

    def once() -> float:
        dataset = ImageDataset(root=folder, out_path=out, backend="pt", transforms=transform())
        batches = DataLoader(dataset=dataset, batch_size=BATCH, backend="pt")
        found = extractor.extract_features(batches=batches, module_name="0", flatten_acts=True, output_type="ndarray")
        return float(len(found))

    yield once


@contextlib.contextmanager
def clip_retrieval(folder: str, out: str) -> Iterator[Once]:
    """Run clip-retrieval's worker with one loading worker; it writes half floats to .npy and paths to Parquet.

    Without its logger, a process whose start the last batch of a short run would wait for.
    """
    import numpy
    import torch
    from clip_retrieval.clip_inference import mapper, worker

    torch.set_num_threads(1)

    class Pool:
        @staticmethod
        def encode_image(pixels: Any) -> Any:
            return pixels.mean((2, 3))

        encode_text = None

    numbers, loaded = itertools.count(), (Pool, transform(), None)

    def once() -> float:
        target = f"{out}-{next(numbers)}"
        worker.worker(
            tasks=[0],
            input_dataset=folder,
            output_folder=target,
            output_partition_count=1,
            batch_size=BATCH,
            num_prepro_workers=1,
            enable_text=False,
        )
        return float(len(numpy.load(f"{target}/img_emb/img_emb_0.npy")))

    with contextlib.ExitStack() as stack:
        stack.enter_context(unittest.mock.patch.object(worker, "LoggerWriter"))
        for module in (mapper, worker):
            stack.enter_context(unittest.mock.patch.object(module, "load_clip", return_value=loaded))
        yield once


@contextlib.contextmanager
def fiftyone(folder: str, out: str) -> Iterator[Once]:
    """Compute embeddings of a dataset's samples with one loading worker, into its database."""
    os.environ["FIFTYONE_DATABASE_DIR"] = str(Path(out).absolute() / "database")
    os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
    import fiftyone
    import fiftyone.core.models
    import torch

    torch.set_num_threads(1)
    steps = transform()

    class Pool(fiftyone.core.models.EmbeddingsMixin, fiftyone.core.models.TorchModelMixin, fiftyone.Model):  # type: ignore[misc]
        media_type = "image"
        preprocess = False
        has_embeddings = True
        ragged_batches = False
        transforms = steps
        collate_fn = None

        def embed(self, pixels: Any) -> Any:
            return self.embed_all(pixels[None])[0]

        def embed_all(self, pixels: Any) -> Any:
            return pixels.mean((2, 3)).numpy()

    paths = sorted(map(str, Path(folder).iterdir()))

    def once() -> float:
        dataset = fiftyone.Dataset()
        dataset.add_samples([fiftyone.Sample(filepath=path) for path in paths], progress=False)
        dataset.compute_embeddings(Pool(), embeddings_field="e", batch_size=BATCH, num_workers=1, progress=False)
        dataset.delete()
        return float(len(paths))

    yield once


@contextlib.contextmanager
def spdl(folder: str) -> Iterator[Once]:
    """Load batches with one SPDL pipeline thread, where FFmpeg decodes, scales and crops; pool them."""
    import spdl.io
    import torch
    from spdl.pipeline import PipelineBuilder

    torch.set_num_threads(1)
    paths = sorted(map(str, Path(folder).iterdir()))
    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    fitted = "scale=w=256:h=256:force_original_aspect_ratio=increase,crop=224:224,format=pix_fmts=rgb24"
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def loaded(sources: list[str]) -> Any:
        pixels = spdl.io.load_image_batch(sources, width=None, height=None, pix_fmt=None, filter_desc=fitted)
        scaled = spdl.io.to_torch(pixels).permute(0, 3, 1, 2).float().div_(255)
        return scaled.sub_(mean).div_(deviation)

    def once() -> float:
        pipeline = PipelineBuilder().add_source(batches).pipe(loaded, concurrency=1).add_sink(2).build(num_threads=1)
        with torch.inference_mode(), pipeline.auto_stop():
            done = sum(len(batch.mean((2, 3))) for batch in pipeline.get_iterator())
        if done != len(paths):
            raise RuntimeError(f"{done} of {len(paths)} images were loaded")
        return float(done)

    loaded(batches[0])  # its pipeline would only log why it cannot
    yield once


@contextlib.contextmanager
def dali(folder: str) -> Iterator[Once]:
    """Run DALI's pipeline on the CPU with one thread; pool the batches."""
    import numpy
    from nvidia.dali import fn, pipeline_def, types

    paths = sorted(map(str, Path(folder).iterdir()))

    def loaded() -> Any:
        data, _ = fn.readers.file(files=paths, name="files")
        pixels = fn.resize(fn.decoders.image(data, device="cpu", output_type=types.RGB), resize_shorter=256)
        return fn.crop_mirror_normalize(
            pixels,
            crop=(224, 224),
            output_layout="CHW",
            mean=[0.485 * 255, 0.456 * 255, 0.406 * 255],
            std=[0.229 * 255, 0.224 * 255, 0.225 * 255],
        )

    pipeline = pipeline_def(batch_size=BATCH, num_threads=1, device_id=None)(loaded)()
    pipeline.build()

    def once() -> float:
        done = 0
        while done < len(paths):
            (batch,) = pipeline.run()
            done += len(numpy.mean(batch.as_array(), (2, 3)))
        return float(len(paths))

    yield once
