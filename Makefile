# Every target makes the virtual environment .venv first if there is none, or if the dependencies
# in pyproject.toml have changed.  PYTHON chooses the interpreter it is made with.

PYTHON ?= $(firstword $(foreach v,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(v) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(v))))
BIN := .venv/bin
STAMP := .venv/.installed
# Each worker has servers of its own, and the tests wait for these more than they compute.
PYTEST := $(BIN)/python -m pytest -n 3

.PHONY: demo test matrix soak bench bench-capture bench-levers lint format clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/pglean demo $(ARGS)

# What a change has to pass: style, types, and all tests on the servers that are at hand.
test: lint
	$(PYTEST) -m "not slow" $(ARGS)

# The tests that need a server, on PostgreSQL 14 to 19; MATRIX="14 15" restricts it, "--together 14 15" more so.
matrix: $(STAMP)
	$(BIN)/python scripts/matrix.py $(MATRIX)

# The tests that are too long for every day: many more seeds, every fault at every point.
soak: $(STAMP)
	$(PYTEST) -m slow $(ARGS)

# About an hour; BENCH=--quick: five minutes, and nothing is written; BENCH=--help: what else.
bench: $(STAMP)
	$(BIN)/python bench/run.py $(BENCH)

# What capturing changes costs an application.
bench-capture: $(STAMP)
	$(BIN)/python bench/capture.py $(BENCH)

# What could be done otherwise, measured.
bench-levers: $(STAMP)
	$(BIN)/python bench/levers.py $(BENCH)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

clean:
	rm -rf .venv .servers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		$(PYTHON) -c 'import sys; v = "python%d.%d" % sys.version_info[:2]; \
			print(v, "cannot make virtual environments; on Debian: apt-get install", v + "-venv")' >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
