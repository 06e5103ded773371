"""A process that works on the trials of a sweep: `python -m towpath.sweep.worker ARGUMENTS`, started by the sweep."""

import json
import os
import sys
from pathlib import Path

from towpath import interrupt, recipe
from towpath.errors import TowpathError
from towpath.progress import prepare_libraries, redirect
from towpath.store.location import ledger_location
from towpath.store.store import Store
from towpath.sweep.preparation import read_plan
from towpath.terminal import print_status


def main(arguments: str) -> int:
    """Work until all trials have ended, or the process that started this one has."""
    values = json.loads(arguments)
    prepare_libraries()
    redirect(lambda line: print_status(f"  {line}"))
    from towpath.sweep.search import work

    folder = Path(values["run"])
    try:
        settings = recipe.load(folder, values["overrides"])
        with interrupt.handle_signals():
            with Store.open(ledger_location(folder, settings.store.url)) as store:
                plan = read_plan(settings, folder, store)
            work(plan, print_status, lambda: os.getppid() == values["parent"])
    except TowpathError as error:
        print_status(f"error: {error}")
        return error.exit_code or 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
