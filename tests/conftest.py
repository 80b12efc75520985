"""One thread for the whole suite.

Threads gain nothing on tensors this small, and waiting for each other they crawl on a busy machine.
"""

import faiss
import torch

torch.set_num_threads(1)
faiss.omp_set_num_threads(1)
