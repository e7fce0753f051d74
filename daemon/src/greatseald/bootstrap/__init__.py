"""The composition root: the only place where adapters are chosen, and the life of the process.

    exit_code = serve(Path("greatseald.toml"), listen="")

`compose` puts the parts together, `lifecycle` starts, reloads, drains and ends them.
"""

from greatseald.bootstrap.lifecycle import StartRefused, serve

__all__ = ["StartRefused", "serve"]
