"""An exponential moving average of the weights (engine.ema), which is what a run validates, tests and writes."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging


class AveragedWeights(EMAWeightAveraging):
    """Lightning's average: after each step, average = decay x average + (1 - decay) x weights, buffers too.

    It begins with the weights after the first step. A checkpoint's `state_dict` is the average, so who evaluates the
    file has it; what training goes on from stands beside it.

    Lightning's own goes wrong at two places that we come by: a checkpoint that is loaded to be tested would bring back
    the weights that are not averaged, and so would a finished run that is given again.
    """

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on the model is the average, also where no step was left to train."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)
            self._average_model = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with both; who tests a checkpoint has loaded its average already."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
