"""A product is full float32 whatever the precision of products is set to, in either of PyTorch's interfaces."""

import subprocess
import sys

import pytest
import torch

from dml.products import matmul


def test_a_product_is_full_float32_whatever_the_new_interface_says():
    # In a process of its own: once the new interface is used, the old one refuses to answer.
    code = """
import torch
from dml.products import matmul
torch.backends.fp32_precision = torch.backends.mkldnn.conv.fp32_precision = "bf16"
torch.backends.cuda.matmul.fp32_precision = "tf32"
a, b = torch.randn(64, 700), torch.randn(33, 700)
assert (matmul(a, b).double() - a.double() @ b.double().T).abs().max() < 1e-3
assert torch.backends.mkldnn.conv.fp32_precision == "bf16" and torch.backends.cuda.matmul.fp32_precision == "tf32"
"""
    if not hasattr(torch.backends.mkldnn, "conv"):
        pytest.skip("this PyTorch has the old interface only")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_a_product_is_full_float32_whatever_is_set(setting):
    a, b = torch.randn(64, 700), torch.randn(33, 700)
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        product = matmul(a, b)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(kept)
    assert product.is_contiguous()
    assert (product.double() - a.double() @ b.double().T).abs().max() < 1e-3
