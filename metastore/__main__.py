"""`python -m metastore` is the `metastore` command."""

from metastore.cli import main

main(prog_name="metastore")
