"""The confirmation at real size, at its smallest: interrupted, gone on with, and its figures."""

import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_dqnlr.bench.report.comparison import Comparison
from lightning_dqnlr.bench.runs.record import Record
from lightning_dqnlr.bench.runs.run import run_key
from lightning_dqnlr.errors import ConfigurationError
from tests.bench.synthetic_records import record

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "real_size.py"
TINY = ("--scale", "tiny", "--steps", "10", "--seeds", "1", "--peaks", "3", "--device", "cpu")
RUNS = 2 * (1 + 3 + 3)


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("real_size")
    sys.modules.pop("real_size"), sys.modules.pop("real_size_tasks")


def stored(folder):
    """The records by (task, method, lr)."""
    texts = [path.read_text() for path in folder.glob("cpu/runs/*/*.json")]
    records = [Record.from_json(text) for text in texts]
    return {(r.task, r.method, r.lr): r for r in records}


def call(script, folder, *arguments):
    """The command in this process, whose answer to SIGTERM stays what it was."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *(arguments or TINY), "--folder", str(folder)])
        try:
            script.main()
        finally:
            signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A command that got SIGTERM when its first run was stored."""
    folder = tmp_path_factory.mktemp("real size")
    command = [sys.executable, str(SCRIPT), *TINY, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    while process.poll() is None and not stored(folder):
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=300)
    return folder, process.returncode, errors, stored(folder)


def test_a_command_that_is_ended_keeps_what_was_finished_and_says_so(killed):
    _, code, errors, records = killed
    assert code == 130, errors
    assert "real_size.py: interrupted; what was finished is stored" in errors
    assert 1 <= len(records) < RUNS
    assert [r.failure for r in records.values() if r.failure] == []


@pytest.fixture(scope="module")
def finished(killed, script):
    """What the same command prints that goes on, and the records at its end."""
    folder, _, _, before = killed
    with pytest.MonkeyPatch.context() as patch:
        lines, made = [], []
        run = script.run
        patch.setattr(script, "run", lambda *a, **k: made.append(a[0].name) or run(*a, **k))
        patch.setattr("builtins.print", lambda *a, sep=" ", **_: lines.append(sep.join(a)))
        call(script, folder)
    assert len(made) == RUNS - len(before)
    assert f"{RUNS} runs, {len(before)} of them stored" in "\n".join(lines)
    return folder, "\n".join(lines), stored(folder)


def test_the_table_has_the_best_peaks_and_their_losses(finished):
    _, text, records = finished
    assert len(records) == RUNS
    for task in ("transformer", "residual"):
        rival = best(records, task, "cosine")
        for method in ("dqnlr", "cosine", "wsd"):
            chosen, cells = best(records, task, method), row(text, task, method)
            assert cells[0] == ("1" if method == "dqnlr" else "3")
            assert cells[1].split(",")[0] == (
                "none needed" if chosen.lr is None else f"{chosen.lr:g}"
            )
            assert cells[2:4] == [f"{chosen.final_train:.4f}", f"{chosen.final_validation:.4f}"]
            start = rival.initial_train
            loss = min(chosen.final_train, 10 * start)  # what a run that diverged counts as
            regret = math.log((loss + 0.01 * start) / (rival.final_train + 0.01 * start))
            assert float(cells[4].split()[0]) == pytest.approx(regret, abs=6e-4)
            assert float(cells[6]) > 0


def best(records, task, method):
    return min(
        (r for (of, by, _), r in records.items() if (of, by) == (task, method)),
        key=lambda r: r.final_train,
    )


def row(text, task, method):
    """The cells of a method's line in a task's table."""
    part = text.split(f"## {task}:")[1].split("\n## ")[0]
    return re.search(rf"^\| {method} \| (.+) \|$", part, re.MULTILINE)[1].split(" | ")


def test_both_tasks_have_their_grids_and_the_callback_has_none(finished):
    *_, records = finished
    for method in ("cosine", "wsd"):
        assert sorted(lr for task, by, lr in records if (task, by) == ("transformer", method)) == [
            1e-4, 1e-3, 1e-2,
        ]  # fmt: skip
        assert sorted(lr for task, by, lr in records if (task, by) == ("residual", method)) == [
            0.003162, 0.03162, 0.3162,
        ]  # fmt: skip
    assert {lr for _, by, lr in records if by == "dqnlr"} == {None}
    assert {r.optimizer for r in records.values()} == {"adamw", "momentum"}


def test_a_second_call_runs_nothing_and_prints_the_same(finished, script, monkeypatch, capsys):
    folder, text, _ = finished
    monkeypatch.setattr(script, "run", lambda *_, **__: pytest.fail("made a run again"))
    call(script, folder)
    again = capsys.readouterr().out
    assert f"{RUNS} runs, {RUNS} of them stored" in again
    assert again.rstrip().endswith(text[text.index("\n## transformer") :].strip())


def test_runs_that_raise_are_named_and_tried_again(script, tmp_path, monkeypatch, capsys):
    made = []

    def out_of_memory(method, task, lr, seed, split, *_, **__):
        made.append(method.name)
        task, method, lr, seed, code, policy = run_key(method, task, lr, seed)
        key = {"split": split, "code": code, "policy": policy}
        return record(task, method, lr, seed, failure="OutOfMemoryError: CUDA", **key)

    monkeypatch.setattr(script, "run", out_of_memory)
    for _ in range(2):
        call(script, tmp_path, *TINY, "--tasks", "transformer")
    text = capsys.readouterr().out
    assert made == 2 * ["dqnlr", *3 * ["cosine"], *3 * ["wsd"]]
    assert "run 7/7 (transformer, wsd, peak 0.01, seed 0): failed: OutOfMemoryError: CUDA" in text
    assert row(text, "transformer", "cosine")[2] == "1 of 1 diverged"
    assert "7 runs raised, and count as diverged" in text


def test_shares_make_every_run_once_and_leave_the_tables_to_the_whole(
    script, tmp_path, monkeypatch, capsys
):
    made = []

    def at_once(method, task, lr, seed, split, *_, **__):
        made.append((method.name, lr))
        task, method, lr, seed, code, policy = run_key(method, task, lr, seed)
        return record(task, method, lr, seed, split=split, code=code, policy=policy)

    monkeypatch.setattr(script, "run", at_once)
    arguments = (*TINY, "--tasks", "transformer")
    for place in range(1, 4):
        call(script, tmp_path, *arguments, "--share", f"{place}/3")
        text = capsys.readouterr().out
        assert "without --share" in text
        assert "## transformer" not in text
    assert len(made) == len(set(made)) == 7
    call(script, tmp_path, *arguments)
    assert "7 runs, 7 of them stored" in (text := capsys.readouterr().out)
    assert "## transformer" in text
    assert len(made) == 7


def test_no_cuda_is_said_before_anything_is_written(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="--device cpu"):
        script.chosen_device("cuda")
    with pytest.raises(SystemExit):
        call(script, tmp_path / "new", "--device", "cuda")
    assert "--device cuda: torch" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert script.chosen_device("auto") == "cpu"


@pytest.mark.parametrize(
    "wrong",
    [
        ("--peaks", "2"), ("--steps", "many"), ("--scale", "0"), ("--scale", "nan"),
        ("--seeds", "0"), ("--share", "0/2"), ("--share", "3/2"), ("--share", "2"),
        ("--share", "/"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_work_are_refused_by_name(script, tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.setattr(script, "compare", lambda _: pytest.fail("began"))
    with pytest.raises(SystemExit):
        call(script, tmp_path / "new", *wrong)
    assert f"argument {wrong[0]}: '{wrong[1]}' must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("best_lr", "said"), [(0.01, ", the lowest"), (0.1, ""), (1.0, ", the highest")]
)
def test_a_best_peak_at_the_edge_of_its_grid_is_named(script, best_lr, said):
    runs = [record(method="dqnlr")]
    for lr in (0.01, 0.1, 1.0):
        runs.append(record(method="cosine", lr=lr, final_train=0.5 if lr == best_lr else 1.0))
    comparison = Comparison(runs)
    assert script.edge(comparison, "t", "cosine") == said
    assert script.edge(comparison, "t", "dqnlr") == ""
    (line,) = script.at_the_edge(comparison)
    assert line.startswith(f"The best peak of cosine on t is {best_lr:g}, the" if said else "No ")


def test_the_time_left_follows_the_pace_of_each_task(script, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: clock[0])
    named = [script.BenchTask(n, "longer runs", None, 1.0, s) for n, s in (("a", 4.0), ("b", 2.0))]
    runs = [
        script.PlannedRun(named[n], script.METHODS[0], None, 0, ()) for n in (0, 0, 1, 1)
    ]  # fmt: skip
    progress = script.Progress(runs, steps=10)
    assert math.isnan(progress.seconds_left())
    for _ in range(5):
        progress.tick()
    clock[0] = 10.0  # 2 s a step of "a", 1 s one of "b" by their nominal costs
    assert progress.seconds_left() == 2.0 * 5 + 2.0 * 10 + 1.0 * 20
    progress.end(record(task="a"))
    progress.end(record(task="a"))  # which stopped before its first step
    progress.tick()
    clock[0] = 13.0
    assert progress.seconds_left() == 3.0 * 9 + 3.0 * 10


def test_mixed_precision_multiplies_in_bfloat16_and_takes_the_loss_in_float32(script):
    tasks = sys.modules["real_size_tasks"]
    task, multiplied = tasks.transformer_task(script.TINY, 10), []
    module = script.Watched(task.build, lambda: None, "cpu")(0).eval()
    head = module.net.head[-1]
    head.register_forward_hook(lambda *arguments: multiplied.append(arguments[-1].dtype))
    tokens = torch.randint(90, (2, 32), generator=torch.Generator().manual_seed(0))
    logits = module.net(tokens)
    assert multiplied == [torch.bfloat16]
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    exact = task.build(0).eval().net(tokens)
    assert 0 < (logits - exact).abs().max() < 0.02


def test_the_real_size_has_millions_of_parameters(script):
    size = script.Size()
    tasks = sys.modules["real_size_tasks"]
    transformer = sum(p.numel() for p in tasks.Transformer(size).parameters())
    residual = sum(p.numel() for p in tasks.residual_network(size.channels).parameters())
    assert transformer >= 10_000_000
    assert 2_000_000 <= residual <= 10_000_000
    half = script.scaled("0.5")
    assert half == replace(size, width=192, channels=16)


def test_the_transformer_does_not_look_ahead(script):
    net = sys.modules["real_size_tasks"].Transformer(script.TINY).eval()
    text = torch.randint(90, (1, 32), generator=torch.Generator().manual_seed(0))
    other = text.clone()
    other[0, 20] += 1
    changed = (net(text) - net(other)).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(20, 32))


def test_mixed_precision_and_smaller_steps_on_a_cpu_are_kept_apart_from_what_else_was_made(
    script, tmp_path
):
    one = (*TINY, "--tasks", "transformer", "--share", "1/7")
    for more in ((), ("--sequences", "4"), ("--context", "16"), ("--mixed",)):
        call(script, tmp_path, *one, *more)
    losses = [r.curve["train"] for r in records_in(tmp_path / "cpu")]
    (mixed,) = records_in(tmp_path / "cpu-bfloat16")
    assert len(losses) == 3
    assert len({curve[-1] for curve in (*losses, mixed.curve["train"])}) == 4
    # What bfloat16 rounds away is all that differs from the plain run.
    nearest = min(abs(curve[-1] - mixed.curve["train"][-1]) for curve in losses)
    assert 0 < nearest < 1e-3


def records_in(folder):
    return [Record.from_json(path.read_text()) for path in folder.glob("runs/*/*.json")]


def test_the_labels_say_how_patches_were_turned(script):
    tasks = sys.modules["real_size_tasks"]
    image = torch.arange(9.0).reshape(1, 1, 3, 3).repeat(64, 1, 1, 1)
    labels = torch.tensor([0, 3, 4, 7]).repeat(16)  # four treatments of two photographs
    images, turned = tasks.turned(image, labels, tasks.Draws(0))
    assert torch.equal(turned // 4, labels // 4)
    # Undone, the rows lie below each other again, whether mirrored or not.
    upright = [torch.rot90(i[0], -int(t) % 4) for i, t in zip(images, turned, strict=True)]
    assert all(i[0, 1] < i[1, 1] < i[2, 1] for i in upright)
    assert set(turned.tolist()) == set(range(8))


def test_all_that_is_written_is_plain_json(finished):
    folder, *_ = finished
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json"}
    assert len(files) == RUNS + 1  # and what tells where they come from
    assert all(isinstance(json.loads(path.read_text()), dict) for path in files)
