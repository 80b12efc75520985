"""Callbacks of the user's own, by config."""

import json

import pytest
import pytorch_lightning as pl
import torch

from tests.app.conftest import train


class Counts(pl.Callback):
    """Counts steps, and stops at one."""

    def __init__(self, *, last: int):
        self.last, self.count = last, 0

    def on_train_batch_end(self, trainer, *_):
        self.count += 1
        trainer.should_stop = self.count >= self.last

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


MINE = (f"+callbacks.mine._target_={__name__}.Counts", "+callbacks.mine.last=4")


def test_a_callback_of_ones_own_may_end_the_run_and_is_in_last_ckpt_and_row(tmp_path):
    run = train(tmp_path, *MINE, "trainer.max_steps=50", "protocol.patience=3")
    stored = run.checkpoint()
    assert stored["global_step"] == run.checkpoint("best")["global_step"] == 4
    assert stored["callbacks"]["Counts"] == {"count": 4}
    row = json.loads((tmp_path / "metrics.json").read_text())["row"]
    assert row["callbacks"] == {"mine": {"_target_": f"{__name__}.Counts", "last": 4}} and row["steps"] == 4
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+callbacks.mine.first=3", r"^callbacks\.mine\.first is no key: there is last"),
        ("~callbacks.mine.last", r"^callbacks\.mine\.last is missing"),
    ],
)
def test_its_arguments_are_checked(tmp_path, override, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path, *MINE, override)
