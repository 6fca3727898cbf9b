"""`python -m oscar`: the same as the program `oscar`."""

from oscar.cli import main

main()
