# Everything runs in a virtual environment in .venv, made on first use with Python 3.11 and pip.
PYTHON ?= python3.11
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1

.PHONY: demo test lint bundle constraints clean

demo: .venv/installed
	.venv/bin/medfusion simulate

test: .venv/installed lint
	.venv/bin/pytest -n 2 tests

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Every wheel of an installation, for machines without internet; see deploy/RUNBOOK.md.
bundle: .venv/installed
	rm -rf dist/bundle
	.venv/bin/pip wheel --constraint deploy/constraints.txt --wheel-dir dist/bundle ".[text]"
	cp deploy/constraints.txt dist/bundle/

# After the tests have passed with newer versions.
constraints: .venv/installed
	.venv/bin/pip freeze --exclude-editable > deploy/constraints.txt

# pip writes a line per package; the first installation takes a few minutes and about 7 GB.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check --progress-bar off --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
