from collections.abc import Iterator

import faiss
import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """As for the losses; FAISS has threads of its own."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1), faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(threads[0]), faiss.omp_set_num_threads(threads[1])
