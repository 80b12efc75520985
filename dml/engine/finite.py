"""A loss that is not finite ends the run, and the host does not wait for the GPU at every step to find it."""

import torch
from torch import Tensor

READ_AT_ONCE = frozenset({"cpu"})  # devices whose values cost nothing to look at


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; raised before anything that came of it could be evaluated or saved."""


class LossWatch:
    """Looks at the loss of every step: on a CPU at once, on a GPU one step later, when it has long been computed.

    There the optimiser may put one broken step into the weights. So whoever is about to evaluate or save them calls
    `check` first.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def see(self, loss: Tensor, step: int) -> None:
        """Look at the loss (scalar) of the step before, and keep this one for later where reading it would wait.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; names its step.
        """
        self.check()
        value, copied = loss.detach(), None
        if value.is_cuda:
            value = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(value, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending = step, value, copied
        if loss.device.type in READ_AT_ONCE:
            self.check()

    def check(self) -> None:
        """Look at the loss that is not looked at yet, if any; one that is broken stays, and is found again.

        Raises:
            NonFiniteLossError: it is NaN or infinite; names its step.
        """
        if self._pending is None:
            return
        step, value, copied = self._pending
        if copied is not None:
            copied.synchronize()
        if not torch.isfinite(value):
            raise NonFiniteLossError(
                f"the loss is {value.item()} at step {step}: training stopped, and nothing that came of it is saved. "
                "The last checkpoint is kept; lower optimizer.lr, or look for images or labels that are broken"
            )
        self._pending = None
