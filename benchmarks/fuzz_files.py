"""Damages policy folders in every way there is and watches what `LRPolicy.load` makes of them.

    python benchmarks/fuzz_files.py --mutants 100000

A mutant must be refused by one PolicyFileError that names it (ConfigurationError for a text of
`dqnlr-combine --set`), within a second and 100 MB. Otherwise it must be a policy under which every
rate is finite and within its bounds, whatever a run shows. Half of the mutants of the weights have
a new checksum, as somebody who means harm would write it. Mutants that may hang or be large are
judged in a process of their own.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import random
import resource
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_dqnlr.control.controller import LRController
from lightning_dqnlr.control.features import CLASSIC, FeatureSpec
from lightning_dqnlr.control.spec import ActionSpec, ControllerSpec
from lightning_dqnlr.control.telemetry import IntervalStats
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError
from lightning_dqnlr.policy.network import QNetwork, QTable, QuantileNetwork
from lightning_dqnlr.policy.policy import RECORD, WEIGHTS, LRPolicy, combine, with_settings

SECONDS, MEGABYTES = 1.0, 100.0
_PATIENCE = 5  # seconds of the processor after which a mutant is stopped
_WAIT = 60  # seconds on the clock, for one that waits for ever
_LONGEST_MESSAGE = 3000
REFUSED, SOUND, FAILED = "refused", "accepted and sound", "failures"

Mutate = Callable[[random.Random, "Files"], None]


class Failure(Exception):
    """What a mutant did that it must not."""


class Files:
    """The contents of a policy's two files, to be damaged.

    Args:
        record: bytes of `policy.json`.
        weights: bytes of `policy.safetensors`.
    """

    def __init__(self, record: bytes, weights: bytes) -> None:
        self.record, self.weights = record, weights

    def edit(self, change: Callable[[Any], None]) -> None:
        """Changes the JSON by a function of its content."""
        content = json.loads(self.record)
        change(content)
        self.record = json.dumps(content).encode()

    def seal(self) -> None:
        """Writes the weights' checksum into the JSON."""
        digest = hashlib.sha256(self.weights).hexdigest()
        self.edit(lambda content: content.update(weights_sha256=digest))

    def write(self, folder: Path) -> None:
        """Writes both into a folder."""
        (folder / RECORD).write_bytes(self.record)
        (folder / WEIGHTS).write_bytes(self.weights)


def originals() -> list[LRPolicy]:
    """One of each kind of network, small, and the bundled ones."""
    spec = ControllerSpec()
    size, actions = len(spec.features), len(spec.actions)
    raw = ControllerSpec(FeatureSpec(CLASSIC), ActionSpec((0.5, 1.0, 2.0)), decay="cosine")
    small = LRPolicy(QNetwork(size, actions, (8,)), spec, {"overrides": ["seed=1"], "minutes": 2.5})
    return [
        small,
        LRPolicy(QuantileNetwork(size, actions, 4, (6, 6)), spec, {"start": "optimizer"}),
        LRPolicy(QNetwork(len(CLASSIC), 3, (), dueling=False), raw, {"circuit_breaker": False}),
        LRPolicy(QTable(size, actions, {2: [0.0, 1.0], 5: [-0.5]}), spec),
        combine([small, small]),
        LRPolicy.load("classic"),
        LRPolicy.load("q_table"),
        LRPolicy.load("default"),
    ]


_STRANGE: tuple[Any, ...] = (
    *(None, True, False, "", "x", "1", "nan", [], {}, [[]], {"": 0}, [None], 0, 1, -1, 0.5, 2.0),
    *("a" * 100_000, list(range(2000)), "\ud800", "../../etc", {"members": []}),
)
_EXTREME = (
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "-1e308", "5e-324", "1e-30"),
    *("-0.0", "0", "-1", "1.0000000001", "2147483648", "9223372036854775807", "10000000", "1e9"),
    *("1" + "0" * 30, "9" * 5000, "0.001", "1000", "3", "64.0", "100000", "1e-9", "1e30"),
)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in JSON data, without the record's own depths."""
    found: list[tuple[Any, Any]] = []
    keys: Iterable[Any] = node.keys() if isinstance(node, dict) else range(len(node))
    for key in keys:
        found.append((node, key))
        if isinstance(node[key], dict | list) and key not in ("members", "record"):
            found += _places(node[key])
        elif key in ("members", "record"):
            found += [(node[key], k) for k in (node[key] if isinstance(node[key], dict) else [])]
            found += [(m, k) for m in node[key] if isinstance(m, dict) for k in m]
    return found


def _place(draw: random.Random, content: Any) -> tuple[Any, Any]:
    """One of them; the fields of controller and network are as likely as all others together."""
    part = draw.choice(("controller", "network", None))
    node = content.get(part) if part else content
    places = _places(node) if isinstance(node, dict | list) and node else _places(content)
    return draw.choice(places)


def flip_record(draw: random.Random, files: Files) -> None:
    """Up to eight bits of the JSON."""
    files.record = _flipped(draw, files.record)


def flip_weights(draw: random.Random, files: Files) -> None:
    """Up to eight bits of the weights."""
    files.weights = _flipped(draw, files.weights)
    _perhaps_seal(draw, files)


def flip_header(draw: random.Random, files: Files) -> None:
    """Up to eight bits of the first kilobyte of the weights, or of the header's length."""
    first = draw.choice((8, 1024))
    files.weights = _flipped(draw, files.weights[:first]) + files.weights[first:]
    files.seal()


def delete_field(draw: random.Random, files: Files) -> None:
    """A field or an entry of the JSON."""

    def change(content: Any) -> None:
        node, key = _place(draw, content)
        del node[key]

    files.edit(change)


def wrong_type(draw: random.Random, files: Files) -> None:
    """A value of the JSON becomes one of another type."""

    def change(content: Any) -> None:
        node, key = _place(draw, content)
        node[key] = copy.deepcopy(draw.choice(_STRANGE))

    files.edit(change)


def extreme_number(draw: random.Random, files: Files) -> None:
    """One to three values of the JSON become numbers that no float or no network can take."""

    def change(content: Any) -> None:
        for _ in range(draw.randint(1, 3)):
            node, key = _place(draw, content)
            node[key] = "@" + draw.choice(_EXTREME) + "@"

    files.edit(change)
    files.record = files.record.replace(b'"@', b"").replace(b'@"', b"")


def random_controller(draw: random.Random, files: Files) -> None:
    """Numbers of the controller drawn evenly from forty decades, some of them in range."""

    def change(content: Any) -> None:
        spec = content["controller"]
        for name in draw.sample(sorted(spec), draw.randint(1, 4)):
            if isinstance(spec[name], int | float) and not isinstance(spec[name], bool):
                value = draw.choice((1, 1, 1, -1)) * 10 ** draw.uniform(-20, 20)
                near = spec[name] * 10 ** draw.uniform(-3, 3)
                spec[name] = draw.choice((value, near, int(min(near, 1e6)) or 1))
        if draw.random() < 0.3:
            others = [10 ** draw.uniform(-5, 5) for _ in spec["actions"]["multipliers"][1:]]
            spec["actions"]["multipliers"] = sorted([1.0, *others])
        spec["decay"] = draw.choice(("wsd", "cosine", "none", "linear"))

    files.edit(change)


def other_network(draw: random.Random, files: Files) -> None:
    """A description of another, sometimes enormous, network."""

    def change(content: Any) -> None:
        network = content["network"]
        one = draw.choice(network["members"]) if "members" in network else network
        width = int(10 ** draw.uniform(0, 12))
        choices: dict[str, Any] = {
            "hidden": [width] * int(10 ** draw.uniform(0, 4)),
            "quantiles": width,
            "observation_size": width,
            "num_actions": width,
            "bins": {str(i): [0.0] * min(width, 1000) for i in range(draw.randint(0, 40))},
            "members": [dict(one)] * int(10 ** draw.uniform(0, 3.5)),
        }
        name = draw.choice(sorted(choices))
        (network if name == "members" else one)[name] = choices[name]

    files.edit(change)


def truncate(draw: random.Random, files: Files) -> None:
    """One of the files loses its end."""
    if draw.random() < 0.5:
        files.record = files.record[: draw.randrange(len(files.record))]
    else:
        files.weights = files.weights[: draw.randrange(len(files.weights))]
        _perhaps_seal(draw, files)


def extend(draw: random.Random, files: Files) -> None:
    """One of the files grows, by bytes of its own or by others."""
    more = (
        draw.randbytes(int(10 ** draw.uniform(0, 5))) if draw.random() < 0.5 else b" " * 3_000_000
    )
    if draw.random() < 0.5:
        files.record += draw.choice((more, files.record))
    else:
        files.weights += draw.choice((more, files.weights))
        _perhaps_seal(draw, files)


def header(draw: random.Random, files: Files) -> None:
    """The header of the weights names other shapes, types, offsets or tensors."""
    length = int.from_bytes(files.weights[:8], "little")
    content, rest = json.loads(files.weights[8 : 8 + length]), files.weights[8 + length :]
    names = [name for name in content if name != "__metadata__"]
    name, other = draw.choice(names), draw.choice(names)
    size = int(10 ** draw.uniform(0, 19))
    field = draw.choice(("shape", "dtype", "data_offsets", None))
    if field is None:
        content[draw.choice((other, "another", "__metadata__"))] = content.pop(name)
    else:
        content[name][field] = draw.choice(
            (content[other][field], [size, 1], [0, size], "F16", "I64", "C64", "F8_E4M3", -1, None)
        )
    if draw.random() < 0.1:
        del content[draw.choice(list(content))]
    text = json.dumps(content).encode()
    length = draw.choice((len(text), len(text), len(text), size, 2**63, 0))
    files.weights = length.to_bytes(8, "little") + text + rest
    files.seal()


def deep(draw: random.Random, files: Files) -> None:
    """JSON nested up to a hundred thousand levels, in a place of its own or of another value."""
    levels = int(10 ** draw.uniform(1, 5))
    opening, closing = draw.choice((("[", "]"), ('{"a":', "}")))
    files.edit(lambda content: content["record"].update(deep="@"))
    nested = (opening * levels + "1" + closing * levels).encode()
    files.record = draw.choice((files.record.replace(b'"@"', nested), nested))


def extreme_weights(draw: random.Random, files: Files) -> None:
    """Weights that are NaN, infinite or enormous."""
    start = 8 + int.from_bytes(files.weights[:8], "little")
    values = torch.frombuffer(bytearray(files.weights[start:]), dtype=torch.float32)
    index = torch.tensor([draw.randrange(len(values)) for _ in range(draw.choice((1, 9, 999)))])
    values[index] = draw.choice((math.nan, math.inf, -math.inf, 1e38, -3e38, 1e20, 1e10, 1e-40))
    files.weights = files.weights[:start] + values.numpy().tobytes()
    files.seal()


def several(draw: random.Random, files: Files) -> None:
    """Two of the others, one after the other."""
    kinds = (flip_weights, wrong_type, random_controller, extreme_weights, delete_field)
    first, second = draw.sample(kinds, 2)
    first(draw, files)
    with suppress(TypeError, LookupError, ValueError, AttributeError):  # too damaged for another
        second(draw, files)


def _flipped(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _perhaps_seal(draw: random.Random, files: Files) -> None:
    if draw.random() < 0.5:
        files.seal()


MUTATIONS: dict[str, Mutate] = {
    "bits of the JSON flipped": flip_record,
    "bits of the weights flipped": flip_weights,
    "bits of the header flipped": flip_header,
    "field deleted": delete_field,
    "wrong type": wrong_type,
    "extreme number": extreme_number,
    "other controller": random_controller,
    "other network": other_network,
    "truncated": truncate,
    "extended": extend,
    "other header": header,
    "deep JSON": deep,
    "extreme weights": extreme_weights,
    "two of these": several,
}
SPECIAL, SETTING = "no regular file, or sparse", "--set of dqnlr-combine"


def make_special(draw: random.Random, folder: Path) -> None:
    """One of the files becomes a FIFO, a socket, a folder, a link, or several sparse gigabytes."""
    path = folder / draw.choice((RECORD, WEIGHTS))
    content = path.read_bytes()
    path.unlink()
    devices = ("/dev/zero", "/dev/random", "/dev/tty", "/dev/stdin", "/dev/full", "/proc/kmsg")
    kind = draw.choice(("fifo", "socket", "folder", "device", "loop", "sparse", "link", "absent"))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to(draw.choice(devices))
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "sparse":
        path.write_bytes(content)
        os.truncate(path, draw.choice((2**31, 2**40)))
    elif kind == "link":
        (folder / "elsewhere").write_bytes(content)
        path.symlink_to("elsewhere")


def setting(draw: random.Random) -> str:
    """A text of `--set`."""
    names = [*ControllerSpec().to_dict(), "", "nothing", "controller.decay"]
    strange = (json.dumps(draw.choice(_STRANGE)), "[" * 100_000, "wsd", "cosine", "true", "a=b")
    near = f"{10 ** draw.uniform(-12, 12):g}"
    value = draw.choice((draw.choice(_EXTREME), draw.choice(strange), near, near))
    return draw.choice(names) + draw.choice(("=", "=", "=", "=", "==", "", " = ")) + value


def drive(policy: LRPolicy, draw: random.Random, decisions: int = 24) -> None:
    """Runs the policy's controller over intervals of random statistics.

    Every other observation is drawn evenly from all that there are. Of 16 runs side by side, four
    follow the policy and four each take the largest multiplier, the smallest one, and any.

    Args:
        policy: loaded.
        draw: source of the randomness.
        decisions: of each run.

    Raises:
        Failure: a rate is not finite, not above zero or out of its bounds, or a Q-value is NaN.
    """
    source = torch.Generator().manual_seed(draw.randrange(2**31))
    low, high = draw.choice(((None, None), (1e-6, 1e-2), (None, 1e3), (1e-9, None)))
    horizon = draw.choice((None, 1, 30, 1000, 10**7))
    controller = LRController(policy.spec, horizon=horizon, lead=(16,), min_lr=low, max_lr=high)
    lr = controller.start(10 ** (15 * torch.rand(16, generator=source) - 12))
    limits, most = torch.tensor(policy.spec.features.limits), len(policy.spec.actions)
    # The bounds are compared as the controller keeps them, in float32.
    least, largest = torch.tensor(low or 0.0), torch.tensor(high or math.inf)
    for i in range(decisions):
        seen = controller.observe(_random_stats(source, lr, controller.interval)).observation
        if i % 2:
            seen = limits * (2 * torch.rand(seen.shape, generator=source) - 1)
        choice = policy.choose(seen)
        others = [torch.full((4,), most - 1), torch.full((4,), 0)]
        random_ones = torch.randint(most, (4,), generator=source)
        lr = controller.apply(torch.cat([choice.action[:4], *others, random_ones]))
        inside = lr.isfinite() & (lr > 0) & (lr >= least) & (lr <= largest)
        if not (inside.all() and choice.q_values.isfinite().all()):
            raise Failure(f"rates {lr.tolist()}, Q-values {choice.q_values[0].tolist()}")


def _random_stats(source: torch.Generator, lr: Tensor, steps: int) -> IntervalStats:
    """Norms of 24 decades, some of them zero or not finite; the update is in proportion to lr."""

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=source) - 1

    def norm() -> Tensor:
        values = 10 ** (6 * uniform(len(lr)))
        kind = torch.rand(len(lr), generator=source)
        values[kind < 0.1] = 0.0
        values[kind > 0.95] = math.inf
        return values.where(kind < 0.97, torch.tensor(math.nan))

    fields = {name: norm() for name in IntervalStats._fields[1:-2]}
    fields |= {name: uniform(len(lr)) for name in fields if name.startswith("cos_")}
    fields["update_norm"] = lr * fields["update_norm"]
    losses = uniform(len(lr), min(steps, 16)) * norm()[:, None] ** 3
    finite = losses.isfinite().all(-1)
    for values in fields.values():
        finite &= values.isfinite()
    return IntervalStats(losses=losses, finite=finite, steps=steps, **fields)


class Outcome(NamedTuple):
    """What came of one mutant."""

    verdict: str
    reason: str = ""


def judged(read: Callable[[], LRPolicy | None], check: Callable[[LRPolicy], None]) -> Outcome:
    """What comes of a mutant.

    Args:
        read: gives its policy, or None where it is refused as it should be. Its time, which others
            on the machine do not lengthen, and its memory are watched.
        check: raises Failure for a policy that is not sound.
    """
    before = _peak_memory(reset=True)
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, _stop)
    signal.setitimer(signal.ITIMER_PROF, _PATIENCE)
    signal.alarm(_WAIT)
    try:
        began = time.process_time()
        policy = read()
        seconds, memory = time.process_time() - began, _peak_memory() - before
        if seconds > SECONDS or memory > MEGABYTES:
            raise Failure(f"{seconds:.1f} s and {memory:.0f} MB")
        if policy is not None:
            check(policy)
    except Exception as error:
        return Outcome(FAILED, f"{type(error).__name__}: {str(error)[:300]}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return Outcome(REFUSED if policy is None else SOUND)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Failure(f"it takes more than {_PATIENCE} s, or waits")


def _peak_memory(reset: bool = False) -> float:
    """Peak resident memory in MB, since the last reset where the system can reset it."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1e3
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def load(folder: Path) -> LRPolicy | None:
    """The policy of a folder, or None if it is refused as it should be.

    Raises:
        Failure: it is refused otherwise.
    """
    try:
        return LRPolicy.load(folder)
    except PolicyFileError as error:
        if str(folder) not in str(error) or len(str(error)) > _LONGEST_MESSAGE:
            raise Failure(
                f"a message of {len(str(error))} characters: {str(error)[:99]}"
            ) from error
        return None


def changed(policy: LRPolicy, text: str) -> LRPolicy | None:
    """The policy with a text of `--set`, or None if that is refused as it should be.

    Raises:
        Failure: it is refused otherwise.
    """
    try:
        return with_settings(policy, [text])
    except ConfigurationError as error:
        if len(str(error)) > _LONGEST_MESSAGE:
            raise Failure(f"a message of {len(str(error))} characters") from error
        return None


def in_another_process(act: Callable[[], Outcome]) -> Outcome:
    """The outcome that a forked process comes to, which is killed if it does not end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, "\n".join(act()).encode()[:4000])
        finally:
            os._exit(0)  # without the parent's clean-up
    os.close(writer)
    limit = time.monotonic() + 2 * _WAIT
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.001)
    with os.fdopen(reader, "rb") as pipe:
        verdict, _, reason = pipe.read().decode().partition("\n")
    return Outcome(verdict, reason) if verdict else Outcome(FAILED, "its process hung or died")


class Fuzzer:
    """Makes mutants one by one and judges them.

    Args:
        folder: an empty one, to write them to.
        seed: of everything that is drawn.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        torch.manual_seed(seed)
        self._policies = originals()
        self._files = []
        for i, policy in enumerate(self._policies):
            path = policy.save(folder / f"original-{i}")
            self._files.append(((path / RECORD).read_bytes(), (path / WEIGHTS).read_bytes()))
        self._mutant = folder / "mutant"
        self._mutant.mkdir()

    def judge(self, number: int) -> tuple[str, Outcome]:
        """The kind of a mutant and what came of it; the same whenever it is asked."""
        draw = random.Random(f"{self._seed} {number}")
        kinds = [*MUTATIONS, SPECIAL, SETTING]
        kind = kinds[number % len(kinds)]
        which = draw.randrange(len(self._policies))
        for path in self._mutant.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

        def check(policy: LRPolicy) -> None:
            self._check(policy, which, draw)

        if kind == SETTING:
            return kind, judged(lambda: changed(self._policies[which], setting(draw)), check)
        files = Files(*self._files[which])
        if kind in MUTATIONS:
            MUTATIONS[kind](draw, files)
        files.write(self._mutant)
        if kind == SPECIAL:
            make_special(draw, self._mutant)
            return kind, in_another_process(lambda: judged(lambda: load(self._mutant), check))
        return kind, judged(lambda: load(self._mutant), check)

    def _check(self, policy: LRPolicy, which: int, draw: random.Random) -> None:
        original = self._policies[which]
        states = policy.network.state_dict(), original.network.state_dict()
        same = states[0].keys() == states[1].keys() and all(
            torch.equal(states[0][name], states[1][name]) for name in states[0]
        )
        # What is the original but for its history has been driven before.
        if not same or policy.spec != original.spec or draw.random() < 0.05:
            drive(policy, draw)


def fuzz(folder: Path, seed: int, numbers: Iterable[int]) -> tuple[Counter[Any], list[str]]:
    """Judges mutants; returns counts by (kind, verdict), and the failures in words.

    An interrupt ends it with what there is.
    """
    fuzzer = Fuzzer(folder, seed)
    counts: Counter[Any] = Counter()
    failures = []
    with suppress(KeyboardInterrupt):
        for number in numbers:
            kind, outcome = fuzzer.judge(number)
            counts[kind, outcome.verdict] += 1
            if outcome.verdict == FAILED:
                failures.append(f"mutant {number} ({kind}): {outcome.reason}")
                tqdm.write(failures[-1])
    return counts, failures


def table(counts: Counter[Any]) -> str:
    """Kinds of damage and what came of them, as a table in Markdown."""
    columns = (REFUSED, SOUND, FAILED)
    rows = [("fault", "cases", *columns), ("---", *["---:"] * 4)]
    for kind in dict.fromkeys(kind for kind, _ in counts):
        found = [counts[kind, verdict] for verdict in columns]
        rows.append((kind, *(f"{n:,}" for n in (sum(found), *found))))
    totals = [sum(counts[kind, v] for kind, w in counts if w == v) for v in columns]
    rows.append(("all", *(f"{n:,}" for n in (sum(totals), *totals))))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Prints the table."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, too
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = range(arguments.first, arguments.first + arguments.mutants)
    with tempfile.TemporaryDirectory() as folder:
        bar = tqdm(numbers, unit="mutant")
        counts, failures = fuzz(Path(folder), arguments.seed, bar)
    print(table(counts))
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
