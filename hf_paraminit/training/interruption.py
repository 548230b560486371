"""Ends a run between two steps when somebody asks it to stop, so that nothing finished is lost."""

from __future__ import annotations

import contextlib
import logging
import signal
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger("hf_paraminit")

# Ctrl-C; and what schedulers and launchers send before they kill.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, the first SIGINT or SIGTERM is only noted; the second acts as it always does.

    Attributes:
        received: Number of the noted signal, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # only the main thread may install handlers
            for number in SIGNALS:
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        logger.warning("Interrupted: this step is finished and a checkpoint written. Once more stops at once.")

    def raise_received(self) -> None:
        """End the run as the signal would have done; other processes' signals count as Ctrl-C."""
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
