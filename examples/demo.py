"""The demonstration from a clone: `make demo`. From an installation it is `dqnlr demo`.

    python examples/demo.py

The code is in `lightning_dqnlr/cli/demo.py`.
"""

from lightning_dqnlr.cli.demo import demo

if __name__ == "__main__":
    demo()
