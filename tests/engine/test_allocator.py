"""Freed memory is kept while training, and given back afterwards: read off what the system says of this process."""

import resource
import sys

import pytest
import torch

from dml.engine import module
from dml.engine.allocator import keep_freed_memory, return_freed_memory
from tests.engine.conftest import make_data, make_learner, make_trainer

SIZE = 256 << 20  # bytes


def use_and_free() -> None:
    torch.zeros(SIZE // 4).add_(1)


def resident() -> int:
    """Bytes that this process holds in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a matter of Linux")
def test_what_is_freed_is_kept_and_used_again_until_it_is_given_back():
    try:
        assert keep_freed_memory()
        use_and_free()
        kept, before = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        use_and_free()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < SIZE / resource.getpagesize() / 2
    finally:
        return_freed_memory()
    assert kept - resident() > SIZE / 2


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    return_freed_memory()


@pytest.mark.parametrize("reuse_memory", [True, False])
def test_training_keeps_memory_and_its_end_gives_it_back(tmp_path, monkeypatch, reuse_memory):
    called = []
    for name in ("keep_freed_memory", "return_freed_memory"):
        monkeypatch.setattr(module, name, lambda name=name: called.append(name))
    learner = make_learner(reuse_memory=reuse_memory)
    make_trainer(tmp_path, 1).fit(learner, make_data())
    assert called == (["keep_freed_memory", "return_freed_memory"] if reuse_memory else [])
