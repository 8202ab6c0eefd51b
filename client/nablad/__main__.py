"""`python -m nablad` is the command line `nablad`."""

from nablad.cli import main

main(prog_name="nablad")
