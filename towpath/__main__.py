"""`python -m towpath`."""

from towpath.cli import main

main()
