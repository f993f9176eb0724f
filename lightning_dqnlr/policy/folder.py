"""The two files of a policy's folder, which may be anybody's.

`policy.safetensors` holds the weights and `policy.json` everything else. Nothing of them is built
or allocated before it is known to fit. The JSON is checked field by field. The shapes that the
network would have are compared with the header of the weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lightning_dqnlr.checks import (
    NOT_NEGATIVE,
    check_choice,
    check_fields,
    check_integer,
    check_kind,
    check_number,
)
from lightning_dqnlr.control.spec import ControllerSpec, StartRate
from lightning_dqnlr.errors import ConfigurationError, PolicyFileError
from lightning_dqnlr.files import parse_json, read_regular, strict_json, write_together
from lightning_dqnlr.policy.network import Network, build_network

FORMAT = "lightning-dqnlr-policy"
FORMAT_VERSION = 1
WEIGHTS = "policy.safetensors"
RECORD = "policy.json"
_MOST_RECORD = 2**21  # bytes; a parsed JSON takes up to 40 times as many
_MOST_HEADER = 2**20
_MOST_WEIGHTS = 2**23
# Bytes that a policy's files may have.
LARGEST = {RECORD: _MOST_RECORD, WEIGHTS: _MOST_HEADER + 8 * _MOST_WEIGHTS}
_FLOATS = ("F64", "F32", "F16", "BF16")
_LARGEST_VALUE = 1e30
_FIELDS = ("format", "format_version", "weights_sha256", "network", "controller", "record")


def write_folder(folder: Path, network: Network, spec: ControllerSpec, record: Any) -> None:
    """Writes the two files atomically; a number in the record that is not finite becomes null.

    Raises:
        ConfigurationError: if the folder cannot be written, or the record is too large to be read.
    """
    # Copies, because an ensemble may hold one network twice.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    weights = save_tensors(tensors)
    digest = hashlib.sha256(weights).hexdigest()
    values = (FORMAT, FORMAT_VERSION, digest, network.config, spec.to_dict(), record)
    text = strict_json(dict(zip(_FIELDS, values, strict=True)), indent=2)
    check_integer(f"size of {RECORD}", len(text.encode()), 1, _MOST_RECORD)
    write_together({folder / WEIGHTS: weights, folder / RECORD: text.encode()})


@contextmanager
def faults_of(folder: Path) -> Iterator[None]:
    """Turns what is wrong with a policy's content into one PolicyFileError that names the file."""
    try:
        yield
    except PolicyFileError as error:
        raise PolicyFileError(f"policy={str(folder)!r}: {error}") from error
    except ConfigurationError as error:
        raise PolicyFileError(
            f"policy={str(folder)!r}: {folder / RECORD} does not fit this version of "
            f"lightning-dqnlr. {error} Copy the folder again, train it again with `dqnlr-train`, "
            "or install the version that it names."
        ) from error


def read_record(folder: Path) -> dict[str, Any]:
    """The content of `policy.json`, whose network and controller are still to be checked.

    Raises:
        PolicyFileError: it cannot be read, or is none of ours.
        ConfigurationError: a field is absent, unknown, of another type or out of range.
    """
    path = folder / RECORD
    try:
        content = parse_json(read_regular(path, _MOST_RECORD))
    except OSError as error:
        raise PolicyFileError(
            f"{path} cannot be read ({error.strerror}); pass the folder that LRPolicy.save or "
            "dqnlr-train wrote, or 'default' for the bundled policy."
        ) from error
    except ValueError as error:
        raise PolicyFileError(
            f"{path} is damaged or not JSON ({error}); copy the folder again."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PolicyFileError(
            f"{path} is not a lightning-dqnlr policy; pass the folder that LRPolicy.save or "
            "dqnlr-train wrote."
        )
    check_fields("the policy", content, _FIELDS)
    check_integer("format_version", content["format_version"], 1)
    if content["format_version"] != FORMAT_VERSION:
        raise PolicyFileError(
            f"{path} has format version {content['format_version']}; this lightning-dqnlr reads "
            f"version {FORMAT_VERSION}. Upgrade, or train it again."
        )
    _check_record(content["record"])
    return content


def without_weights(config: Any) -> Network:
    """The network that a policy's record describes, on the device "meta": shapes and no memory.

    Raises:
        ConfigurationError: a field is absent, unknown, of another type or out of range.
    """
    with torch.device("meta"):  # the user's random numbers are left alone, too
        return build_network(config)


def read_weights(folder: Path, digest: object, network: Network, limits: Tensor) -> None:
    """Gives a network its weights.

    Args:
        folder: of the policy.
        digest: SHA-256 of the file, as the record has it.
        network: from `without_weights`.
        limits: (F,), the largest absolute values in an observation.

    Raises:
        PolicyFileError: the weights cannot be read, or are others than the record's.
        ConfigurationError: network and weights do not fit each other, or a weight is NaN, infinite
            or so large that a Q-value could be.
    """
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    size = sum(map(math.prod, shapes.values()))
    check_integer("number of the network's weights", size, 1, _MOST_WEIGHTS)
    weights = _read_weights(folder, _MOST_HEADER + 8 * size, digest)
    _check_header(weights, shapes)
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise ConfigurationError(f"{WEIGHTS} is damaged ({error}).") from error
    del weights
    for name in shapes:
        tensors[name] = tensors[name].to(torch.float32, copy=True)
        if not tensors[name].isfinite().all():
            raise ConfigurationError(f"{name} in {WEIGHTS} holds NaN or infinity.")
    network.load_state_dict(tensors, assign=True)
    largest = network.largest_value(limits).item()
    check_number("largest Q-value of the network", largest, f"[0, {_LARGEST_VALUE}]")


def _read_weights(folder: Path, most: int, digest: object) -> bytes:
    path = folder / WEIGHTS
    try:
        weights = read_regular(path, most)
    except OSError as error:
        raise PolicyFileError(
            f"{path} cannot be read ({error.strerror}); a policy is the two files {WEIGHTS} and "
            f"{RECORD}, copy both."
        ) from error
    if hashlib.sha256(weights).hexdigest() != digest:
        raise PolicyFileError(
            f"{path} is truncated or was not saved together with {RECORD}; copy both files again."
        )
    return weights


def _check_header(weights: bytes, shapes: Mapping[str, list[int]]) -> None:
    """Before anything is allocated: the tensors are those of the network, and hold floats."""
    length = int.from_bytes(weights[:8], "little")
    try:
        header = parse_json(weights[8 : 8 + min(length, _MOST_HEADER)])
    except ValueError as error:
        raise ConfigurationError(f"the header of {WEIGHTS} is damaged ({error}).") from error
    check_fields(f"the header of {WEIGHTS}", header, shapes, ("__metadata__",))
    for name, shape in shapes.items():
        tensor = header[name]
        check_fields(f"{name} in {WEIGHTS}", tensor, ("dtype", "shape", "data_offsets"))
        check_choice(f"dtype of {name} in {WEIGHTS}", tensor["dtype"], _FLOATS)
        check_choice(f"shape of {name} in {WEIGHTS}", tensor["shape"], (shape,))


def _check_record(record: Any) -> None:
    """What the package itself reads of a record; the rest is for people."""
    check_kind("record", record, dict)
    check_choice("record.start", record.get("start", "auto"), get_args(StartRate))
    check_kind("record.circuit_breaker", record.get("circuit_breaker", True), bool)
    check_kind("record.overrides", record.get("overrides", []), list, each=str)
    for name in ("inner_steps", "minutes"):
        check_number(f"record.{name}", record.get(name, 0), NOT_NEGATIVE)
