"""The live view of a run: a figure that refreshes in a notebook, a panel of Rich in a terminal."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_dqnlr.errors import needs_package
from lightning_dqnlr.host.decisions import DecisionRecord
from lightning_dqnlr.host.trace import figure_of, image_of
from lightning_dqnlr.host.trainer_queries import is_a

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 48  # of a curve, in characters
_REASONS = 3  # the latest ones
_SHARE = 0.05  # of the time, at most, goes to drawing
_SHORTEST = 0.25  # seconds from one drawing to the next, at least


class Scene(NamedTuple):
    """A run as it is.

    Example:
        scene = Scene(callback.trace, step=120, horizon=1000)
    """

    trace: Sequence[DecisionRecord]
    step: int
    horizon: int | None  # None if unknown


class View(Protocol):
    """Where a run is shown while it goes on.

    Attributes:
        counts_steps: whether it shows the step, and so changes between decisions.
    """

    counts_steps: bool

    def draw(self, scene: Scene) -> None:
        """Shows the run as it is."""

    def close(self) -> None:
        """Leaves the last drawing where it is."""


class LiveView:
    """Draws a run while it goes on, for a twentieth of the time at most.

    Args:
        view: draws.

    Example:
        live = LiveView(view_for(trainer))
        live.update(Scene(callback.trace, step=120, horizon=1000), decided=True)
        live.close(Scene(callback.trace, step=1000, horizon=1000))
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._next = 0.0  # when it may draw again

    def update(self, scene: Scene, *, decided: bool) -> None:
        """Draws if there is something new, and the last drawing is long enough ago.

        Args:
            scene: the run.
            decided: whether there is a decision since the last call.
        """
        begun = monotonic()
        new = decided or self._view.counts_steps
        if new and scene.trace and begun >= self._next:
            self._view.draw(scene)
            ended = monotonic()
            # The first drawing loads packages, and says nothing of how long the others take.
            spent = (ended - begun) / _SHARE if self._next else 0.0
            self._next = ended + max(_SHORTEST, spent)

    def close(self, scene: Scene) -> None:
        """Draws the run as it has ended."""
        if scene.trace:
            self._view.draw(scene)
        self._view.close()


def check_live() -> None:
    """Raises MissingPackageError if the package that draws here is not installed.

    Example:
        check_live()
    """
    if in_notebook():
        with needs_package("live=True in a notebook", "matplotlib", "live"):
            import matplotlib  # noqa: F401
    else:
        with needs_package("live=True in a terminal", "rich", "live"):
            import rich  # noqa: F401


def view_for(trainer: Trainer) -> View | None:
    """What draws here; None where there is neither a notebook nor a terminal.

    Example:
        view = view_for(trainer)
    """
    if in_notebook():
        return _Notebook()
    from rich import get_console

    bar = trainer.progress_bar_callback
    if is_a(bar, RichProgressBar) and bar.is_enabled:  # type: ignore[union-attr]
        return _BesideBar(bar)
    return _Terminal() if get_console().is_terminal else None


def make_way(trainer: Trainer) -> Any:
    """Switches tqdm's bar off where the panel takes its place; returns the bar, or None.

    Both move the cursor, and each would draw over the other. The panel has the steps, too.

    Example:
        bar = make_way(trainer)
        ...  # the run
        if bar is not None:
            bar.enable()
    """
    if in_notebook():
        return None
    from rich import get_console

    bar: Any = trainer.progress_bar_callback
    if is_a(bar, TQDMProgressBar) and bar.is_enabled and get_console().is_terminal:
        bar.disable()
        return bar
    return None


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook.

    Example:
        >>> in_notebook()
        False
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def curve(steps: Sequence[int], values: Sequence[float], width: int = _WIDTH) -> str:
    """A line of blocks over evenly spaced steps, on a logarithmic scale if all are positive.

    Example:
        >>> curve([1, 2, 3, 4], [1.0, 10.0, 100.0, 1000.0], width=4)
        '▁▃▆█'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * width
    scale = math.log if min(finite) > 0 else float
    low, high = scale(min(finite)), scale(max(finite))
    blocks = []
    for place in range(1, width + 1):
        value = values[bisect_left(steps, steps[-1] * place / width)]
        if not math.isfinite(value):
            blocks.append("x")
            continue
        height = 0.0 if high == low else (scale(value) - low) / (high - low)
        blocks.append(_BLOCKS[round(height * (len(_BLOCKS) - 1))])
    return "".join(blocks)


def panel(scene: Scene) -> Any:
    """A panel of Rich: steps, rate and loss with their curves, and the latest reasons.

    Example:
        rich.print(panel(Scene(callback.trace, step=1000, horizon=1000)))
    """
    from rich.panel import Panel
    from rich.text import Text

    trace = scene.trace
    trips = sum(record["tripped"] for record in trace)
    head = f"step {scene.step:,}" + (f" of {scene.horizon:,}" if scene.horizon else "")
    head += f", {len(trace)} decisions" + (f", {trips} undone" if trips else "")
    lines = [Text(head), *_curves(trace)]
    for record in trace[-_REASONS:]:
        style = "magenta" if record["tripped"] else "dim"
        lines.append(Text(f"{record['step']:>8,}  {record['reason']}", style=style))
    text = Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
    return Panel(text, title="dqnlr", title_align="left", border_style="blue", expand=False)


def _curves(trace: Sequence[DecisionRecord]) -> Iterable[Any]:
    from rich.text import Text

    optimizers = sorted({record.get("optimizer", 0) for record in trace})
    for index in optimizers:
        own = [record for record in trace if record.get("optimizer", 0) == index]
        steps = [record["step"] for record in own]
        suffix = f" {index}" if len(optimizers) > 1 else ""
        for name, form, style in (("lr", ".1e", "cyan"), ("loss", ".4g", "yellow")):
            values = [record[name] for record in own]
            yield Text.assemble(
                f"{name + suffix:<7}", (curve(steps, values), style), f"  {values[-1]:{form}}"
            )


class _Notebook:
    """A figure that stays in its place and changes."""

    counts_steps = False

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, scene: Scene) -> None:
        from IPython.display import Image, display

        image = Image(image_of(figure_of(scene.trace)), width=640)
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)

    def close(self) -> None:
        """Does nothing: the figure stays."""


class _Terminal:
    """A panel of its own."""

    counts_steps = True

    def __init__(self) -> None:
        from rich import get_console
        from rich.live import Live

        self._live = Live(console=get_console(), auto_refresh=False)
        self._live.start()

    def draw(self, scene: Scene) -> None:
        self._live.update(panel(scene), refresh=True)

    def close(self) -> None:
        self._live.stop()


class _BesideBar:
    """A panel above Rich's progress bar, in the bar's own display.

    A console has one live display at a time. The bar makes a new one now and then.
    """

    counts_steps = True

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._panel: Any = None
        self._joined: Any = None  # the display that shows the panel

    def draw(self, scene: Scene) -> None:
        self._panel = panel(scene)
        progress = self._bar.progress
        if progress is None or not progress.console.is_terminal:
            return
        if progress is not self._joined:
            own = progress.get_renderables
            progress.get_renderables = lambda: [self._panel, *own()]
            self._joined = progress
        self._bar.refresh()

    def close(self) -> None:
        """Does nothing: the bar ends the display."""
