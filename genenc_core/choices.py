"""Values of options that have a fixed set, and their groups in `--help`; without imports, so that it shows quickly."""

from typing import Literal

Fit = Literal["stretch", "crop", "pad"]
Decoding = Literal["full", "scaled", "gpu"]
Resampling = Literal["torch", "pillow"]
Like = Literal["thingsvision", "timm", "fiftyone", "clip-retrieval", "terratorch", "sam"]
Blend = Literal["cosine", "average", "none"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
StoredType = Literal["float32", "float16", "int8", "uint8"]
ExportFormat = Literal["torchscript", "aotinductor", "exported_program", "onnx"]
Backend = Literal["auto", "eager", ExportFormat]
ZooSource = Literal["genenc", "torchvision", "timm"]
Engine = Literal["threads", "dask", "ray"]
Metric = Literal["cosine", "l2"]
FeatureFormat = Literal["parquet", "npy", "hdf5", "hub"]
ProvenanceFormat = Literal["ro-crate", "openlineage"]
SchemaOf = Literal["spec", "emb"]
Shell = Literal["bash", "zsh", "fish"]
ListedSource = Literal["json", ZooSource]

INPUT = "Input"
POINTS = "Points"
MODEL = "Model"
SIZES = "Image size and tiles"
PRODUCTS = "Products"
SEARCH = "Search"
STORE = "Store"
RUN = "Run"
ARTIFACTS = "Artifacts"
SERVER = "Prefect"
GENERAL = "General"
