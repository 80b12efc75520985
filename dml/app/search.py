"""A search and its jobs. What a job must know to be pruned lies in its folder, so that any launcher will do:

search.json, by the sweeper before the job: the metric, the pruner, and what the jobs of earlier batches have shown.
validations.json, by the job: the metric at each validation so far.

A job compares itself with earlier batches only. So what is pruned depends on no clock, and is the same again.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dml.engine.pruning import Pruning
from dml.whole_file import write_whole

_SEARCH, _VALIDATED = "search.json", "validations.json"


def write_search(folder: Path, monitor: str, pruner: Any, trials: Iterable[Any]) -> None:
    """Write search.json of a job.

    Args:
        folder: of the job.
        monitor: the validation metric.
        pruner: node of an Optuna pruner, plain.
        trials: Optuna's, of the search so far; those that are told count.
    """
    earlier = [
        {"state": trial.state.name, "value": trial.value, "validated": trial.intermediate_values}
        for trial in trials
        if trial.state.is_finished()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    content = {"monitor": monitor, "pruner": pruner, "earlier": earlier}
    write_whole(folder / _SEARCH, json.dumps(content).encode())


def validated_in(folder: Path) -> dict[int, float]:
    """Step -> the metric, of the validations of a job of a search; empty: there is none yet, or it is no such job."""
    file = folder / _VALIDATED
    return {int(step): value for step, value in json.loads(file.read_text()).items()} if file.is_file() else {}


def pruned_at(folder: Path, validated: dict[int, float]) -> int | None:
    """The step at which a job with these validations is pruned; None: it is not, or no search prunes here."""
    file = folder / _SEARCH
    if not file.is_file():
        return None
    import optuna

    from dml.app.make import make

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = json.loads(file.read_text())
    study = optuna.create_study(direction="maximize", pruner=make(search["pruner"]), study_name="search")
    for trial in search["earlier"]:
        values = {int(step): value for step, value in trial["validated"].items()}
        state = optuna.trial.TrialState[trial["state"]]
        study.add_trial(optuna.trial.create_trial(state=state, value=trial["value"], intermediate_values=values))
    now = study.ask()
    for step, value in sorted(validated.items()):
        now.report(value, step)
        if now.should_prune():
            return step
    return None


def pruning_in(folder: Path) -> list[Pruning]:
    """The callback that prunes, where a search does."""
    file = folder / _SEARCH
    if not file.is_file():
        return []
    return [
        Pruning(
            folder / _VALIDATED,
            monitor=json.loads(file.read_text())["monitor"],
            validated=validated_in(folder),
            pruned_at=lambda validated: pruned_at(folder, validated),
        )
    ]
