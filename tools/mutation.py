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
FILES = ["algorithms/**/*.py", "inner/**/*.py", "metrics/*.py", "likelihoods/predictive.py"]
FILES += ["execution/mapping.py", "execution/pieces.py", "execution/plan.py"]

# Which files which tests concern, beside those at the same place, which come first; then tests for all files.
GRADIENT, PROBABILISTIC = "algorithms/gradient/test_", "algorithms/probabilistic/test_"
TESTS = {
    f"{GRADIENT}maml {GRADIENT}quadratic_oracles {GRADIENT}meta_gradients {GRADIENT}meta_gradient_objects "
    "inner/test_checkpoint inner/test_step_norms learners/test_inputs learners/test_bad_input":
        "adapted anil checkpoint maml meta_gradients meta_sgd multi_step names rates step_norms",
    f"{PROBABILISTIC}fixed_noise {PROBABILISTIC}abml {PROBABILISTIC}amortized_maml {PROBABILISTIC}bayesian_maml":
        "abml amortized_maml gaussian random_parameters ridge",
    f"{PROBABILISTIC}bayesian_maml inner/solvers/test_svgd": "bayesian_maml svgd",
    f"{GRADIENT}implicit_maml {GRADIENT}inner_optimizers inner/solvers/test_conjugate_gradient "
    "inner/solvers/test_proximal": "conjugate_gradient implicit_maml inner_loop proximal proximal_strength vectors",
    f"{GRADIENT}reptile {GRADIENT}inner_optimizers inner/update_rules/test_update_rules inner/update_rules/test_chain "
    "learners/test_ddp": "adam by_name chain descent kept_state reptile rule update_rules",
    "metrics/test_uncertainty metrics/test_task_metrics": "predictive task_metrics uncertainty",
    f"execution/test_mapping {GRADIENT}meta_gradients models/test_batch_statistics learners/test_inputs "
    "execution/capture/test_parallel execution/capture/test_recorder checkpoints/test_resume": "mapping pieces plan",
}  # fmt: skip
FALLBACK = ["learners/test_every_learner", "learners/test_constructors", "learners/test_randomness"]


def tests_of(file: str) -> list[str]:
    """The test files that concern a file of the package, those first that are most likely to notice a change."""
    path = Path(file)
    own = [name for names, stems in TESTS.items() if path.stem in stems.split() for name in names.split()]
    names = dict.fromkeys([f"{path.parent}/test_{path.stem}", *own, *FALLBACK])
    return [path for path in (f"tests/{name}.py" for name in names) if (ROOT / path).exists()]


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
    tests = {mutant.file: tests_of(mutant.file) for mutant in sample}

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
