"""The command ``rnn-callbacks``, also ``python -m rnn_callbacks``: compare runs, show one, replay old checkpoints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .compare import command
from .replay import command as replay_command

ABOUT = """\
What recurrent networks learned, afterwards.

  rnn-callbacks compare lightning_logs --html report.html
  rnn-callbacks show lightning_logs/version_0
  rnn-callbacks replay lightning_logs/version_0/checkpoints --config config.yaml
"""
REPLAY = """\
The analyses of the callbacks on checkpoints that were saved without them.

  rnn-callbacks replay run/checkpoints --config run/config.yaml
  rnn-callbacks replay run/checkpoints --config run/config.yaml --model my_package.MyModel --data my_package.MyData
"""


def parser() -> argparse.ArgumentParser:
    """All arguments."""
    whole = argparse.ArgumentParser("rnn-callbacks", description=ABOUT, formatter_class=argparse.RawTextHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True, metavar="compare | show | replay")
    for name, words, epilog, add in (
        ("compare", command.COMPARE, command.EXITS, command.add_compare),
        ("show", command.SHOW, command.EXITS, command.add_show),
        ("replay", REPLAY, "", replay_command.add_arguments),
    ):
        add(
            commands.add_parser(
                name,
                help=words.splitlines()[0],
                description=words,
                epilog=epilog,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "compare":
            return command.run_compare(options)
        if options.command == "show":
            return command.run_show(options)
        return replay_command.run(options)
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"rnn-callbacks {options.command}: {error}", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main())
