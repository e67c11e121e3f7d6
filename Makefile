# Every target builds the local environment by itself; PYTHON picks the interpreter (>= 3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test test-slow study test-browser test-oldest dist-test docs gallery check bench bench-peers notebooks clean

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

# The site in docs/_build/html.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# Runs experiments and keeps what the site shows of them; NAME="toy-escape bias" for these alone.
gallery: $(READY)
	$(BIN)/python docs/gallery.py $(NAME)

# The built wheel in an environment of its own, outside the checkout.
dist-test:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check build
	rm -rf dist && .venv-dist/bin/python -m build --quiet --outdir dist .
	cp README.md constraints.txt tests/dist_check.sh .venv-dist/
	cd .venv-dist && bash dist_check.sh ../dist

# The oldest versions that pyproject.toml allows.
test-oldest: constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c $< -e '.[test]'
	.venv-oldest/bin/python -m pytest -n 2 -m 'not slow and not study' -q -W default --ignore tests/test_notebooks.py --ignore tests/browser

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
	rm -rf $(VENV) .venv-peers .venv-dist .venv-oldest .cache runs dist docs/_build
