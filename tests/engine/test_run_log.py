"""The lines of a run, the numbers that its loggers get, and a bar that they do not tear."""

import csv
import io
import logging
import sys

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from rich.file_proxy import FileProxy

from dml.engine import run_log
from dml.engine.progress import StepProgressBar
from dml.engine.run_log import RunLog
from tests.engine.conftest import AtStep, Scores, make_data, make_learner, make_trainer


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO, run_log.__name__)


def lines(caplog):
    return [record.message for record in caplog.records if record.name == run_log.__name__]


def run(folder, steps, *callbacks, scores=(), monitor="val/recall@1", ckpt_path=None, **given):
    trainer = make_trainer(folder, steps, RunLog(monitor), *callbacks, **given)
    trainer.fit(make_learner(evaluator=Scores(*scores)), make_data(validate=monitor is not None), ckpt_path=ckpt_path)
    return trainer


def test_a_line_a_validation_and_the_end(tmp_path, caplog):
    run(tmp_path, 6, scores=(0.25, 0.75, 0.5))
    first, *validations, end = lines(caplog)
    assert first == "training for 6 steps; an epoch is 5 batches"
    assert [line.split(", loss")[0] for line in validations] == [
        "step 2: val/recall@1 0.2500, best 0.2500 (step 2)",
        "step 4: val/recall@1 0.7500, best 0.7500 (step 4)",
        "step 6: val/recall@1 0.5000, best 0.7500 (step 4)",
    ]
    assert all("learning rate 0.01" in line and line.endswith(" images/s") for line in validations)
    assert end.startswith("ended at step 6 after 0:00:") and end.endswith(
        ": trainer.max_steps=6; best val/recall@1 0.7500 at step 4"
    )


@pytest.mark.parametrize(
    ("given", "callbacks", "why"),
    [
        ({"max_epochs": 1}, (), "trainer.max_epochs=1"),
        ({"max_time": {"milliseconds": 1}}, (), "trainer.max_time is over"),
        ({}, (lambda trainer, _: setattr(trainer, "should_stop", True),), "a callback asked for it (should_stop)"),
        ({"patience": 1}, (), "1 validation without a better val/recall@1 (patience)"),
    ],
)
def test_why_it_ended(tmp_path, caplog, given, callbacks, why):
    patience = given.pop("patience", None)
    stops = [EarlyStopping("val/recall@1", mode="max", patience=patience)] if patience else []
    run(tmp_path, 50, *map(AtStep, callbacks), *stops, scores=(0.5, 0.4), **given)
    assert f": {why}" in lines(caplog)[-1]


def test_without_validation_as_often_and_the_best_is_not_forgotten(tmp_path, caplog):
    run(tmp_path, 4, monitor=None)
    assert [line.split(":")[0] for line in lines(caplog)[1:-1]] == ["step 2", "step 4"]
    assert all("val/" not in line and "loss " in line for line in lines(caplog)[1:-1])
    trainer = run(tmp_path, 2, scores=(0.75,))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    caplog.clear()
    run(tmp_path, 4, scores=(0.5,), ckpt_path=tmp_path / "x.ckpt")
    assert lines(caplog)[0] == "training for 4 steps, from step 2 on; an epoch is 5 batches"
    assert "best 0.7500 (step 2)" in lines(caplog)[1]


def test_what_loggers_get(tmp_path):
    run(tmp_path, 6, logger=CSVLogger(tmp_path, name="csv", version=0), log_every_n_steps=2)
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == 3
    for row in rows:
        assert float(row["train/learning_rate"]) == pytest.approx(0.01)
        assert float(row["train/images_per_second"]) > 0 and 0.1 < float(row["train/peak_memory_gb"]) < 50


def test_at_a_terminal_what_is_logged_goes_above_the_bar(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "__stdout__", screen)
    handler, streams = logging.StreamHandler(screen), []
    logging.getLogger().addHandler(handler)
    try:
        look = AtStep(lambda *_: streams.append(handler.stream))
        run(tmp_path, 2, StepProgressBar(), look, enable_progress_bar=True)
    finally:
        logging.getLogger().removeHandler(handler)
    assert streams and all(isinstance(stream, FileProxy) for stream in streams)
    assert handler.stream is screen  # as before
    assert "step 2: val/recall@1" in screen.getvalue()


def test_the_score_before_the_first_step_is_kept_and_a_run_that_fell_below_it_says_so(tmp_path, caplog):
    logger = CSVLogger(tmp_path, name="", version="")
    plain = run(tmp_path / "plain", 4, scores=(0.25, 0.75))
    assert plain.callbacks[0].before is None
    caplog.clear()
    trainer = run(tmp_path, 4, scores=(0.8, 0.25, 0.75), num_sanity_val_steps=-1, logger=logger)
    assert lines(caplog)[0] == "step 0: val/recall@1 0.8000, before training"
    worse = lines(caplog)[-1]
    assert worse.startswith(
        "val/recall@1 was 0.8000 before the first step and is 0.7500 at its best: training has made"
    )
    assert trainer.callbacks[0].before == pytest.approx({"val/recall@1": 0.8})
    with (tmp_path / "metrics.csv").open() as file:
        assert [(row["step"], row["val/recall@1"][:4]) for row in csv.DictReader(file) if row["val/recall@1"]] == [
            ("0", "0.80"),
            ("1", "0.25"),
            ("3", "0.75"),
        ]
    # It changes no weight, and a run that goes on keeps it without looking again.
    weights = [learner.lightning_module.state_dict() for learner in (plain, trainer)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    caplog.clear()
    on = run(tmp_path / "on", 6, scores=(0.9,), num_sanity_val_steps=-1, ckpt_path=str(tmp_path / "last.ckpt"))
    assert on.callbacks[0].before == trainer.callbacks[0].before
    assert not any("before training" in line or "made it worse" in line for line in lines(caplog))
