"""engine.ema: the average is the one of the formula, it is what is validated and tested, and it goes on exactly."""

import json

import torch

from dml.engine.averaging import AveragedWeights
from dml.engine.callbacks import make_callbacks
from dml.engine.stop import StopSignals
from tests.app.conftest import evaluate, train
from tests.engine.conftest import AtStep, Scores, make_data, make_learner, make_trainer

DECAY = 0.8


def run(folder, steps, *callbacks, ckpt_path=None, scores=None):
    with StopSignals() as stop:
        files = make_callbacks(folder=str(folder), monitor="val/recall@1", patience=None, minutes=60.0, stop=stop)
        trainer = make_trainer(folder, steps, *callbacks, AveragedWeights(decay=DECAY), *files, num_sanity_val_steps=-1)
        learner = make_learner(evaluator=scores or Scores(0.1, 0.2, 0.9, 0.3, 0.4))
        trainer.fit(learner, make_data(), ckpt_path=ckpt_path, weights_only=True)
    return trainer, learner


def test_the_average_is_validated_and_written(tmp_path):
    weights, seen = [], Scores()
    note = AtStep(lambda _, learner: weights.append(learner.embedder.head.weight.detach().double().clone()))
    trainer, learner = run(tmp_path, 6, note, scores=seen)
    average, averages = weights[0], [weights[0]]
    for weight in weights[1:]:
        average = DECAY * average + (1 - DECAY) * weight
        averages.append(average)
    assert len(weights) == 6 and (average - weights[-1]).abs().max() > 1e-4
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.allclose(state["state_dict"]["embedder.head.weight"].double(), average, atol=1e-6)
    assert torch.allclose(state["current_model_state"]["embedder.head.weight"].double(), weights[-1], atol=1e-7)
    assert torch.allclose(learner.embedder.head.weight.double(), average, atol=1e-6)
    # What the validation after step 4 embedded: training went on with the weights, which it found as it left them.
    images = torch.stack([trainer.datamodule.parts["validation"][i][0] for i in range(11)]).flatten(1).double() / 255
    bias = learner.embedder.head.bias  # not averaged by the loop above: of the differences only
    found = seen.calls[2][0].double()
    expected = images @ averages[3].T
    assert torch.allclose(found - found.mean(0), expected - expected.mean(0), atol=1e-4) and bias is not None


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(tmp_path):
    run(tmp_path / "whole", 9)
    run(tmp_path / "part", 5)
    run(tmp_path / "on", 9, ckpt_path=tmp_path / "part" / "last.ckpt")
    a, b = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "on"))
    for part in ("state_dict", "current_model_state", "averaging_state"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items()), part
    assert not torch.equal(a["state_dict"]["loss.weight"], a["current_model_state"]["loss.weight"])


def test_the_best_average_is_tested_and_the_row_says_so(tmp_path):
    settings = ("engine.ema=0.5", "trainer.max_steps=12", "trainer.val_check_interval=5")
    done = train(tmp_path / "run", *settings)
    tested = {name: value for name, value in done.metrics.items() if name.startswith("test/")}
    assert json.loads((done.folder / "metrics.json").read_text())["row"]["engine"] == {"ema": 0.5}
    again = evaluate(tmp_path / "again", done.folder / "checkpoints" / "best.ckpt")
    assert again.metrics == tested
    plain = train(tmp_path / "plain", *settings[1:])
    assert plain.metrics["test/map"] != done.metrics["test/map"]
    # Given again with its end reached already, it tests the average and not the weights beside it.
    paper = (*settings, "protocol=paper", "scheduler=none")
    once = train(tmp_path / "once", *paper)
    assert train(tmp_path / "twice", *paper, f"resume={once.folder}").metrics == once.metrics
