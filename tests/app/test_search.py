"""A search: it maximises the validation metric, goes on, prunes, and says what it cannot do."""

import json
import math
from contextlib import nullcontext

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dml.app.errors import OtherRunException
from dml.app.search import validated_in, write_search
from dml.report.runs import pruned, read_runs
from hydra_plugins.dml_search import Search, _not_refused, _space, _tell
from tests.app.conftest import TRAIN, train
from tests.app.test_processes import end, start

optuna = pytest.importorskip("optuna", reason="optuna comes with the extra [sweep]")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from optuna.trial import TrialState, create_trial  # noqa: E402

MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1}
STEPS = ("trainer.max_steps=6", "trainer.val_check_interval=2")


def row_of(folder):
    return json.loads((folder / "metrics.json").read_text())["row"]


def space_of(*overrides):
    return _space(OverridesParser.create().parse_overrides(list(overrides)))


def test_what_is_searched():
    space, fixed = space_of(
        "seed=0",
        "a=interval(1,8)",
        "b=tag(log,interval(0.1,1))",
        "c=int(interval(2,5))",
        "d=range(1,8,3)",
        "e=range(0,1,0.25)",
        "f=x,'y z'",
        "+g=range(3)",
        "g2=range(2,3)",
        "a=interval(2,3)",
        "b=7",
    )
    assert fixed == ["seed=0", "b=7"]
    assert space == {
        "a": FloatDistribution(2, 3),
        "c": IntDistribution(2, 5),
        "d": IntDistribution(1, 7, step=3),
        "e": FloatDistribution(0, 0.75, step=0.25),
        "f": CategoricalDistribution(["x", "'y z'"]),
        "+g": IntDistribution(0, 2),
        "g2": CategoricalDistribution(["2"]),
    }


@pytest.mark.parametrize(
    ("given", "said"), [("a=1", "nothing is searched"), ("a=interval(8,1)", r"a=interval\(8,1\) cannot be searched")]
)
def test_what_cannot_be_searched_is_named(given, said):
    with pytest.raises(HydraException, match=said):
        space_of(given)


@pytest.mark.parametrize(
    ("value", "status"), [(math.nan, JobStatus.COMPLETED), (None, JobStatus.COMPLETED), (0.5, JobStatus.FAILED)]
)
def test_a_job_without_a_number_is_a_failed_trial(value, status, tmp_path):
    study = optuna.create_study(direction="maximize")
    _tell(study, study.ask(), tmp_path, JobReturn(_return_value=value, status=status))
    assert study.trials[0].state == TrialState.FAIL


def test_a_search_without_validation_is_refused():
    code, _, err = end(start("train.py", "-m", "hydra/sweeper=alpha_lr", "protocol=paper", "seed=0"))
    assert code == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("protocol=paper has no validation metric for hydra/sweeper=alpha_lr")


@pytest.mark.parametrize("key", ["n_trials", "n_jobs"])
def test_numbers_of_jobs_that_cannot_be_are_named(key):
    search = Search(**{"n_trials": 1, "n_jobs": 1, "sampler": None, "pruner": None, "params": None, key: 0})
    with pytest.raises(HydraException, match=rf"hydra\.sweeper\.{key}=0 is not possible: it must be 1 or more"):
        search.sweep([])


def test_a_search_maximises_the_validation_metric_and_goes_on(tmp_path):
    # What it tries first, finished already.
    space, _ = space_of("loss.alpha=interval(1,8)", "optimizer.lr=tag(log,interval(0.0003,0.03))")
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    first = study.ask(space).params
    train(tmp_path / "0", *(f"{key}={value}" for key, value in first.items()), "trainer.val_check_interval=1")
    command = ("hydra/sweeper=alpha_lr", "hydra.sweeper.n_trials=4", f"hydra.sweep.dir={tmp_path}")
    at_once = ("hydra/launcher=workers", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=3")
    pruner = "hydra.sweeper.pruner.n_startup_trials=1"
    code, out, err = end(start("train.py", "-m", *TRAIN, *command, *at_once, pruner, "trainer.val_check_interval=1"))
    assert code == 0, err
    assert out.count("not run again") == 1
    found = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert [trial.state for trial in found.trials][:3] == ["complete"] * 3  # no earlier batch to be below
    assert found.best_value == max(trial.value for trial in found.trials if trial.state == "complete")
    config = OmegaConf.load(tmp_path / str(found.best_job) / "config.yaml")
    assert found.best_params == {"loss.alpha": config.loss.alpha, "optimizer.lr": config.optimizer.lr}
    metrics = json.loads((tmp_path / str(found.best_job) / "metrics.json").read_text())["metrics"]
    assert found.best_value == metrics["val/map"]
    assert (tmp_path / "search.png").stat().st_size > 10_000
    last = json.loads((tmp_path / "3" / "search.json").read_text())
    assert [trial["state"] for trial in last["earlier"]] == ["COMPLETE"] * 3
    assert list(last["earlier"][1]["validated"]) == ["1", "2", "3"]
    # Finished by another version of the code: nothing is learnt of such jobs, and nothing is lost.
    before, job = (tmp_path / "optimization_results.yaml").read_bytes(), tmp_path / "1" / "metrics.json"
    job.write_text(json.dumps(json.loads(job.read_text()) | {"row": row_of(tmp_path / "1") | {"code": "of-then"}}))
    code, _, err = end(start("train.py", "-m", *TRAIN, *command, at_once[-1], pruner, "trainer.val_check_interval=1"))
    assert code == 1 and "Job 1 failed: " in err and "another version of the code" in err
    assert "the search stops at job 1, whose folder holds another run" in err
    assert (tmp_path / "optimization_results.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "was_finished", "stops"),
    [(OtherRunException("x"), False, True), (HydraException("x"), True, True), (HydraException("x"), False, False)],
)
def test_a_job_that_was_refused_is_no_failed_trial(error, was_finished, stops):
    with pytest.raises(HydraException, match="search stops at job 3") if stops else nullcontext():
        _not_refused(3, JobReturn(_return_value=error, status=JobStatus.FAILED), was_finished)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that no search prunes, with its validations."""
    folder = tmp_path_factory.mktemp("whole")
    write_search(folder, "val/map", MEDIAN, [])
    return train(folder, *STEPS)


def another(value):
    """An earlier trial that was at this value in each validation."""
    return create_trial(state=TrialState.COMPLETE, value=value, intermediate_values=dict.fromkeys((2, 4, 6), value))


def test_a_trial_that_is_worse_is_pruned_until_it_is_not(tmp_path, whole, capsys):
    assert list(validated_in(whole.folder)) == [2, 4, 6] and "pruned" not in row_of(whole.folder)
    write_search(tmp_path, "val/map", MEDIAN, [another(0.99)])
    run = train(tmp_path, *STEPS)
    assert "Pruned after step 2" in capsys.readouterr().out
    first = validated_in(whole.folder)[2]
    assert run.metrics == {"val/map": first}
    assert row_of(tmp_path)["pruned"] == {"step": 2, "val/map": first} and row_of(tmp_path)["steps"] == 2
    assert pruned([tmp_path]) == [tmp_path.resolve()]
    with pytest.raises(ValueError, match=r"no finished run.*pruned"):
        read_runs([tmp_path])
    assert train(tmp_path, *STEPS).metrics == run.metrics
    assert "not run again" in capsys.readouterr().out
    write_search(tmp_path, "val/map", MEDIAN, [another(0.0)])  # by then another search
    assert train(tmp_path, *STEPS).metrics == whole.metrics  # goes on, bit for bit
    assert "Going on from" in capsys.readouterr().out and "pruned" not in row_of(tmp_path)


def test_the_last_validation_prunes_nothing(tmp_path, whole):
    better = create_trial(state=TrialState.COMPLETE, value=1.0, intermediate_values={6: 1.0})
    write_search(tmp_path, "val/map", MEDIAN, [better])
    assert train(tmp_path, *STEPS).metrics == whole.metrics


def test_a_pruned_trial_is_told_as_such(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": {}, "row": {"pruned": {"step": 2}}}))
    (tmp_path / "validations.json").write_text('{"2": 0.25}')
    study = optuna.create_study(direction="maximize")
    _tell(study, study.ask(), tmp_path, JobReturn(_return_value=0.25, status=JobStatus.COMPLETED))
    assert (study.trials[0].state, study.trials[0].value) == (TrialState.PRUNED, 0.25)
