"""Run the command line with `python -m sp2dpo`."""

from sp2dpo.cli.main import main

main()
