"""Changes the code in small ways, one at a time, and tells which changes no test notices.

A change is made in a temporary copy of the package, never in the tree, and tested in a process forked from one that
has already imported torch. `equivalent_mutants.txt` lists changes that cannot matter, with the reason.

    python tools/mutation.py --limit 40 --seed 2   # a small sample
    python tools/mutation.py --only 3fa2 91bc      # the changes of those names again, after writing tests
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from mutants import mutants_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_meta"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
FILES = ["algorithms/*.py", "inner/*.py", "metrics/*.py", "predictive.py", "task_mapping.py", "task_batches.py"]

# Which files which tests concern, beside those named after a file, which come first; then tests for all files.
TESTS = {
    "quadratic_oracles maml_family meta_gradients checkpointed_inner_loop inputs bad_input compile":
        "anil checkpoint maml meta_sgd adapted multi_step rates",
    "fixed_noise abml amortized_maml bayesian_maml": "abml amortized_maml noise ridge variational",
    "bayesian_maml": "bayesian_maml svgd",
    "implicit_maml fixed_noise": "conjugate_gradient implicit_maml proximal proximal_strength vectors",
    "reptile update_rules ddp": "kept_state reptile update_rules",
    "uncertainty metrics": "predictive task_metrics uncertainty",
    "task_mapping meta_gradients batch_statistics inputs parallel_recording recording resume":
        "task_batches task_mapping",
}  # fmt: skip
FALLBACK = ["constructors", "randomness", "uncertainty"]


def tests_of(stem: str) -> list[str]:
    """The test files that concern a file, those first that are most likely to notice a change."""
    own = [name for names, stems in TESTS.items() if stem in stems.split() for name in names.split()]
    names = dict.fromkeys([stem, *own, *FALLBACK])
    return [path for path in (f"tests/test_{name}.py" for name in names) if (ROOT / path).exists()]


def notice(tests: Sequence[str], file: str, source: str | None, seconds: int) -> bool:
    """Whether tests fail, or take longer than so many seconds, where a file of the package reads so; None: as it is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, PACKAGE.name)
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if source is not None:
            (copy / file).write_text(source)
        process = os.fork()
        if process == 0:
            signal.alarm(seconds)
            os._exit(run(folder, list(dict.fromkeys(tests))))
        return os.waitpid(process, 0)[1] != 0


def run(folder: str, tests: list[str]) -> int:
    """Run tests with the package in a folder, in a process of its own."""
    with open(Path(folder, "output"), "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["PYTHONPATH"] = folder  # for processes that tests start
    sys.path.insert(0, folder)
    try:
        assert str(importlib.import_module(PACKAGE.name).__file__).startswith(folder)
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/pytest"]
        return next((1 for path in tests if pytest.main([*options, path])), 0)
    except BaseException:
        return 1


def equivalent() -> set[tuple[str, ...]]:
    """Those that are listed, as a mutant's first four fields; the fourth line of each is the reason."""
    blocks = [block.split("\n") for block in EQUIVALENT.read_text().strip().split("\n\n")[1:]]
    wheres = [(*where.split(), "")[:2] for where, *_ in blocks]
    return {(*where, old[2:], new[2:]) for where, (_, old, new, _) in zip(wheres, blocks, strict=True)}


def main() -> None:
    """Run a sample, print the survivors, and the numbers by file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=300, help="how many changes to try")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--seconds", type=int, default=300, help="how long the tests of a change may take")
    parser.add_argument("--files", nargs="+", default=FILES, help="patterns of files in the package")
    parser.add_argument("--only", nargs="+", help="beginnings of names of changes, as printed")
    options = parser.parse_args()
    files = [str(path.relative_to(PACKAGE)) for pattern in options.files for path in sorted(PACKAGE.glob(pattern))]
    mutants = [mutant for file in files for mutant in mutants_of(PACKAGE, file)]
    sample = random.Random(options.seed).sample(mutants, min(options.limit, len(mutants)))
    if options.only:
        sample = [mutant for mutant in mutants if mutant.name.startswith(tuple(options.only))]
    tests = {mutant.file: tests_of(Path(mutant.file).stem) for mutant in sample}

    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.chdir(ROOT)
    for module in ("lightning.pytorch.cli", "torchmetrics.functional.classification", "torch._dynamo", "wandb"):
        importlib.import_module(module)
    torch.set_num_threads(1)
    gc.freeze()  # collecting what is imported would take longer than many a test
    if notice([path for paths in tests.values() for path in paths], "", None, 1000):
        sys.exit("the tests fail without a change")
    listed, numbers = equivalent(), Counter[tuple[str, str]]()
    for gone in sorted(listed - {mutant[:4] for mutant in mutants}):
        if gone[0] in files:
            print("listed as equivalent, but no longer there:", *gone, flush=True)
    for mutant in sample:
        if mutant[:4] in listed:
            outcome = "equivalent"
        else:
            killed = notice(tests[mutant.file], mutant.file, mutant.source, options.seconds)
            outcome = "killed" if killed else "survived"
        numbers[mutant.file, outcome] += 1
        print(f"{mutant.name} {mutant.file}:{mutant.line} {outcome}", flush=True)
        if outcome == "survived":
            print(f"\n{mutant.file} {mutant.function}\n- {mutant.before}\n+ {mutant.after}\n", flush=True)
    for file in [*sorted(tests), ""]:  # then the sums
        of_file = {
            kind: sum(n for (own, k), n in numbers.items() if k == kind and own.startswith(file))
            for kind in ("killed", "survived", "equivalent")
        }
        print(f"{file or 'together':32}", *(f"{number:5} {kind}" for kind, number in of_file.items()))


if __name__ == "__main__":
    main()
