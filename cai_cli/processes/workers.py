"""Threads that wait for a server: as many as there are to be requests under way, and none that keeps the
command from ending.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class Workers:
    """As concurrent.futures' ThreadPoolExecutor, but with daemon threads: that one waits at exit for requests
    under way, which may take minutes after a Ctrl-C.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.tasks: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = (
            queue.SimpleQueue()
        )
        self.threads: list[threading.Thread] = []
        self.lock = threading.Lock()

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Do it in one of the threads, in the order of submission."""
        future: Future[Result] = Future()
        self.tasks.put((future, work, arguments))
        with self.lock:
            if len(self.threads) < self.count:
                self.threads.append(threading.Thread(target=self._run, daemon=True))
                self.threads[-1].start()
        return future

    def _run(self) -> None:
        while True:
            future, work, arguments = self.tasks.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(*arguments))
            except BaseException as error:
                future.set_exception(error)
