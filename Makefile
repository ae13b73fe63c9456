# Every word makes .venv by itself; nothing but Python (3.10 or newer) and make is needed.
# PYTHON=/path/to/python chooses another interpreter for it.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Two test processes for two cores, one thread each: more threads than cores would only wait for one another.
WORKERS ?= 2

# Threads that wait by spinning take a core from whatever else runs: with two busy cores a step takes ten times as long.
export OMP_WAIT_POLICY ?= PASSIVE

# Words a Makefile and a folder share (docs) would otherwise look done.
.PHONY: help demo demo-edit demo-control demo-video test test-image test-pythons browser check fix bench bench-gpu docs embedded-model embedded-video
.DEFAULT_GOAL := help

help: ## Show these words.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## Train a LoRA on the embedded model and draw pictures before and after it (build/demo/grid.png).
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo/run.sh build/demo

demo-edit: $(READY) ## Teach the embedded editing model a new edit and draw edits before and after it (build/demo-edit/grid.png).
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo_edit/run.sh build/demo-edit

demo-control: $(READY) ## Train a control network on the embedded model and draw pictures that follow it (build/demo-control/grid.png).
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo_control/run.sh build/demo-control

demo-video: $(READY) ## Teach the embedded video model a new motion, and show it before and after (build/demo-video/).
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo_video/run.sh build/demo-video

test: $(READY) ## Run the tests.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --no-loadscope-reorder

browser: $(READY) ## Try the live page of `dsctl report --serve` in a headless Chromium, which must be installed.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser/check_live_page.py

test-image: ## Follow the Dockerfile without Docker, in a new Debian (needs root; ARGS="--build-arg TORCH=" takes PyPI's torch).
	@$$(.ci/find_python 3.12) .ci/image.py $(ARGS)

test-pythons: ## Install and try dsctl on each Python 3.10 to 3.13, with the lowest and the newest versions allowed.
	@.ci/pythons

check: $(READY) ## Lint, format, types, import direction and weight, generated docs, Dockerfile: all must be clean.
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/structure/test_imports.py tests/structure/test_layout.py
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python docs/memory_table.py --check
	@[ ! -x $(BIN)/hadolint ] || $(BIN)/hadolint Dockerfile

fix: $(READY) ## Repair what can be repaired: lint, format, generated docs.
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/memory_table.py

docs: $(READY) ## Write docs/reference/ from the code, and build the site into build/site.
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/build_site.py

bench: $(READY) ## Measure speed and memory beside plain diffusers and peft.
	@$(BIN)/python -m benchmarks

bench-gpu: $(READY) ## Measure on a GPU, in at most nine minutes: published models at full size with each lever.
	@$(BIN)/python -m benchmarks.gpu

embedded-model: $(READY) ## Train the embedded models from nothing (about three hours on 2 cores; needs npm).
	@$(BIN)/python examples/embedded_model/make.py

embedded-video: $(READY) ## Train the embedded video model (about an hour on 2 cores; needs npm).
	@$(BIN)/python examples/embedded_model/make_video.py

# A new environment only when there is none or its Python is gone; otherwise only what changed is installed.
$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -c "" 2>/dev/null || { \
		for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10; do \
			if $$python -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null; then \
				echo "making $(VENV) with $$($$python --version)"; exec $$python -m venv --clear $(VENV); \
			fi; \
		done; \
		echo "error: no Python 3.10 or newer was found" >&2; \
		echo "hint: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "installing what dsctl needs into $(VENV) (once; minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)
