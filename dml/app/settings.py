"""What a config holds: its keys, their types and ranges. dml.app.schema reads this, and the parts' own signatures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from dml.engine.rules import Rule

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Interval(gt=0, lt=1)]
UpToOne = Annotated[float, Interval(gt=0, le=1)]
Whole = Annotated[int, Ge(0)]
Amount = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Part:
    """A group whose keys are the arguments of its `_target_`, whose signature says what they may be.

    Attributes:
        given: arguments that the program gives.
        later: keys that may be null, as the program fills them in once it knows the data.
        beside: the group's keys that are no arguments.
        ranges: of arguments of other libraries, whose signatures have types alone.
        needs: arguments that the program reads itself, so that a default does not do.
        optional: an empty group stands for none.
        several: a group without a `_target_` holds parts by name.
    """

    given: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    beside: type | None = None
    ranges: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    optional: bool = False
    several: bool = False


def loggers_of(logger: Any) -> list[Any]:
    """The nodes of the group logger: none, one, or several by name."""
    return [logger] if "_target_" in logger else list(logger.values())


@dataclass
class Splitting:
    """Keys of the data group that say how the source is split, and how its images are read."""

    val_fraction: Share = 0.2
    fold: Whole | None = None
    folds: Annotated[int, Ge(2)] = 5
    cache: Literal["none", "disk", "ram"] = "none"
    cache_dir: str = "data/cache"
    on_error: Literal["raise", "skip"] = "raise"
    max_bad: Whole = 10


@dataclass
class Optimizing:
    """Keys of the optimizer group that say which weights learn how (dml/engine/parameters.py)."""

    groups: list[Rule] = field(default_factory=list)
    layer_decay: Annotated[float, Interval(gt=0, le=1)] | None = None


def without(group: Mapping[str, Any], beside: type) -> dict[str, Any]:
    """The keys of a group that are arguments of its `_target_`: those that `beside` does not name."""
    ours = {field.name for field in fields(beside)}
    return {key: value for key, value in group.items() if key not in ours}


@dataclass
class Loader:
    """How images are loaded."""

    workers: Whole | None
    eval_batch_size: Count


@dataclass
class Protocol:
    """Which images decide what."""

    name: str
    validate: bool
    monitor: str | None
    patience: Whole | None
    watch_test: bool


@dataclass
class Batch:
    """What the samplers take their sizes from."""

    classes_per_batch: Count
    samples_per_class: Count
    pairs: Count


@dataclass
class Engine:
    """How a step is carried out."""

    compile: bool
    micro_batch: Count | None
    reuse_memory: bool
    ema: Share | None


_OPTIMIZER = {
    "lr": Annotated[float, Gt(0)],
    "momentum": Annotated[float, Interval(ge=0, lt=1)],
    "weight_decay": Amount,
    "betas": tuple[Annotated[float, Interval(ge=0, lt=1)], Annotated[float, Interval(ge=0, lt=1)]],
    "eps": Amount,
}
_TRAINER = {
    "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"],
    "devices": Count | Literal[-1, "auto"] | list[Whole],
    "num_nodes": Count,
    "max_steps": Count | Literal[-1],
    "max_epochs": Count | Literal[-1] | None,
    "val_check_interval": Count | UpToOne,  # steps, or a share of an epoch
    "check_val_every_n_epoch": Count | None,
    **dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), Count | UpToOne | None),
    "overfit_batches": Literal[0],  # takes the training images for validation
    "fast_dev_run": Literal[False],  # writes no checkpoint; trainer.max_steps=1 does the rest
    "log_every_n_steps": Count,
    "num_sanity_val_steps": Literal[-1, 0],  # all or nothing: retrieval in a few batches says nothing
    "accumulate_grad_batches": Count,
    "gradient_clip_val": Amount | None,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
}
# null: filled in by dml.app.build, in a loss and in those that it wraps.
LATER = ("num_classes", "embedding_dim", "groups")
# null: by dml.app.follow.
IMAGES = ("size", "resize", "interpolation")


@dataclass
class Evaluated:
    """What training and evaluation both take from the command line."""

    data: Annotated[dict, Part(beside=Splitting)]
    transform: Annotated[dict, Part(later=IMAGES)]
    loader: Loader
    evaluator: Annotated[dict, Part(needs=("ks", "metrics", "normalize"))]
    trainer: Annotated[
        dict,
        Part(
            given=("logger", "callbacks", "default_root_dir", "enable_progress_bar", "plugins"),
            ranges=_TRAINER,
            needs=("accelerator", "devices", "num_nodes", "max_steps", "val_check_interval"),
        ),
    ]
    progress_bar: bool


@dataclass
class Model:
    """What decides a model; evaluation takes it from the checkpoint."""

    backbone: Annotated[dict, Part(needs=("name", "pretrained"))]
    embedder: Annotated[dict, Part(given=("backbone",), needs=("dim", "freeze_bn", "normalize"))]
    loss: Annotated[dict, Part(later=LATER)]
    sampler: Annotated[
        dict,
        Part(given=("labels", "seed", "rank", "world_size"), needs=("classes_per_batch", "samples_per_class")),
    ]
    optimizer: Annotated[dict, Part(given=("params",), beside=Optimizing, ranges=_OPTIMIZER)]
    scheduler: Annotated[dict, Part(given=("optimizer",), optional=True)]
    protocol: Protocol
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)]


@dataclass
class Training(Model, Evaluated):
    """The config of train.py."""

    logger: Annotated[dict, Part(given=("save_dir", "default"), optional=True, several=True)]
    callbacks: dict[str, Annotated[dict, Part()]]
    batch: Batch
    engine: Engine
    method_name: str | None
    learning_rates: dict[str, Annotated[float, Gt(0)]]
    resume: str | None
    checkpoint_minutes: Annotated[float, Interval(gt=0, le=366 * 24 * 60)]
    threads: Count | None


@dataclass
class Evaluation(Evaluated):
    """The config of evaluate.py."""

    ckpt_path: str | list[str]
    trust: bool
