"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path, typer.Option("--config", help="The configuration file.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout.")]
