# `make help` lists what there is. Each target makes .venv when it is missing, installs and builds what it needs, and runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EMULATED := build/emulated_amx
# Installing again is needed when these change; Python files are used in place.
CPP := $(foreach folder,csrc csrc/* csrc/*/*,$(wildcard $(folder)/*.h $(folder)/*.cpp $(folder)/*.cu $(folder)/*.cuh))
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt csrc/cuda/ptxas_report.py $(CPP)
# Where nvcc is found, an installation for developers compiles the CUDA kernels for these alone: one below tensor cores
# and asynchronous copies, one with them. `pip install .` and wheels have all that CMakeLists.txt names.
CUDA_ARCHITECTURES ?= 75,90a
DEVELOPERS := FASTRNN_WARNINGS_AS_ERRORS=ON;FASTRNN_CUDA_ON_HOST=ON;FASTRNN_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)

.DEFAULT_GOAL := help
.PHONY: help demo test emulate-amx lint format bench readme gallery instructions guard cuda-report test-gpu bench-gpu dist dist-check dist-cuda mutations evidence clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train an image captioner for a minute, show captions, accuracy and speed
	@$(BIN)/fastrnn demo

test: lint ## linters, formatters, types, every kernel against the oracle, all tests
	@$(BIN)/fastrnn check
	@$(BIN)/python -m pytest
	@FASTRNN_CUDA_ON_HOST=1 $(BIN)/python -m pytest $(wildcard tests/test_cuda_*.py)

# From a copy of the sources: neither the installed kernels nor what CMake remembers of them is touched.
emulate-amx: $(INSTALLED) ## kernels for AMX with its instructions emulated, built apart, against the oracle
	@rm -rf $(EMULATED) && mkdir -p $(EMULATED)/source
	@cp -r bench csrc fastrnn CMakeLists.txt LICENSE README.md pyproject.toml setup.py $(EMULATED)/source
	@rm -f $(EMULATED)/source/fastrnn/*.so
	@echo "Building into $(EMULATED); the log is $(EMULATED)/install.log"
	@SKBUILD_CMAKE_DEFINE="FASTRNN_WARNINGS_AS_ERRORS=ON;FASTRNN_EMULATE_AMX=ON" $(BIN)/python -m pip install \
		--disable-pip-version-check -v --no-deps --target $(EMULATED)/site ./$(EMULATED)/source > $(EMULATED)/install.log 2>&1 \
		|| { tail -n 40 $(EMULATED)/install.log; echo "✗ the build failed; all of it is in $(EMULATED)/install.log"; exit 1; }
	@cd $(EMULATED)/site && for precision in highest medium high; do \
		echo "precision $$precision"; \
		FASTRNN_ISA=amx $(CURDIR)/$(BIN)/python -m fastrnn check --backend cpu --precision $$precision || exit 1; \
	done
	@cd $(EMULATED)/site && FASTRNN_ISA=amx $(CURDIR)/$(BIN)/python -m pytest -c $(CURDIR)/pyproject.toml $(CURDIR)/tests/test_precision.py

lint: $(INSTALLED) ## linters, formatters and type checker; nothing is changed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CPP) $(wildcard tests/*.cpp)
	@$(BIN)/mypy

format: $(INSTALLED) ## format Python and C++ in place
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP) $(wildcard tests/*.cpp)

bench: $(INSTALLED) ## time every kernel against its peers, and append the rows to bench/results.csv
	@$(BIN)/fastrnn bench --record bench/results.csv

readme: $(INSTALLED) ## write the speed table of README.md anew from bench/results.csv
	@$(BIN)/python bench/update_readme.py

gallery: $(INSTALLED) ## run the commands of the visual systems as they are; write docs/gallery.md and its pictures
	@$(BIN)/python docs/build_gallery.py

instructions: $(INSTALLED) ## count the instructions of every kernel with valgrind; write bench/instructions.json
	@$(BIN)/fastrnn bench --instructions --json bench/instructions.json

guard: $(INSTALLED) ## fail if a kernel executes more instructions than bench/instructions.json says, by a tenth
	@$(BIN)/fastrnn bench --compare bench/instructions.json --fail-below 0.9

cuda-report: $(BIN)/python ## build a wheel with the CUDA kernels for all architectures; show registers and spills of each
	@echo "Building into build/wheel; the log is build/cuda-report.log"
	@mkdir -p build && rm -f build/cuda-report.txt
	@SKBUILD_CMAKE_DEFINE='FASTRNN_WARNINGS_AS_ERRORS=ON;FASTRNN_CUDA_REPORT=$(CURDIR)/build/cuda-report.txt' \
		$(BIN)/python -m pip wheel --disable-pip-version-check -v --no-deps -w build/wheel . > build/cuda-report.log 2>&1 \
		|| { cat build/cuda-report.txt 2> /dev/null || tail -n 40 build/cuda-report.log; grep -ohE '✗.*' build/cuda-report.log; exit 1; }
	@cat build/cuda-report.txt 2> /dev/null || { grep -ohE '✗ CUDA.*' build/cuda-report.log; exit 1; }
	@grep -ohE '^ *CUDA: of .*' build/cuda-report.log

test-gpu: ## on a machine with an NVIDIA GPU: build offline, in the environment of PYTHON, and test the CUDA kernels
	@$(PYTHON) .ci/gpu.py test

bench-gpu: ## likewise: time the CUDA kernels beside PyTorch, and append the rows to bench/results.csv
	@$(PYTHON) .ci/gpu.py bench

dist: ## source distribution, manylinux wheel of the CPU kernels and pure wheel into dist/, their contents checked
	@$(PYTHON) .ci/packages.py dist

dist-check: ## try them in new environments where nothing can be compiled; write a bill of materials
	@$(PYTHON) .ci/packages.py check

dist-cuda: ## where nvcc is: a wheel with the CUDA kernels too, into dist/cuda; FASTRNN_CUDA_ARCHITECTURES= for less than all
	@$(PYTHON) .ci/packages.py cuda

mutations: $(INSTALLED) ## plant faults, one at a time, and see that the tests catch each; write docs/mutations.md
	@$(BIN)/python tests/mutations.py

evidence: $(INSTALLED) ## write docs/evidence.md, the table of what the long checks found, from their records
	@$(BIN)/python bench/evidence.py

clean: ## remove what was built and installed
	rm -rf $(VENV) build dist *.egg-info fastrnn/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "✗ $(PYTHON) was not found; name one with PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "✗ Python 3.10 or newer is needed; name one with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(BUILD_INPUTS) | $(BIN)/python
	@echo "Installing into $(VENV) and building; the log is $(VENV)/install.log"
	@SKBUILD_CMAKE_DEFINE='$(DEVELOPERS)' $(BIN)/python -m pip install --disable-pip-version-check -v -e '.[dev]' > $(VENV)/install.log 2>&1 \
		|| { tail -n 40 $(VENV)/install.log; echo "✗ the installation failed; all of it is in $(VENV)/install.log"; exit 1; }
	@grep -ohE '(✓|✗).*' $(VENV)/install.log | awk '!seen[$$0]++' || true
	@touch $@
