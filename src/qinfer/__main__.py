"""`python -m qinfer`: the same as the `qinfer` command."""

from qinfer.cli import main

main()
