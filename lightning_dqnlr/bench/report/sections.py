"""What the report says, section by section, as data that Markdown and HTML both render."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from lightning_dqnlr.bench.report import pictures, tables
from lightning_dqnlr.bench.report.blocks import (
    NOTHING,
    Block,
    Case,
    Heat,
    Picture,
    Points,
    Section,
    Table,
)
from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.report.losing import Loss, losing
from lightning_dqnlr.bench.report.mistuning import mistuning_picture
from lightning_dqnlr.bench.report.numbers import Duel, duels, standing, standings, swept
from lightning_dqnlr.bench.runs.losses import TRAIN, VALIDATION, diverged
from lightning_dqnlr.bench.tasks.task import APART
from lightning_dqnlr.scoring.statistics import LIMIT

DETAILED = 8  # tasks that are shown with their trajectories where the subject loses


def sections(
    comparison: Comparison, trained_horizon: int | None = None, planned: Collection[str] = ()
) -> list[Section]:
    """All of the report but its provenance."""
    parts = [_in_short(comparison), _missing(comparison, planned)]
    if comparison.ranked:
        parts += [
            _standing(comparison),
            _profiles(comparison),
            _heat(comparison),
            _against(comparison),
            _losing(comparison, trained_horizon),
            _splits(comparison),
            _trajectories(comparison),
            _sensitivity(comparison),
            _cost(comparison),
        ]
    parts.append(_losses(comparison))
    return [part for part in parts if part.blocks]


def _in_short(comparison: Comparison) -> Section:
    roles, items = comparison.roles, []
    if not comparison.ranked:
        items.append(
            f"No regret can be computed: {roles.rival!r} has no task with all of its seeds."
        )
    items += _failures(comparison)
    finished = [task for task in comparison.ranked if (task, roles.subject) in comparison.entries]
    mine = [task for task in finished if task in comparison.shared]
    if not mine:
        items.append(f"{roles.subject!r} has no finished task to count: nothing can be said of it.")
        return Section("In short", (Points(tuple(items)),))
    row = standing(comparison, roles.subject, mine)
    worse, low, high = (math.exp(x) - 1 for x in (row.train.iqm, *row.train.interval))
    items.append(
        f"{roles.subject} ends {_way(worse)} the tuned {roles.rival}'s training loss "
        f"(interquartile mean over {len(mine)} tasks; 95% interval {low:+.1%} to {high:+.1%}) and "
        f"{_way(math.exp(row.validation.iqm) - 1)} its validation loss. A result costs "
        f"{row.tries:.0f} {'run' if row.tries == 1 else 'runs'}, one of the tuned {roles.rival} "
        f"{_tries(comparison, mine):.0f}. {row.diverged:.1%} of {roles.subject}'s runs diverged."
    )
    items += _verdicts(roles.subject, duels(comparison))
    if comparison.standing_apart:
        named = ", ".join(comparison.standing_apart)
        items.append(f"Not in here, because they ask a question of their own: {named}.")
    items.append(
        f"Some method ends more than 2% below it on {len(losing(comparison))} of {len(finished)} "
        "tasks; the section on where it loses has them."
    )
    return Section("In short", (Points(tuple(items)),))


def _way(excess: float) -> str:
    return f"{abs(excess):.1%} {'above' if excess > 0 else 'below'}"


def _tries(comparison: Comparison, tasks: Sequence[str]) -> float:
    return sum(comparison.entries[t, comparison.roles.rival].tries for t in tasks) / len(tasks)


def _failures(comparison: Comparison) -> list[str]:
    if comparison.records and all(map(diverged, comparison.records)):
        return ["Every run failed or diverged: all regrets are of equally failed runs."]
    return []


def _verdicts(subject: str, rows: Sequence[Duel]) -> list[str]:
    """Worse first: that is what there is to improve."""
    items = []
    for verdict in ("worse", "better", "undecided"):
        names = [f"{row.method} ({row.train:.2f})" for row in rows if row.verdict == verdict]
        what = "neither shown better nor worse" if verdict == "undecided" else verdict
        than = "compared with" if verdict == "undecided" else "than"
        if names or verdict != "undecided":
            listed = ", ".join(names) or "none of the others"
            items.append(f"On training loss {subject} is {what} {than}: {listed}.")
    items[0] += " (In brackets: the probability that it ends lower.)"
    held_out = [
        f"{row.method} ({row.validation:.2f})" for row in rows if row.validation_interval[1] < 0.5
    ]
    listed = ", ".join(held_out) or "none of the others"
    items.append(f"On validation loss {subject} is worse than: {listed}.")
    return items


def _missing(comparison: Comparison, planned: Collection[str]) -> Section:
    roles, items = comparison.roles, []
    absent = [task for task in planned if task not in comparison.tasks]
    if absent:
        items.append(f"{', '.join(absent)}: no runs at all, so no table counts these tasks.")
    for role in (roles.subject, roles.rival, roles.plain):
        if role not in comparison.methods:
            items.append(f"{role}: no runs at all.")
    unranked = [task for task in comparison.tasks if task not in comparison.ranked]
    if unranked:
        items.append(
            f"{', '.join(unranked)}: no LR of {roles.rival} has all seeds, so there is no regret."
        )
    for method in comparison.methods:
        lacking = comparison.missing(method)
        if lacking:
            items.append(f"{method}: missing or incomplete on {', '.join(lacking)}.")
    for (task, method), entry in sorted(comparison.entries.items()):
        if entry.unfinished:
            items.append(
                f"{method} on {task}: {entry.unfinished} LRs of its grid lack a seed and could "
                "not be chosen."
            )
        if method == roles.rival and all(map(diverged, entry.runs)):
            items.append(f"{task}: the tuned {method} itself diverged; regrets there say little.")
    if not items:
        return Section("What is missing", ())
    text = "Methods are averaged only over tasks that all of them have."
    return Section("What is missing", (text, Points(tuple(items)), *_beside(comparison)))


def _beside(comparison: Comparison) -> tuple[Block, ...]:
    """Incomplete methods next to the rival and the subject on just the tasks they have."""
    blocks: list[Block] = []
    keep = {comparison.roles.subject, comparison.roles.rival}
    for method in comparison.methods:
        have = [task for task in comparison.shared if (task, method) in comparison.entries]
        if have and len(have) < len(comparison.shared):
            table = tables.headline(comparison, have)
            rows = [row for row in table.rows if row[0] in keep | {method}]
            blocks.append(f"{method} on the {len(have)} tasks it has:")
            blocks.append(Table(table.header, tuple(rows), table.marked))
    return tuple(blocks)


def _standing(comparison: Comparison) -> Section:
    tasks = comparison.shared
    rows = standings(comparison, tasks)
    text = (
        f"Regret = log((final loss + e) / (tuned {comparison.roles.rival}'s + e)), e = 1% of the "
        f"initial loss, over {len(tasks)} tasks; 0 is as good, 0.1 is 10% above, below zero is "
        "better. IQM: interquartile mean, with 95% stratified bootstrap intervals. Sorted by it."
    )
    picture = Picture(
        "regret",
        pictures.regret_picture(comparison, rows),
        "Interquartile mean of the regret per method with 95% intervals.",
    )
    shown = (picture,) if rows else ()
    return Section("How good", (text, tables.headline(comparison, tasks), *shown))


def _profiles(comparison: Comparison) -> Section:
    if not comparison.complete():
        return Section("How fast", ())
    rival = comparison.roles.rival
    text = (
        f"Performance profiles: the share of (task, seed) on which a method reaches the tuned "
        f"{rival}'s final validation loss within a factor of the time it took {rival}. The area is "
        f"the mean over log factor from 1/{LIMIT:.0f} to {LIMIT:.0f}: 0.5 is the tuned {rival} "
        "itself. A run that never gets there counts as infinitely slow; a method exactly as good "
        "gets there about every other time. Searching for an LR is not in here, but under the cost."
    )
    picture = Picture(
        "profile", pictures.profile_picture(comparison), "Performance profiles of all methods."
    )
    return Section("How fast", (text, picture))


def _heat(comparison: Comparison) -> Section:
    text = (
        "Mean regret over seeds; orange is above the tuned {}, blue below, {} missing or not run."
    )
    text = text.format(comparison.roles.rival, NOTHING)
    heats = [Heat(tables.heat(comparison, which)) for which in (TRAIN, VALIDATION)]
    blocks = (text, "On training loss:", heats[0], "On validation loss:", heats[1])
    return Section("Regret, task by task", blocks)


def _against(comparison: Comparison) -> Section:
    subject = comparison.roles.subject
    rows = duels(comparison)
    if not rows:
        return Section(f"{subject} against each", ())
    text = (
        f"The probability that a run of {subject} ends lower than one of the other method on the "
        "same task, mean over tasks (ties count half). The first interval is over seeds, on just "
        "these tasks; the second resamples the tasks, too. Worse if the first lies below 1/2, "
        "better only if the second lies above. The most dangerous rival comes first."
    )
    picture = Picture(
        "improvement",
        pictures.improvement_picture(comparison),
        f"Probability that {subject} ends lower than each other method.",
    )
    return Section(f"{subject} against each", (text, tables.against(comparison), picture))


def _losing(comparison: Comparison, trained_horizon: int | None) -> Section:
    subject, rows = comparison.roles.subject, losing(comparison, trained_horizon)
    title = "Where we lose, and why"
    if subject not in comparison.methods:
        return Section(title, ())
    if not rows:
        return Section(title, (f"Nobody ends more than 2% below {subject} on any task.",))
    text = (
        f"Tasks where a method ends more than 2% below {subject} (mean over seeds), largest gap "
        "first. The reasons are read off the recorded runs: where to look, not proof."
    )
    header = ("task", "split", "regret", "ahead on training loss", "ahead on validation loss")
    cells = tuple(_lost_row(comparison, row) for row in rows)
    cases = [_case(comparison, row) for row in rows[:DETAILED]]
    return Section(title, (text, Table(header, cells), *cases))


def _lost_row(comparison: Comparison, row: Loss) -> tuple[str, ...]:
    split = comparison.splits[row.task]
    regrets = " / ".join(tables.number(value, 2) for value in row.regrets)
    return (row.task, split, regrets, _gaps(row.train), _gaps(row.validation))


def _gaps(gaps: Sequence[tuple[str, float]], shown: int = 5) -> str:
    listed = ", ".join(f"{method} by {gap:.2f}" for method, gap in gaps[:shown])
    more = f" and {len(gaps) - shown} more" if len(gaps) > shown else ""
    return listed + more or NOTHING


def _case(comparison: Comparison, row: Loss) -> Case:
    roles = comparison.roles
    methods = list(dict.fromkeys((roles.subject, roles.rival, row.best)))
    picture = Picture(
        f"losing-{row.task}",
        pictures.case_picture(comparison, row.task, methods),
        f"Learning rate and losses on {row.task}: {', '.join(methods)}.",
        small=True,
    )
    hints = row.hints or ("nothing in its runs stands out",)
    split = comparison.splits[row.task]
    return Case(f"{row.task} ({split})" if split else row.task, Points(hints), picture)


def _legend(comparison: Comparison, name: str, methods: Sequence[str]) -> Picture:
    """One legend for the small pictures that follow."""
    svg = pictures.legend_picture(comparison, methods, f"legend-{name}")
    return Picture(f"legend-{name}", svg, "Line styles: " + ", ".join(methods))


def _splits(comparison: Comparison) -> Section:
    names = sorted({comparison.splits[task] for task in comparison.ranked})
    if len(names) < 2:
        return Section("Split by split", ())
    blocks: list[Block] = []
    for name in names:
        tasks = [task for task in comparison.ranked if comparison.splits[task] == name]
        apart = f", {APART[name]}" if name in APART else ""
        blocks.append(f"{name or 'no split'}{apart} ({', '.join(tasks)}):")
        blocks.append(tables.headline(comparison, tasks))
    return Section("Split by split", tuple(blocks))


def _trajectories(comparison: Comparison) -> Section:
    roles = comparison.roles
    named = dict.fromkeys((roles.subject, roles.rival, roles.plain))
    methods = [name for name in named if name in comparison.methods]
    shown = [
        Picture(
            f"trajectory-{task}",
            pictures.trajectory_picture(comparison, task, methods),
            f"Learning rate, training and validation loss on {task}.",
            small=True,
        )
        for task in comparison.ranked
    ]
    text = "Learning rate, training loss and validation loss; one line per seed."
    return Section(
        "Learning rates and losses",
        (text, _legend(comparison, "trajectories", methods), *shown),
    )


def _sensitivity(comparison: Comparison) -> Section:
    title, tasks = "How much the given LR matters", swept(comparison)
    if not tasks:
        return Section(title, ("No method was run over learning rates on the same seeds.",))
    text = (
        "Mean regret on training loss against the learning rate that the method was given. Spread: "
        "highest minus lowest over these rates; 0 means that the rate does not matter. A method "
        "that was given more decades had more to spoil. The first picture is over all tasks: the "
        "interquartile mean, by how far the rate is from the best peak of each task."
    )
    methods = [n for n in comparison.methods if any(comparison.sweep(t, n) for t in tasks)]
    shown = [
        Picture(
            f"sensitivity-{task}",
            pictures.sensitivity_picture(comparison, task),
            f"Regret against the given learning rate on {task}.",
            small=True,
        )
        for task in tasks
    ]
    table = tables.sensitivity_table(comparison)
    legend = _legend(comparison, "sensitivity", methods)
    return Section(title, (text, *mistuning_picture(comparison), table, legend, *shown))


def _cost(comparison: Comparison) -> Section:
    plain, rival = comparison.roles.plain, comparison.roles.rival
    text = (
        f"Runs per result counts those that chose the LR. Seconds are of training alone: of all "
        f"these runs against the tuned {rival}'s, and of one run against the {plain} one of the "
        "same task and seed (medians). Memory is beyond the plain run, in bytes and in copies of "
        "the weights."
    )
    costs: tuple[Block, ...] = (text, tables.cost_table(comparison))
    if not tables.cost_table(comparison).rows:
        costs = (f"No task has both {plain} and another method, so there is no overhead.",)
    seeds = "Standard deviation over seeds of the training regret:"
    return Section("What it costs", (*costs, seeds, tables.variance_table(comparison)))


def _losses(comparison: Comparison) -> Section:
    table = tables.losses(comparison)
    text = "Medians over seeds, with the LR chosen. All regrets come from these."
    return Section("Final losses", (text, table) if table.rows else (), folded=True)
