"""`python -m greatseal`: the command `greatseal`, where its script is not on the path."""

from __future__ import annotations

from greatseal.cli import main

if __name__ == "__main__":
    main()
