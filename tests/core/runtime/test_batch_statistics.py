"""A file of one image a call that normalises by the batch: no comparison of batches shows it, its graph does."""

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.helper as oh
import pytest
import torch
from torch import nn

from genenc_core.runtime.formats import table


def net(kind: str, *, training: bool) -> nn.Module:
    norm = {
        "batch": nn.BatchNorm2d(4),
        "instance": nn.InstanceNorm2d(4, affine=True),
        "tracked instance": nn.InstanceNorm2d(4, track_running_stats=True),
        "group": nn.GroupNorm(2, 4),
    }[kind]
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Sequential(norm), nn.ReLU()).train(training)


def _trace(module: nn.Module, path: Path) -> None:
    torch.jit.trace(module, torch.rand(1, 3, 32, 32), check_trace=False).save(path)


def _exported(module: nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(module, (torch.rand(1, 3, 32, 32),)), path)


def _decomposed(module: nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(module, (torch.rand(1, 3, 32, 32),)).run_decompositions(), path)


WRITERS: dict[str, tuple[str, Callable[[nn.Module, Path], None]]] = {
    "trace": ("torchscript", _trace),
    "exported program": ("exported_program", _exported),
    "decomposed program": ("exported_program", _decomposed),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["batch", "instance", "group"])
def test_torch_files_in_training_mode_are_detected(writer: str, training: bool, kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[writer]
    path = tmp_path / f"m{table.FORMATS[name].suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(net(kind, training=training), path)
        loaded = table.FORMATS[name].load(path, torch.device("cpu"), None)
    assert loaded.batch_statistics is (training and kind == "batch")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_onnx_files_in_training_mode_are_detected(training: bool, inside: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(graph(training=training, inside=inside), path)
    assert table.FORMATS["onnx"].load(path, torch.device("cpu"), None).batch_statistics is training


def graph(*, training: bool, inside: bool) -> onnx.ModelProto:
    """Return a batch normalisation of three channels, in a branch if `inside`."""
    names = ["scale", "shift", "mean", "var"]
    weights = [oh.make_tensor(name, onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]) for name in names]
    outputs = ["y", "mean_", "var_"] if training else ["y"]
    norm = oh.make_node("BatchNormalization", ["x", *names], outputs, training_mode=int(training))
    shape = ["b", 3, 32, 32]
    given, made = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "z"))
    inner = oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    if inside:
        branch = oh.make_graph([norm], "branch", [], [inner])
        yes = oh.make_node("Constant", [], ["yes"], value=oh.make_tensor("t", onnx.TensorProto.BOOL, [], [True]))
        nodes = [yes, oh.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)]
    else:
        nodes = [norm, oh.make_node("Relu", ["y"], ["z"])]
    made_of = oh.make_graph(nodes, "g", [given], [made], weights)
    return oh.make_model(made_of, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
