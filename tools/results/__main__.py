"""``python -m tools.results``: run what has no result yet, one configuration after another, and write the page."""

import argparse
import fcntl
import signal
import sys
from pathlib import Path

from tools.results.page import write_page
from tools.results.record import Record
from tools.results.runs import FOLDER, Run
from tools.results.tables import ROOT, budgets

PAGE = ROOT / "docs" / "results" / "index.md"


def main() -> int:
    """Return the process' status: 1 if a configuration failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__)
    parser.add_argument("names", nargs="*", help="Configurations to run, such as sinusoid_maml; default: all.")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="The folder of the data sets; default: data.")
    parser.add_argument("--budget", choices=["shipped", "paper"], default="shipped", help="The papers' is for a GPU.")
    parser.add_argument("--again", action="store_true", help="Forget the results of these configurations first.")
    parser.add_argument("--page", action="store_true", help="Run nothing, write the page.")
    given = parser.parse_args()
    planned = budgets(given.budget)
    if unknown := sorted(set(given.names) - planned.keys()):
        parser.error(f"{unknown} are not among the configurations of this budget: {', '.join(planned)}")
    if given.page:
        write_page(FOLDER, PAGE)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    lock = ROOT / "outputs" / "results" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parser.exit(1, "another process of this tool is running in this folder\n")
        runs = [Run(name, given.budget, planned[name], given.data.resolve()) for name in given.names or planned]
        for run in runs if given.again else []:
            run.forget()
        return _run_all(runs)


def _run_all(runs: list[Run]) -> int:
    failed = False
    for run in runs:
        old = Record.read(run.result)
        if old is not None and old.digest == run.digest:
            continue
        if missing := run.missing_data():
            print(f"{run.name}: skipped, there is no {missing}", flush=True)
            continue
        print(f"{run.name}: running, output in {run.folder / 'output.txt'}", flush=True)
        try:
            record = run.complete()
        except KeyboardInterrupt:
            print(f"{run.name}: interrupted; run again to go on", flush=True)
            return 130
        except RuntimeError as error:
            print(f"{run.name}: {error}", flush=True)
            failed = True
            continue
        record.write(run.result)
        write_page(FOLDER, PAGE)
        print(f"{run.name}: {record.summary()}", flush=True)
    write_page(FOLDER, PAGE)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
