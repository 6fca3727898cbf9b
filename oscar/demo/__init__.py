"""`oscar demo`: a picture through a function, by containers and by processes or in pods, on its own server."""

from oscar.demo.run import Site, demo

__all__ = ["Site", "demo"]
