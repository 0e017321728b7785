# Two commands on a fresh machine: `make app` opens the dashboard, `make test` runs every check. `make bench` measures.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: app test bench audit setup setup-test chromium clean

app: setup
	$(BIN)/paraknow app

test: setup-test chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	-@$(BIN)/python .ci/audit.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Speed and memory beside named rivals, part by part; writes docs/performance.md. Wants a machine that does nothing else.
bench: setup-test
	$(BIN)/python -m benchmarks

# Known vulnerabilities of what is installed. Here they are an error; in `test` they are shown and fail nothing, so that
# an advisory of today does not turn yesterday's commit red.
audit: setup-test
	$(BIN)/python .ci/audit.py

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "ParaKnow needs Python 3.11 or newer; set PYTHON=/path/to/one")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# The browser tests drive Debian's Chromium. Where it cannot be installed they are skipped, and say so.
chromium:
	@if [ -x /usr/bin/chromium ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq chromium >/dev/null || echo "Chromium could not be installed: browser tests will be skipped."; \
	else echo "Chromium is missing (sudo apt-get install chromium): browser tests will be skipped."; fi

clean:
	rm -rf $(VENV) build dist
