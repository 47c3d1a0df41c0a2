# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tools of the supply chain have a place of their own: what they need would change how others read XML.
AUDIT_VENV := .audit-venv
# So have the object stores of the tests.
STORES_VENV := .stores-venv
AUDIT := $(AUDIT_VENV)/bin
FUZZ_SECONDS ?= 60
BENCHMARKS := $(wildcard benchmarks/*.py)

.PHONY: help setup demo test test-documents test-long stores fuzz audit sbom lint bench docs clean
.DEFAULT_GOAL := help

help:
	@echo "make setup   create $(VENV) with the exact versions of constraints.txt"
	@echo "make demo    run snugtune demo"
	@echo "make test    lint, then the tests (about ten minutes)"
	@echo "make test-documents  execute the documents' commands and the notebook (also part of test-long)"
	@echo "make test-long  what takes longer: the documents' commands, the notebook, kills and mutated files by the hundred"
	@echo "make stores  install the object stores that tests talk to: S3's protocol, Google Cloud Storage"
	@echo "make fuzz    FUZZ_SECONDS (60) of coverage-guided fuzzing of each reader, with Atheris"
	@echo "make audit   ask PyPI for known vulnerabilities of the exact versions in constraints.txt"
	@echo "make sbom    write dist/snugtune.cdx.json, what is in it in the format of CycloneDX"
	@echo "make lint    ruff, mypy, layering contracts"
	@echo "make bench   run the scripts in benchmarks/"
	@echo "make docs    build the documentation into site/"
	@echo "make clean   remove $(VENV), builds and caches"

setup: $(READY)

# Re-runs only when the project's dependencies or their exact versions change.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "constraints.txt needs Python 3.11 or newer; run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/snugtune demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests' models compute on one thread each; a file's tests stay together, for they share what is dear to make.
# In the order of folders, end-to-end first: sorted by number of tests, the few that take longest would come last.
test: lint
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Every command and snippet of the documents, and the notebook: a part of the long tests.
test-documents: $(READY)
	$(BIN)/pytest -m long -n auto --maxprocesses 2 --dist loadfile \
		tests/e2e/test_document_pages.py tests/e2e/test_document_pages_how_to.py tests/e2e/test_notebook_runs.py

test-long: $(READY) $(STORES_VENV)/.ready
	$(BIN)/pytest -m long -n auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder

fuzz: $(READY)
	$(BIN)/pip install -q -c constraints.txt -e ".[fuzz]"
	set -e; for target in csv json yaml xlsx; do echo "+ $$target"; \
		PYTHONPATH=tests $(BIN)/python -m fuzz.atheris_readers $$target -max_total_time=$(FUZZ_SECONDS); done

stores: $(STORES_VENV)/.ready

$(STORES_VENV)/.ready: constraints-stores.txt
	test -x $(STORES_VENV)/bin/python || $(PYTHON) -m venv $(STORES_VENV)
	$(STORES_VENV)/bin/pip install -q -r constraints-stores.txt
	touch $@

$(AUDIT_VENV)/.ready: constraints-audit.txt
	test -x $(AUDIT)/python || $(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT)/pip install -q -r constraints-audit.txt
	touch $@

# A version that PyPI says nothing of counts as not audited, so that silence is not taken for health.
audit: $(AUDIT_VENV)/.ready
	@mkdir -p build
	@$(AUDIT)/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt \
		> build/audit.txt 2>&1 && tail -n 3 build/audit.txt || { \
		if grep -qE "could not be audited|ConnectionError|ServiceError|Max retries" build/audit.txt; then \
			echo "Nothing was audited: the advisories of pypi.org cannot be reached from here (build/audit.txt)."; \
		else cat build/audit.txt; fi; exit 1; }

sbom: $(AUDIT_VENV)/.ready
	@mkdir -p dist
	$(AUDIT)/python -W ignore -m cyclonedx_py requirements --output-reproducible --pyproject pyproject.toml \
		--mc-type application --output-file dist/snugtune.cdx.json constraints.txt

bench: $(READY)
	@test -n "$(BENCHMARKS)" || { echo "There is nothing in benchmarks/ yet."; exit 1; }
	set -e; for script in $(BENCHMARKS); do echo "+ $$script"; $(BIN)/python $$script; done

# The README is the front page; its links are relative to the root, those of the site to docs/.
docs: $(READY) docs/index.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs/index.md: README.md Makefile
	{ printf -- '---\nhide: [navigation]\n---\n\n'; sed 's#](docs/#](#g' README.md; } > $@

clean:
	rm -rf $(VENV) $(AUDIT_VENV) $(STORES_VENV) build dist site docs/index.md src/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
