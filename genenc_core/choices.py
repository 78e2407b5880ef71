"""The values of options that have a fixed set; without other imports, so that `--help` can show them quickly."""

from typing import Literal

Fit = Literal["stretch", "crop", "pad"]
DecodeScale = Literal["full", "scaled"]
Blend = Literal["cosine", "average", "none"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
StoredType = Literal["float32", "float16"]
ExportFormat = Literal["torchscript", "aotinductor", "exported_program", "onnx"]
Backend = Literal["auto", "eager", ExportFormat]
ZooSource = Literal["genenc", "torchvision", "timm"]
Shell = Literal["bash", "zsh", "fish"]
ListedSource = Literal["json", ZooSource]
