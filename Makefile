# Everything here needs Python 3.11 or newer, pip, g++ and make; the rest is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WEB := tests/web/node_modules
NATIVE := CMakeLists.txt pyproject.toml $(wildcard native/*)

.PHONY: setup demo test test-slow test-oracles test-peers test-ray test-web test-sanitize test-qemu check bench docs clean

setup: $(VENV)/.built

# Debian keeps what venv needs to install pip in a package of its own; the system's pip can do it as well.
.PHONY: venv
venv:
	if $(PYTHON) -c "import ensurepip" 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	else $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; fi

# Built again whenever the native sources or the project's settings change; Python sources are used in place.
$(VENV)/.built: $(NATIVE)
	test -x $(BIN)/python || $(MAKE) --no-print-directory venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.oracles: $(VENV)/.built
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test,oracles]'
	touch $@

$(VENV)/.docs: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --editable '.[test,docs]'
	touch $@

$(VENV)/.ray: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --editable '.[test,ray]'
	touch $@

demo: setup
	$(BIN)/hearthlm run "Tell me a story about a brave little boat."

test: setup
	$(BIN)/python -m pytest -m "not oracle and not slow and not web and not peer and not ray"

# On a Ray cluster of two CPUs of this machine.
test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m ray

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not oracle and not web and not peer and not ray"

test-oracles: $(VENV)/.oracles
	$(BIN)/python -m pytest -m oracle

$(VENV)/.web: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --editable '.[test,web]'
	touch $@

# Needs chromium, node and npm, and says so where one is missing.
test-web: $(VENV)/.web
	if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(WEB)/.package-lock.json; fi
	$(BIN)/python -m pytest -m web -rs

$(WEB)/.package-lock.json: tests/web/package.json tests/web/package-lock.json
	npm ci --prefix tests/web --ignore-scripts --no-audit --no-fund

# LiteRT-LM is a judge, and no dependency: only this target installs it.
$(VENV)/.peers: $(VENV)/.built
	$(BIN)/python -m pip install --quiet litert-lm-api==0.18.1
	touch $@

test-peers: $(VENV)/.peers
	$(BIN)/python -m pytest -m peer

test-sanitize: setup
	bash native/test_sanitize.sh $(BIN)/python

# Needs g++-aarch64-linux-gnu and qemu-user, and says so where one is missing.
test-qemu: setup
	bash native/test_qemu.sh $(BIN)/python

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/real_size.py

# The site lies in site/ afterwards; a warning is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir site
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) build dist site
