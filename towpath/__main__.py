"""`python -m towpath`."""

from towpath.cli.app import main

main()
