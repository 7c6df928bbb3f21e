"""``python -m tools.results``: run what has no result yet, one configuration after another, and write the page."""

import argparse
import sys
from pathlib import Path

from tools.results.page import write_page
from tools.results.record import Record
from tools.results.runs import FOLDER, ROOT, Run, budgets

PAGE = ROOT / "docs" / "results" / "index.md"


def main() -> int:
    """Return the process' status: 1 if a configuration failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__)
    parser.add_argument("names", nargs="*", help="Configurations to run, such as sinusoid_maml; default: all.")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="The folder of the data sets; default: data.")
    parser.add_argument("--budget", choices=["shipped", "paper"], default="shipped", help="The papers' is for a GPU.")
    parser.add_argument("--again", action="store_true", help="Also run what has a result; default: what has none.")
    parser.add_argument("--page", action="store_true", help="Run nothing, write the page.")
    given = parser.parse_args()
    planned = budgets(given.budget)
    if unknown := sorted(set(given.names) - planned.keys()):
        parser.error(f"{unknown} are not among the configurations of this budget: {', '.join(planned)}")
    failed = []
    for name in [] if given.page else given.names or planned:
        run = Run(name, given.budget, planned[name], given.data.resolve())
        old = Record.read(run.result)
        if old is not None and old.is_of(run.configuration) and not given.again:
            continue
        if missing := run.missing_data():
            print(f"{name}: skipped, there is no {missing}", flush=True)
            continue
        print(f"{name}: running, output in {run.folder / 'output.txt'}", flush=True)
        try:
            record = run.complete(again=given.again and old is not None)
        except KeyboardInterrupt:
            print(f"{name}: interrupted; run again to go on", flush=True)
            return 130
        except RuntimeError as error:
            print(f"{name}: {error}", flush=True)
            failed.append(name)
            continue
        record.write(run.result)
        write_page(FOLDER, PAGE)
        print(f"{name}: {record.summary()}", flush=True)
    write_page(FOLDER, PAGE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
