"""`python -m hearthlm` is `hearthlm`."""

from hearthlm.cli import main

main()
