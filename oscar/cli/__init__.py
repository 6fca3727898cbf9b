"""The program `oscar`: commands over the client of the REST API, and those that start a server.

No rule lives here: every command is a few calls of `oscar.client`, and what they give is shown as a table
or as JSON. Described in `docs/cli.md`.
"""

from oscar.cli.main import main, program

__all__ = ["main", "program"]
