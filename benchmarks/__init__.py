"""Measurements, each figure beside the floor that it is compared with: `python -m benchmarks`."""
