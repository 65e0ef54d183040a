# make setup | demo | test | check | test-slow | test-rtl | bench | wheel-test | generate | accuracy | scale | status | clean
# PYTHON=... picks the interpreter, VENV=... the folder of the virtual environment.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
PROMPT ?= The "with" statement
DEMO_TOKENS ?= 48
DEMO_RTL_TOKENS ?= 4
WORKERS ?= 2

# Two test processes share two cores: one thread each in the numeric libraries.
test suite test-slow test-rtl: export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test suite check generated generate accuracy scale performance calibrate status test-slow test-rtl bench wheel-test clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 found; name one: make setup PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than Python 3.10" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@echo "installing into $(VENV): about 2 GB with a CPU build of torch, some minutes (see README.md)"
	$(PY) -m pip install --quiet --no-compile -e '.[all]' -c constraints.txt
	touch $@

demo: setup
	rm -rf out/demo
	$(BIN)/flightllm compile demo -o out/demo
	$(BIN)/flightllm run out/demo --prompt '$(PROMPT)' --tokens $(DEMO_TOKENS)
	$(PY) tools/demo_rtl.py out/demo '$(PROMPT)' $(DEMO_RTL_TOKENS)

# The checks, mostly one process, run beside the tests.
test: setup
	$(MAKE) --no-print-directory -j2 check suite
	$(PY) tools/status.py --check out/junit.xml

suite: setup
	mkdir -p out
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --junitxml=out/junit.xml

check: setup generated
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

generated: setup
	$(PY) tools/generate.py --check

generate: setup
	$(PY) tools/generate.py

# docs/accuracy.md: calibrates and scores every row, which takes long.
accuracy: setup
	$(PY) tools/accuracy.py

# docs/scale.md: writes and compiles checkpoints of 7B parameters, which takes long and 30 GB of disk.
scale: setup
	$(PY) tools/scale.py --clean

# docs/performance.md and its charts: estimates every row, which takes minutes.
performance: setup
	$(PY) tools/performance.py

# spec/calibration.json and docs/calibration.md: builds and runs RTL, which takes long.
calibrate: setup
	$(PY) tools/calibrate.py

# The README's table from the last `make test`.
status: setup
	$(PY) tools/status.py out/junit.xml

test-slow: setup
	$(PY) -m pytest -m slow --timeout=3600

# Builds hardware, which FLIGHTLLM_RTL_CACHE keeps between runs if it names a folder.
test-rtl: setup
	$(PY) -m pytest -m rtl --timeout=7200

bench: setup
	$(PY) tools/bench.py

wheel-test: setup
	$(PY) tools/wheel_test.py

clean:
	rm -rf build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
