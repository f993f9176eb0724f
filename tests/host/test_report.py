"""What a run shows of itself afterwards: the report, the picture, the table."""

import csv
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_dqnlr import DQNLRCallback
from lightning_dqnlr.errors import CallOrderError
from lightning_dqnlr.host.report import write_report
from lightning_dqnlr.host.run_facts import RunFacts
from lightning_dqnlr.host.trace import decay_begins, figure_of

from ..memory.remembered import run
from .control_runs import Loop, Net, Reads, constant_policy, loader, random_policy, trainer
from .test_live import rich_bar
from .test_manual_loops import NEW, looped
from .test_run_ending import TURNS, fit, keeping, stopping

RECORD = {
    "step": 1, "loss": 1.0, "lr": 1e-3, "next_lr": 1e-3, "multiplier": 1.0,
    "q_values": [0.0, 1.0], "tripped": False, "reason": "keep",
}  # fmt: skip


class Page(HTMLParser):
    """The text of a page, the rows of its tables, and everything that it would load."""

    def __init__(self, path):
        super().__init__()
        self.text, self.rows, self.loads, self.cell = "", [], [], False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True
        loaded = [v for k, v in attributes if k in ("src", "href", "xlink:href", "data")]
        self.loads += [v for v in loaded if not v.startswith("#")]
        self.loads += [tag] if tag in ("script", "link", "iframe", "img", "image") else []

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data.strip()


class Poisoned(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 20 else loss


def test_the_report_has_every_decision_what_was_undone_and_needs_nothing_else(tmp_path):
    callback = DQNLRCallback(random_policy())
    trainer(callback, tmp_path, max_epochs=3).fit(Poisoned(), loader())
    page = Page(callback.report(tmp_path / "new" / "run.html"))
    assert page.loads == []
    assert re.findall(r"url\((?!#)|@import", (tmp_path / "new" / "run.html").read_text()) == []
    decisions = [row for row in page.rows if len(row) == 8][1:]
    assert [row[-1] for row in decisions] == [record["reason"] for record in callback.trace]
    assert [int(row[0]) for row in decisions] == [record["step"] for record in callback.trace]
    trips = [record for record in callback.trace if record["tripped"]]
    undone = [row for row in page.rows if len(row) == 4 and "restored step" in row[-1]]
    assert [row[-1] for row in undone] == [record["reason"] for record in trips]
    assert "A run of Poisoned" in page.text
    assert "<svg" in (tmp_path / "new" / "run.html").read_text()


def test_the_report_tells_how_a_run_ended_and_from_which_weights(tmp_path):
    callback = keeping()
    end = fit(TURNS, callback, stopping()).global_step
    page = Page(callback.report(tmp_path / "run.html"))
    # The fourth check was the best, after 24 steps; patience ended at 42.
    words = "Step 42: validation has stopped improving, so the learning rate falls to zero over"
    assert f"{words} {end - 42} steps, from the weights of step 24; then training" in page.text
    assert f"Step {end}: the decay is over, and training stops." in page.text
    assert "put back, those of step 24." in page.text


def test_the_mark_of_an_early_decay_stands_where_it_begins(tmp_path):
    callback = keeping()
    fit(TURNS, callback, stopping(), max_epochs=100)
    assert 42 not in [record["step"] for record in callback.trace]
    assert decay_begins(callback.trace) == [42]
    _, lower = callback.plot().axes
    marks = {line.get_xdata()[0] for line in lower.lines}
    assert marks == {42}
    (stairs,) = lower.patches
    values, edges, _ = stairs.get_data()
    assert 42 in edges, "the rate changes there, too"
    before = max(r["step"] for r in callback.trace if r["step"] < 42)
    kept = next(r["next_lr"] for r in callback.trace if r["step"] == before)
    assert values[list(edges).index(42) - 1] == kept


def test_a_resumed_run_still_tells_of_the_decay_and_of_its_own_time_only(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    fit(TURNS, DQNLRCallback(), stopping(), saver, folder=tmp_path)
    callback = DQNLRCallback()
    fit([6], callback, stopping(), ckpt_path=tmp_path / "epoch=7.ckpt")
    page = Page(callback.report(tmp_path / "run.html"))
    assert "Step 42: validation has stopped improving" in page.text
    assert "It is that of the part from step 48 on." in page.text


def test_the_time_adds_up_and_none_of_it_is_counted_twice(tmp_path):
    callback = DQNLRCallback(random_policy())
    trainer(callback, tmp_path, max_epochs=3).fit(Net(), loader())
    seconds = callback.facts.seconds
    assert set(seconds) == {"steps", "decisions", "checks", "shown", "batches", "run"}
    assert all(value > 0 for value in seconds.values())
    assert callback.facts.ours + seconds["batches"] <= seconds["run"]
    page = Page(callback.report(tmp_path / "run.html"))
    shares = [row for row in page.rows if len(row) == 3][1:]
    assert sum(float(row[2].rstrip("%")) for row in shares) == pytest.approx(100, abs=0.4)


def test_a_plain_loop_has_picture_table_and_report_too(tmp_path):
    loop = Loop(policy=random_policy())
    with pytest.raises(CallOrderError, match="no trace yet"):
        loop.scheduler.report(tmp_path / "run.html")
    loop.run(60, poison={40})
    scheduler = loop.scheduler
    page = Page(scheduler.report(tmp_path / "run.html"))
    assert "A run of Sequential" in page.text
    assert "60 of 200" in page.text
    assert any("restored step" in row[-1] for row in page.rows)
    assert "the training loop itself" in page.text
    assert scheduler.plot(tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    with open(scheduler.save_trace(tmp_path / "run.csv")) as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [
            record["step"] for record in scheduler.trace
        ]
    assert len(scheduler.plot()._repr_png_()) > 1000


def test_the_report_of_a_manual_loop_names_the_optimizer_of_each_decision(tmp_path):
    callback = DQNLRCallback(random_policy())
    trainer(callback, tmp_path, max_epochs=2).fit(looped(NEW), loader())
    page = Page(callback.report(tmp_path / "run.html"))
    decisions = [row for row in page.rows if len(row) == 9][1:]
    assert [int(row[0]) for row in decisions] == [r["optimizer"] for r in callback.trace]
    assert "first optimizer" in page.text


def test_a_trace_of_an_earlier_version_can_be_shown(tmp_path):
    callback = DQNLRCallback(constant_policy(3))
    trainer(callback, tmp_path, max_epochs=2).fit(Net(), loader())
    added = ("steps", "update_ratio")
    old = [{k: v for k, v in record.items() if k not in added} for record in callback.trace[:5]]
    callback.trace[:5] = old
    with open(callback.save_trace(tmp_path / "run.csv")) as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["steps"], rows[-1]["steps"]) == ("", "1")
    assert callback.plot(tmp_path / "run.png").exists()
    assert callback.report(tmp_path / "run.html").exists()


def test_a_run_has_the_same_number_in_the_picture_and_in_the_table(tmp_path):
    runs = [run(1.0), run(None, held=0.02, ended="diverged"), run(0.9, held=0.005)]
    plain = [each.to_dict() for each in runs]
    page = Page(write_report([RECORD], RunFacts(remembered=plain), tmp_path / "run.html"))
    table = {row[0]: row[3] for row in page.rows if row[-1] == runs[0].why}
    assert table == {"1": "1", "2": "—", "3": "0.9"}
    lower = figure_of([RECORD], plain).subfigs[1].axes[0]
    assert {text.get_text(): text.xy[1] for text in lower.texts} == {"1": 1.0, "3": 0.9}


def test_names_of_classes_and_reasons_are_text_and_not_markup(tmp_path):
    record = {**RECORD, "tripped": True, "reason": "<script>alert(1)</script>"}
    page = Page(write_report([record], RunFacts(model="<b>"), tmp_path / "run.html"))
    assert page.loads == []
    assert "<script>alert(1)</script>" in page.text
    assert re.search("A run of <b>", page.text)


class Spy(Callback):
    """Counts what is read while a batch is shown, with the decisions there were by then."""

    def __init__(self, control):
        self.control, self.reads = control, []

    def on_train_start(self, trainer, module):
        show = self.control._view.end_batch

        def watched(used):
            with Reads() as reads:
                show(used)
            self.reads.append((len(self.control.trace), reads.count))

        self.control._view.end_batch = watched


def test_showing_a_run_reads_no_tensor_between_decisions(tmp_path, terminal):
    callback = DQNLRCallback(constant_policy(3), horizon=10**4, log_gradients=True, live=True)
    spy, logger = Spy(callback), CSVLogger(tmp_path)
    arguments = {"logger": logger, "log_every_n_steps": 10**6, "max_epochs": 10}
    beside = [spy, rich_bar(terminal)]
    arguments |= {"more_callbacks": beside, "enable_progress_bar": True}
    trainer(callback, tmp_path, **arguments).fit(Net(), loader())
    quiet = [now for before, now in pairwise(spy.reads) if now[0] == before[0]]
    assert len(quiet) > 50
    assert not any(count for _, count in quiet)
