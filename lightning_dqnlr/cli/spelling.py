"""What was probably meant by a setting, a choice, a module or an argument that does not exist.

Hydra says what it could not do. Here its errors become what to type instead.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from importlib import resources
from pkgutil import resolve_name
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lightning_dqnlr.errors import ConfigurationError

_CONF = "lightning_dqnlr.conf"
_NO_KEY = re.compile(r"Could not override '([^']+)'")
_NO_CHOICE = re.compile(r"Could not find '([^']+)/([^'/]*)'\s+Available options in '[^']*':\s(.*)")
_NO_VALUE = re.compile(r"Error parsing override '(.+?)' ")
_NO_NAME = "Config group override must be"
_NO_GRAMMAR = "override_grammar"
_NO_TARGET = re.compile(r"Error locating target '([^']+)'")
_NO_ARGUMENT = re.compile(
    r"Error in call to target '([^']+)':.*unexpected keyword argument '(\w+)'"
)
_MISSING = re.compile(r"Error in call to target .*missing \d+ required .*arguments?: ([\w', ]+)")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """` Did you mean train.episodes?`, or nothing where nothing is like it.

    Example:
        >>> did_you_mean("max_minutes", ["train.max_minutes", "threads"])
        ' Did you mean train.max_minutes?'
    """
    last = name.rpartition(".")[2]
    same = [each for each in known if each.rpartition(".")[2] == last]
    ends = {each.rpartition(".")[2]: each for each in known}
    found = same[:3] or get_close_matches(name, known, 1, 0.75)
    found = found or [ends[end] for end in get_close_matches(last, ends, 1, 0.75)]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def mended(error: BaseException, config_name: str) -> str | None:
    """An error of Hydra's as what to type instead; None if it is of no known kind.

    Args:
        error: caught at the top.
        config_name: of the command's configuration, "train" or "bench".
    """
    text = " ".join(str(error).split())
    if found := _NO_KEY.search(text):
        known = list(_settings(config_name))
        if found[1] in known:
            return f"{found[1]}: its value has a key that is not there; + in front adds it."
        meant = did_you_mean(found[1], known) or f" dqnlr {config_name} --cfg job lists them all."
        return f"{found[1]}: there is no such setting.{meant}"
    if found := _NO_CHOICE.search(text):
        choices = found[3].partition(" Config search path:")[0].split()
        meant = did_you_mean(found[2], choices) or " Files of your own need --config-dir FOLDER."
        return f"{found[1]}={found[2]}: there are {', '.join(choices)}.{meant}"
    if found := _NO_VALUE.search(text):
        return f"{found[1]}: a setting is written name=value, in quotes if it has brackets."
    if _NO_NAME in text or _NO_GRAMMAR in text:
        return _faulty_word()
    if found := _MISSING.search(text):
        names = found[1].replace("'", "")
        return f"{_key(text)} needs {names}; dqnlr {config_name} --help shows how to give them."
    if found := _NO_TARGET.search(text):
        return _not_found(found[1], _key(text))
    if found := _NO_ARGUMENT.search(text):
        key, target, name = _key(text), *found.groups()
        meant = did_you_mean(name, _arguments(target))
        return f"{key}.{name}: {target} takes no such argument.{meant}"
    return None


def check_added(overrides: Sequence[str], config_name: str) -> None:
    """Refuses a top-level setting that was added by `+` and that nothing reads.

    Raises:
        ConfigurationError: names it and what was probably meant.
    """
    added = [override.lstrip("+").partition("=")[0] for override in overrides if override[0] == "+"]
    if not added:
        return
    known = list(_settings(config_name))
    for key in added:
        if key.partition(".")[0] not in {each.partition(".")[0] for each in known}:
            raise ConfigurationError(f"+{key} sets nothing.{did_you_mean(key, known)}")


def _faulty_word() -> str | None:
    """The first word that was typed and is no setting, or a choice that is no name."""
    parser = OverridesParser.create()
    groups = groups_of_choices()
    for word in (each for each in sys.argv[1:] if "=" in each):
        try:
            override = parser.parse_override(word)
        except HydraException:
            return f"{word}: a setting is written name=value, in quotes if it has brackets or =."
        choices = groups.get(override.key_or_group)
        if choices is not None and not isinstance(override.value(), str | list):
            return f"{word}: there are {', '.join(choices)}."
    return None


def _key(text: str) -> str:
    found = re.search(r"full_key: (\S+)", text)
    return found[1] if found else ""


def _arguments(target: str) -> list[str]:
    try:
        return list(inspect.signature(resolve_name(target)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def _not_found(target: str, key: str) -> str:
    """Why a class or function cannot be had by its name."""
    module = target.partition(".")[0]
    said = f"{key}: {target} cannot be found".lstrip(": ")
    try:
        resolve_name(target)
    except ModuleNotFoundError as error:
        if error.name == module:
            return (
                f"{said}: no module {module}. Start the command in the folder of {module}.py, "
                "with PYTHONPATH=. before it."
            )
        return f"{said}: {error}."
    except AttributeError as error:
        names = vars(sys.modules[module]) if module in sys.modules else ()
        near = did_you_mean(target.rpartition(".")[2], [n for n in names if not n.startswith("_")])
        return f"{said}: {error}.{near}"
    except Exception as error:  # whatever a user's file raises when it is imported
        return f"{said}: {type(error).__name__}: {error}."
    return said + "."


def _settings(config_name: str) -> Iterator[str]:
    """The groups, and the keys of the configuration with the choices that were typed."""
    groups = groups_of_choices()
    yield from groups
    typed = [word for word in sys.argv[1:] if word.partition("=")[0] in groups]
    for choices in (typed, []):
        try:
            GlobalHydra.instance().clear()
            with hydra.initialize_config_module(_CONF, version_base="1.3"):
                content = OmegaConf.to_container(hydra.compose(config_name, choices))
        except HydraException:
            continue
        yield from _keys(content)
        return


def groups_of_choices() -> dict[str, list[str]]:
    """The groups of the configuration, each with its choices.

    Example:
        >>> groups_of_choices()["collector"]
        ['local', 'ray']
    """
    found = resources.files(_CONF).iterdir()
    groups = [each for each in found if each.is_dir() and not each.name.startswith("_")]
    return {
        group.name: sorted(
            each.name.removesuffix(".yaml")
            for each in group.iterdir()
            if each.name.endswith(".yaml")
        )
        for group in groups
    }


def _keys(content: Any, before: str = "") -> Iterator[str]:
    for name, value in content.items() if isinstance(content, dict) else ():
        yield f"{before}{name}"
        yield from _keys(value, f"{before}{name}.")
