"""A trained network as files that need no dml: safetensors for timm, torch.export, and ONNX in three precisions.

Images go in as uint8 [B, 3, H, W], B of any size, as scaling is part of the network; only timm's takes them scaled.
Embeddings come out as the run compares them.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dml.models.embedder import Embedder
from dml.use.missing import optional
from dml.use.trained import Trained

Embed = Callable[[Tensor], Tensor]  # images uint8 [B, 3, H, W] -> embeddings [B, D]
FORMATS = ("safetensors", "torch", "onnx", "float16", "int8")


class Written(NamedTuple):
    """A file that was written.

    Attributes:
        file: its name.
        embed: runs what is in it.
        exact: whether it computes in float32.
    """

    file: str
    embed: Embed
    exact: bool


class Network(nn.Module):
    """What is exported: embeddings of length 1 if the run compares such (of ten crops their mean is, so not here)."""

    def __init__(self, model: Trained) -> None:
        super().__init__()
        self.embedder = model.embedder
        self.join = getattr(model.embedder, "join", None) or nn.Identity()  # of an embedder in groups
        self.normalize = model.normalized and not model.config["transform"].get("ten_crop")

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] -> embeddings [B, D]."""
        embeddings = self.join(self.embedder(images))
        return F.normalize(embeddings, dim=1) if self.normalize else embeddings


def write_formats(
    model: Trained, formats: Sequence[str], folder: Path, calibration: Callable[[], Iterator[np.ndarray]]
) -> Iterator[Written]:
    """Write the files of some formats, one after another.

    Args:
        model: on the CPU.
        formats: of FORMATS.
        folder: to write into.
        calibration: batches of training images uint8 [b, 3, H, W], by which int8 chooses its scales.

    Raises:
        ValueError: a format needs a package that is not there, or the network cannot be written in it.
    """
    network = Network(model).eval()
    if "safetensors" in formats:
        yield _write_timm(model, network.normalize, folder)
    if not {"torch", "onnx", "float16", "int8"} & set(formats):
        return
    program = _program(network, _shape(model))
    if "torch" in formats:
        with _quiet():
            torch.export.save(program, folder / "model.pt2")
            yield Written("model.pt2", torch.export.load(folder / "model.pt2").module(), True)
    if {"onnx", "float16", "int8"} & set(formats):
        yield from _write_onnx(program, formats, folder, calibration)


def _shape(model: Trained) -> list[int]:
    return list(model.read(np.zeros((8, 8, 3), dtype=np.uint8)).shape[-3:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters report on their own work, at length."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "root")
    levels = {name: logging.getLogger(name if name != "root" else None).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in names:
                logging.getLogger(name if name != "root" else None).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name if name != "root" else None).setLevel(level)


def _program(network: nn.Module, shape: list[int]) -> torch.export.ExportedProgram:
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:  # torch's own, of many kinds, for what it cannot trace
        raise ValueError(
            f"torch.export cannot trace this network for batches of any size: {str(error).strip().splitlines()[0]}. "
            "--only safetensors exports the weights alone"
        ) from error


def _write_onnx(
    program: Any, formats: Sequence[str], folder: Path, calibration: Callable[[], Iterator[np.ndarray]]
) -> Iterator[Written]:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        optional(module, "onnx", "ONNX")
    import onnx

    full = folder / "model.onnx"
    with _quiet():
        torch.onnx.export(
            program, (), full, dynamo=True, input_names=["images"], output_names=["embeddings"], external_data=False,
            verbose=False,
        )  # fmt: skip
        graph = onnx.load(full)
        # What follows the last product of matrices is of few numbers, and ranks live on small differences.
        last = max((i for i, node in enumerate(graph.graph.node) if node.op_type in ("Gemm", "MatMul")), default=0)
        head = [node.name for node in graph.graph.node[last:]]
        if "onnx" in formats:
            yield Written(full.name, _session(full), True)
        if "float16" in formats:
            from onnxruntime.transformers.float16 import convert_float_to_float16

            half = folder / "model_float16.onnx"
            onnx.save(convert_float_to_float16(onnx.load(full), keep_io_types=True, node_block_list=head), half)
            yield Written(half.name, _session(half), False)
        if "int8" in formats:
            from onnxruntime import quantization as q

            class Reader(q.CalibrationDataReader):
                def __init__(self) -> None:
                    self.batches = calibration()

                def get_next(self) -> dict[str, np.ndarray] | None:
                    images = next(self.batches, None)
                    return None if images is None else {"images": images}

            eight = folder / "model_int8.onnx"
            q.quantize_static(
                full, eight, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                weight_type=q.QuantType.QInt8, activation_type=q.QuantType.QUInt8, nodes_to_exclude=head,
            )  # fmt: skip
            yield Written(eight.name, _session(eight), False)
    if "onnx" not in formats:
        full.unlink()


def _session(file: Path) -> Embed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_timm(model: Trained, normalize: bool, folder: Path) -> Written:
    """model.safetensors and config.json, as timm's `local-dir:` and `hf-hub:` read them: the head is its classifier."""
    from safetensors.torch import save_file

    embedder, config = model.embedder, model.config["backbone"]
    if type(embedder) is not Embedder or config["_target_"] != "dml.models.backbones.create_backbone":
        raise ValueError(
            f"timm cannot load a network of parts of your own ({type(embedder).__name__}): leave safetensors out, by "
            "--only torch,onnx,float16,int8"
        )
    pool, kind = (model.config["embedder"].get(key) for key in ("pool", "head"))
    if pool == "gem" or kind not in (None, "linear"):
        raise ValueError(
            f"timm has no network with embedder.pool={pool or 'null'} and embedder.head={kind or 'linear'}: leave "
            "safetensors out, by --only torch,onnx,float16,int8"
        )
    known = ("_target_", "name", "pretrained", "checkpoint_path")
    options = {key: value for key, value in config.items() if key not in known}
    options |= {} if pool is None else {"global_pool": pool}
    plain = timm.create_model(config["name"], num_classes=model.dim, **options)
    head = plain.get_classifier()
    if not isinstance(head, nn.Linear) or head.weight.shape != embedder.head.weight.shape:
        raise ValueError(f"timm's {config['name']} has no linear classifier to hold the embedding's layer: leave "
                         "safetensors out, by --only torch,onnx,float16,int8")  # fmt: skip
    left = plain.load_state_dict(embedder.backbone.state_dict(), strict=False)
    (name,) = [name for name, module in plain.named_modules() if module is head]
    if left.unexpected_keys or {*left.missing_keys} != {f"{name}.weight", f"{name}.bias"}:
        raise ValueError(f"the weights do not fit timm's {config['name']}: {left}")
    head.load_state_dict(embedder.head.state_dict())
    plain.eval()
    save_file(
        {key: value.contiguous() for key, value in plain.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt", "dml_fingerprint": model.fingerprint},
    )
    mean, std = (getattr(embedder, key).flatten().tolist() for key in ("mean", "std"))
    pretrained = {
        **{key: plain.pretrained_cfg.get(key) for key in ("first_conv", "pool_size", "fixed_input_size", "license")},
        "input_size": _shape(model),
        "interpolation": model.config["transform"].get("interpolation", "bilinear"),
        "crop_pct": 1.0,
        "mean": mean,
        "std": std,
        "num_classes": model.dim,
        "classifier": name,
    }
    described = {
        "architecture": config["name"].partition(".")[0],
        "num_classes": model.dim,
        "num_features": plain.num_features,
        "model_args": options,
        "pretrained_cfg": pretrained,
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    (folder / "use.py").write_text("\n".join(five_lines(model, "local-dir:.")) + "\n")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def embed(images: Tensor) -> Tensor:
        embeddings = loaded((images.float() / 255 - embedder.mean) / embedder.std)
        return F.normalize(embeddings, dim=1) if normalize or embedder.normalize else embeddings

    return Written("model.safetensors", embed, True)


def five_lines(model: Trained, where: str) -> list[str]:
    """Lines of Python that load the exported weights with plain timm, and embed an image.

    Args:
        model: of which they are.
        where: what timm calls the folder: local-dir:DIR or hf-hub:OWNER/NAME.
    """
    t = model.config["transform"]
    size, resize, side = t["size"], t["resize"], t.get("resize_side", "larger")
    to = {"larger": f"None, max_size={resize}", "shorter": f"{resize}", "both": f"({resize}, {resize})"}[side]
    if (by := t.get("interpolation", "bilinear")) != "bilinear":
        to = f"{to}, interpolation=v2.InterpolationMode.{by.upper()}"
    ground = [f"v2.Pad({size}, {t['fill']})"] if t.get("fill") else []
    mean, std = ([round(x, 6) for x in getattr(model.embedder, key).flatten().tolist()] for key in ("mean", "std"))
    steps = [f"v2.Resize({to})", *ground, f"v2.CenterCrop({size})", "v2.ToImage()"]
    steps += ["v2.ToDtype(torch.float32, scale=True)", f"v2.Normalize({mean}, {std})"]
    ours = not type(model.embedder.backbone).__module__.startswith("timm.")
    result = 'model(read(Image.open("x.jpg").convert("RGB"))[None])'
    normalize = model.normalized or model.embedder.normalize
    return [
        f"import timm, torch{', dml.models.backbones  # which registers the network with timm' if ours else ''}",
        "from PIL import Image; from torchvision.transforms import v2",
        f'model = timm.create_model("{where}", pretrained=True).eval()',
        f"read = v2.Compose([{', '.join(steps)}])",
        f"embedding = {f'torch.nn.functional.normalize({result})' if normalize else result}",
    ]
