"""Scoring beside the model: a process measures a batch and writes its file while the model computes the next one."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing import connection
from types import TracebackType
from typing import Any

import numpy as np
import torch

from eval.store import Batch, RunFolder
from eval.task import Array, Case, Item, Problem, Task

WAITING = 2  # batches, at most: a model that is faster than the scoring waits for it
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """A batch to be scored.

    Attributes:
        number: of the batch.
        items: that could be loaded.
        cases: those items; without what only the model needs, see `slim`.
        maps: of each item, by method raw maps, float32 `[P, gh, gw]`.
        probed: of each item, what `Task.probe` measured.
        problems: of all items of the batch.
    """

    number: int
    items: list[Item]
    cases: list[Case]
    maps: list[dict[str, Array]]
    probed: list[Mapping[str, Array]]
    problems: list[Problem]

    @property
    def num_rows(self) -> int:
        """Number of the batch's items, evaluated or not."""
        return len(self.items) + sum(problem.kind == "unreadable file" for problem in self.problems)


def slim(case: Case) -> Case:
    """A case without pixels and prompts, which scoring does not need."""
    return replace(case, pixels=torch.empty(0), others=torch.empty(0), prompts=())


class Scorer:
    """A process that scores the batches of a run; to be used in a `with` statement, which ends when all are written.

    Args:
        task: the benchmark.
        folder: of the run.
    """

    def __init__(self, task: Task, folder: RunFolder) -> None:
        self._jobs: Any = multiprocessing.Queue(WAITING)
        self._answers: Any = multiprocessing.Queue()
        self._process = multiprocessing.Process(
            target=_serve, args=(task, folder, self._jobs, self._answers), daemon=True
        )
        self._pending = self._rows = 0

    def __enter__(self) -> Scorer:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                while self._pending:
                    self._receive(wait=True)
                self._put(None)
                self._process.join()
        finally:
            self._process.terminate()  # does nothing to a process that has ended
            self._process.join()
            self._jobs.cancel_join_thread()
            self._jobs.close()

    def put(self, job: Job) -> None:
        """Score a batch and write its file, later.

        Raises:
            Exception: what went wrong with a batch before this one.
        """
        self._put(job)
        self._pending += 1

    def take_rows(self) -> int:
        """Number of items of the batches that were written since the last call, evaluated or not.

        Raises:
            Exception: what went wrong with a batch.
        """
        while self._pending and self._receive(wait=False):
            pass
        rows, self._rows = self._rows, 0
        return rows

    def _put(self, job: Job | None) -> None:
        while True:
            try:
                self._jobs.put(job, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                self._receive(wait=False)
                self._check()

    def _receive(self, wait: bool) -> bool:
        """Takes one answer, if there is any; with `wait` it waits for one."""
        while True:
            try:
                answer = self._answers.get(timeout=_POLL_SECONDS) if wait else self._answers.get_nowait()
            except queue.Empty:
                if not wait:
                    return False
                self._check()
                continue
            if isinstance(answer, BaseException):
                raise answer
            self._pending -= 1
            self._rows += answer
            return True

    def _check(self) -> None:
        if not self._process.is_alive() and self._answers.empty():
            raise RuntimeError(
                f"the scoring process ended with exit code {self._process.exitcode}; the same command resumes the run"
            )


def exit_with_parent(worker: int = 0) -> None:
    """Ends this process as soon as the one that started it is gone, even if that was killed.

    A queue would not tell: the other end of its pipe is open in this process, too.

    Args:
        worker: ignored; the data loader passes its worker's number.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(task: Task, folder: RunFolder, jobs: Any, answers: Any) -> None:
    """Scores until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks handles it
    torch.set_num_threads(1)
    exit_with_parent()
    while (job := jobs.get()) is not None:
        try:
            folder.write(job.number, score(task, job).to_bytes())
        except Exception as error:
            traceback.print_exc()  # an exception loses its traceback on the way
            answers.put(error)
            return
        answers.put(job.num_rows)


def score(task: Task, job: Job) -> Batch:
    """What is kept of a batch."""
    measured = [
        {**probed, **task.measure(case, maps)}
        for case, maps, probed in zip(job.cases, job.maps, job.probed, strict=True)
    ]
    return Batch(
        items=[asdict(item) for item in job.items],
        digests=np.array([np.frombuffer(case.digest, dtype=np.uint8) for case in job.cases], dtype=np.uint8),
        measures={name: np.stack([own[name] for own in measured]) for name in measured[0]} if measured else {},
        problems=job.problems,
    )
