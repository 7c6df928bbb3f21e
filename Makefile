# Everything a newcomer needs; each target makes the virtual environment it runs in.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo posterior results test test-slow test-peers check mutation bench bench-episodes bench-memory \
  bench-uncertainty docs docs-links clean

ALGORITHM ?= maml
demo: $(VENV)/.installed  ## Train on sinusoids for a minute (ALGORITHM=maml, reptile, imaml); a table, a picture.
	$(BIN)/python examples/sinusoid_demo.py $(ALGORITHM)

posterior: $(VENV)/.installed  ## Train amortized MAML for a minute, draw how its posterior tightens.
	$(BIN)/python examples/posterior_tightening.py

test: $(VENV)/.installed  ## The default tests, about 8 minutes on 2 cores.
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed  ## Full trainings, real data (OMNIGLOT_ROOT), costly tests of more learners.
	$(BIN)/python -m pytest -m slow

test-peers: $(VENV)-peers/.installed  ## Exchange with learn2learn, curvature beside curvlinops: with the real packages.
	$(VENV)-peers/bin/python -c "import learn2learn, curvlinops"  # without them the tests would be skipped
	$(VENV)-peers/bin/python -m pytest tests/interop tests/analysis/test_curvlinops.py

check: $(VENV)/.installed  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutation: $(VENV)/.installed  ## Small changes of the code that no test notices, from a sample of 300; about an hour.
	$(BIN)/python tools/mutation.py

bench: $(VENV)-peers/.installed  ## Speed and memory beside the peers, to benchmarks/RESULTS.md; about half an hour.
	$(VENV)-peers/bin/python benchmarks/run_all.py

bench-episodes: $(VENV)/.installed  ## Episodes per second; OMNIGLOT_ROOT as above.
	$(BIN)/python benchmarks/episodes.py

bench-memory: $(VENV)/.installed  ## Peak memory over inner steps, implicit MAML beside MAML.
	$(BIN)/python benchmarks/memory.py

bench-uncertainty: $(VENV)/.installed  ## Likelihood, coverage and epistemic variance on noisy sinusoids; 45 minutes.
	$(BIN)/python benchmarks/sinusoid_uncertainty.py

# In HTML, to docs/_build/html; -n also warns of names in docstrings that do not exist.
docs: $(VENV)/.installed  ## The documentation: runs quick examples and tutorials; every warning is an error.
	$(BIN)/python -m sphinx -M html docs docs/_build --fail-on-warning --keep-going --nitpicky

docs-links: $(VENV)/.installed  ## Asks every address that the documentation links to; needs a connection.
	$(BIN)/python -m sphinx -M linkcheck docs docs/_build -D plot_gallery=0 -D nb_execution_mode=off

# torch first and pinned: an unpinned torch may pull gigabytes that a CPU machine has no use for.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

$(VENV)-peers/.installed: pyproject.toml constraints.txt benchmarks/install_peers.sh
	PYTHON=$(PYTHON) bash benchmarks/install_peers.sh $(VENV)-peers
	touch $@

results: $(VENV)/.installed  ## Each shipped configuration, to results/ and docs/results; hours; DATA names the folder of data.
	$(BIN)/python -m tools.results $(if $(DATA),--data $(DATA)) $(if $(BUDGET),--budget $(BUDGET))

clean:  # but outputs/results, which may hold hours of training
	rm -rf $(VENV) $(VENV)-peers lightning_logs docs/_build docs/gallery docs/reference/generated
	find outputs -mindepth 1 -maxdepth 1 ! -name results -exec rm -rf {} + 2> /dev/null || true
