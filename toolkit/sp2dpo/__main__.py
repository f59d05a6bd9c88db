"""`python -m sp2dpo` is the command line."""

from sp2dpo.cli import main

main()
