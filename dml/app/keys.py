"""The keys of a config, their values, and what they say about each other. Needs no torch, which loads for seconds."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dml.app.another_target import leave_out
from dml.app.schema import MISSING, Locate, parts_in, problems_of, resolved, shown
from dml.app.secrets import secrets_in
from dml.app.settings import Model, Training
from dml.app.unloaded import locate_unloaded
from dml.printable import printable

_PLATEAU = "ReduceLROnPlateau"


def check_early(cfg: DictConfig, schema: type) -> None:
    """Refuse what can be told from the source of the parts; `check_config`, which loads them, tells the rest.

    Raises:
        ValueError: one line a problem, each naming a config key.
    """
    if issubclass(schema, Training) and HydraConfig.initialized():
        cfg = cfg.copy()
        leave_out(cfg, HydraConfig.get().overrides.task, locate_unloaded)
    config, _, said = wrong_keys(cfg, schema, locate_unloaded)
    resume = config.get("resume")
    folder = HydraConfig.get().runtime.output_dir if HydraConfig.initialized() else "."
    begun = (Path(folder) / "checkpoints").is_dir()  # it goes on with what is there
    if isinstance(resume, str) and not begun and not Path(resume).expanduser().exists():
        said.append(f"resume={resume} does not exist")
    if said:
        raise ValueError("\n".join(map(printable, said)))


def wrong_keys(cfg: DictConfig, schema: type, locate: Locate) -> tuple[dict[str, Any], set[str], list[str]]:
    """The config as plain data, its groups that have wrong keys or values, and a line for everything that is wrong.

    Args:
        cfg: composed config.
        schema: a dataclass of dml.app.settings.
        locate: finds what a `_target_` names.
    """
    endless = []
    steps = OmegaConf.select(cfg, "trainer.max_steps", throw_on_resolution_failure=False)
    if issubclass(schema, Training) and steps == -1:
        keys, cfg = takes_steps(cfg), cfg.copy()
        for key in keys:
            cfg.scheduler[key] = 1  # stands for what is not known yet
        if cfg.trainer.get("max_epochs") in (None, -1):
            endless = [
                f"scheduler.{key} cannot be known without trainer.max_steps or trainer.max_epochs: "
                f"give scheduler.{key}=N or scheduler=none"
                for key in keys
            ]
    config, found, taken = resolved(cfg)
    if schema is Model:  # of a checkpoint, which carries more
        config = {field.name: config[field.name] for field in fields(Model) if field.name in config}
    found += problems_of(config, schema, locate)
    # What is taken from another key is told of once, there.
    own = [(type(problem.value), problem.value) for problem in found if problem.key not in taken]
    said = [p.said for p in found if p.key not in taken or p.value is MISSING or (type(p.value), p.value) not in own]
    said += [*endless, *secrets_in(config)]
    if issubclass(schema, Training):
        said += _across(config, {problem.key for problem in found}, locate)
    return config, {problem.key.split(".")[0] for problem in found}, said


def _across(config: dict[str, Any], broken: set[str], locate: Locate) -> Iterator[str]:
    """What keys say about each other, of those that are sound by themselves."""

    def sound(*keys: str) -> bool:
        return not broken & {*keys, *(key.split(".")[0] for key in keys)}

    if sound("loss._target_", "sampler.samples_per_class"):
        n = config["sampler"].get("samples_per_class")  # one of one's own has others
        needed, name = max(_samples_needed(config["loss"], locate))
        if n is not None and n < needed:
            yield (
                f"sampler.samples_per_class={n} leaves anchors without a positive: "
                f"{name.rpartition('.')[2]} needs at least {needed}"
            )
    if sound("loss._target_", "loss.embedding_dim", "embedder.dim"):
        dim, expected = config["embedder"].get("dim"), config["loss"].get("embedding_dim")
        if None not in (dim, expected) and expected != dim:
            yield f"loss.embedding_dim={expected} is not embedder.dim={dim}"
    if sound("backbone.checkpoint_path", "embedder.checkpoint_path"):
        files = [config[group].get("checkpoint_path") for group in ("backbone", "embedder")]
        if all(files):
            yield "embedder.checkpoint_path holds a backbone too: leave out backbone.checkpoint_path"
    frozen = sound("embedder.freeze", "backbone.lora_rank") and config["embedder"].get("freeze")
    if frozen and config["backbone"].get("lora_rank"):
        yield "embedder.freeze=backbone leaves backbone.lora_rank nothing to learn: leave out one of them"
    crops = sound("embedder.freeze", "transform.ten_crop") and config["transform"].get("ten_crop")
    if crops and config["embedder"].get("freeze"):
        yield "transform.ten_crop=true gives an image ten features, and embedder.freeze=backbone trains on one"
    if sound("backbone.global_pool", "embedder.pool"):
        ways = {key: config[group].get(key) for group, key in (("backbone", "global_pool"), ("embedder", "pool"))}
        if None not in ways.values():
            yield (
                f"backbone.global_pool={shown(ways['global_pool'])} has no effect, as embedder.pool="
                f"{shown(ways['pool'])} says how features are pooled: leave it out"
            )
    protocol = config.get("protocol", {})
    known = sound("protocol.validate", "protocol.watch_test", "protocol.monitor", "evaluator.ks", "evaluator.metrics")
    if known and protocol["validate"] and (names := measured(config)) is not None and protocol["monitor"] not in names:
        yield f"protocol.monitor={shown(protocol['monitor'])} is not measured: {', '.join(names)} are"
    if sound("protocol.validate", "protocol.watch_test") and protocol["validate"] and protocol["watch_test"]:
        yield "protocol.watch_test=true is for protocol=paper: a validated run has its own curves"
    if sound("trainer.max_steps", "trainer.max_epochs", "protocol.patience", "callbacks"):
        yield from _ends(config)
    schedule = config.get("scheduler") or {}
    if sound("scheduler", "protocol.validate") and schedule.get("_target_", "").endswith(_PLATEAU):
        if not protocol["validate"]:
            yield f"scheduler={_PLATEAU} looks at validations, and protocol={protocol['name']} has none"
        elif schedule.get("mode", "min") != "max":
            yield f"scheduler.mode=max is needed: of protocol.monitor={protocol['monitor']} more is better"
    if sound("data.fold", "data.folds") and config["data"].get("fold") is not None:
        fold, last = config["data"]["fold"], config["data"].get("folds", 5) - 1
        if fold > last:
            yield f"data.fold={fold} is not possible: it must be 0 to data.folds - 1 = {last}"


def _samples_needed(loss: dict[str, Any], locate: Locate) -> Iterator[tuple[int, str]]:
    """How many images of a class a loss needs and those that it wraps, each with its name."""
    yield getattr(locate(loss["_target_"]), "min_samples_per_class", 1), loss["_target_"]
    for value in loss.values():
        for _, one in parts_in(value):
            yield from _samples_needed(one, locate)


def measured(config: dict[str, Any]) -> list[str] | None:
    """The metrics of a validation; None where an evaluator of one's own alone knows them."""
    protocol, evaluator = config["protocol"], config["evaluator"]
    if not {"ks", "metrics"} <= evaluator.keys():
        return None
    sides = [side for side, key in (("val", "validate"), ("watched_test", "watch_test")) if protocol[key]]
    at_k = {name: [f"{name}@{k}" for k in evaluator["ks"]] for name in ("recall", "precision")}
    names = [one for name in evaluator["metrics"] for one in at_k.get(name, [name])]
    return [f"{side}/{name}" for side in sides for name in names]


def _ends(config: dict[str, Any]) -> Iterator[str]:
    """Whether anything ends the run."""
    trainer = config["trainer"]
    other = (trainer.get("max_time"), config["protocol"]["patience"], config["callbacks"] or None)
    if trainer["max_steps"] == -1 and trainer.get("max_epochs") in (None, -1) and other == (None, None, None):
        yield "trainer.max_steps=-1 leaves the run without an end: give trainer.max_epochs=N or trainer.max_steps=N"


def takes_steps(cfg: DictConfig) -> list[str]:
    """The keys of the schedule that say ${trainer.max_steps}: how many they mean is known once the data is loaded."""
    schedule = OmegaConf.to_container(cfg.scheduler) if isinstance(cfg.get("scheduler"), DictConfig) else None
    return [str(k) for k, v in schedule.items() if v == "${trainer.max_steps}"] if isinstance(schedule, dict) else []
