# Everything the project does, one word each; `make help` lists them. The first use sets up an
# environment of its own in .venv; nothing outside this folder is changed, save the user's caches.
# Needs Python 3.11 or newer and make; uv, npm and the rest come from PyPI.

DATA    ?= auto
PROFILE ?= quick
SEED    ?= 0
# As they were given: neither make nor the shell looks for anything to run in them.
override DATA    := $(value DATA)
override PROFILE := $(value PROFILE)
override SEED    := $(value SEED)
override ONLY    := $(value ONLY)
export DATA PROFILE SEED ONLY
# TORCH_BACKEND=cpu takes PyTorch's CPU build, some 5 GB less, where its index can be reached; the
# choice is remembered, and TORCH_BACKEND=default takes it back.
TORCH_BACKEND ?= $(firstword $(patsubst .venv/.ready-%,%,$(wildcard .venv/.ready-*)) default)
# The first Python that is new enough and can make environments; PYTHON=... chooses another.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell $(p) -c 'import sys, venv, ensurepip; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))

UV_VERSION = 0.13.8
UV    = .uv/bin/uv
PY    = .venv/bin/python
READY = .venv/.ready-$(TORCH_BACKEND)
LOCK  = $(UV) pip compile pyproject.toml --extra test --extra bench --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --output-file requirements.txt
# What differs between PyTorch's builds; everything else is the same and stays pinned by its hash.
TORCH_PACKAGES = ^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==

.DEFAULT_GOAL = help
.PHONY: help book results test lab data bench check links lock clean
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SUFFIXES:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  DATA=auto|scenes|real|FOLDER  PROFILE=quick|full  SEED=0  ONLY=book/cases/flowers  FRESH=1"
	@echo "  TORCH_BACKEND=cpu  PYTHON=python3.12"

book: $(READY) ## run every chapter that changed, build the site if need be, say where it is
	@$(PY) -m siamcam_lib.book --data "$$DATA" --profile "$$PROFILE" --seed "$$SEED" \
	  $(if $(ONLY),--only "$$ONLY") $(if $(FRESH),--fresh)

results: $(READY) ## compute every number of the results page anew (PROFILE=full: fine-tuned, for hours)
	@$(PY) -m siamcam_lib.book --data "$$DATA" --profile "$$PROFILE" --seed "$$SEED" --results

test: check ## all checks, unit tests, doctests, all chapters, the site in a browser
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --doctest-modules tests/unit siamcam_lib $(PYTEST)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder \
	  tests/chapters tests/browser $(PYTEST)

check: $(READY) ## style, notebook hygiene, types, spelling, links
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy
	@.venv/bin/codespell
	@$(PY) -m pytest --quiet tests/unit/test_links.py

links: book ## ask for every address in the net that a page names
	@$(PY) -c "from jupyter_book.cli.main import main; main()" build _build/stage --builder linkcheck \
	  --path-output _build/links

lab: $(READY) ## JupyterLab on the book; its address, with token, is printed
	@JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.default_url=/lab/tree/book $(if $(filter 0,$(shell id -u)),--allow-root)

data: $(READY) ## download and verify the three sets of photographs
	@$(PY) -c "import siamcam_lib as sc; [sc.datasets.fetch(n) for n in sc.datasets.names() if not n.startswith('scenes/')]"

bench: $(READY) ## measure the library's speed
	@$(PY) -m benchmarks

lock: $(UV) ## pin and hash what pyproject.toml asks for (UPGRADE=1: newest versions)
	@$(LOCK) $(if $(UPGRADE),--upgrade) --quiet

clean: ## remove the built book and the environment; downloads stay in the caches
	rm -rf _build .venv .uv .pytest_cache .ruff_cache .hypothesis siamcam_lib.egg-info
	find siamcam_lib tests book -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment -----------------------------------------------------------------------------

$(UV):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with its venv module is needed, and none was found"; \
	  echo "(on Debian: apt-get install python3-venv). If it has another name: make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up uv $(UV_VERSION) with $(PYTHON)"
	@rm -rf .uv && "$(PYTHON)" -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) || { rm -rf .uv; exit 1; }

.venv/bin/python: | $(UV)
	@$(UV) venv --quiet --allow-existing --no-python-downloads --python .uv/bin/python .venv

# Done again only when what is asked for changed. A cut-off installation leaves no stamp. Packages are
# compiled once, here: where nothing may write beside them, each kernel would compile them anew, for 15 s.
$(READY): requirements.txt pyproject.toml Makefile | .venv/bin/python
	@rm -f .venv/.ready-*
ifeq ($(TORCH_BACKEND),default)
	@$(UV) pip sync --python $(PY) --compile-bytecode --require-hashes requirements.txt
else
	@awk '/^[a-z0-9]/{torch = $$0 ~ /$(TORCH_PACKAGES)/} !torch' requirements.txt > .venv/without-torch.txt
	@$(UV) pip sync --python $(PY) --compile-bytecode --require-hashes .venv/without-torch.txt
	@$(UV) pip install --python $(PY) --compile-bytecode --torch-backend "$(TORCH_BACKEND)" \
	  --constraints .venv/without-torch.txt $$(grep -oE '^(torch|torchvision)==[^ ]+' requirements.txt)
endif
	@$(UV) pip install --python $(PY) --quiet --no-deps --no-build-isolation --editable .
	@touch $@
