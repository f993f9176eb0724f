"""What a run shows while it goes on and leaves behind: progress bar, CSV, TensorBoard, table."""

from __future__ import annotations

import csv
import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

from lightning_dqnlr.files import cannot_write, write_atomically
from lightning_dqnlr.meta.workers import JobOutcome
from lightning_dqnlr.policy.policy import LRPolicy
from lightning_dqnlr.scoring.evaluate import Regrets

T = TypeVar("T")
Watch = Callable[[Sequence[int]], Iterable[int]]

CSV_FILE = "episodes.csv"
COLUMNS = (
    "episode",
    "inner_steps",
    "seconds",
    "task",
    "optimizer",
    "horizon",
    "initial_loss",
    "final_loss",
    "episode_trips",
    "failed",
    "td_loss",
    "score",
    "regret_mean",
    "regret_median",
    "regret_iqm",
    "regret_p90",
    "regret_max",
    "regret_within_2_percent",
    "validation_regret_median",
    "validation_regret_iqm",
    "trips",
    "failure",
)


@dataclass
class EpisodeReport:
    """What a log line is made of after each episode.

    Attributes:
        episode: how many are over.
        inner_steps: so far, over all replicas.
        outcome: of the episode.
        loss: mean temporal-difference loss of the episode's updates; NaN before the first.
        scores: of the evaluation, where one was due.
        seconds: of work so far, over all resumptions.
        best_score: so far; infinite before the first evaluation.
    """

    episode: int
    inner_steps: int
    outcome: JobOutcome
    loss: float = float("nan")
    scores: Regrets | None = None
    seconds: float = 0.0
    best_score: float = float("inf")


class Reporter(Protocol):
    """Takes note of each episode, in order."""

    def __call__(self, progress: EpisodeReport) -> None:
        """Called once per episode."""

    def close(self) -> None:
        """Called once, after the last."""


def row(progress: EpisodeReport) -> dict[str, str | float]:
    """The columns that are known after this episode; the final loss is the replicas' median."""
    values: dict[str, str | float] = {
        "episode": progress.episode,
        "inner_steps": progress.inner_steps,
        "seconds": round(progress.seconds, 2),
    }
    if progress.outcome.task is not None:
        task = progress.outcome.task
        values |= {"task": task.name, "optimizer": task.optimizer, "horizon": task.horizon}
    if progress.outcome.episode is not None:
        result = progress.outcome.episode
        values |= {
            "initial_loss": result.initial_loss,
            "final_loss": result.final_losses.median().item(),
            "episode_trips": result.trips,
            "failed": result.failed,
            "td_loss": progress.loss,
        }
    if progress.scores is not None:
        values |= progress.scores.summary()
    if progress.outcome.failure is not None:
        values["failure"] = " ".join(progress.outcome.failure.split())
    return values


class CSVLog:
    """One row per episode, on disk as soon as the episode is over, in `episodes.csv`.

    Rows after `episode`, the last that is over, are dropped: a killed run continues from its
    checkpoint, and those episodes come again.

    Raises:
        ConfigurationError: if the file cannot be written, or the disk is full.
    """

    def __init__(self, folder: Path, episode: int = 0) -> None:
        path = folder / CSV_FILE
        write_atomically(path, _as_csv([COLUMNS, *_rows_until(path, episode)]))
        self._path = path
        self._file = path.open("ab", buffering=0)

    def __call__(self, progress: EpisodeReport) -> None:
        values = row(progress)
        content = _as_csv([[_cell(values.get(name, "")) for name in COLUMNS]])
        with _clear_errors(self._path):
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


def _rows_until(path: Path, episode: int) -> list[list[str]]:
    """The whole rows of a log up to an episode; a kill may have cut the last one short."""
    if episode == 0 or not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [cells for cells in csv.reader(file) if len(cells) == len(COLUMNS)]
    return [cells for cells in rows if cells[0].isdigit() and int(cells[0]) <= episode]


def _as_csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class TensorBoardLog:
    """The numbers of the CSV as TensorBoard scalars over episodes; later ones are purged alike.

    Raises:
        ImportError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path, episode: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = episode + 1 if episode else None
        self._path = folder / "tensorboard"
        with _clear_errors(self._path):
            self._writer = SummaryWriter(self._path, purge_step=purge)

    def __call__(self, progress: EpisodeReport) -> None:
        with _clear_errors(self._path):
            for name, value in row(progress).items():
                if name != "episode" and not isinstance(value, str):
                    self._writer.add_scalar(name, value, progress.episode)

    def close(self) -> None:
        with _clear_errors(self._path):
            self._writer.close()


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def open_logs(folder: Path, episode: int, *, tensorboard: bool) -> list[Reporter]:
    """CSV always, TensorBoard if wanted and installed; `episode` is how many are over."""
    logs: list[Reporter] = [CSVLog(folder, episode)]
    if tensorboard:
        try:
            logs.append(TensorBoardLog(folder, episode))
        except ImportError:
            print("No TensorBoard log (pip install tensorboard); episodes.csv has it all.")
    return logs


class ProgressBar:
    """Episodes, time left, regret and trips on one line of the terminal.

    Args:
        episodes: of the whole run.
        episode: how many are over.
        max_minutes: the time limit, which may end the run before its last episode.
    """

    def __init__(self, episodes: int, episode: int = 0, max_minutes: float | None = None) -> None:
        self._episodes = episodes
        self._first = episode
        self._max_minutes = max_minutes
        self._regret = "-"
        self._started = time.monotonic()
        # A line a second would flood a log file, in which carriage returns do not rewrite.
        self._bar = tqdm(
            total=episodes,
            initial=episode,
            mininterval=0.2 if sys.stderr.isatty() else 15.0,
            bar_format="{percentage:3.0f}%|{bar:20}| episode {n_fmt}/{total_fmt} {postfix}",
        )

    def watch(self, numbers: Sequence[int]) -> Iterator[int]:
        """Passes on the numbers of the validation tasks and shows how many cosines are tuned.

        That is minutes of work before the first episode, and no part of an episode's pace.
        """
        started = time.monotonic()
        terminal = sys.stderr.isatty()
        for done, number in enumerate(numbers):
            pace = (time.monotonic() - started) / max(done, 1)
            left = f", time left {_clock(pace * (len(numbers) - done))}" if done else ""
            text = f"tuning the cosine of validation task {done + 1}/{len(numbers)}{left}"
            self._bar.set_postfix_str(text, refresh=terminal)
            self._bar.update(0)
            yield number
        self._started = time.monotonic()

    def __call__(self, progress: EpisodeReport) -> None:
        if progress.scores is not None:
            median = progress.scores.summary()["regret_median"]
            self._regret = f"{median:.3f} (best score {progress.best_score:.3f})"
        outcome = progress.outcome
        trips = "-" if outcome.episode is None else f"{outcome.episode.trips:.1f}"
        text = f"time left {_clock(self._seconds_left(progress))}, regret {self._regret}, "
        self._bar.set_postfix_str(text + f"trips {trips}", refresh=False)
        if outcome.failure is not None:
            self._bar.write(f"Skipped {outcome.failure}", file=sys.stderr)
        self._bar.update()

    def _seconds_left(self, progress: EpisodeReport) -> float:
        pace = (time.monotonic() - self._started) / (progress.episode - self._first)
        left = pace * (self._episodes - progress.episode)
        if self._max_minutes is None:
            return left
        return max(0.0, min(left, 60 * self._max_minutes - progress.seconds))

    def close(self) -> None:
        self._bar.close()


def shown(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with how many are done and the time left on one line while it takes long."""
    form = "{desc} {n_fmt}/{total_fmt}, time left {remaining}"
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(items, what, leave=False, mininterval=interval, delay=1.0, bar_format=form)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def summary(folder: Path) -> str:
    """What a finished run reached, as text: regret per validation task, and how to use the policy.

    Raises:
        PolicyFileError: if there is no `best` policy in the run's folder.
    """
    best = (folder / "best").resolve()
    validation = LRPolicy.load(best).record["validation"]
    lines = [_table_line("validation task", "training loss", "held-out loss")]
    for name, regrets in validation["tasks"].items():
        lines.append(_table_line(name, regrets["train"], regrets["validation"]))
    for name in ("regret_mean", "regret_median", "score"):
        lines.append(_table_line(name.replace("_", " "), validation[name]))
    return "\n".join(
        [
            "Regret to the tuned cosine, log(loss / its loss), of the best policy; 0 is as good:",
            *lines,
            f"Policy saved in {best}",
            f'Use it: Trainer(callbacks=[DQNLRCallback(policy="{best}")])',
        ]
    )


def _table_line(name: str, *cells: str | float) -> str:
    texts = [cell if isinstance(cell, str) else f"{cell:.3f}" for cell in cells]
    return f"  {name:<36}" + "".join(f"{text:>15}" for text in texts)
