"""Freed memory is kept while training, and given back afterwards: read off what the system says of this process."""

import os
import subprocess
import sys

import pytest

from dml.engine import module
from dml.engine.allocator import keep_freed_memory, return_freed_memory
from tests.engine.conftest import make_data, make_learner, make_trainer

# In a process of its own: what the tests before have left free would be used first.
_PROGRAM = """
import resource
import numpy as np
from dml.engine.allocator import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(32 << 20)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (256 << 20)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / (256 << 20)

assert keep_freed_memory()
first, second, kept = faults(), faults(), resident()
return_freed_memory()
print(first, second, kept - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a matter of Linux")
def test_what_is_freed_is_kept_and_used_again_until_it_is_given_back():
    small_pages = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, env=small_pages)
    first, second, given_back = map(float, ran.stdout.split())  # in tensors' worth of pages
    assert first > 0.5 and second < 0.1 and given_back > 0.5


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    return_freed_memory()


@pytest.mark.parametrize("reuse_memory", [True, False])
def test_training_keeps_memory_and_validation_and_the_end_do_not(tmp_path, monkeypatch, reuse_memory):
    called = []
    for name in ("keep_freed_memory", "return_freed_memory"):
        monkeypatch.setattr(module, name, lambda name=name: called.append(name.partition("_")[0]))
    learner = make_learner(
        reuse_memory=reuse_memory, evaluator=lambda *_, **__: called.append("evaluated") or {"x": 1.0}
    )
    make_trainer(tmp_path, 2, val_check_interval=1).fit(learner, make_data())
    if reuse_memory:
        assert called == ["keep", *["return", "evaluated", "keep"] * 2, "return"]
    else:
        assert called == ["evaluated"] * 2
