"""OSCAR: event-driven data processing on one machine or on Kubernetes.

The layers, from top to bottom, are listed in `docs/architecture.md` and kept by import-linter.
"""

__version__ = "0.1.0"
