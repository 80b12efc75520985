"""Hydra's sweeper of a search, on Optuna's ask and tell. Hydra looks for plugins here alone, and imports them at every
start: Optuna and all else that takes time is imported when a search begins.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger(__name__)


class Search(Sweeper):
    """Propose settings, run them as jobs of any launcher, and learn of their validation metric (the higher the better).

    Nothing is kept but the jobs' folders: the sampler is seeded, so the same command proposes the same again and finds
    the jobs that are finished.

    Args:
        n_trials: jobs in all.
        n_jobs: proposed at a time, each batch from those before it.
        sampler: node of an Optuna sampler, with a seed.
        pruner: node of an Optuna pruner, asked after every validation of a job; null: every job runs to its end.
        params: key -> what is searched, as `interval(1,8)`; the command line changes and adds to them.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self, *, n_trials: int, n_jobs: int, sampler: DictConfig, pruner: DictConfig | None, params: DictConfig | None
    ) -> None:
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.params: Mapping[Any, Any] = params or {}
        self.sampler, self.pruner = sampler, pruner

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over, and make the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search, and write what was found into optimization_results.yaml and search.png.

        Raises:
            HydraException: a number is too small, nothing is searched, a range cannot be one, no job came to an end, or
                the folder of a job holds another run, of which the search cannot learn.
        """
        import optuna

        from dml.app.make import make

        for key, number in (("n_trials", self.n_trials), ("n_jobs", self.n_jobs)):
            if number < 1:
                raise HydraException(f"hydra.sweeper.{key}={number} is not possible: it must be 1 or more")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        loader = self.hydra_context.config_loader
        given = [*(f"{key}={value}" for key, value in dict(self.params).items()), *arguments]
        space, fixed = _space(OverridesParser.create(config_loader=loader).parse_overrides(given))
        study = optuna.create_study(direction="maximize", sampler=make(self.sampler))
        folders: list[Path] = []
        while len(folders) < self.n_trials:
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - len(folders)))]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            folders += [self._prepare(job, trial.number, study) for job, trial in zip(jobs, trials, strict=True)]
            finished = [(folders[trial.number] / "metrics.json").is_file() for trial in trials]
            results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, result, was_finished in zip(trials, results, finished, strict=True):
                _not_refused(trial.number, result, was_finished)
                _tell(study, trial, folders[trial.number], result)
        self._write(study)

    def _prepare(self, job: Sequence[str], number: int, study: Any) -> Path:
        """The folder of a job; into it goes what its pruner is to know, which are the jobs of earlier batches."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        with open_dict(config):
            config.hydra.job.num = number
        root = Path(config.hydra.sweep.dir)
        root.mkdir(parents=True, exist_ok=True)
        if number == 0:
            OmegaConf.save(self.config, root / "multirun.yaml")
        folder = root / config.hydra.sweep.subdir
        if self.pruner is not None:
            from dml.app.search import write_search

            write_search(folder, config.protocol.monitor, OmegaConf.to_container(self.pruner), study.trials)
        return folder

    def _write(self, study: Any) -> None:
        from dml.report.search import Trial, draw_search

        root = Path(self.config.hydra.sweep.dir)
        trials = [Trial(t.number, dict(t.params), t.value, t.state.name.lower()) for t in study.trials]
        done = [trial for trial in trials if trial.state == "complete"]
        if not done:
            raise HydraException(f"none of the {len(trials)} trials in {root} came to its end: what each said is above")
        best = study.best_trial
        found = {"name": "optuna", "best_job": best.number, "best_params": dict(best.params), "best_value": best.value}
        OmegaConf.save(
            OmegaConf.create({**found, "trials": [trial._asdict() for trial in trials]}),
            root / "optimization_results.yaml",
        )
        draw_search(trials, root / "search.png")
        others = ", ".join(
            f"{sum(trial.state == state for trial in trials)} {word}"
            for state, word in (("pruned", "pruned"), ("fail", "failed"))
        )
        what = f"job {best.number}, {best.value:.4f}, {best.params}"
        log.info(f"Best of {len(trials)} trials ({others}): {what}. Files: {root}")


def _not_refused(number: int, result: JobReturn, was_finished: bool) -> None:
    """Stop where a job's folder holds another run. A job of several processes says so by its status alone."""
    from dml.app.errors import OtherRunException

    if result.status != JobStatus.COMPLETED and (was_finished or isinstance(result._return_value, OtherRunException)):
        raise HydraException(
            f"the search stops at job {number}, whose folder holds another run (what it said is above). No trial is "
            "counted as failed, and earlier results are left as they are"
        )


def _tell(study: Any, trial: Any, folder: Path, result: JobReturn) -> None:
    """Tell the study what became of a job. One that failed, or has no number to show, counts as none."""
    from optuna.trial import TrialState

    from dml.app.search import validated_in

    for step, value in validated_in(folder).items():
        trial.report(value, step)
    file = folder / "metrics.json"
    came_to: Any = result.return_value if result.status == JobStatus.COMPLETED else None
    if came_to is None or came_to != came_to:
        study.tell(trial, state=TrialState.FAIL)
        if came_to is not None:
            log.warning(f"Job {trial.number} failed: its validation metric is {came_to}")
    elif file.is_file() and json.loads(file.read_text())["row"].get("pruned"):
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, float(came_to))


def _space(overrides: Sequence[Override]) -> tuple[dict[str, Any], list[str]]:
    """What is searched, key -> Optuna's distribution, and the overrides that all jobs share.

    Raises:
        HydraException: nothing is searched, or a range cannot be one.
    """
    space: dict[str, Any] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        space.pop(key, None)
        fixed.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = str(override.input_line)
            continue
        try:
            space[key] = _distribution(override)
        except ValueError as error:
            raise HydraException(f"{override.input_line} cannot be searched: {error}") from None
    if not space:
        raise HydraException(
            "nothing is searched: give a range, such as loss.alpha=interval(1,8), or a choice of values"
        )
    return space, list(fixed.values())


def _distribution(override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        ends = value.start, value.end
        kind: Any = IntDistribution if all(isinstance(end, int) for end in ends) else FloatDistribution
        return kind(*ends, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        steps: Any = sorted(override.sweep_iterator())
        if len(steps) > 1:
            kind = IntDistribution if all(isinstance(step, int) for step in steps) else FloatDistribution
            return kind(steps[0], steps[-1], step=abs(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))
