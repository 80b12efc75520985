"""Freed memory is kept while training, and given back afterwards: counted in pages that the kernel hands out."""

import resource
import sys

import pytest
import torch

from dml.engine.allocator import keep_freed_memory, return_freed_memory
from tests.engine.conftest import AtStep, make_data, make_learner, make_trainer

PAGES = (64 << 20) // resource.getpagesize()


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(64 << 18).add_(1)  # 64 MiB of float32
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a matter of Linux")
def test_pages_are_handed_out_once_while_memory_is_kept():
    try:
        assert keep_freed_memory()
        faults()  # once, to have them
        assert faults() < PAGES / 2
    finally:
        return_freed_memory()
    assert faults() > 2 * PAGES  # each tensor's pages come anew


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    return_freed_memory()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a matter of Linux")
@pytest.mark.parametrize("reuse_memory", [True, False])
def test_training_keeps_memory_and_its_end_gives_it_back(tmp_path, reuse_memory):
    seen = []
    learner = make_learner(reuse_memory=reuse_memory)
    make_trainer(tmp_path, 1, AtStep(lambda *_: (faults(), seen.append(faults())))).fit(learner, make_data())
    assert (seen[0] < PAGES / 2) == reuse_memory
    assert faults() > 2 * PAGES
