"""How an eager module is run, as far as a machine without a GPU can tell."""

import threading

import pytest
import torch

from genenc_core.runtime import eager


def test_cudagraph_trees_exist_in_every_thread() -> None:
    """A thread that did not import torch's module first lacks it in older torch, which fails an assertion."""
    trees = pytest.importorskip("torch._inductor.cudagraph_trees")
    found: list[object] = []

    def work() -> None:
        eager.init_cudagraph_trees()
        containers = trees.get_obj(trees.local, "tree_manager_containers")
        eager.init_cudagraph_trees()
        found.append(trees.get_obj(trees.local, "tree_manager_containers") is containers)
        with trees.get_obj(trees.local, "tree_manager_locks")[0]:
            found.append(torch._C._is_key_in_tls("tree_manager_containers"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, True]
