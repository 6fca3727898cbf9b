"""The REST API: one module a noun, 5-15 lines a route, no rules."""
