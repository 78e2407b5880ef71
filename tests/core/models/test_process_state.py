"""Whatever a factory changes of the process, a run means what it meant."""

import locale
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageFile

from genenc_core import errors
from genenc_core.models import resolve

NAME = "changes_the_process"
STATE: dict[str, Callable[[], Any]] = {
    "working directory": os.getcwd,
    "arguments": lambda: list(sys.argv),
    "standard output": lambda: sys.stdout,
    "standard error": lambda: sys.stderr,
    "truncated images": lambda: ImageFile.LOAD_TRUNCATED_IMAGES,
    "random": lambda: random.getstate()[1][:-1],  # without the place in it: clients of Prefect draw in their threads
    "numpy": lambda: np.random.get_state()[1].tolist(),
    "torch": lambda: torch.get_rng_state().tolist(),
    "locale": lambda: locale.setlocale(locale.LC_ALL),
    "warnings": lambda: list(warnings.filters),
    "logging": lambda: (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
    "loggers": lambda: logging.getLogger("genenc_core.run.planning").disabled,
    "signals": lambda: signal.getsignal(signal.SIGTERM),
    "type": torch.get_default_dtype,
    "device": torch.get_default_device,
    "gradients": torch.is_grad_enabled,
    "precision": torch.get_float32_matmul_precision,
    "threads": torch.get_num_threads,
    "determinism": torch.are_deterministic_algorithms_enabled,
}
CHANGES = {
    "working directory": "import os; os.chdir('/')",
    "arguments": "import sys; sys.argv[:] = ['x']",
    "standard output": "import io, sys; sys.stdout = io.StringIO()",
    "standard error": "import io, sys; sys.stderr = io.StringIO()",
    "truncated images": "from PIL import ImageFile; ImageFile.LOAD_TRUNCATED_IMAGES = True",
    "random": "import random; random.seed(5)",
    "numpy": "import numpy; numpy.random.seed(5)",
    "torch": "import torch; torch.manual_seed(5)",
    "locale": "import locale as L; L.setlocale(L.LC_ALL, 'C.UTF-8' if L.setlocale(L.LC_ALL) == 'C' else 'C')",
    "warnings": "import warnings; warnings.simplefilter('error')",
    "logging": "import logging; logging.basicConfig(level=1, force=True); logging.disable()",
    "loggers": "import logging.config; logging.config.dictConfig({'version': 1})",
    "signals": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "type": "import torch; torch.set_default_dtype(torch.float64)",
    "device": "import torch; torch.set_default_device('meta')",
    "gradients": "import torch; torch.set_grad_enabled(not torch.is_grad_enabled())",
    "precision": "import torch; torch.set_float32_matmul_precision('medium')",
    "threads": "import torch; torch.set_num_threads(torch.get_num_threads() + 1)",
    "determinism": "import torch; torch.use_deterministic_algorithms(True)",
}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], resolve.BuiltEncoder]]:
    """Return a call that builds a model by a factory of this source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def build(source: str) -> resolve.BuiltEncoder:
        (tmp_path / f"{NAME}.py").write_text("from torch import nn\nclass Conv(nn.Conv2d):\n    pass\n" + source)
        sys.modules.pop(NAME, None)
        return resolve.build_encoder(resolve.ModelRequest(name=f"{NAME}:model", image_size=(16, 16)))

    yield build
    sys.modules.pop(NAME, None)


@pytest.mark.parametrize("when", ["import", "factory"])
@pytest.mark.parametrize("change", CHANGES)
def test_process_state_is_restored_after_a_factory(
    built: Callable[[str], resolve.BuiltEncoder], change: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["genenc", "extract", "in", "--width", "8"])
    random.random()  # a new generator makes its table at the first draw
    lines = CHANGES[change] if when == "import" else ""
    before = {name: read() for name, read in STATE.items()}
    done = built(
        f"{lines}\ndef model():\n    {CHANGES[change]}\n    return Conv(3, 4, 8, stride=8, device='cpu').float()\n"
    )
    assert {name: read() for name, read in STATE.items()} == before
    assert done.module(torch.zeros(1, 3, 16, 16))[0].shape == (1, 4, 2, 2)


def test_own_folders_come_behind_others_in_path(built: Callable[[str], resolve.BuiltEncoder], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "added_later.py").write_text("VALUE = 1")
    before = list(sys.path)
    try:
        built(
            "import sys\nsys.path.insert(0, 'more')\ndel sys.path[1:3]\nimport added_later\n"
            "def model(): return Conv(3, 4, 8, stride=8)"
        )
        assert sys.path == [*before, "more"]
    finally:
        sys.path[:] = before


PARSING = """
import argparse
def model():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, {more})
    return Conv(3, parser.parse_args().width, 8, stride=8)
"""


@pytest.mark.slow
def test_factory_sees_an_empty_command_line(
    built: Callable[[str], resolve.BuiltEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["genenc", "extract", "in", "--width", "8"])
    assert built(PARSING.format(more="default=5")).module(torch.zeros(1, 3, 8, 8))[0].shape[1] == 5


@pytest.mark.parametrize("source", [PARSING.format(more="required=True"), "raise SystemExit(0)", "def model(): exit()"])
def test_factory_that_exits_is_refused(built: Callable[[str], resolve.BuiltEncoder], source: str) -> None:
    with pytest.raises(errors.InputError, match=r"(?s)SystemExit.*options defaults"):
        built(source)
