"""engine.compile: the same network by another way.

The graph runs as traced: to translate it into C++ takes half a minute.
"""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.engine.conftest import make_data, make_learner, make_trainer


@pytest.fixture
def graphs(monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    return counter


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_checkpoints_of_compiled_and_plain_runs_are_interchangeable(tmp_path, graphs, micro_batch):
    ended = {}
    for first in (True, False):
        folder = tmp_path / str(first)
        trainer = make_trainer(folder, 3)
        trainer.fit(make_learner(compile=first, micro_batch=micro_batch), make_data())
        trainer.save_checkpoint(folder / "x.ckpt")
        learner = make_learner(compile=not first, micro_batch=micro_batch)
        assert set(torch.load(folder / "x.ckpt", weights_only=True)["state_dict"]) == set(learner.state_dict())
        make_trainer(folder, 6).fit(learner, make_data(), ckpt_path=folder / "x.ckpt", weights_only=True)
        ended[first] = learner.embedder.state_dict()
    assert graphs.frame_count > 0
    torch.testing.assert_close(ended[True], ended[False])


def test_smaller_batches_of_an_evaluation_compile_nothing_anew(tmp_path, graphs):
    learner, data = make_learner(compile=True), make_data(gallery=True)
    trainer = make_trainer(tmp_path, 4)
    trainer.fit(learner, data)  # batches of 8; validation: 4, 4 and 3
    trainer.test(learner, data, verbose=False)  # 4, 4 and 1; 4 and 2
    before = graphs.frame_count
    assert 2 <= before <= 4  # training and evaluation, for any size; at most for a batch of 1 another
    make_trainer(tmp_path, 8).fit(learner, data)
    trainer.test(learner, data, verbose=False)
    assert graphs.frame_count == before
