"""Signals that end a run: between two steps where there is a state to write, at once where there is none."""

import os
import signal
import threading
from types import FrameType
from typing import Any

STATUS = os.EX_TEMPFAIL  # 75: not done, and worth to be started again


class StopSignals:
    """Ctrl-C, SIGTERM, SIGUSR1 and, where somebody else waits for it, SIGUSR2, for as long as the context lasts.

    Attributes:
        received: the first of them that came.
        between_steps: whoever trains looks at `received` between two steps, and raises KeyboardInterrupt there. A
            second Ctrl-C does not wait for that.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.between_steps = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other one may
            wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
            if callable(signal.getsignal(signal.SIGUSR2)):
                wanted.append(signal.SIGUSR2)
            self._before = {number: signal.getsignal(number) for number in wanted}
            # What a shell tells its background jobs to ignore stays ignored.
            self._before = {number: before for number, before in self._before.items() if before != signal.SIG_IGN}
            self.listen()
        return self

    def __exit__(self, *_: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def listen(self) -> None:
        """Take the signals, also from a library that has put its own handlers in the place of ours."""
        for number in self._before:
            signal.signal(number, self._take)

    @property
    def status(self) -> int:
        """The exit status of a run that was stopped: STATUS, or as shells have it after Ctrl-C."""
        return STATUS if self.received not in (None, signal.SIGINT) else 128 + signal.SIGINT

    def hand_on(self) -> None:
        """Tell who had waited for the signal before: a launcher that sends its job back to the queue."""
        before = self._before.get(self.received) if self.received is not None else None
        if callable(before) and before is not signal.default_int_handler:
            before(self.received, None)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker, which its parent ends
        again, self.received = self.received is not None, self.received or signal.Signals(number)
        if not self.between_steps or (again and number == signal.SIGINT):
            raise KeyboardInterrupt


def in_data_worker(worker: int) -> None:
    """For the start of a data worker: it outlives the signals that all processes of a run get, and its parent ends it.

    Otherwise the step that is to be finished would wait for its images.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # The parent ends a worker that does not stop by SIGTERM as well: by a second one.
    signal.signal(signal.SIGTERM, _die_next_time)


def _die_next_time(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
