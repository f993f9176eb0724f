"""Classes that configurations name: of an earlier version, or in a file of somebody else.

A finished run keeps its configuration, and users keep theirs. Both outlive the files of this
package, but not its rooms: what configurations name is offered by the room's face. To instantiate
a name is to run code. A file that came with a policy may therefore name those classes only.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from lightning_dqnlr.errors import ConfigurationError
from lightning_dqnlr.files import read_regular

_PACKAGE = "lightning_dqnlr"
_FACES = ("tasks", "envs")  # the rooms whose classes a recorded configuration may name
_MOST = 2**18  # bytes
_DEEPEST = 32


def with_present_targets(
    config: DictConfig, place: Callable[[str], str] | None = None
) -> DictConfig:
    """A copy in which every `_target_` is where `place` says, by default `present_target`."""
    content = OmegaConf.to_container(config)
    return cast(DictConfig, OmegaConf.create(_renamed(content, place or present_target)))


def read_config(path: Path) -> DictConfig:
    """A YAML file that may be somebody else's, as it was written.

    Raises:
        ConfigurationError: it is no regular file of up to 256 KiB, no YAML of up to 32 levels, or
            holds aliases. A few of these expand to more than any memory.
    """
    try:
        text = read_regular(path, _MOST).decode()
        _check_plain(text)
        config = OmegaConf.create(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise ConfigurationError(
            f"{path} cannot be used ({reason}); copy it again, or name the tasks by --family."
        ) from error
    if not isinstance(config, DictConfig):
        raise ConfigurationError(f"{path} is no configuration; name the tasks by --family.")
    return config


def face_target(target: str) -> str:
    """A target's name at the face of its room, if a class there has it; otherwise the target.

    Unlike `present_target` it imports nothing but the two faces.

    Example:
        >>> face_target("lightning_dqnlr.tasks.families.DigitsMLPs")
        'lightning_dqnlr.tasks.DigitsMLPs'
    """
    names = target.split(".")
    if len(names) < 3 or names[0] != _PACKAGE or names[1] not in _FACES:
        return target
    at_the_face = ".".join([*names[:2], names[-1]])
    return at_the_face if at_the_face in _offered() else target


def check_targets(node: Any, key: str) -> None:
    """Refuses a node that could run other code than this package's, when it is instantiated.

    Args:
        node: plain containers.
        key: where it stands, for the message.

    Raises:
        ConfigurationError: for a target that is no class at a face, and for an interpolation.
    """
    if isinstance(node, str) and "${" in node:
        raise ConfigurationError(
            f"{key}={node[:100]!r} would be computed; if the file is your own, add --trust."
        )
    if not isinstance(node, dict | list):
        return
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if name == "_target_" and value not in _offered():
            raise ConfigurationError(
                f"{key}._target_={str(value)[:100]!r} is no class of lightning_dqnlr's tasks and "
                "engines. To instantiate it would run somebody else's code; if the tasks are your "
                "own, add --trust."
            )
        check_targets(value, f"{key}.{name}")


def _offered() -> tuple[str, ...]:
    faces = [import_module(f"{_PACKAGE}.{room}") for room in _FACES]
    return tuple(f"{face.__name__}.{name}" for face in faces for name in face.__all__)


def _check_plain(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
            raise ValueError(f"an alias, or more than {_DEEPEST} levels")


def present_target(target: str) -> str:
    """A class's place of today, from that of an earlier version.

    What no longer exists inside a room is looked up at the room's face. Other targets, those of
    users above all, stay as they are.

    Example:
        >>> present_target("lightning_dqnlr.tasks.families.DigitsMLPs")
        'lightning_dqnlr.tasks.DigitsMLPs'
    """
    names = target.split(".")
    if names[0] != _PACKAGE or _exists(target):
        return target
    # The class is the first name with a capital; what follows is one of its functions.
    kind = next((i for i, name in enumerate(names) if name[:1].isupper()), len(names) - 1)
    at_the_face = ".".join([*names[:2], *names[kind:]])
    return at_the_face if _exists(at_the_face) else target


def _exists(target: str) -> bool:
    try:
        resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def _renamed(node: Any, place: Callable[[str], str]) -> Any:
    if isinstance(node, list):
        return [_renamed(each, place) for each in node]
    if not isinstance(node, dict):
        return node
    found = {key: _renamed(value, place) for key, value in node.items()}
    if isinstance(found.get("_target_"), str):
        found["_target_"] = place(found["_target_"])
    return found
