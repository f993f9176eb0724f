"""Policies on the Hugging Face Hub: two files are fetched, three are pushed (extra `hub`).

What comes from the Hub may be anybody's. Only the two files of a policy are asked for, of one
commit, and none that is larger than the reader allows. `LRPolicy.load` then reads the folder in the
client's cache as it reads any other. A revision that is in the cache needs no network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from lightning_dqnlr.errors import ConfigurationError, PolicyFileError, needs_package
from lightning_dqnlr.policy.folder import LARGEST, RECORD, WEIGHTS

PREFIX = "hf://"
CARD = "README.md"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"[\w./-]+", re.ASCII)
_LONGEST = 200  # characters of the client's explanation


class Address(NamedTuple):
    """Where a policy is on the Hub."""

    repository: str  # "org/name"
    revision: str | None  # a branch, a tag or a commit; None for the main branch

    def __str__(self) -> str:
        return PREFIX + self.repository + (f"@{self.revision}" if self.revision else "")


class Fetched(NamedTuple):
    """A policy's folder in the client's cache."""

    folder: Path
    name: str  # for traces: the repository and the beginning of the commit


def address_of(text: str, revision: str | None = None) -> Address:
    """Reads `org/name` or `hf://org/name@revision`.

    Args:
        text: the address.
        revision: of an address that has none.

    Raises:
        ConfigurationError: for another form, or two different revisions.

    Example:
        >>> address_of("hf://org/name@v1")
        Address(repository='org/name', revision='v1')
    """
    repository, at, named = text.removeprefix(PREFIX).partition("@")
    wanted = named if at else revision
    fits = wanted is None or (_REVISION.fullmatch(wanted) and ".." not in wanted)
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or not fits:
        raise ConfigurationError(
            f"policy={text[:_LONGEST]!r} must be an address such as hf://org/name or "
            "hf://org/name@revision."
        )
    if at and revision not in (None, named):
        raise ConfigurationError(f"revision={revision!r}: {text!r} names another; give one.")
    return Address(repository, wanted)


def fetch(address: Address, token: str | bool | None = None) -> Fetched:
    """Brings a policy's two files into the client's cache, if they are not there.

    Args:
        address: of the policy.
        token: of a private repository; None for the one that `hf auth login` stored.

    Raises:
        MissingPackageError: without huggingface_hub.
        PolicyFileError: the Hub does not give it, or a file is too large for a policy.

    Example:
        fetch(address_of("hf://org/name")).folder
    """
    with needs_package(f"policy={str(address)!r}", "huggingface_hub", "hub"):
        import huggingface_hub  # noqa: F401
    record = _fetch_file(address, RECORD, token)
    commit = record.parent.name  # so that the weights are those of the same commit
    _fetch_file(address._replace(revision=commit), WEIGHTS, token)
    return Fetched(record.parent, f"{address.repository}@{commit[:7]}")


def _fetch_file(address: Address, name: str, token: str | bool | None) -> Path:
    from huggingface_hub import hf_hub_download

    where = {"repo_id": address.repository, "filename": name, "revision": address.revision}
    try:
        found = hf_hub_download(**where, token=token, dry_run=True)
        _check_size(address, name, found.file_size)
        return Path(hf_hub_download(**where, token=token))
    except PolicyFileError:
        raise
    except Exception as error:  # the client's, those of its HTTP library, those of the system
        raise PolicyFileError(
            f"policy={str(address)!r}: the Hub does not give {name} ({_first_line(error)}). Look "
            "for a mistake in the address; a private repository needs `hf auth login`, and the "
            "first use needs the network."
        ) from error


def _check_size(address: Address, name: str, size: int | None) -> None:
    if size is None or size > LARGEST[name]:
        raise PolicyFileError(
            f"policy={str(address)!r}: {name} has {size or 'an unknown number of'} bytes there, "
            f"and a policy's has at most {LARGEST[name]}. Nothing was downloaded."
        )


def push(
    folder: Path,
    repository: str,
    *,
    private: bool | None,
    message: str,
    token: str | bool | None,
) -> str:
    """Commits a policy's files and its card to the Hub, all three at once.

    Args:
        folder: with the files.
        repository: "org/name"; made if there is none.
        private: whether a new one is private; None for the organisation's default.
        message: of the commit.
        token: None for the one that `hf auth login` stored.

    Returns:
        The address with the commit.

    Raises:
        ConfigurationError: the Hub refuses, or the address has another form.
        MissingPackageError: without huggingface_hub.

    Example:
        push(folder, "org/name", private=True, message="First policy", token=None)
    """
    with needs_package("push_to_hub", "huggingface_hub", "hub"):
        from huggingface_hub import CommitOperationAdd, HfApi
    address = address_of(repository)
    files = [CommitOperationAdd(name, str(folder / name)) for name in (WEIGHTS, RECORD, CARD)]
    api = HfApi(token=token)
    try:
        api.create_repo(address.repository, private=private, exist_ok=True)
        made = api.create_commit(address.repository, files, commit_message=message)
    except Exception as error:  # as above
        raise ConfigurationError(
            f"repository={repository!r}: the Hub does not take it ({_first_line(error)}). It needs "
            "the network, and a token that may write: `hf auth login`."
        ) from error
    return str(address._replace(revision=made.oid))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:_LONGEST]}"
