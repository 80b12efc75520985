"""A product is full float32 whatever the precision of products is set to, in either of PyTorch's interfaces.

Many processors ignore the settings, so what is looked at beside the result is how they are while the kernel runs.
"""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dml.products import matmul


class Watch(TorchDispatchMode):
    """Notes a setting at every product."""

    def __init__(self, setting):
        super().__init__()
        self.setting, self.seen = setting, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "linear" in str(func) or "mm" in str(func):
            self.seen.append(self.setting())
        return func(*args, **(kwargs or {}))


def assert_right(product, a, b):
    assert product.is_contiguous() and product.dtype == a.dtype
    assert (product.double() - a.double() @ b.double().T).abs().max() < 1e-3


def test_a_product_is_full_float32_whatever_the_new_interface_says():
    # In a process of its own: once the new interface is used, the old one refuses to answer.
    code = """
import torch
from tests.test_products import Watch, assert_right
from dml.products import matmul
cpu, cuda = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
torch.backends.fp32_precision = cpu.fp32_precision = "bf16"
cuda.fp32_precision = "tf32"
a, b = torch.randn(64, 700), torch.randn(33, 700)
with Watch(lambda: (cpu.fp32_precision, cuda.fp32_precision)) as watch:
    product = matmul(a, b)
assert_right(product, a, b)
assert watch.seen == [("ieee", "ieee")], watch.seen
assert (cpu.fp32_precision, cuda.fp32_precision) == ("bf16", "tf32")
"""
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch has the old interface only")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the latter by PyTorch's own product
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_a_product_is_full_float32_whatever_is_set(setting, dtype):
    a, b = torch.randn(64, 700, dtype=dtype), torch.randn(33, 700, dtype=dtype)
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        with Watch(torch.get_float32_matmul_precision) as watch, torch.autocast("cpu", dtype=torch.bfloat16):
            product = matmul(a, b)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(kept)
    assert watch.seen == ["highest"]
    assert_right(product, a, b)
