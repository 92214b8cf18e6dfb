# Everything starts from a bare machine with Python >= 3.11 (with venv) and make; nothing is used that was installed by hand.
PYTHON ?= python3
TICKER ?= ETH/USD
PARAMS ?=
QUICK  ?=
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

MODEL_TESTS := $(addprefix tests/test_,$(addsuffix .py,model fast_lstm threads fan onnx_model walkforward manifest signal_generator certificate))

MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help report test test-model lab bench site clean

help:                ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t12

# as they were typed, neither expanded by make nor read by the shell
unexport TICKER PARAMS QUICK
report: export REPORT_TICKER := $(value TICKER)
report: export REPORT_PARAMS := $(value PARAMS)
report: .venv/.runtime  ## an honest HTML report (TICKER=ETH/USD, PARAMS=params/<ticker>.yaml; QUICK=1 for a quick look)
	@$(BIN)/cryptolstm report $(if $(value QUICK),--quick) $${REPORT_PARAMS:+--params "$$REPORT_PARAMS"} -- "$$REPORT_TICKER"

# On two cores, threads within the processes would only wait for one another (half the CPU time without), while a third process works
# where the others wait for kernels, clocks and sockets. Results do not depend on these numbers (tests/test_threads.py).
test test-model: export OMP_NUM_THREADS ?= 1
test test-model: export OPENBLAS_NUM_THREADS ?= 1
test test-model: export TF_NUM_INTEROP_THREADS ?= 1
test: .venv/.dev     ## what CI runs: clean notebooks, current package, lint, notebook tests, pytest
	@$(BIN)/python tests/kernels.py
	@$(BIN)/python tests/browser.py
	@$(BIN)/python tests/check_generated.py
	$(BIN)/ruff check nbs tests docs setup.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 3 || { $(BIN)/python tests/kernels.py; exit 1; }
	$(BIN)/python -m pytest -n 3 --dist loadfile

# Restrict the kernels to see another kind of CPU: TF_ENABLE_ONEDNN_OPTS=0, ONEDNN_MAX_CPU_ISA=AVX2, OPENBLAS_CORETYPE=Haswell ...
test-model: .venv/.dev  ## notebooks and tests of the model only
	@$(BIN)/python tests/kernels.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 3 --path nbs/model || { $(BIN)/python tests/kernels.py; exit 1; }
	$(BIN)/python -m pytest -n 3 --dist loadfile $(MODEL_TESTS)

bench: .venv/.dev    ## ours against the peers, in ratios; also writes reports/bench.json
	@$(BIN)/python tests/bench.py $(BENCH)

lab: .venv/.dev      ## open the notebooks
	$(BIN)/jupyter lab nbs

site: .venv/.dev     ## build the documentation and the index of the reports as a site in site/
	$(BIN)/python docs/build_site.py site

clean:               ## remove the environment and what tests leave behind (reports and data stay)
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis tests/.hypothesis build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; pass for instance PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python cannot make an environment; on Debian: apt-get install python3-venv"; exit 1; }

.venv/.runtime: .venv/bin/python constraints.txt settings.ini setup.py pyproject.toml
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/bin/python constraints.txt settings.ini setup.py pyproject.toml
	$(PIP) install -q -c constraints.txt -e '.[dev,notify,metrics,keyring,cluster,docs]'
	@touch $@ .venv/.runtime
