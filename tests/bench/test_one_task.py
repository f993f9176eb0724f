"""The report on one task: what is said of it, what its page opens with, by hand.

Initial losses are 2, so e is 0.02: a loss of 0.98 is then 1.
"""

import math
import re

import pytest
import torch

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.duels import duels
from lightning_dqnlr.bench.report.one_task import losses, verdict_in_short
from lightning_dqnlr.bench.report.sensitivity import loss_by_lr, mistuned
from lightning_dqnlr.bench.report.write import write_report
from lightning_dqnlr.scoring.statistics import mean_gap, student_quantile
from tests.bench.synthetic_records import record


def runs(method, *final, lr=None, task="Net"):
    held_out = [0.5 * loss + 0.5 for loss in final]
    return [
        record(task, method, lr, seed, split="your own", final_train=x, final_validation=y)
        for seed, (x, y) in enumerate(zip(final, held_out, strict=True))
    ]


def own(*mine, edge=1.0):
    """The cosine ends at 1 with all of three peaks but the best, which is the middle one."""
    return [
        *runs("cosine", 1.48, 1.48, 1.48, lr=0.01),
        *runs("cosine", 0.98, 1.0, 0.96, lr=0.1),
        *runs("cosine", *[0.98 * edge, 1.0 * edge, 0.96 * edge], lr=1.0),
        *runs("dqnlr", *mine),
        *runs("plateau", 1.9, 1.91, 1.89),
    ]


def said(records):
    comparison = Comparison(records)
    return verdict_in_short(comparison, duels(comparison)).markdown()


def test_three_runs_that_all_end_higher_are_said_to_be_worse_with_the_interval():
    text = said(own(1.48, 1.5, 1.46, edge=2.0))
    # log 1.5 = 0.405 within 0.04: +50% and a few per cent on each side.
    found = re.search(r"On training loss dqnlr is worse than the tuned cosine: (.*)\.", text)
    assert re.fullmatch(r"\+5\d% \[\+4\d%, \+5\d%\]", found[1])
    assert "against the others on training loss dqnlr is better than plateau." in text.lower()


def test_runs_on_both_sides_are_neither_and_lower_ones_better():
    assert "neither better nor worse than the tuned cosine for certain" in said(own(0.6, 1.4, 1.0))
    assert "On validation loss dqnlr is better than the tuned cosine" in said(own(0.5, 0.52, 0.48))


def test_one_run_of_each_says_nothing_of_chance():
    one = [run for run in own(1.9, 1.9, 1.9) if run.seed == 0]
    text = said(one)
    assert "neither better nor worse than the tuned cosine for certain: +92% [unknown]" in text
    assert "One run of each method says nothing of chance: suite.seeds=5" in text


def test_a_best_peak_on_the_edge_of_the_grid_is_named_with_what_looks_beyond():
    assert "edge of its grid" not in said(own(1.0, 1.0, 1.0, edge=2.0))
    text = said(own(1.0, 1.0, 1.0, edge=0.5))
    assert "edge of its grid for cosine (1, the highest)" in text
    assert "lr=1 puts the middle of the grids there." in text
    comparison = Comparison(own(1.0, 1.0, 1.0, edge=0.5))
    assert "| cosine | 1 (highest) |" in losses(comparison, duels(comparison)).markdown()


def test_a_method_that_was_run_at_no_given_rate_stands_in_the_pictures_as_a_level_line():
    comparison = Comparison(own(1.98, 1.98, 1.98, edge=2.0))
    (picture,) = loss_by_lr(comparison, "Net")
    assert ">dqnlr<" in picture.svg
    assert ">plateau<" not in picture.svg
    curve = mistuned(comparison, "dqnlr")
    assert len(curve) > 2
    assert {round(value, 3) for value in curve.values()} == {round(math.log(2), 3)}


def test_the_page_is_titled_by_the_module_opens_with_the_picture_and_folds_the_details(tmp_path):
    written = write_report(own(1.5, 1.5, 1.5), tmp_path)
    page = written.page.read_text()
    assert "<h1>Net: dqnlr against 2 other methods</h1>" in page
    first, *details = page.split("<details>")
    headings = re.findall(r"<h2>(.*?)</h2>", first)
    assert headings == ["Loss by learning rate", "In short", "What is missing", "The losses"]
    assert first.index("<svg") < first.index("In short</h2>")
    assert [re.search(r"<h2>(.*?)</h2>", part)[1] for part in details][-1] == "Where it comes from"
    assert "Regret, task by task" not in page  # one task
    assert written.headline.startswith("# Net: dqnlr against")
    assert "Loss by learning rate" not in written.headline  # a picture and nothing else


def test_several_tasks_are_titled_and_ordered_as_before(tmp_path):
    records = [*own(1.5, 1.5, 1.5), *runs("cosine", 1.0, 1.0, lr=0.1, task="Other")]
    page = write_report(records, tmp_path).page.read_text()
    assert "<h1>dqnlr against 2 other methods</h1>" in page
    assert "Regret, task by task" in page


def test_the_gap_of_two_means_has_welchs_interval():
    gap = mean_gap(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0]))
    # Variances 1 and 1 of three each: 4 degrees of freedom, t = 2.776.
    width = 2.776 * math.sqrt(2 / 3)
    assert gap.value == pytest.approx(1.0)
    assert gap.interval == pytest.approx((1 - width, 1 + width), abs=1e-3)
    assert mean_gap(torch.ones(3), torch.zeros(2)).interval == (1.0, 1.0)
    assert mean_gap(torch.ones(1), torch.zeros(5)).interval == (-math.inf, math.inf)


@pytest.mark.parametrize(("freedom", "table"), [(2, 4.303), (3, 3.182), (4, 2.776), (30, 2.042)])
def test_students_quantile_is_that_of_the_tables(freedom, table):
    assert student_quantile(freedom) == pytest.approx(table, rel=0.01 if freedom == 2 else 2e-3)


def test_an_interval_of_five_runs_calls_equals_different_as_often_as_it_says():
    drawn = torch.randn(2, 1000, 5, generator=torch.Generator().manual_seed(0))
    gaps = [mean_gap(x, y).interval for x, y in zip(*drawn, strict=True)]
    assert 0.03 < sum(gap.low > 0 or gap.high < 0 for gap in gaps) / 1000 < 0.07
