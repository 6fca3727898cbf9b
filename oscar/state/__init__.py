"""The Store: all that must survive, in SQLite or PostgreSQL. The only package that knows SQL."""
