"""`LRPolicy`: a Q-network, the controller specification it was trained with, and its record.

On disk a policy is a folder with two files. `policy.safetensors` holds the weights. `policy.json`
holds everything else, for people too: feature specification, actions, decision times, versions,
scores, and how it was trained. A truncated or swapped file is refused, because the JSON holds the
weights' SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_dqnlr.control.spec import ControllerSpec, StartRate
from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import parse_json, write_atomically
from lightning_dqnlr.policy import hub
from lightning_dqnlr.policy.card import card
from lightning_dqnlr.policy.choice import Policy, QPolicy
from lightning_dqnlr.policy.folder import (
    RECORD,
    WEIGHTS,
    faults_of,
    read_record,
    read_weights,
    without_weights,
    write_folder,
)
from lightning_dqnlr.policy.network import Network, QEnsemble

# "default" is the one to use. The others are for comparison: the textbook recipe on raw
# statistics, and Q-learning in a table.
BUNDLED = ("default", "classic", "q_table")
# The part of a record's settings of collection that says what a Q-value is.
_UNITS = re.compile(r"\b(?:credit|discount|temperature)=[^,)]+")


@dataclass
class LRPolicy(QPolicy):
    """Chooses learning-rate multipliers from observations.

    Args:
        network: gives the Q-values: a network, a table, or several of them to be averaged.
        spec: what a controller must share with it.
        record: plain JSON data on how it was made and how well it does.
        name: what traces and checkpoints call it.

    Raises:
        ConfigurationError: if network and specification disagree in size.

    Example:
        >>> policy = LRPolicy.load("default")
        >>> policy.choose(torch.zeros(3, len(policy.spec.features))).q_values.shape
        torch.Size([3, 7])
    """

    network: Network
    spec: ControllerSpec
    record: dict[str, Any] = field(default_factory=dict)
    name: str = "unnamed"

    def __post_init__(self) -> None:
        wanted = (len(self.spec.features), len(self.spec.actions))
        got = (self.network.observation_size, self.network.num_actions)
        if wanted != got:
            raise ConfigurationError(
                f"network has (observation size, actions) {got}, but spec has {wanted}; build the "
                "network from the same ControllerSpec."
            )

    @property
    def start(self) -> StartRate:
        """The first learning rate that the policy was trained with."""
        start: StartRate = self.record.get("start", "auto")
        return start

    @property
    def circuit_breaker(self) -> bool:
        """Whether it was trained with blown-up intervals undone."""
        return bool(self.record.get("circuit_breaker", True))

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides its actions: specification, start, breaker and weights."""
        digest = hashlib.sha256(json.dumps(self.spec.to_dict(), sort_keys=True).encode())
        digest.update(f"{self.start} {self.circuit_breaker}".encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def q_values(self, observation: Tensor) -> Tensor:
        """Q-values (*lead, actions) of observations (*lead, features)."""
        values: Tensor = self.network(observation)
        return values

    def act(self, observation: Tensor) -> Tensor:
        """The greedy actions, int64 of shape `lead`."""
        return self.choose(observation).action

    def save(self, folder: str | Path) -> Path:
        """Writes the two files into `folder`, atomically; returns the folder.

        Raises:
            ConfigurationError: if the folder cannot be written, or the record is over 2 MiB.
        """
        folder = Path(folder)
        write_folder(folder, self.network, self.spec, self.record)
        return folder

    @classmethod
    def load(cls, name: str | Path = "default") -> LRPolicy:
        """Reads a policy.

        Args:
            name: "default" for the bundled policy; "classic" or "q_table" for its comparisons.
                Otherwise the folder that `save` wrote, or one of the two files in it, or
                `hf://org/name` and `hf://org/name@revision` for one on the Hub.

        Raises:
            PolicyFileError: if a file is missing, damaged, not one of ours, or made for a feature
                specification that this code does not compute. Whatever the folder holds, nothing
                of it is executed, and no rate of a policy that loads can be NaN.
            MissingPackageError: for one on the Hub, without huggingface_hub.
        """
        if isinstance(name, str) and name.startswith(hub.PREFIX):
            return cls.from_pretrained(name)
        folder = Path(__file__).parent / name if str(name) in BUNDLED else Path(name)
        if folder.name in (WEIGHTS, RECORD):
            folder = folder.parent
        with faults_of(folder):
            content = read_record(folder)
            spec = ControllerSpec.from_dict(content["controller"])
            network = without_weights(content["network"]).eval()
            policy = cls(network, spec, content["record"], folder.name)
            limits = torch.tensor(spec.features.limits)
            read_weights(folder, content["weights_sha256"], network, limits)
        policy.network.requires_grad_(False)
        return policy

    @classmethod
    def from_pretrained(
        cls, name: str, *, revision: str | None = None, token: str | bool | None = None
    ) -> LRPolicy:
        """Reads a policy from the Hugging Face Hub, or from its client's cache (extra `hub`).

            policy = LRPolicy.from_pretrained("org/name")

        Two files are downloaded, policy.safetensors and policy.json. They are read with the same
        distrust as those of a folder.

        Args:
            name: "org/name" or `hf://org/name@revision`; or a folder, if there is one of that name.
            revision: a branch, a tag or a commit; None for the main branch.
            token: of a private repository; None for the one that `hf auth login` stored.

        Raises:
            ConfigurationError: for a name of another form, or two different revisions.
            MissingPackageError: without huggingface_hub.
            PolicyFileError: if the Hub does not give it, or as `load` does.
        """
        if name in BUNDLED or Path(name).is_dir():
            return cls.load(name)
        found = hub.fetch(hub.address_of(name, revision), token)
        return replace(cls.load(found.folder), name=found.name)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        commit_message: str = "Policy of lightning-dqnlr",
        token: str | bool | None = None,
    ) -> str:
        """Commits the policy and a card, written from its record, to the Hub (extra `hub`).

            address = LRPolicy.load("outputs/policy").push_to_hub("org/name")

        The repository is made if there is none. Its README.md is replaced by the card.

        Args:
            repository: "org/name".
            private: whether a new repository is private; None for the organisation's default.
            commit_message: of the commit.
            token: one that may write; None for the one that `hf auth login` stored.

        Returns:
            The address with the commit, which `DQNLRCallback(policy=...)` takes.

        Raises:
            ConfigurationError: if the Hub refuses, or the record is over 2 MiB.
            MissingPackageError: without huggingface_hub.
        """
        name = hub.address_of(repository).repository
        with tempfile.TemporaryDirectory() as place:
            folder = self.save(place)
            type(self).load(folder)  # what is pushed can be read
            write_atomically(folder / hub.CARD, card(self, name).encode())
            return hub.push(folder, name, private=private, message=commit_message, token=token)


def as_policy(given: str | Path | Policy) -> Policy:
    """The policy itself, or the one that `LRPolicy.load` reads by this name or folder.

    Raises:
        ConfigurationError: for anything else.
        PolicyFileError: if it cannot be read.

    Example:
        >>> as_policy("default").start
        'auto'
    """
    if isinstance(given, str | Path):
        return LRPolicy.load(given)
    if not hasattr(given, "choose") or not hasattr(given, "spec"):
        raise ConfigurationError(
            f"policy={given!r} must be a bundled policy's name, a folder, or a policy such as "
            "LRPolicy.load(...)."
        )
    return given


def combine(policies: Sequence[LRPolicy]) -> LRPolicy:
    """The policy that acts on the mean Q-values of several, with networks of any kind.

    They must share a specification, start and circuit breaker, and have learned from the same
    reward, credited alike. In different units the member with the larger values would decide. The
    record holds the members' own records; what all of them have in common stands once.

    Raises:
        ConfigurationError: for fewer than two policies, different specifications, or records
            that name different rewards, credits, starts or circuit breakers.

    Example:
        combine([LRPolicy.load("one"), LRPolicy.load("other")]).save("both")
    """
    if len(policies) < 2:
        raise ConfigurationError(f"policies: {len(policies)} given; at least two are needed.")
    first = policies[0]
    for other in policies[1:]:
        if other.spec != first.spec:
            raise ConfigurationError(
                f"policies {first.name} and {other.name} differ in {_difference(first, other)}; "
                "combine those of the same features and actions, and --set the other fields alike."
            )
    records = [p.record for p in policies]
    _check_alike(policies)
    common = {k: v for k, v in records[0].items() if all(r.get(k) == v for r in records)}
    own = [{k: v for k, v in record.items() if k not in common} for record in records]
    network = QEnsemble([p.network for p in policies])
    return LRPolicy(network, policies[0].spec, {**common, **_totals(records), "members": own})


def _difference(first: LRPolicy, second: LRPolicy) -> str:
    """The fields of the specifications that differ, with the beginnings of both values."""
    theirs = asdict(second.spec)
    return "; ".join(
        f"{name} ({str(value)[:60]} against {str(theirs[name])[:60]})"
        for name, value in asdict(first.spec).items()
        if value != theirs[name]
    )


def _check_alike(policies: Sequence[LRPolicy]) -> None:
    runs = {f"start={p.start}, circuit_breaker={p.circuit_breaker}" for p in policies}
    rewards = {str(p.record["reward"]) for p in policies if "reward" in p.record}
    records = [str(p.record["collect"]) for p in policies if "collect" in p.record]
    units = {", ".join(_UNITS.findall(record)) for record in records}
    for found in (runs, rewards, units):
        if len(found) > 1:
            raise ConfigurationError(
                f"policies were trained with {' and with '.join(sorted(found))}; combine those "
                "that agree, because their values mean different things."
            )


def with_settings(policy: LRPolicy, texts: Sequence[str]) -> LRPolicy:
    """The same networks under a controller with some fields changed.

    `trials` is an object of what differs from the defaults of `TrialSpec`, or null for none.

    Args:
        policy: stays as it is.
        texts: each `name=value`, the value in JSON or a bare word.

    Raises:
        ConfigurationError: for another form, a value out of range, and for features and actions,
            because the networks' shapes depend on them.

    Example:
        >>> with_settings(LRPolicy.load("default"), ["decay_share=0.2"]).spec.decay_share
        0.2
    """
    fields = ("features", "actions")
    own = {name: value for name, value in asdict(policy.spec).items() if name not in fields}
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in own:
            raise ConfigurationError(f"{text[:100]!r} must be NAME=VALUE, with one of {list(own)}.")
        changes[name] = _parsed(value)
        if _kind(changes[name]) != _kind(own[name]):
            like = "an object in JSON, or null" if _kind(own[name]) is dict else f"as {own[name]!r}"
            raise ConfigurationError(f"{text[:99]!r}: {name} must be {like}.")
    spec = ControllerSpec.from_dict({**policy.spec.to_dict(), **changes})
    return replace(policy, spec=spec)


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _kind(value: object) -> type:
    """Its type, where an integer is as good as a float, and None as an object."""
    if value is None:
        return dict
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _totals(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What training the members took. The last of several moments of a run includes the others."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for i, record in enumerate(records):
        # The runs of a sweep share a command; what tells them apart are their overrides.
        run = (record.get("command", i), record.get("seed"), str(record.get("overrides")))
        runs.setdefault(str(run), []).append(record)
    return {
        name: round(sum(max(r.get(name, 0) for r in run) for run in runs.values()), 2)
        for name in ("inner_steps", "minutes")
        if any(name in record for record in records)
    }
