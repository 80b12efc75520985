"""A device that is not there, for tests of code that is to run on a GPU.

Its tensors hold their numbers on the CPU and compute there, but what CUDA refuses is refused: operations on tensors of
two devices, `.numpy()`. And what makes the host wait for the device is written down.

    with pretended_device() as gpu:
        value = loss(embeddings.to(gpu.device), labels.to(gpu.device))
    assert len(gpu.waits) <= 2
"""

import functools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

NAME = "pretended"
# Operations whose result the host must have before it can go on: a number, or a size that depends on numbers.
_WAITING = frozenset(
    {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
    | {"unique_dim_consecutive", "bincount", "repeat_interleave", "is_nonzero", "histc"}
)
_BY_INDEX = frozenset({"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"})
_MOVING = frozenset({"_to_copy", "copy_", "copy", "_copy_from", "_copy_from_and_resize"})
_SIZES = frozenset(
    {"sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "dim", "size", "stride", "numel", "storage_offset"}
    | {"is_contiguous", "is_strides_like_format", "is_non_overlapping_and_dense", "sym_is_contiguous"}
)
# Functions that C++ carries out in a way that no device of Python's can follow.
_LITERALS = ("tensor", "as_tensor")


class Device(NamedTuple):
    """The device, and what has made the host wait for it: an operation, and the line of dml that asked for it."""

    device: torch.device
    waits: list[str]


class MixedDevicesError(RuntimeError):
    """An operation on tensors of two devices."""


_now: Device | None = None  # while there is one
_registered: list[Any] = []  # what must live on


@contextmanager
def pretended_device() -> Iterator[Device]:
    """A device, for as long as the context lasts, in all threads. See `register`."""
    global _now
    register()
    plain = {name: getattr(torch, name) for name in _LITERALS}
    for name, make in plain.items():
        setattr(torch, name, functools.partial(_literal, make))
    _now = Device(torch.device(NAME, 0), [])
    try:
        yield _now
    finally:
        _now = None
        for name, make in plain.items():
            setattr(torch, name, make)


class _Pretended(torch.Tensor):
    """A tensor of the device; `raw` has its numbers."""

    raw: Tensor

    @staticmethod
    def __new__(cls: Any, raw: Tensor) -> "_Pretended":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
            # C++ makes a range by making an empty tensor larger: that one is asked for its size each time.
            dispatch_sizes_strides_policy="sizes" if raw.shape == (0,) else None,
        )
        made.raw = raw
        return made

    def new_tensor(  # type: ignore[override]
        self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad)

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"a tensor on {NAME} has no .numpy(); .numpy(force=True) copies it")
        return self.detach().cpu().numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:  # a file holds numbers; where they are put is for who reads it
        return self.raw.detach().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, *args, **(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{self.raw!r} on {NAME}"


def _compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Do on the CPU what a device would do."""
    name = func._schema.name.removeprefix("aten::")
    if name in _SIZES:
        return func(args[0].raw, *args[1:])
    given = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    ours = {id(each.raw): each for each in given if isinstance(each, _Pretended)}
    to = kwargs.get("device")
    here = bool(ours) if to is None else torch.device(to).type == NAME  # whether the result is a tensor of ours
    if name in _MOVING:
        here = here if name == "_to_copy" else isinstance(args[0], _Pretended)
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if waits and any(isinstance(each, _Pretended) != here for each in given):
            _wait("copy to the device" if here else "copy to the host")
    elif ours and (others := [each for each in given if not isinstance(each, _Pretended) and each.dim()]):
        raise MixedDevicesError(f"{name}: a tensor {list(others[0].shape)} on {others[0].device}, others on {NAME}")
    if ours and (name in _WAITING or (name in _BY_INDEX and _has_mask(args[1]))):
        _wait(name)
    raw = pytree.tree_map(lambda each: each.raw if isinstance(each, _Pretended) else each, (args, kwargs))
    if to is not None and here:
        raw[1]["device"] = torch.device("cpu")
    with torch._C._DisableTorchDispatch():
        found = func(*raw[0], **raw[1])
    if any(each.shape != each.raw.shape for each in ours.values()):
        raise NotImplementedError(f"{name} makes a tensor larger or smaller, which {NAME} cannot follow")

    def wrap(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        if id(each) in ours:
            return ours[id(each)]
        with torch.inference_mode(each.is_inference()):
            return _Pretended(each)

    return pytree.tree_map(wrap, found) if here else found


def _has_mask(indices: Any) -> bool:
    return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in indices)


def _wait(what: str) -> None:
    if _now is not None:
        frames = [f for f in traceback.extract_stack() if "/dml/" in f.filename and Path(f.filename) != Path(__file__)]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}" if frames else "a library"
        _now.waits.append(f"{what}: {where}")


def _literal(make: Any, data: Any, *, device: Any = None, **given: Any) -> Tensor:
    if isinstance(data, _Pretended):
        return make(data.raw, **given) if device else _Pretended(make(data.raw, **given))
    made = make(data, **given)
    return made if device is None else made.to(device)


class _Module:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return _now is not None

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def register() -> None:
    """Tell torch of the device: in a process before its first backward pass, when autograd looks for devices."""
    if _registered:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    class Hook(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return _now is not None

        def has_primary_context(self, index: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module(), hook=Hook())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_compute, "PrivateUse1")  # what makes a tensor of none
    _registered.append(library)
