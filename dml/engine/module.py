"""The training step: embed, gather, loss, log; and evaluation over a whole loader."""

import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dml.engine.allocator import keep_freed_memory, return_freed_memory
from dml.engine.diagnostics import Diagnostics
from dml.engine.finite import LossWatch
from dml.engine.gather import add_over_ranks, gather_batch, gather_rows, processes
from dml.engine.micro_batch import embed_in_chunks
from dml.engine.parameters import hold_back, make_optimizer, scheduled
from dml.engine.progress import StepProgressBar
from dml.engine.rules import Rule

# Images [B, 3, H, W] or [B, crops, 3, H, W], or features [B, C] or [B, crops, C] of them; labels [B], indices [B].
Batch = Sequence[Tensor]


class MetricLearner(pl.LightningModule):
    """An embedder and a loss, trained together and judged by retrieval.

    Batches are (images, labels, indices) of RetrievalData, or (images, labels) of any loader.

    Args:
        embedder: images -> columns [B, W], of which its `join` makes embeddings [B, D] to search with; without one,
            they are these. Its `penalty()`, if it has one, is added to the loss.
        loss: (columns [m, W], labels [m]) -> scalar; its own weights, if any, are trained too.
        evaluator: (embeddings, labels, gallery=, gallery_labels=, own_index=, share=, add_up=, progress=) -> dict of
            floats. own_index says where in the gallery the image of each test query is, and is the attribute of that
            name of the data module (RetrievalData takes it); without one, no query is in the gallery.
        optimizer: factory, parameters -> optimiser.
        scheduler: factory, optimiser -> learning rate scheduler, stepped after every step of the optimiser, or if it is
            a ReduceLROnPlateau after every validation; None: constant rate.
        rules: which weights learn how (engine/rules.py).
        layer_scales: name of a weight -> factor of its learning rate, 1 if it is not there.
        monitor: metric of the validation (val/...) that a ReduceLROnPlateau follows.
        config: plain data that checkpoints carry, to rebuild all this; its `seed` is that of the steps' random numbers.
        watch_test: the loader that is looked at during training holds test classes; their metrics get a name of
            their own, so that nothing can mistake them for validation.
        compile: translate the embedder with torch.compile at its first step; names in checkpoints stay as they are.
        micro_batch: images that this process embeds at a time; the loss still sees all (engine/micro_batch.py).
            None: all at once.
        reuse_memory: while training on a CPU, keep the memory that tensors free (engine/allocator.py).

    Raises:
        ValueError: micro_batch is not positive.
    """

    def __init__(
        self,
        *,
        embedder: nn.Module,
        loss: nn.Module,
        evaluator: Callable[..., dict[str, float]],
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        config: dict[str, Any] | None = None,
        rules: Sequence[Rule] = (),
        layer_scales: Mapping[str, float] | None = None,
        monitor: str | None = None,
        watch_test: bool = False,
        compile: bool = False,
        micro_batch: int | None = None,
        reuse_memory: bool = True,
    ) -> None:
        super().__init__()
        if micro_batch is not None and micro_batch <= 0:
            raise ValueError(f"engine.micro_batch={micro_batch} is not possible: it must be greater than 0, or null")
        self.embedder, self.loss, self.evaluator = embedder, loss, evaluator
        # Every rank computes the loss of the same batch, so what a loss remembers is the same already.
        self._ddp_params_and_buffers_to_ignore = [f"loss.{name}" for name, _ in loss.named_buffers()]
        self._optimizer, self._scheduler = optimizer, scheduler
        self._rules, self._layer_scales = tuple(rules), layer_scales
        self.config, self._monitor = config or {"seed": 0}, monitor
        self.trained_on: dict[str, Any] | None = None  # what else checkpoints carry: of the images (the app sets it)
        self.watch_test = watch_test
        if compile:
            self.embedder.compile()
        self._micro_batch, self._reuse_memory, self._keeps_memory = micro_batch, reuse_memory, False
        self._watch, self._diagnostics = LossWatch(), Diagnostics()
        self._seen: dict[int, list[Batch]] = {}
        self.test_embeddings: tuple[Tensor, Tensor] | None = None  # of the queries, and their labels
        self.test_gallery: Tensor | None = None
        self.test_per_query: dict[str, np.ndarray] = {}  # what the metrics are means of, if the evaluator says it
        self.test_metrics: dict[str, float] = {}  # in full precision; Lightning's own are float32

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *, trust: bool = False, **unused: Any) -> "MetricLearner":  # type: ignore[override]
        """The learner of a checkpoint, made from the config inside of it; `dml.load` reads images as well.

        Args:
            checkpoint_path: the file, or the folder of a finished run.
            trust: also make parts of other packages that the checkpoint names; they can run any code.
            unused: what Lightning's own takes beside; only defaults are possible.

        Raises:
            ValueError: it cannot be used.
        """
        if given := [key for key, value in unused.items() if value is not None]:
            raise ValueError(
                f"MetricLearner.load_from_checkpoint takes no {', '.join(given)}: all is in the checkpoint"
            )
        from dml import load  # the only way up: who knows configs knows this file

        return load(checkpoint_path, trust=trust).learner

    def configure_optimizers(self) -> Any:
        """The optimiser over all weights that learn, and the schedule: by step, or by validation if it needs one.

        Raises:
            ValueError: a rule fits no weight that learns, or the schedule would undo the rules; names the config key.
        """
        optimizer = make_optimizer(self._optimizer, self.named_parameters(), self._rules, self._layer_scales)
        if self._scheduler is None:
            return optimizer
        schedule = {"scheduler": (scheduler := scheduled(optimizer, self._scheduler)), "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            # Never by Lightning, which steps it when last.ckpt is written already: `on_validation_epoch_end` does.
            schedule |= {"monitor": self._monitor, "frequency": sys.maxsize}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def forward(self, images: Tensor) -> Tensor:
        """Images or their features -> embeddings [B, D] to search with; crops of one image are averaged."""
        crops = images.shape[1] if images.ndim in (3, 5) else 0
        embeddings = self._join(self.embedder(images.flatten(0, 1) if crops else images))
        return embeddings.unflatten(0, (-1, crops)).mean(dim=1) if crops else embeddings

    def _join(self, columns: Tensor) -> Tensor:
        """What an embedder gives in training -> embeddings to search with; of one without groups they are the same."""
        join: Callable[[Tensor], Tensor] | None = getattr(self.embedder, "join", None)
        return columns if join is None else join(columns)

    def on_fit_start(self) -> None:
        """From here on memory is asked for in the same sizes again and again."""
        self._keeps_memory = self._reuse_memory and self.device.type == "cpu"
        if self._keeps_memory:
            keep_freed_memory()

    def on_fit_end(self) -> None:
        """Evaluation needs less, and bounds what it needs."""
        if self._keeps_memory:
            return_freed_memory()
            self._keeps_memory = False

    def on_train_epoch_start(self) -> None:
        """Tell the sampler the epoch: Lightning does so for its own samplers only.

        That of RetrievalData, or of a loader of one's own the batch sampler, where it has `set_epoch`.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        sampler = getattr(self.trainer.train_dataloader, "batch_sampler", None)
        begin = getattr(data, "start_epoch", None) or getattr(sampler, "set_epoch", None)
        if begin is not None:
            begin(self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Begin the random numbers of a step (dropout) anew.

        They then depend on seed, step and process alone, and a run that goes on from a checkpoint draws the same.
        """
        key = [self.config["seed"], self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the global batch.

        Raises:
            NonFiniteLossError: it is NaN or infinite, or on a GPU that of the step before was.
        """
        images, labels = batch[:2]
        size = self._micro_batch or len(images)
        # One chunk would be embedded twice for nothing.
        mine = embed_in_chunks(self.embedder, images, size) if size < len(images) else self.embedder(images)
        embeddings, labels = gather_batch(mine, labels)
        loss = self.loss(embeddings, labels)
        if hasattr(self.embedder, "penalty"):
            loss = loss + self.embedder.penalty()  # type: ignore[operator]  # the same on every rank
        self._watch.see(loss, self.global_step)
        self.log("train/loss", loss.detach(), batch_size=len(labels))  # prog_bar=True would read it at every step
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            self._diagnostics.see(self.loss, embeddings, labels, self.global_step)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log what a logged step has brought, its backward pass among it; Lightning clips gradients later.

        Weights whose first step is a later one lose their gradients here.
        """
        found = self._diagnostics.after_backward(list(self.parameters()))
        self.log_dict({f"train/{name}": value for name, value in found.items()})
        hold_back(optimizer, self.global_step)

    def on_train_end(self) -> None:
        """Look at the loss of the last step."""
        self._watch.check()

    def on_validation_start(self) -> None:
        """Evaluate no weights that a broken loss went into; sizes of evaluation are not those of training."""
        self._watch.check()
        if self._keeps_memory:
            return_freed_memory()

    def on_validation_end(self) -> None:
        """Go on as before."""
        if self._keeps_memory:
            keep_freed_memory()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect embeddings."""
        self._collect(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect embeddings; loader 0 holds the queries, loader 1 (if any) the gallery."""
        self._collect(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Evaluate what was collected, as val/... (or watched_test/... under protocol.watch_test)."""
        _, metrics = self._evaluate("watched_test" if self.watch_test else "val")
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and not self.trainer.sanity_checking:
            scheduler.step(metrics[str(self._monitor)])

    def on_test_epoch_end(self) -> None:
        """Evaluate what was collected, as test/..."""
        ((embeddings, labels), *gallery), self.test_metrics = self._evaluate("test")
        self.test_per_query = getattr(self.evaluator, "per_query", {})
        self.test_embeddings = embeddings.cpu(), labels.cpu()
        self.test_gallery = gallery[0][0].cpu() if gallery else None

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Embeddings of a batch: images alone, or the first of what a loader gives."""
        return self(batch if isinstance(batch, Tensor) else batch[0]).float()

    @torch.no_grad()
    def embed_all(self, loader: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Embeddings [N, D] to search with and labels [N] of a loader of which each rank has a share; the same on all.

        In evaluation mode, in the order of the records.
        """
        training = self.embedder.training
        self.embedder.eval()
        with self.trainer.precision_plugin.forward_context():
            for batch in loader:
                self._collect(self.trainer.strategy.batch_to_device(batch), -1)
        self.embedder.train(training)
        return self._put_together(-1)

    def _collect(self, batch: Batch, loader: int) -> None:
        images, labels = batch[:2]
        if len(batch) > 2:
            index = batch[2]
        else:  # of a loader of one's own: in the order in which they come
            if processes()[1] > 1:
                raise ValueError(
                    "evaluation on several processes needs batches of (images, labels, indices), the last the images' "
                    "places in the data set: Lightning gives some images to two processes"
                )
            before = sum(len(labels) for _, labels, _ in self._seen.get(loader, ()))
            index = torch.arange(before, before + len(labels), device=labels.device)
        self._seen.setdefault(loader, []).append((self(images).float(), labels, index))

    def _evaluate(self, stage: str) -> tuple[list[tuple[Tensor, Tensor]], dict[str, float]]:
        sides = [self._put_together(loader) for loader in sorted(self._seen)]  # the same loaders on every rank
        queries, gallery = sides[0], sides[1] if len(sides) > 1 else (None, None)
        # Other rankings (evaluator.also, evaluator.codes) choose no checkpoint, and each costs a search.
        more = any(getattr(self.evaluator, name, None) for name in ("also", "codes"))
        plain = {"plain": True} if stage != "test" and more else {}
        metrics = self.evaluator(
            *queries,
            **plain,
            gallery=gallery[0],
            gallery_labels=gallery[1],
            # Galleries are in the test alone, and so are queries that are in one.
            own_index=None if gallery[0] is None else getattr(self.trainer.datamodule, "own_index", None),  # type: ignore[attr-defined]
            **self._groups(test=stage == "test"),
            share=processes(),
            add_up=lambda values: add_over_ranks(values, self.device),
            progress=self._show_clustering,
        )
        metrics = {f"{stage}/{name}": float(value) for name, value in metrics.items()}
        self.log_dict(metrics, sync_dist=True)  # the same on every rank already; Lightning wants to be told
        return sides, metrics

    def _groups(self, *, test: bool) -> dict[str, Any]:
        """Which images are of one camera or session, for an evaluator, where the data says it."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        datasets = data.evaluated("test" if test else "validation") if hasattr(data, "evaluated") else []
        groups = [getattr(getattr(each, "records", None), "groups", None) for each in datasets]
        if not groups or groups[0] is None:
            return {}
        return {"groups": groups[0], "gallery_groups": groups[1] if len(groups) > 1 else None}

    def _put_together(self, loader: int) -> tuple[Tensor, Tensor]:
        """What all ranks saw of a loader, each its share, in the order of the records, as one process sees them."""
        columns = zip(*self._seen.pop(loader), strict=True)
        embeddings, labels, index = (gather_rows(torch.cat(column)) for column in columns)
        order = index.argsort(stable=True)
        order = order[index[order].diff(prepend=index.new_tensor([-1])) > 0]  # what two ranks saw, as the first did
        return embeddings[order], labels[order]

    def _show_clustering(self, done: int, of: int) -> None:
        if isinstance(bar := self.trainer.progress_bar_callback, StepProgressBar):
            bar.show("Clustering", done, of)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the config beside the weights, which no broken loss went into.

        Raises:
            NonFiniteLossError: one did.
        """
        self._watch.check()
        checkpoint["dml_config"] = self.config
        if self.trained_on is not None:
            checkpoint["trained_on"] = self.trained_on
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                checkpoint["wandb_run"] = logger.version  # a run that goes on is the same one there
