"""`dqnlr`: one command for all that this package does from a terminal.

`dqnlr train ...` is `dqnlr-train ...`, and so on: the older commands stay. Nothing heavy is loaded
before it is known which one is meant.
"""

from __future__ import annotations

import argparse
import sys
from pkgutil import resolve_name
from typing import NamedTuple

from lightning_dqnlr import __version__


class Subcommand(NamedTuple):
    """Where a subcommand's function is, and what it does in a line."""

    function: str
    does: str


SUBCOMMANDS = {
    "demo": Subcommand(
        "lightning_dqnlr.cli.demo:demo",
        "a minute of training: the callback, a tuned cosine, Adam at 1e-3",
    ),
    "train": Subcommand(
        "lightning_dqnlr.cli.train:train",
        "train a policy, on your own models too (experiment=quick: two minutes)",
    ),
    "combine": Subcommand("lightning_dqnlr.cli.policies:combine", "average several policies"),
    "promote": Subcommand(
        "lightning_dqnlr.cli.policies:promote", "compare policies on fresh tasks, copy the best"
    ),
    "memory": Subcommand(
        "lightning_dqnlr.cli.memory:memory", "what earlier runs of your models were, and the next"
    ),
    "bench": Subcommand(
        "lightning_dqnlr.cli.bench:bench",
        "compare with other methods (suite=mine: on your own LightningModule)",
    ),
}


def main() -> None:
    """The console script `dqnlr`."""
    width = max(map(len, SUBCOMMANDS)) + 2
    lines = [f"  {name:{width}}{each.does}" for name, each in SUBCOMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="dqnlr",
        usage="dqnlr COMMAND ...",
        description="Learned control of the learning rate.\n\n" + "\n".join(lines),
        epilog="`dqnlr COMMAND --help` says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lightning-dqnlr {__version__}")
    parser.add_argument("command", choices=SUBCOMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    name = parser.parse_args(sys.argv[1:2] or ["--help"]).command
    # The commands name themselves by what was typed, in records that others are to run again.
    sys.argv = [f"dqnlr-{name}", *sys.argv[2:]]
    resolve_name(SUBCOMMANDS[name].function)()
