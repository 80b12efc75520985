"""Signals that end a run: which are taken, when they act, and who else is told."""

import os
import signal

import pytest

from dml.engine.stop import STATUS, StopSignals

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def handlers():
    """What pytest has, before and after each test."""
    before = [signal.getsignal(number) for number in ALL]
    yield
    assert [signal.getsignal(number) for number in ALL] == before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, STATUS), (signal.SIGUSR1, STATUS)]
)
def test_outside_of_steps_a_signal_ends_the_run_at_once(number, status):
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert stop.received == number and stop.status == status == (75 if number != signal.SIGINT else 130)


def test_between_steps_it_is_only_noted_and_the_second_ctrl_c_ends_the_run():
    with StopSignals() as stop:
        stop.between_steps = True
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_launcher_that_waits_for_the_signal_is_told_at_the_end():
    told = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    try:
        with StopSignals() as stop:
            stop.between_steps = True
            signal.raise_signal(signal.SIGUSR2)
            assert stop.received == signal.SIGUSR2 and told == []
        stop.hand_on()
        assert told == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_what_a_shell_has_its_jobs_ignore_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_of_a_library_are_put_aside():
    with StopSignals() as stop:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("not ours"))
        stop.listen()
        stop.between_steps = True
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM


def test_a_process_that_was_forked_off_does_not_take_them():
    with StopSignals() as stop:
        if (process := os.fork()) == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
                os._exit(0 if stop.received is None else 1)
            except BaseException:
                os._exit(2)
        assert os.waitpid(process, 0)[1] == 0
