"""Records that ship with the repository: what comes back, what is dropped, what is damaged."""

import lzma
from dataclasses import replace

import pytest

from lightning_dqnlr.bench.runs.archive import Archive, Store
from lightning_dqnlr.cli import bench as cli_bench
from lightning_dqnlr.errors import ConfigurationError
from tests.bench.test_bench_store import RECORD
from tests.cli.test_cli_bench import composed


def packed(folder, *records, keys=None):
    archive = Archive(folder)
    archive.pack(records, [record.key for record in records] if keys is None else keys)
    return archive


def test_what_the_folder_lacks_comes_from_the_archive(tmp_path):
    packed(tmp_path / "archive", RECORD, replace(RECORD, seed=1))
    store = Store(tmp_path / "runs", Archive(tmp_path / "archive"))
    assert store.get(RECORD.key) == RECORD
    assert not store.get(replace(RECORD, seed=2).key)
    store.put(replace(RECORD, final_train=0.25))
    assert store.get(RECORD.key).final_train == 0.25
    assert Archive(tmp_path / "archive").get(RECORD.key) == RECORD


def test_losses_are_rounded_to_six_digits_but_the_rate_of_the_key_is_not(tmp_path):
    lr, curve = 0.123456789, {**RECORD.curve, "train": [1.23456789e-7, 123456789.0]}
    record = replace(RECORD, lr=lr, final_train=0.987654321, curve=curve)
    found = packed(tmp_path, record).get(record.key)
    assert (found.lr, found.final_train) == (lr, 0.987654)
    assert found.curve["train"] == [1.23457e-7, 123457000.0]


def test_packing_twice_in_another_order_gives_the_same_bytes(tmp_path):
    records = [replace(RECORD, seed=seed, lr=lr) for seed in (0, 1) for lr in (None, 0.1)]
    packed(tmp_path / "a", *records)
    packed(tmp_path / "b", *reversed(records))
    packed(tmp_path / "b", *records[:1])  # what is there stays
    (path,) = (tmp_path / "a").iterdir()
    assert path.name == "digits_MLP.jsonl.xz"
    assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(lzma.decompress(path.read_bytes()).splitlines()) == 4


def test_what_is_superseded_is_dropped_and_nothing_else(tmp_path):
    old_version, old_policy = replace(RECORD, version="old"), replace(RECORD, seed=1, policy="old")
    other_rate, other_method = replace(RECORD, lr=0.5), replace(old_version, method="wsd")
    shares_the_file = replace(old_version, task="digits_MLP")
    other_task = replace(old_version, task="another")
    decoys = (old_version, old_policy, other_rate, other_method, shares_the_file, other_task)
    packed(tmp_path, *decoys)
    archive = packed(tmp_path, RECORD)
    kept = (RECORD, other_rate, other_method, shares_the_file, other_task)
    assert all(archive.get(record.key) == record for record in kept)
    assert archive.get(old_version.key) is None
    assert archive.get(old_policy.key) is None


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"", lambda b: b"no xz at all"])
def test_a_damaged_file_is_named_with_the_remedy(damage, tmp_path):
    packed(tmp_path, RECORD)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigurationError, match=r"digits_MLP\.jsonl\.xz .*fetch it again"):
        Archive(tmp_path).get(RECORD.key)


def test_a_line_of_another_version_is_named_with_the_remedy(tmp_path):
    (tmp_path / "digits_MLP.jsonl.xz").write_bytes(lzma.compress(b'{"task": "digits MLP"}\n'))
    with pytest.raises(ConfigurationError, match=r"digits_MLP\.jsonl\.xz .*fetch it again"):
        Archive(tmp_path).get(RECORD.key)


def test_packed_runs_are_not_made_again_by_anyone(tmp_path, capsys):
    arguments = (
        "suite.tasks=[fine-tuned encoder]",
        "suite.methods=[constant]",
        "suite.seeds=1",
        "suite.points=1",
        "workers=1",
        f"archive={tmp_path}/archive",
    )
    cli_bench.run(composed(*arguments, f"folder={tmp_path}/mine"), "quick")
    assert not (tmp_path / "archive").exists()
    cli_bench.run(composed(*arguments, f"folder={tmp_path}/mine", "pack=true"), "quick")
    assert "1 of 1 runs packed" in capsys.readouterr().out
    cli_bench.run(composed(*arguments, f"folder={tmp_path}/yours", "dry_run=true"), "quick")
    assert "1 runs, 1 of them stored" in capsys.readouterr().out


def test_a_record_of_an_earlier_version_stands_in_until_it_is_made_again(tmp_path):
    old = replace(RECORD, version="protocol=1 controller=1", final_train=3.0)
    new = replace(RECORD, version="protocol=1 controller=2")
    archive = packed(tmp_path, old, keys=[new.key])
    assert archive.get(new.key) == old
    assert archive.get(replace(old, version="protocol=2 controller=2").key) is None
    assert packed(tmp_path, new, keys=[new.key]).get(new.key) == new
    assert Archive(tmp_path).get(old.key) is None, (
        "it would be counted beside the one that replaces it"
    )


def test_packing_needs_an_archive(tmp_path):
    config = composed(f"folder={tmp_path}", "archive=null", "pack=true", "suite.tasks=[quadratic]")
    with pytest.raises(ConfigurationError, match="archive=benchmarks/records"):
        cli_bench.run(config, "quick")
