"""Policy folders that somebody else wrote: refused by name, or sound whatever a run shows."""

import hashlib
import json
import math
import os
import random
import socket
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load, save

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.spec import ActionSpec, ControllerSpec
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError
from lightning_dqnlr.policy.network import QNetwork, QTable, QuantileNetwork
from lightning_dqnlr.policy.policy import (
    BUNDLED,
    RECORD,
    WEIGHTS,
    LRPolicy,
    combine,
    with_settings,
)
from tests.control.test_features import stats
from tests.policy.test_policy import make_policy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fuzz_files(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fuzz_files

    return fuzz_files


def change(folder, place, value):
    """Sets one value of the JSON, as text, by the names that lead to it."""
    content = json.loads((folder / RECORD).read_text())
    node = content
    *parents, last = place.split(".")
    for name in parents:
        node = node[name]
    node[last] = "@"
    text = json.dumps(content).replace('"@"', value)
    (folder / RECORD).write_text(text)


def reseal(folder, weights):
    """Writes weights and their checksum, as somebody who means harm would."""
    (folder / WEIGHTS).write_bytes(weights)
    change(folder, "weights_sha256", json.dumps(hashlib.sha256(weights).hexdigest()))


OUT_OF_RANGE = {
    "decisions": ("0", "-1", "1e9", "64.5", "64.0", "true", '"64"', "null", "[64]", "100001"),
    "growth": ("0", "-0.5", "1.5", '"0.5"', "null"),
    "unknown_growth": ("0", "1e9", "true"),
    "decay": ('"linear"', "3", "null", "[]"),
    "decay_share": ("0", "2", '"0.3"'),
    "cuts_in_decay": ("0", "1", '"false"', "null"),
    "probe_size": ("0", "10000000000", "10.5"),
    "start_ratio": ("0", "-1", "2"),
    "max_update_ratio": ("0", "-1", "1e10", "1e-7", "1e-5"),  # 1e-5 is below the start
    "scale_floor": ("0", "-1", "2", "1e-300"),
}


@pytest.mark.parametrize(
    ("field", "value"), [(name, value) for name, found in OUT_OF_RANGE.items() for value in found]
)
def test_a_field_of_the_controller_out_of_range_is_named_in_a_file_and_in_a_setting(
    tmp_path, field, value
):
    folder = make_policy().save(tmp_path / "mine")
    change(folder, f"controller.{field}", value)
    with pytest.raises(PolicyFileError, match=rf"mine.*{field}.*train it again"):
        LRPolicy.load(folder)
    with pytest.raises(ConfigurationError, match=field):
        with_settings(make_policy(), [f"{field}={value}"])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 30])
@pytest.mark.parametrize(
    "place", ["controller.growth", "record.minutes", "record.anything", "format_version"]
)
def test_a_number_that_no_float_or_no_64_bits_hold_is_refused_wherever_it_stands(
    tmp_path, place, value
):
    folder = make_policy().save(tmp_path / "mine")
    change(folder, place, value)
    with pytest.raises(PolicyFileError, match=r"mine.*policy\.json.*64 bits.*copy"):
        LRPolicy.load(folder)


@pytest.mark.parametrize(
    ("place", "value", "name"),
    [
        ("controller", "[]", "controller=\\[\\]"),
        ("controller", "{}", "controller .*missing"),
        ("controller.other", "3", "controller .*unknown.*other"),
        ("controller.features", "3", "controller.features=3"),
        ("controller.features.names", '"progress"', "controller.features.names"),
        ("controller.features.names", '{"progress": 1}', "controller.features.names"),
        ("controller.features.names", "[[]]", "controller.features.names"),
        ("controller.features.version", "true", "controller.features.version"),
        ("controller.actions.multipliers", '"123"', "controller.actions.multipliers"),
        ("controller.actions.multipliers", '["1.0"]', "multipliers"),
        ("controller.actions.multipliers", "[0.0001, 1.0, 2.0]", "multipliers=0.0001"),
        ("controller.actions.multipliers", "[1.0, 1001]", "multipliers=1001"),
        ("controller.actions.multipliers", "[]", "multipliers"),
        ("network", "null", "network=None"),
        ("network", '{"members": []}', "members"),
        ("network", '{"members": [{"members": []}]}', "network .*unknown.*members"),
        ("network.hidden", '"88"', "network.hidden"),
        ("network.hidden", "8", "network.hidden"),
        ("network.hidden", "[8.0]", "hidden"),
        ("network.hidden", "[10000000]", "hidden=10000000"),
        ("network.hidden", "[65536, 65536]", "number of the network's weights"),
        ("network.hidden", "[1, 1, 1, 1, 1, 1, 1, 1, 1]", "hidden layers=9"),
        ("network.dueling", "1", "network.dueling"),
        ("network.quantiles", "100000", "quantiles"),
        ("network.bins", '{"0": [0.0]}', "network .*unknown"),
        ("network.observation_size", "41", "observation size"),
        ("record", "[]", "record="),
        ("record.start", '"now"', "record.start"),
        ("record.circuit_breaker", '"no"', "record.circuit_breaker"),
        ("record.overrides", "[3]", "record.overrides"),
        ("record.minutes", '"long"', "record.minutes"),
        ("another", "3", "unknown.*another"),
        ("format_version", "true", "format_version"),
        ("weights_sha256", "null", "not saved together"),
    ],
)
def test_a_field_of_another_kind_is_named(tmp_path, place, value, name):
    folder = make_policy().save(tmp_path / "mine")
    change(folder, place, value)
    with pytest.raises(PolicyFileError, match=f"mine.*{name}") as caught:
        LRPolicy.load(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("bins", "name"),
    [
        ('{"0": "12"}', "edges of network.bins"),
        ('{"0": ["1"]}', "edge of bins"),
        ('{"x": [1]}', "column of bins"),
        ('{"-1": [1]}', "column of bins"),
        ('{"42": [1]}', "column 42"),
        ("[[1]]", "network.bins"),
        ("{" + ", ".join(f'"{i}": [0, 1, 2]' for i in range(42)) + "}", "number.* of bins"),
    ],
)
def test_bins_that_are_none_or_too_many_are_refused(tmp_path, bins, name):
    spec = ControllerSpec()
    table = QTable(len(spec.features), len(spec.actions), {0: [0.0]})
    folder = LRPolicy(table, spec).save(tmp_path / "mine")
    change(folder, "network.bins", bins)
    with pytest.raises(PolicyFileError, match=f"mine.*{name}"):
        LRPolicy.load(folder)


def test_a_field_that_is_absent_is_named_unless_policies_of_the_past_lack_it(tmp_path):
    folder = make_policy().save(tmp_path)
    whole = json.loads((folder / RECORD).read_text())
    for name in whole["controller"]:
        content = json.loads(json.dumps(whole))
        del content["controller"][name]
        (folder / RECORD).write_text(json.dumps(content))
        if name in ("cuts_in_decay", "decay_share"):  # the bundled "classic" is without them
            assert LRPolicy.load(folder).spec == ControllerSpec()
        else:
            with pytest.raises(PolicyFileError, match=f"missing.*{name}"):
                LRPolicy.load(folder)


@pytest.mark.parametrize("levels", [40, 500, 100_000])
@pytest.mark.parametrize(("opening", "closing"), ["[]", ('{"a":', "}")])
def test_deep_json_is_refused(tmp_path, levels, opening, closing):
    folder = make_policy().save(tmp_path)
    change(folder, "record.deep", opening * levels + "1" + closing * levels)
    with pytest.raises(PolicyFileError, match="levels deep"):
        LRPolicy.load(folder)


@pytest.mark.parametrize("name", [RECORD, WEIGHTS])
@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device", "loop", "sparse"])
def test_what_is_no_regular_file_is_not_opened_and_no_sparse_one_is_read(tmp_path, name, kind):
    folder = make_policy().save(tmp_path / "p")
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(name)
    else:
        path.write_bytes(content)
        os.truncate(path, 2**40)
    reason = {"loop": "symbolic links", "sparse": r"\d+ bytes are more than"}
    with pytest.raises(PolicyFileError, match=reason.get(kind, "no regular file")):
        LRPolicy.load(folder)


def test_a_link_to_a_regular_file_passes(tmp_path):
    folder = make_policy().save(tmp_path / "p")
    for name in (RECORD, WEIGHTS):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert LRPolicy.load(folder).fingerprint == make_policy().fingerprint


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value):
    policy = make_policy()
    policy.network.value[0].bias.data[3] = value
    with pytest.raises(PolicyFileError, match=r"value\.0\.bias in policy\.safetensors holds NaN"):
        LRPolicy.load(policy.save(tmp_path))


@pytest.mark.parametrize("kind", ["network", "quantiles", "table"])
def test_weights_whose_q_values_could_be_infinite_are_refused(tmp_path, kind):
    spec = ControllerSpec()
    sizes = (len(spec.features), len(spec.actions))
    networks = {
        "network": QNetwork(*sizes, (8,)),
        "quantiles": QuantileNetwork(*sizes, 4, (8,), dueling=False),
        "table": QTable(*sizes, {0: [0.0]}),
    }
    network = networks[kind]
    for tensor in network.state_dict().values():
        tensor.fill_(1e35 if kind == "table" else 1e20)
    with pytest.raises(PolicyFileError, match="largest Q-value"):
        LRPolicy.load(LRPolicy(network, spec).save(tmp_path))


def test_the_bound_of_the_q_values_holds():
    for name in BUNDLED:
        policy = LRPolicy.load(name)
        limits = torch.tensor(policy.spec.features.limits)
        with torch.no_grad():
            bound = policy.network.largest_value(limits)
        corners = limits * torch.randint(2, (2000, len(limits))).mul(2).sub(1)
        assert policy.q_values(corners).abs().max() <= bound < 1e30


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"value.0.bias": torch.zeros(17)}, "shape of value.0.bias"),
        ({"value.0.bias": torch.zeros(16, dtype=torch.int32)}, "dtype of value.0.bias"),
        ({"another": torch.zeros(3)}, "unknown.*another"),
        ({"value.0.bias": None}, "missing.*value.0.bias"),
    ],
)
def test_weights_of_another_network_are_known_by_their_header(tmp_path, tensors, reason):
    folder = make_policy().save(tmp_path)
    found = load((folder / WEIGHTS).read_bytes()) | tensors
    reseal(folder, save({name: tensor for name, tensor in found.items() if tensor is not None}))
    with pytest.raises(PolicyFileError, match=reason):
        LRPolicy.load(folder)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 100, b"\x02" + b"\0" * 7 + b"{}"])
def test_weights_that_are_no_safetensors_are_refused(tmp_path, content):
    folder = make_policy().save(tmp_path)
    reseal(folder, content)
    with pytest.raises(PolicyFileError, match="header"):
        LRPolicy.load(folder)


def test_weights_in_half_or_double_precision_are_read(tmp_path):
    policy = make_policy()
    folder = policy.save(tmp_path)
    found = {k: v.double() for k, v in load((folder / WEIGHTS).read_bytes()).items()}
    reseal(folder, save(found))
    observation = torch.randn(9, len(policy.spec.features))
    assert torch.equal(LRPolicy.load(folder).q_values(observation), policy.q_values(observation))


def test_loading_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    for name in BUNDLED:
        LRPolicy.load(name)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_save_writes_can_be_read_again(tmp_path):
    """A regret may be NaN, and an ensemble may hold a network twice."""
    policy = make_policy()
    policy.record = {"regret": math.nan, "scores": [1.0, math.inf], "minutes": 3}
    record = LRPolicy.load(policy.save(tmp_path / "a")).record
    assert (record["regret"], record["scores"], record["minutes"]) == (None, [1.0, None], 3)
    LRPolicy.load(combine([policy, policy]).save(tmp_path / "twice"))
    policy.record = {"failures": ["x" * 1000] * 3000}
    with pytest.raises(ConfigurationError, match=r"policy\.json.*2097152"):
        policy.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_policies_are_sound_on_any_observation(fuzz_files, name):
    policy = LRPolicy.load(name)
    for seed in range(3):
        fuzz_files.drive(policy, random.Random(seed))


@pytest.mark.parametrize("multiplier", [1000.0, 0.001])
def test_a_rate_stays_finite_and_above_zero_whatever_the_actions_are(multiplier):
    spec = ControllerSpec(actions=ActionSpec(tuple(sorted((multiplier, 1.0)))), scale_floor=1e-12)
    controller = LRController(spec, horizon=None, lead=(1,))
    controller.start(torch.tensor([1e-3]))
    action = torch.tensor([spec.actions.multipliers.index(multiplier)])
    for _ in range(60):
        controller.observe(stats(torch.ones(1, 4), lead=(1,), update_norm=torch.zeros(1)))
        lr = controller.apply(action)
        assert lr.isfinite().all()
        assert (lr > 0).all()


def test_mutants_are_refused_or_sound(fuzz_files, tmp_path):
    """The small version of `benchmarks/fuzz_files.py`: each kind of damage about 31 times."""
    counts, failures = fuzz_files.fuzz(tmp_path, seed=1, numbers=range(500))
    assert failures == []
    assert sum(counts.values()) == 500
    assert {verdict for _, verdict in counts} == {fuzz_files.REFUSED, fuzz_files.SOUND}
    assert "| all | 500 |" in fuzz_files.table(counts)


def test_the_fuzzer_tells_what_raises_hangs_takes_memory_or_is_not_sound(fuzz_files, monkeypatch):
    monkeypatch.setattr(fuzz_files, "_PATIENCE", 2)
    kept = []

    def hangs():
        while True:
            pass

    def takes_memory():
        kept.append(b"x" * 200_000_000)

    def unsound(policy):
        raise fuzz_files.Failure("a rate of 0")

    reads = {"more than 2 s": hangs, "MB": takes_memory, "KeyError": lambda: {}["x"]}
    for reason, read in [*reads.items(), ("a rate of 0", make_policy)]:
        outcome = fuzz_files.in_another_process(
            lambda read=read: fuzz_files.judged(read, check=unsound)
        )
        assert outcome.verdict == fuzz_files.FAILED
        assert reason in outcome.reason
