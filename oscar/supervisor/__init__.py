"""Staging beside the user's container: what to fetch and store (plan) and doing it (stage)."""
