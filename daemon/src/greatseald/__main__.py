"""Where the process begins: `greatseald`, or `python -m greatseald`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from greatseald.cli import app

    app()


if __name__ == "__main__":
    main()
