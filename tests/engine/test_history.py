"""Curves of a run: those of the steps that are logged, the same whether it was stopped or not, never many points."""

from dml.engine import history
from dml.engine.history import History
from tests.engine.conftest import AtStep, Scores, make_data, make_learner, make_trainer


def run(folder, ckpt_path=None, scores=(0.25, 0.75, 0.5)):
    def keep(trainer, _):
        if trainer.global_step == 3:
            trainer.save_checkpoint(folder / "x.ckpt")

    kept = History()
    trainer = make_trainer(folder, 6, kept, AtStep(keep), log_every_n_steps=1)
    trainer.fit(make_learner(evaluator=Scores(*scores)), make_data(), ckpt_path=ckpt_path)
    return kept.curves


def test_curves_go_on_where_the_run_does(tmp_path):
    whole = run(tmp_path)
    assert whole["val/recall@1"] == [[2, 0.25], [4, 0.75], [6, 0.5]]
    assert [step for step, _ in whole["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in whole["train/learning_rate"]] == [0.01] * 6
    assert run(tmp_path, tmp_path / "x.ckpt", scores=(0.75, 0.5)) == whole


def test_long_curves_are_thinned_alike(monkeypatch):
    monkeypatch.setattr(history, "_MOST", 8)
    whole, part = History(), History()
    for step in range(100):
        whole._add("x", step, step)
        part._add("x", step, step)
        again = History()
        again.load_state_dict(part.state_dict())
        part = again
    assert part.curves == whole.curves
    steps = [step for step, _ in whole.curves["x"]]
    assert steps == list(range(0, 100, 16))
