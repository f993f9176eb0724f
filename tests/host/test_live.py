"""The rate in progress bars, and the live view in terminals and notebooks."""

import re
import sys

import lightning.pytorch
import pytest
import pytorch_lightning
import rich
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import MissingPackageError

from .control_runs import Net, OldNet, loader, random_policy, trainer
from .test_manual_loops import looped

RATE = r"\d\.\de-\d\d"


def fit(folder, callback, bar, module=None, library=lightning.pytorch, **arguments):
    beside = [] if bar is None else [bar]
    settings = {"max_epochs": 2, "enable_progress_bar": True, "more_callbacks": beside}
    run = trainer(callback, folder, library, **{**settings, **arguments})
    run.fit(module or Net(), loader())
    return run


def plain(screen):
    """What was written, without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def rich_bar(screen, library=lightning.pytorch):
    console = {"file": screen, "force_terminal": True, "width": 160}
    return library.callbacks.RichProgressBar(refresh_rate=1, console_kwargs=console)


@pytest.mark.parametrize("library", [lightning.pytorch, pytorch_lightning])
@pytest.mark.parametrize("first", ["bar", "control"])
def test_tqdms_bar_shows_the_rate_that_was_used_from_the_first_steps_on(
    tmp_path, capsys, first, library
):
    control, bar = DQNLRCallback(random_policy()), library.callbacks.TQDMProgressBar(1)
    one, other = (control, bar) if first == "control" else (bar, control)
    module = Net() if library is lightning.pytorch else OldNet()
    fit(tmp_path, one, other, module, library, max_epochs=1)
    captured = capsys.readouterr()
    shown = re.findall(rf"lr=({RATE})", captured.out + captured.err)
    used = [f"{rate:.1e}" for (rate,) in module.rates]
    assert shown[0] == used[0]
    assert list(dict.fromkeys(shown)) == list(dict.fromkeys(used))
    assert "get_metrics" not in vars(bar), "its own again"


def test_richs_bar_shows_a_rate_that_three_decimals_would_hide(tmp_path, terminal):
    module = Net()
    fit(tmp_path, DQNLRCallback(random_policy(), max_lr=5e-5), rich_bar(terminal), module)
    assert f"lr: {module.rates[-1][0]:.1e}" in plain(terminal)
    assert "log10" not in plain(terminal)


class ShowsItsOwn(Net):
    def training_step(self, batch, batch_idx):
        self.log("lr", 0.125, prog_bar=True)
        return super().training_step(batch, batch_idx)


def test_a_modules_own_metric_of_that_name_stays_in_the_bar(tmp_path, capsys):
    fit(tmp_path, DQNLRCallback(random_policy()), TQDMProgressBar(1), ShowsItsOwn())
    captured = capsys.readouterr()
    assert re.search(rf"[ ,]lr=0\.125, dqnlr/lr={RATE}", captured.out + captured.err)


def test_each_optimizer_of_a_manual_loop_has_its_rate_in_the_bar(tmp_path, capsys):
    fit(tmp_path, DQNLRCallback(random_policy()), TQDMProgressBar(1), looped(lightning.pytorch))
    captured = capsys.readouterr()
    assert re.search(rf"lr/0={RATE}, lr/1={RATE}", captured.out + captured.err)


def test_without_log_the_bar_shows_no_rate(tmp_path, capsys):
    fit(tmp_path, DQNLRCallback(random_policy(), log=False), TQDMProgressBar(1))
    captured = capsys.readouterr()
    assert "lr=" not in captured.out + captured.err


class Fails(Net):
    def training_step(self, batch, batch_idx):
        if self.global_step == 5:
            raise OSError("the data are gone")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("live", [False, True])
def test_after_an_exception_bar_and_terminal_are_as_before(tmp_path, terminal, live):
    bar = TQDMProgressBar(1)
    with pytest.raises(OSError, match="gone"):
        fit(tmp_path, DQNLRCallback(random_policy(), live=live), bar, Fails())
    assert "get_metrics" not in vars(bar)
    assert bar.is_enabled
    console = rich.get_console()  # an older Rich has one live display, a newer one a stack
    assert not (console._live_stack if hasattr(console, "_live_stack") else console._live)
    assert sys.stdout is not terminal


def test_the_panel_and_richs_bar_share_the_terminal(tmp_path, terminal):
    callback = DQNLRCallback(random_policy(), live=True)
    fit(tmp_path, callback, rich_bar(terminal))
    shown = plain(terminal)
    assert "╭─ dqnlr" in shown
    assert "step 24 of 24" in shown
    last = shown[shown.rindex("╭─ dqnlr") :]
    assert callback.trace[-1]["reason"][:20] in last
    assert re.search(rf"Epoch 1/1.*12/12.*lr: {RATE}", last, re.S), "the bar is below the panel"


def test_tqdms_bar_makes_way_for_the_panel_and_comes_back(tmp_path, terminal, capsys):
    bar = TQDMProgressBar(1)
    callback = DQNLRCallback(random_policy(), live=True)
    fit(tmp_path, callback, bar)
    assert "╭─ dqnlr" in plain(terminal)
    assert "it/s" not in "".join(capsys.readouterr()) + plain(terminal)
    assert bar.train_progress_bar.disable, "it was off while the run went on"
    assert bar.is_enabled


def test_where_there_is_no_terminal_nothing_is_drawn(tmp_path, capsys):
    module, expected = Net(), Net()
    fit(tmp_path, DQNLRCallback(random_policy(), live=True), None, module)
    assert "╭" not in "".join(capsys.readouterr())
    fit(tmp_path, DQNLRCallback(random_policy()), None, expected)
    assert module.rates == expected.rates


def test_a_missing_package_of_the_live_view_is_named_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(MissingPackageError, match=r"rich.*lightning-dqnlr\[live\]"):
        DQNLRCallback(live=True)


CELLS = (
    """
import lightning.pytorch as pl
from lightning_dqnlr import DQNLRCallback
from tests.host.control_runs import Net, loader
callback = DQNLRCallback(live=True)
pl.Trainer(max_epochs=6, callbacks=[callback], logger=False, enable_checkpointing=False,
           enable_progress_bar=False, enable_model_summary=False).fit(Net(), loader())
""",
    "callback.plot()",
)


def test_a_notebook_gets_one_picture_that_changes_and_a_figure(tmp_path):
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, CELLS)))
    client.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    live, plotted = (
        [output for output in cell.outputs if "image/png" in output.get("data", {})]
        for cell in notebook.cells
    )
    assert (len(live), len(plotted)) == (1, 1)
    assert plotted[0].output_type == "execute_result"
