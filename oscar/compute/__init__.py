"""Engines that run functions: the port `base.Compute` and its implementations."""
