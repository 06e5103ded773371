"""`towpath plan`: what a run will take of time, people, money, memory and disk."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from towpath.cli.options import Json, Run, Set, open_store
from towpath.terminal import print_output, print_status


def plan(
    run: Run,
    set_: Set = None,
    as_json: Json = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="first measure the speed of the recipe's models here, in about a minute")
    ] = False,
    on: Annotated[
        str, typer.Option(metavar="GPUS", help="time and dollars on other GPUs, by formula: 8xH100, A100-80GB")
    ] = "",
    model_size: Annotated[str, typer.Option(metavar="SIZE", help="with --on: another size of model, such as 7B")] = "",
    pairs: Annotated[int, typer.Option(min=0, help="comparisons of a round that are labelled")] = 0,
    completions: Annotated[int, typer.Option(min=0, help="rollouts of the policy stage")] = 0,
    devices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="with --on: a table of GPUs and prices in place of ours")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="also write the plan as a page")] = None,
) -> None:
    """Plan a run: time, people, dollars, memory and disk of each stage with their ranges, the critical path, and what
    would be cheaper. Speeds are measured here with --measure, or follow from a data sheet with --on."""
    from towpath.errors import DataError, RecipeError
    from towpath.planning.run_plan import best_changes
    from towpath.progress import prepare_libraries, progress
    from towpath.run import machine_speed
    from towpath.run.loading import load_corpus, recorded_summary
    from towpath.run.plan import as_json as labels_json
    from towpath.run.plan import plan_lines as label_lines
    from towpath.run.plan_changes import planned_changes
    from towpath.run.run_plan import plan_run
    from towpath.run.what_if import WhatIf
    from towpath.run.worker_plan import as_json as workers_json
    from towpath.run.worker_plan import workers_line
    from towpath.store.read_once import ReadOnce
    from towpath.view.plan import plan_content, plan_lines
    from towpath.view.plan_page import write_page

    wanted = WhatIf(on, model_size, pairs, completions, devices)
    wanted.require_on()
    if measure and on:
        raise RecipeError("--measure with --on", "--measure times this machine", "leave one of them out")
    prepare_libraries()
    settings, opened = open_store(run, set_)
    data = recorded_summary(settings, run)
    if data.is_unread:
        raise DataError(f"{run}: {data.note}", "a plan reads no large data", f"`towpath check {run}` first")
    if measure:
        with progress("plan: measuring this machine") as work:
            machine_speed.measure_machine(settings, run, load_corpus(settings, run), partial(work.advance, 0))
    with opened as opened_store:
        store = ReadOnce(opened_store)
        planned = plan_run(settings, run, data, store, wanted)
        changes = best_changes(
            planned.run, planned_changes(planned, wanted, lambda recipe, what: plan_run(recipe, run, data, store, what))
        )
    if data.note:
        print_status(f"note: {data.note}")
    if html:
        write_page(html, run.resolve().name, planned.run, changes)
        print_status(f"plan: {html}")
    if as_json:
        content = labels_json(planned.labels) | {"run": plan_content(planned.run, changes)}
        content["cluster"] = workers_json(planned.placement) if planned.placement else None
        print_output(json.dumps(content, indent=1))
        return
    lines = plan_lines(planned.run, changes)
    lines += [workers_line(planned.placement)] if planned.placement else []
    print_output("\n".join([*lines, label_lines(planned.labels)]))
