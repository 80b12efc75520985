"""One thread for the whole suite, Ctrl-C as in a terminal, and how many examples the property tests try.

Threads gain nothing on tensors this small, and waiting for each other they crawl on a busy machine.
"""

import signal

import faiss
import torch
from hypothesis import HealthCheck, settings

from dml.testing.pretended import register

# A shell has its background jobs ignore Ctrl-C; the tests send it to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
faiss.omp_set_num_threads(1)
register()  # for tests/test_device.py, and before the first backward pass of any other

# The suite tries the same examples every time; --hypothesis-profile=thorough tries many new ones.
_ALWAYS = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("suite", max_examples=15, derandomize=True, **_ALWAYS)
settings.register_profile("thorough", max_examples=2000, print_blob=True, **_ALWAYS)
settings.load_profile("suite")
