"""`SharedTrace`: where the run of a copy is found, in this process or in a child of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_dqnlr.files import write_atomically
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.run_facts import RunFacts


class SharedTrace:
    """Trace and facts of the latest run of an object or of one of its copies.

    Some libraries copy a callback before they train with it, and `ddp_spawn` trains in other
    processes. The user is left with an object that has seen no run. Deep copies therefore share
    this. A child process leaves both in a temporary file, as Lightning does with the weights.

    Example:
        >>> import copy
        >>> shared = SharedTrace()
        >>> copy.deepcopy(shared).begin([{"step": 1}], RunFacts())
        >>> shared.read()
        [{'step': 1}]
    """

    def __init__(self) -> None:
        self._trace: Sequence[DecisionRecord] = ()
        self._facts: RunFacts | None = None
        self._maker = os.getpid()
        self._file = Path(tempfile.gettempdir()) / f"dqnlr-trace-{uuid.uuid4().hex}.json"

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedTrace:
        """The same object: that is what is shared."""
        return self

    def begin(self, trace: Sequence[DecisionRecord], facts: RunFacts) -> None:
        """Takes trace and facts of a run that begins; the run goes on to fill them."""
        self._trace = trace
        self._facts = facts

    def send(self) -> None:
        """Leaves both to the process that made this, if that is the parent of this one."""
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid == self._maker and self._trace:
            facts = None if self._facts is None else self._facts.to_dict()
            left = {"trace": list(self._trace), "facts": facts}
            write_atomically(self._file, json.dumps(left).encode())

    def read(self) -> list[DecisionRecord]:
        """The trace of the latest run, from wherever it was; empty before any."""
        self._receive()
        return list(self._trace)

    def facts(self) -> RunFacts | None:
        """The facts of that run; None before any."""
        self._receive()
        return self._facts

    def _receive(self) -> None:
        """Reads what a child process has left, once, and removes the file.

        It is for the process that made this object.
        """
        if self._file.exists() and os.getpid() == self._maker:
            left = json.loads(self._file.read_bytes())
            self._file.unlink()
            self._trace = left["trace"]
            self._facts = None if left["facts"] is None else RunFacts(**left["facts"])
