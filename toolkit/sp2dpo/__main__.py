"""`python -m sp2dpo` is the command line."""

from sp2dpo.cli.main import main

main()
