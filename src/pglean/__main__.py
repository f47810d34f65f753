"""`python -m pglean`."""

from pglean.cli import main

main()
