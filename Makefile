# `make help` lists what there is. Each target makes .venv when it is missing, installs and builds what it needs, and runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCUMENTING := $(VENV)/.documenting
EMULATED := build/emulated_amx
# Installing again is needed when these change; Python files are used in place.
CPP := $(foreach folder,csrc csrc/* csrc/*/*,$(wildcard $(folder)/*.h $(folder)/*.cpp $(folder)/*.cu $(folder)/*.cuh))
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt csrc/cuda/ptxas_report.py $(CPP)
# Where nvcc is found, an installation for developers compiles the CUDA kernels for these alone: one below tensor cores
# and asynchronous copies, one with them. `pip install .` and wheels have all that CMakeLists.txt names.
CUDA_ARCHITECTURES ?= 75,90a
DEVELOPERS := FASTRNN_WARNINGS_AS_ERRORS=ON;FASTRNN_CUDA_ON_HOST=ON;FASTRNN_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz emulate-amx sanitize sanitize-address sanitize-thread lint format bench readme gallery \
	accuracy benchmarks docs docs-check docs-links instructions guard cuda-report test-gpu bench-gpu dist dist-check \
	dist-cuda fuzz-files documents mutations evidence neighbours clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train an image captioner for a minute, show captions, accuracy and speed
	@$(BIN)/fastrnn demo

test: lint ## linters, formatters, types, every kernel against the oracle, all tests
	@$(BIN)/fastrnn check
	@$(BIN)/python -m pytest
	@FASTRNN_CUDA_ON_HOST=1 $(BIN)/python -m pytest $(wildcard tests/test_cuda_*.py)

fuzz: $(INSTALLED) ## random arguments of every function, EXAMPLES= for each (1000); prints the seed, again with SEED=
	@seed=$(or $(SEED),$$(date +%s)); echo "make fuzz EXAMPLES=$(or $(EXAMPLES),1000) SEED=$$seed"; \
		FASTRNN_FUZZ=$(or $(EXAMPLES),1000) $(BIN)/python -m pytest tests/test_fuzz.py --hypothesis-seed=$$seed

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

sanitize: $(INSTALLED) ## the C++ kernels, built apart, under gcc's sanitizers: their tests, and every case; records what it found
	@$(BIN)/python .ci/sanitize.py

sanitize-address: $(INSTALLED) ## of these the tests under AddressSanitizer and UndefinedBehaviorSanitizer: the short part
	@$(BIN)/python .ci/sanitize.py address

sanitize-thread: $(INSTALLED) ## of these the tests under ThreadSanitizer
	@$(BIN)/python .ci/sanitize.py thread

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

accuracy: $(INSTALLED) ## hold every kernel, and PyTorch, against exact results where rounding hurts; write docs/accuracy.md
	@$(BIN)/python bench/accuracy.py

benchmarks: $(INSTALLED) ## write docs/benchmarks.md and its pictures anew from bench/results.csv
	@$(BIN)/python docs/build_benchmarks.py

docs: $(DOCUMENTING) ## build the documentation as a site into build/site; a warning is an error
	@rm -rf build/site
	@$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/site
	@echo "✓ build/site/index.html"

docs-check: docs ## look at every page of it in Chromium, at the widths of a phone and of a desk: layout, links, search
	@$(BIN)/python -m pytest tests/test_site.py
	@$(BIN)/python docs/check_site.py build/site --record

docs-links: $(DOCUMENTING) ## try the addresses elsewhere that the documentation links to
	@$(BIN)/python -m sphinx -q -E -b linkcheck -d build/doctrees docs build/links

instructions: $(INSTALLED) ## count the instructions of every kernel with valgrind; write bench/instructions.json
	@$(BIN)/fastrnn bench --instructions --json bench/instructions.json

guard: $(INSTALLED) ## fail if a kernel executes more instructions than bench/instructions.json says, by a tenth
	@mkdir -p build
	@begin=$$(date +%s); $(BIN)/fastrnn bench --compare bench/instructions.json --fail-below 0.9 --json build/instructions.json \
		&& $(BIN)/python bench/evidence.py guard build/instructions.json --seconds $$(($$(date +%s) - begin))

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

fuzz-files: $(INSTALLED) ## 10,000 mutated files for every reader of files, by libFuzzer's coverage guidance
	@$(BIN)/python -c 'import atheris' 2> /dev/null || $(BIN)/python -m pip install --disable-pip-version-check -q 'atheris>=2.3'
	@$(BIN)/python -m fuzz_files --record

documents: $(INSTALLED) ## run every code block of the documents, and provoke every message that they explain
	@$(BIN)/python tests/documents.py

mutations: $(INSTALLED) ## plant faults, one at a time, and see that the tests catch each; write docs/mutations.md
	@$(BIN)/python tests/mutations.py

evidence: $(INSTALLED) ## write docs/evidence.md, the table of what the long checks found, from their records
	@$(BIN)/python bench/evidence.py

neighbours: $(INSTALLED) ## long form of the tests of processes, threads, other pools, signals and little memory
	@FASTRNN_NEIGHBOURS=long $(BIN)/python -m pytest tests/test_neighbours.py

clean: ## remove what was built and installed
	rm -rf $(VENV) build dist *.egg-info fastrnn/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "✗ $(PYTHON) was not found; name one with PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "✗ Python 3.10 or newer is needed; name one with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The extra's packages alone: installing the project once more would build the kernels again.
$(DOCUMENTING): pyproject.toml | $(INSTALLED)
	@$(BIN)/python -c 'import tomllib' 2> /dev/null || { echo "✗ the documentation needs Python 3.11 or newer; name one with PYTHON=…"; exit 1; }
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		> $(VENV)/documenting.txt
	@echo "Installing what builds the documentation; the log is $(VENV)/documenting.log"
	@$(BIN)/python -m pip install --disable-pip-version-check -r $(VENV)/documenting.txt > $(VENV)/documenting.log 2>&1 \
		|| { tail -n 20 $(VENV)/documenting.log; echo "✗ the installation failed; all of it is in $(VENV)/documenting.log"; exit 1; }
	@touch $@

$(INSTALLED): $(BUILD_INPUTS) | $(BIN)/python
	@echo "Installing into $(VENV) and building; the log is $(VENV)/install.log"
	@SKBUILD_CMAKE_DEFINE='$(DEVELOPERS)' $(BIN)/python -m pip install --disable-pip-version-check -v -e '.[dev]' > $(VENV)/install.log 2>&1 \
		|| { tail -n 40 $(VENV)/install.log; echo "✗ the installation failed; all of it is in $(VENV)/install.log"; exit 1; }
	@grep -ohE '(✓|✗).*' $(VENV)/install.log | awk '!seen[$$0]++' || true
	@touch $@
