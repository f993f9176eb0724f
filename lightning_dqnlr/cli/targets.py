"""Configurations that name classes where an earlier version had them.

A finished run keeps its configuration, and users keep theirs. Both outlive the files of this
package, but not its rooms: what configurations name is offered by the room's face.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

_PACKAGE = "lightning_dqnlr"


def with_present_targets(config: DictConfig) -> DictConfig:
    """A copy in which every `_target_` can be found; see `present_target`."""
    return cast(DictConfig, OmegaConf.create(_renamed(OmegaConf.to_container(config))))


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


def _renamed(node: Any) -> Any:
    if isinstance(node, list):
        return [_renamed(each) for each in node]
    if not isinstance(node, dict):
        return node
    found = {key: _renamed(value) for key, value in node.items()}
    if isinstance(found.get("_target_"), str):
        found["_target_"] = present_target(found["_target_"])
    return found
