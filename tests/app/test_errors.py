"""A user's mistake: one message that names the config key, before any heavy work."""

import os
import signal
import time

import pytest
import torch
from hydra.errors import CompactHydraException
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils import signal_handling

from dml.app.errors import as_user_error
from dml.app.run import run_train
from dml.data import broken, decode
from dml.engine.finite import NonFiniteLossError
from dml.losses.nra import NRALoss
from tests.app.conftest import train, write_images


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("batch.samples_per_class=200", r"sampler\.samples_per_class=200 images is larger than the training set"),
        ("sampler.samples_per_class=1", r"sampler\.samples_per_class=1 leaves anchors without a positive: NRALoss"),
        (
            "sampler.classes_per_batch=11",
            r"=11 is more than the 10 training classes .*: batch\.classes_per_batch=10 batch\.samples_per_class=5 fits",
        ),
        ("data=folder data.root=/no/where", r"data\.root=/no/where is not a folder"),
        ("data=folder", r"data=folder needs data\.root=DIR"),
        ("evaluator.ks=[1,9999]", r"evaluator\.ks=\[1, 9999\] asks for more neighbours"),
        ("evaluator.ks=[0]", r"evaluator\.ks"),
        ("evaluator.metrics=[recal]", r"evaluator\.metrics=\[recal\]"),
        ("loss.alpha=-1", r"loss\.alpha=-1"),
        ("method=triplet loss.mining=easy", r"loss\.mining=easy"),
        ("method=cross_entropy loss.num_classes=3", r"loss\.num_classes=3 is less than the 10"),
        ("method=cross_entropy loss.embedding_dim=3", r"loss\.embedding_dim=3 is not embedder\.dim=2"),
        ("protocol.watch_test=true", r"protocol\.watch_test=true is for protocol=paper"),
        ("trainer.max_steps=0", r"trainer\.max_steps=0"),
        ("engine.micro_batch=0", r"engine\.micro_batch=0 is not possible"),
        ("embedder.dim=0", r"embedder\.dim=0"),
        ("data.val_fraction=1.5", r"data\.val_fraction=1\.5"),
        ("data.fold=5", r"data\.fold=5"),
        ("transform.crop_to_box=true", r"transform\.crop_to_box=true"),
        ("backbone.checkpoint_path=/no/where", r"backbone\.checkpoint_path=/no/where"),
        ("backbone.name=nosuchnet", r"backbone\.name.*nosuchnet"),
        ("protocol.monitor=val/recall@3", r"protocol\.monitor=val/recall@3"),
    ],
)
def test_the_message_names_the_key(tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path, *overrides.split())
    assert not (tmp_path / "checkpoints").exists()


def test_all_problems_at_once(tmp_path):
    # Those that need no data come first, together with wrong values; then those that do.
    for wrong in (
        ("sampler.samples_per_class=1", "protocol.watch_test=true", "loss.epsilon=0", "data.fold=7", "embedder.dim=0"),
        ("sampler.classes_per_batch=11", "evaluator.ks=[9999]", "loss=cross_entropy", "+loss.num_classes=3"),
    ):
        with pytest.raises(ValueError) as caught:
            train(tmp_path, *wrong)
        lines = str(caught.value).splitlines()
        keys = [key.lstrip("+").partition("=")[0] for key in wrong if "." in key]
        assert len(lines) == len(keys), lines
        assert all(any(key in line for line in lines) for key in keys)


@pytest.mark.parametrize("error", [OSError("too many processes"), ValueError("a mistake")])
def test_why_a_loader_could_not_start_is_not_hidden(tmp_path, monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(DataLoader, "__iter__", fail)
    with pytest.raises((OSError, CompactHydraException), match=str(error)):
        train(tmp_path, run=as_user_error(run_train))


def test_as_user_error_keeps_the_message_and_only_for_mistakes(tmp_path):
    with pytest.raises(CompactHydraException, match=r"^embedder\.dim=0 is not possible"):
        train(tmp_path, "embedder.dim=0", run=as_user_error(run_train))

    def bug(cfg):
        raise KeyError("ours")

    with pytest.raises(KeyError):
        as_user_error(bug)(None)
    assert as_user_error(lambda cfg: {"x": cfg})(3) == {"x": 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(tmp_path, workers):
    tree = write_images(tmp_path / "tree", classes=4, images=3)
    broken = tree / "class1" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    settings = ("data=folder", f"data.root={tree}", "protocol=paper", "evaluator.ks=[1]", f"loader.workers={workers}")
    batch = ("batch.classes_per_batch=2", "batch.samples_per_class=3")  # all training images in every batch
    with pytest.raises(CompactHydraException) as caught:
        train(tmp_path / "run", *settings, *batch, run=as_user_error(run_train))
    message = str(caught.value)
    assert message.startswith(f"the image {broken} cannot be read") and "Traceback" not in message


@pytest.mark.parametrize("settings", ["loader.workers=2", "data.cache=disk", "data.on_error=skip"])
def test_a_loader_process_that_dies_ends_the_run_at_once(tmp_path, monkeypatch, settings):
    load_image = decode.load_image

    def die(*given, **named):
        if get_worker_info() is None:  # a cache estimates its size first
            return load_image(*given, **named)
        time.sleep(0.4)  # the others are being started
        os.kill(os.getpid(), signal.SIGKILL)

    # PyTorch's signal handler is set once, and Lightning takes it back at the end of a fit: the death of a process is
    # then noticed 5 s later.
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    tree = write_images(tmp_path / "tree", classes=4, images=3)
    monkeypatch.setattr(broken if settings == "data.on_error=skip" else decode, "load_image", die)
    batch = ("batch.classes_per_batch=2", "batch.samples_per_class=3", "protocol=paper", "evaluator.ks=[1]")
    given = ("data=folder", f"data.root={tree}", f"data.cache_dir={tmp_path / 'cache'}", "loader.workers=2", settings)
    with pytest.raises(CompactHydraException, match=r"^a loader process was killed or crashed.*loader\.workers"):
        train(tmp_path / "run", *batch, *given, run=as_user_error(run_train))
    assert {file.name for file in tmp_path.glob("cache/*")} <= {".lock", "CACHEDIR.TAG"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_that_is_too_high_stops_with_the_step(tmp_path, optimizer):
    rate = (f"optimizer={optimizer}", "optimizer.lr=1e30", "scheduler=none")
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step [1-9]\b.*optimizer\.lr"):
        train(tmp_path, *rate, "trainer.max_steps=9", "trainer.val_check_interval=9")


def test_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    calls, forward = [], NRALoss.forward

    def broken(self, embeddings, labels):
        calls.append(1)
        return forward(self, embeddings, labels) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(NRALoss, "forward", broken)
    with pytest.raises(CompactHydraException, match=r"the loss is nan at step 4\b"):
        train(tmp_path, "trainer.max_steps=9", "checkpoint_minutes=1e-9", run=as_user_error(run_train))
    stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["global_step"] == 4
    assert all(value.isfinite().all() for value in stored["state_dict"].values())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
            "RuntimeError: unable to allocate shared memory(shm) for file </torch_8186_3>: No space left on device (28)"
        ),
        RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        ),
        RuntimeError("unable to write to file </torch_12_3_0>: No space left on device (28)"),
    ],
)
def test_full_shared_memory_is_told_with_what_helps(error):
    def run(cfg):
        raise error

    with pytest.raises(CompactHydraException) as caught:
        as_user_error(run)(None)
    message = str(caught.value)
    assert message.startswith("shared memory (/dev/shm) is full") and "--shm-size" in message
    assert "loader.workers" in message and "data.cache=disk" in message and "\n" not in message
