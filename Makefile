# The verbs of the book; `make` alone lists them. All that is installed goes to .venv.

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two steps at once would only fight over the cores, and mix their words

VENV := .venv
PY := $(VENV)/bin/python
# Python compiles what is imported, when it is: of 15,000 files, few ever are.
INSTALL := $(PY) -m pip install -qq --disable-pip-version-check --no-compile
# Nor does any of the hundred Pythons of `make test` compile what another one has, even
# where a machine is told to keep nothing: empty means that it is kept.
export PYTHONDONTWRITEBYTECODE :=
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench
SITE := _build/html
BUILD := $(VENV)/bin/jupyter-book build . -W -n --keep-going --quiet >/dev/null
PORT ?= 8000
STYLE := $(PY) -m ruff format --check --quiet . || { \
	echo "Run '$(PY) -m ruff format .' to format these files."; exit 1; }; \
	$(PY) -m ruff check --quiet . || { \
	echo "Run '$(PY) -m ruff check --fix .' to mend what is marked [*]."; exit 1; }

# The first Python that is new enough; `make PYTHON=/path/to/python3` chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$python -c "$(NEW_ENOUGH)" 2>/dev/null; then echo $$python; break; fi; done)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# That every public name is entered where it belongs, and no entry is left over.
NAMES := $(addprefix tests/test_conformance.py::, \
	test_every_public_name_is_a_mechanism_or_has_a_reason test_no_reason_is_left_over \
	test_what_is_said_not_to_attend_does_not_look_like_it \
	test_what_attends_through_another_does_not_attend_by_itself)
# What one chapter can spoil for all: entries and examples of names, terms, sources.
ALWAYS := reason or said_not_to_attend or attends_through or has_an_example or \
	every_term or every_source

# The chapter that is asked for, like core/causal, however its path is written; and those
# that its part has.
ASKED = $(patsubst %.ipynb,%,$(patsubst ./%,%,$(patsubst /%,%,$(lastword \
	$(subst /book/, ,/$(strip $(CHAPTER)))))))
PART = $(firstword $(subst /, ,$(ASKED)))
SISTERS = $(notdir $(basename $(wildcard book/$(PART)/*.ipynb)))
THERE = $(if $(SISTERS),$(PART) has $(SISTERS),there is no part $(PART))

# A word of the command line as the shell shall see it, whatever it holds.
quoted = '$(subst ','\'',$(1))'

.PHONY: help book test new execute tangle serve lab train lint model clean bench mutants licences lock peers versions
.PHONY: check check-tangle try-model unit chapters site pages

help: ## List the verbs
	@echo "make VERB, where VERB is one of"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST) | expand -t 12

book: tangle site ## Install, write attention/, build the site, tell where it lies
	@echo "The book is $(CURDIR)/$(SITE)/index.html"
	@echo "Open that file in a browser, or run 'make serve'."

test: lint check-tangle try-model unit chapters site pages ## Verify all that CI verifies, in CI's order (FAST=1: but slow tests)
	@echo "All of the book is verified."

check: $(READY) ## Check one chapter in about half a minute (CHAPTER=core/causal)
	@test -n $(call quoted,$(ASKED)) || { \
		echo "Name a chapter: make check CHAPTER=core/causal" >&2; exit 1; }
	@test -f $(call quoted,book/$(ASKED).ipynb) || { \
		echo $(call quoted,There is no chapter $(ASKED): $(THERE)) >&2; exit 1; }
	@$(PY) book/tangle.py
	@$(STYLE)
	@# The site is built beside the tests: two cores have room for both. A test that
	@# fails stops neither the others nor the run of the chapter: one round tells all.
	@$(BUILD) & site=$$!; right=0; \
	OMP_NUM_THREADS=1 $(PY) -m pytest --quiet -k "$(notdir $(ASKED)) or $(ALWAYS)" \
		tests/test_book.py tests/test_exercises.py tests/test_reference.py $(NAMES) \
		$(wildcard tests/$(dir $(ASKED))test_$(notdir $(ASKED)).py) \
		--tb=short --continue-on-collection-errors \
		--jaxtyping-packages=attention,beartype.beartype || right=$$?; \
	OMP_NUM_THREADS=1 $(PY) -m pytest --nbval book/$(ASKED).ipynb --quiet \
		-p no:cacheprovider || right=$$?; \
	wait $$site && exit $$right
	@$(PY) -m pytest tests/site --quiet -k "[book/$(ASKED)]"
	@$(PY) book/new.py --left $(ASKED)
	@echo "$(ASKED) is checked; 'make test' checks it among the others."

new: $(READY) ## Begin a chapter (CHAPTER=beyond/gated TITLE="Gated attention")
	@$(PY) book/new.py $(call quoted,$(CHAPTER)) $(call quoted,$(TITLE)) \
		$(call quoted,$(CAPTION))

execute: $(READY) ## Run the chapters and store their outputs (CHAPTERS="..." for some, TWICE=1 to compare two runs)
	@$(PY) book/execute.py $(if $(TWICE),--twice) $(CHAPTERS)

tangle: $(READY) ## Write attention/ and the README's picture from the chapters
	@$(PY) book/tangle.py
	@$(PY) book/_ext/first_map.py

serve: $(READY) ## Serve the built site on this machine (PORT=8000)
	@test -f $(SITE)/index.html || $(MAKE) --no-print-directory book
	@echo "http://127.0.0.1:$(PORT)/  (Ctrl-C stops)"
	@$(PY) -m http.server --bind 127.0.0.1 --directory $(SITE) $(PORT)

lab: $(READY) ## Open the chapters in JupyterLab
	@$(PY) -m jupyterlab book

train: $(READY) ## Train the small GPT for longer than its page does (ARGS=--variants)
	@OMP_NUM_THREADS=1 $(PY) book/train.py $(ARGS)

lint: $(READY) ## Check format, style and the workflows
	@$(STYLE)
	@$(VENV)/bin/zizmor --offline --quiet .github
	@echo "lint: format, style and workflows are clean"

model: $(READY) ## Fetch the language model that some chapters read, 93 MB, into the user's cache
	@$(PY) book/model.py

clean: ## Remove what was built (.venv stays)
	@rm -rf _build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find attention book tests benchmarks -name __pycache__ -prune -exec rm -rf {} + \
		2>/dev/null || true

bench: $(BENCH_READY) ## Time all beside what you would use instead (ARGS=--quick)
	@$(PY) benchmarks $(ARGS)

mutants: $(READY) ## Ask whether the tests notice a change of the code (ARGS="FILE ...")
	@$(PY) tests/mutate.py $(ARGS)

versions: $(READY) ## Run the package's tests with another torch (TORCH=lowest, newest, 2.9)
	@$(PY) tests/versions.py $(or $(TORCH),newest)

LOCK := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes

lock: $(READY) ## Write requirements.txt from requirements.in (ARGS=--upgrade for newer ones)
	@$(LOCK) --fork-strategy fewest $(ARGS) --output-file requirements.txt requirements.in
	@cd benchmarks && ../$(LOCK) --no-deps $(ARGS) \
		--output-file requirements.txt requirements.in

peers: $(READY) ## Compare layers with those of transformers, which this installs
	@$(PY) -m pip install -qq --disable-pip-version-check \
		--no-build-isolation --editable ".[peers]"
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/position tests/memory tests/reading \
		tests/training --quiet -k peers -rs
	@OMP_NUM_THREADS=1 $(PY) -m pytest --nbval book/reading/interface.ipynb \
		-p no:cacheprovider --quiet

licences: $(READY) ## List the licence of every package that is installed
	@$(PY) tests/licences.py

# The other steps of `make test`; each can be called alone.

try-model: $(READY)  # where it cannot be had, what needs it is skipped, but in CI
	@$(PY) book/model.py --try

check-tangle: $(READY)
	@$(PY) book/tangle.py --check

unit: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests --ignore tests/site --quiet -n 2 \
		$(if $(FAST),-m "not slow") \
		--dist worksteal --jaxtyping-packages=attention,beartype.beartype

chapters: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest --nbval book -n 2 --dist loadscope \
		--no-loadscope-reorder -p no:cacheprovider --quiet

site: $(READY)
	@rm -rf _build
	@$(BUILD)
	@echo "site: built without a warning"

pages: $(READY)
	@$(PY) -m pytest tests/site -n 2 --dist loadscope --no-loadscope-reorder --quiet

# What the steps stand on: remade when the pins or the package's settings change.
# An older pip takes the newest `name[extra]`, whatever is pinned: hence the pins as -c.

$(READY): requirements.txt requirements-torch.txt pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c "$(NEW_ENOUGH)" 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; found: $(or $(PYTHON),none)." \
		     "Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments." \
		     "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV), which takes a minute or more the first time."
	@$(PY) -c "" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) --require-hashes -r requirements.txt -c requirements.txt
	@$(INSTALL) -r requirements-torch.txt
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@$(PY) -m pip check
	@touch $@

$(BENCH_READY): $(READY) benchmarks/requirements.txt
	@$(INSTALL) --no-deps --require-hashes -r benchmarks/requirements.txt
	@touch $@
