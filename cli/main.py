# SPDX-License-Identifier: Apache-2.0
"""The `wirekube` command. What a subcommand needs is imported when it runs, so that help and completion are fast."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from .lab import app as lab

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The nodes of a cluster as one mesh.",
)
app.add_typer(lab, name="lab")


@app.callback()
def _wirekube() -> None:
    """The nodes of a cluster as one WireGuard mesh."""


def main() -> NoReturn:
    """Run the command.

    Exit status: 0 done, 1 it could not be done (one line says why), 2 wrong usage, 130 interrupted.
    """
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
