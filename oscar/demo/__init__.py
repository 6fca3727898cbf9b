"""`oscar demo`: a picture through a function, by containers and by processes, on its own server."""

from oscar.demo.run import demo

__all__ = ["demo"]
