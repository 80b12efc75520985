"""LoRA (Hu et al. 2022) by peft: the backbone stays as it is, and small matrices beside its linear layers learn.

Their product is added as it is (peft's alpha is the rank), so that weights alone say what the merged layer is.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.util import find_spec

from torch import Tensor, nn

_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def add_lora(network: nn.Module, rank: int, of: str, name: str) -> None:
    """Put matrices A [rank, in] and B [out, rank] beside each fitting linear layer: W x becomes (W + B A) x.

    B begins with zeros. They alone learn.

    Args:
        network: changed.
        rank: of the product.
        of: a pattern of names of linear layers, as in `blocks.0.attn.qkv`.
        name: of the network, for errors.

    Raises:
        ValueError: peft is not installed, or the pattern fits no linear layer; names the config key.
    """
    if find_spec("peft") is None:
        raise ValueError("backbone.lora_rank needs peft: pip install -c constraints.txt -e '.[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    layers = [layer for layer, module in network.named_modules() if isinstance(module, nn.Linear)]
    fitting = [layer for layer in layers if fnmatchcase(layer, of)]
    if not fitting:
        last = ", ".join(layers[-3:]) or "none: LoRA is for networks such as ViTs"
        raise ValueError(f"backbone.lora_of={of} fits no linear layer of {name} (its last: {last})")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=fitting), network)


def merge_lora(network: nn.Module) -> None:
    """Make one linear layer of each that has matrices beside it; a network without any stays as it is."""
    if not any(_A in f".{key}" for key in network.state_dict()):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            network.set_submodule(name, module.get_base_layer())


def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors of a network with such matrices -> those of the network that they make."""
    merged = {}
    for key, value in state.items():
        if key.endswith((_A, _B)):
            continue
        layer = key.partition(_BASE)[0]
        if key.endswith(f"{_BASE}weight") and layer + _A in state:
            value = value + (state[layer + _B] @ state[layer + _A]).to(value.dtype)
        merged[key.replace(_BASE, ".") if layer + _A in state else key] = value
    return merged
