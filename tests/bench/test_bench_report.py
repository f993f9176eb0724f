import math
import re
from html.parser import HTMLParser

import pytest

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.content import number, share
from lightning_dqnlr.bench.report.costs import cost_table, costs
from lightning_dqnlr.bench.report.duels import duel_table, duels
from lightning_dqnlr.bench.report.headline import headline, heat_map
from lightning_dqnlr.bench.report.in_short import what_is_missing
from lightning_dqnlr.bench.report.losing import losing
from lightning_dqnlr.bench.report.sensitivity import sensitivities, sensitivity_table
from lightning_dqnlr.bench.report.write import write_report
from lightning_dqnlr.errors import ConfigurationError
from tests.bench.synthetic_records import TASKS, record, suite

FEW = dict(list(TASKS.items())[2:5])
METHODS = ("cosine", "constant", "dqnlr", "prodigy", "wsd")


def runs(task, method, *final_losses, lr=None, **fields):
    """The validation losses are half of the training losses, except where told."""
    return [
        record(
            task,
            method,
            lr,
            seed,
            final_train=loss,
            final_validation=None if loss is None else loss / 2,
            **fields,
        )
        for seed, loss in enumerate(final_losses)
    ]


def two_tasks_three_methods():
    """The rival's losses plus e are one throughout (1/2 on validation, roughly)."""
    return [
        *runs("a", "cosine", 0.98, 0.98, lr=0.1),
        *runs("a", "cosine", 5.0, 5.0, lr=1.0),
        *runs("b", "cosine", 0.98, 0.98, lr=0.1, split="new families"),
        *runs("a", "dqnlr", 1.98, 0.48),
        *runs("b", "dqnlr", 0.98, 3.98, split="new families"),
        *runs("a", "constant", 7.98, None, lr=0.1),
        *runs("b", "constant", 0.98, 0.98, lr=0.1, split="new families"),
    ]


def rows(table):
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


class Tags(HTMLParser):
    """What a page would fetch, its identifiers and its text."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.ids, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        self.ids += [names["id"]] if "id" in names else []
        links = [names.get(name) for name in ("src", "href", "xlink:href", "data")]
        self.fetched += [link for link in links if link and not link.startswith("#")]
        if tag in ("script", "iframe", "object", "link"):
            self.fetched.append(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report in which one method is incomplete, as its folder."""
    records = [
        run
        for run in suite(FEW, range(2), METHODS)
        if (run.method, run.task, run.seed) != ("prodigy", "gru-sequences", 1)
    ]
    folder = tmp_path_factory.mktemp("report")
    written = write_report(records, folder, command="dqnlr-bench suite=full")
    assert written.page == folder / "report.html"
    return folder


@pytest.mark.parametrize(("controller", "said"), [(1, True), (2, False)])
def test_the_report_says_which_methods_ran_under_an_earlier_controller(controller, said):
    version = f"protocol=1 task=1 method=1 controller={controller}"
    records = [record(version=version), record(method="cosine", lr=0.1)]
    text = what_is_missing(Comparison(records), ()).markdown()
    assert ("dqnlr: runs under the circuit breaker of version 0.1." in text) is said


def test_the_page_fetches_nothing(report):
    text = (report / "report.html").read_text()
    assert Tags(text).fetched == []
    outside = re.findall(r"(?:url\(|@import|src=)\s*['\"]?(?!#)[^'\")\s]+", text)
    assert outside == []


def test_no_identifier_is_used_by_two_pictures(report):
    ids = Tags((report / "report.html").read_text()).ids
    assert len(ids) > 50
    assert len(set(ids)) == len(ids)


def test_page_and_markdown_hold_every_task_method_and_split(report):
    words = "\n".join(Tags((report / "report.html").read_text()).words)
    markdown = (report / "report.md").read_text()
    for name in (*FEW, *METHODS, *FEW.values(), "dqnlr-bench suite=full", "Where we lose"):
        assert name in words
        assert name in markdown


def test_the_page_follows_the_readers_theme_in_its_pictures(report):
    text = (report / "report.html").read_text()
    assert "prefers-color-scheme:dark" in text
    assert "stroke: currentColor" in text
    assert "#010203" not in text


def test_the_pictures_of_the_markdown_are_files(report):
    names = re.findall(r"\]\((pictures/[^)]+)\)", (report / "report.md").read_text())
    assert {"pictures/regret.svg", "pictures/profile.svg"} <= set(names)
    for name in names:
        assert (report / name).read_text().startswith("<?xml")


def test_an_incomplete_method_is_shown_as_missing_and_compared_on_what_it_has(report):
    text = (report / "report.md").read_text()
    assert "- prodigy: missing or incomplete on gru-sequences." in text
    assert "prodigy on the 2 tasks it has:" in text
    assert re.search(r"\| prodigy \| missing 1 of 3 \| — \|", text)


def test_the_headline_by_hand():
    comparison = Comparison(two_tasks_three_methods())
    table = rows(headline(comparison, comparison.ranked))
    # Regrets of dqnlr: log 2, -log 2, 0, log 4; of the middle two 0 and log 2 = 0.693.
    mine = table["dqnlr"]
    assert mine["regret, training: IQM [95% CI]"].startswith("0.347 [")
    assert (mine["median"], mine["90th pct."], mine["worst"]) == ("0.347", "1.18", "1.39")
    assert (mine["within 2%"], mine["diverged"], mine["runs per result"]) == ("50%", "25%", "1")
    # Of constant: log 8 = 2.079, log 20.02 = 2.997, 0, 0.
    plain = table["constant"]
    assert plain["regret, training: IQM [95% CI]"].startswith("1.040 [")
    assert (plain["90th pct."], plain["worst"], plain["diverged"]) == ("2.72", "3.00", "50%")
    # Validation losses plus e: 0.51 for the rival; 1.01, 0.26, 0.51, 2.01 for dqnlr.
    expected = math.log(1.01 / 0.51) / 2
    assert mine["regret, validation: IQM [95% CI]"].startswith(f"{expected:.3f} [")
    rival = table["cosine"]
    assert rival["regret, training: IQM [95% CI]"] == "0.000 [0.000, 0.000]"
    assert rival["runs per result"] == "1.5"  # two LRs on one task, one on the other
    assert [row[0] for row in headline(comparison, comparison.ranked).rows] == [
        "cosine",
        "dqnlr",
        "constant",
    ]


def test_the_markdown_holds_the_headline_and_the_heat_map(tmp_path):
    records = two_tasks_three_methods()
    write_report(records, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    comparison = Comparison(records)
    assert set(headline(comparison, comparison.ranked).markdown().splitlines()) <= set(lines)
    assert "| a | 0.00 | 0.00 | 2.54 |" in lines  # dqnlr (log 2 - log 2) / 2, cosine, constant
    assert "| b | 0.69 | 0.00 | 0.00 |" in lines


def test_the_terminal_gets_the_headline_and_no_picture(tmp_path):
    records = two_tasks_three_methods()
    shown = write_report(records, tmp_path).headline
    comparison = Comparison(records)
    assert shown.startswith("# dqnlr against 2 other methods\n\n## In short\n\n- dqnlr ends ")
    assert shown.endswith(headline(comparison, comparison.shared).markdown() + "\n")
    assert "![" not in shown


def test_the_terminal_gets_what_is_said_where_there_is_no_headline(tmp_path):
    shown = write_report([record("a", "dqnlr")], tmp_path).headline
    assert "No regret can be computed" in shown
    assert "cosine: no runs at all." in shown
    assert "|" not in shown


def test_the_heat_map_marks_what_is_missing():
    records = [run for run in two_tasks_three_methods() if (run.task, run.method) != ("b", "dqnlr")]
    assert rows(heat_map(Comparison(records)))["b"]["dqnlr"] == "—"


def test_each_rival_by_hand():
    shown = {row.method: row for row in duels(Comparison(two_tasks_three_methods()))}
    # Against constant: every pair on a; on b a tie with half of the runs, else worse.
    assert shown["constant"].train.value == pytest.approx((1 + 0.25) / 2)
    assert shown["cosine"].train.value == pytest.approx((0.5 + 0.25) / 2)
    assert (shown["constant"].worse_on, shown["cosine"].worse_on) == (1, 1)
    table = duel_table(list(shown.values()))
    assert rows(table)["cosine"]["tasks"] == "2"


def duel_verdicts(*seeds):
    """On two tasks each, with the losses of some seeds."""
    losses = {
        "cosine": (0.5, 0.6),
        "dqnlr": (0.5, 0.6),
        "good": (0.1, 0.2),
        "bad": (0.9, 0.8),
        "alike": (0.3, 0.55),  # mostly lower, but not beyond chance
    }
    records = [
        run
        for task in ("a", "b")
        for name, final in losses.items()
        for run in runs(task, name, *(final[seed] for seed in seeds))
    ]
    return {row.method: row.verdict for row in duels(Comparison(records))}


def test_worse_and_better_need_an_interval_beyond_one_half():
    assert duel_verdicts(0, 1) == {
        "good": "worse",
        "bad": "better",
        "alike": "undecided",
        "cosine": "undecided",
    }


def test_two_runs_decide_nothing():
    assert set(duel_verdicts(0).values()) == {"undecided"}


def test_better_has_to_hold_for_other_tasks_and_worse_only_for_these():
    """Two tasks won and one lost, or the other way round."""
    for sign, verdict in ((1, "undecided"), (-1, "worse")):
        records = [
            run
            for task, gap in (("a", 0.3), ("b", 0.2), ("c", -0.3))
            for run in runs(task, "cosine", 0.5, 0.5)
            + runs(task, "dqnlr", 0.5 - sign * gap, 0.5 - sign * gap)
        ]
        (row,) = duels(Comparison(records))
        assert row.train.value == pytest.approx(2 / 3 if sign == 1 else 1 / 3)
        assert row.verdict == verdict


def test_costs_by_hand():
    records = [
        *runs("a", "cosine", 0.5, lr=0.1, seconds=2.0),
        *runs("a", "cosine", 0.6, lr=1.0, seconds=4.0),
        *runs("a", "constant", 0.5, lr=0.1, seconds=2.0),
        *runs("a", "dqnlr", 0.5, seconds=3.0, extra_bytes=12_000, parameters=1000),
    ]
    mine = next(row for row in costs(Comparison(records)) if row.method == "dqnlr")
    assert (mine.tries, mine.overhead, mine.total) == (1, 1.5, 0.5)
    assert (mine.extra_bytes, mine.copies) == (12_000, 3.0)
    assert rows(cost_table(Comparison(records)))["dqnlr"]["extra memory"] == "12.0 kB"


def test_a_run_that_stopped_early_is_no_cheap_run():
    records = [
        *runs("a", "cosine", 0.5, 0.5, lr=0.1),
        *runs("a", "constant", 0.5, 0.5, lr=0.1, seconds=2.0),
        record("a", "dqnlr", seed=0, final_train=None, seconds=0.1),
        record("a", "dqnlr", seed=1, seconds=3.0),
    ]
    mine = next(row for row in costs(Comparison(records)) if row.method == "dqnlr")
    assert mine.overhead == 1.5


def test_sensitivity_by_hand():
    records = [
        *runs("a", "cosine", 0.98, lr=1e-3),
        *runs("a", "cosine", 7.98, lr=1.0),
        *runs("a", "dqnlr", 5.0),  # without an LR: no part of the sweep
        *runs("a", "dqnlr", 0.48, lr=1e-6),
        *runs("a", "dqnlr", 0.98, lr=1.0),
    ]
    mine, rival = sensitivities(Comparison(records))
    assert (mine.method, mine.decades, mine.spread) == (
        "dqnlr",
        pytest.approx(6.0),
        pytest.approx(math.log(2)),
    )
    assert (rival.decades, rival.spread) == (pytest.approx(3.0), pytest.approx(math.log(8)))
    assert (mine.diverged, rival.diverged) == (0.0, 0.5)
    assert rows(sensitivity_table(Comparison(records)))["dqnlr"]["worst task"] == "0.693"


def curve(lr, train):
    steps = [25 * i for i in range(len(lr))]
    return {"step": steps, "train": train, "validation": train, "lr": lr}


def lost(mine, rival):
    """The hints on a task where the subject ends at twice the rival's loss."""
    records = [
        record("a", "cosine", 0.1, final_train=0.98, curve=rival),
        record("a", "dqnlr", final_train=1.98, curve=mine, horizon=100),
    ]
    (found,) = losing(Comparison(records))
    return " | ".join(found.hints)


FALLING = [2.0, 1.5, 1.2, 1.1, 1.0]


def test_where_the_subject_loses_the_largest_gap_comes_first():
    found = losing(Comparison([*two_tasks_three_methods(), *runs("a", "good", 0.03, 0.03)]))
    assert [row.task for row in found] == ["a", "b"]
    # The means of the logs of loss + e are 0 for dqnlr and cosine, log 0.05 for the good one.
    assert found[0].train == (("good", pytest.approx(math.log(1 / 0.05))),)
    assert [name for name, _ in found[1].train] == ["constant", "cosine"]


def test_a_lower_learning_rate_than_the_rivals_is_told_by_third():
    hints = lost(
        curve([0.01, 0.01, 0.01, 0.01, 0.001], FALLING),
        curve([0.05, 0.05, 0.01, 0.01, 0.001], FALLING),
    )
    assert "LR 5.0x below in the first third of the tuned cosine's" in hints


def test_a_loss_that_falls_behind_late_is_told():
    hints = lost(curve([0.1] * 5, [2.0, 1.4, 1.1, 1.05, 2.0]), curve([0.1] * 5, FALLING))
    assert "only after 75% of the run (in 1 of 1 seeds)" in hints


def test_a_sudden_cut_and_a_missing_decay_are_told_apart():
    cut = lost(curve([0.1, 0.1, 0.02, 0.02, 0.01], FALLING), curve([0.1] * 5, FALLING))
    assert "first at step 50 (a trip" in cut
    assert "never came down" not in cut
    kept = lost(curve([0.1, 0.1, 0.1, 0.1, 0.09], FALLING), curve([0.1] * 5, FALLING))
    assert "never came down (ends at 90% of its peak)" in kept
    assert "a trip" not in kept
    gentle = lost(curve([0.1, 0.08, 0.06, 0.04, 0.02], FALLING), curve([0.1] * 5, FALLING))
    assert "a trip" not in gentle
    assert "never came down" not in gentle


def test_a_report_of_failures_only_says_so(tmp_path):
    failed = {"final_train": None, "final_validation": None, "failure": "RuntimeError: no"}
    records = [
        record("a", name, lr, seed, initial_train=math.nan, **failed)
        for name, lr in (("cosine", 0.1), ("dqnlr", None))
        for seed in (0, 1)
    ]
    write_report(records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Every run failed or diverged" in text
    assert "the tuned cosine itself diverged" in text
    assert "constant: no runs at all." in text


def test_a_report_without_the_rival_says_that_there_is_no_regret(tmp_path):
    write_report([record("a", "dqnlr")], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "No regret can be computed" in text
    assert "cosine: no runs at all." in text
    assert "| a | dqnlr |" in text


def test_a_report_without_the_subject_says_that_nothing_can_be_said(tmp_path):
    write_report(runs("a", "cosine", 0.5, lr=0.1), tmp_path)
    assert "nothing can be said of it" in (tmp_path / "report.md").read_text()


def test_a_task_without_any_run_is_named_and_does_not_vanish(tmp_path):
    records = [*runs("a", "cosine", 0.5, lr=0.1), *runs("a", "dqnlr", 0.9)]
    write_report(records, tmp_path, planned=("a", "b", "c"))
    text = (tmp_path / "report.md").read_text()
    assert "- b, c: no runs at all, so no table counts these tasks." in text.splitlines()


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="run the benchmark first"):
        write_report([], tmp_path)


def test_names_are_escaped(tmp_path):
    task = '<b>"x" & y|z'
    records = [
        *runs(task, "cosine", 0.5, lr=0.1, split="<i>"),
        *runs(task, "dqnlr", 0.9, split="<i>"),
    ]
    write_report(records, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page
    assert "<i>" not in page
    assert page.count("&lt;i&gt;") >= 2
    assert "y\\|z" in (tmp_path / "report.md").read_text()


def test_numbers_have_no_negative_zero_and_a_few_runs_are_not_rounded_away():
    assert (number(-0.0001), number(math.nan)) == ("0.000", "—")
    assert (share(0.004), share(0.0), share(1.0)) == ("0.4%", "0%", "100%")
