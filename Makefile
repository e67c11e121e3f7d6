# Every target builds the local environment by itself; PYTHON picks the interpreter (>= 3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test test-slow study test-browser check bench bench-peers notebooks clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,notebooks]'
	touch $(READY)

run: $(READY)
	$(BIN)/jaxstab run selection --preset quick --out runs/selection

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not study' --ignore tests/browser -q --durations=20

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'slow and not study' --ignore tests/browser -q --durations=20

study: $(READY)
	$(BIN)/python -m pytest -n 2 -m study -q

# In a real browser; says what to install where there is none.
test-browser: $(VENV)/.browser
	JAXSTAB_BROWSER=required $(BIN)/python -m pytest tests/browser -q

$(VENV)/.browser: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	touch $@

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(READY)
	$(BIN)/python notebooks/execute.py

bench: $(READY)
	$(BIN)/python -m benchmarks

# The peers in an environment of their own, with PyTorch first so that nothing replaces it.
bench-peers: .venv-peers/.ready

.venv-peers/.ready: benchmarks/peers-requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' $<)
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf $(VENV) .venv-peers .cache runs
