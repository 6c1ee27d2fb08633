# make demo and make test are all a newcomer needs; both create their environment first.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python -m
PIXELREC = $(VENV)/bin/pixelrec
# Compiled programs are kept here, which makes the second run of anything start faster.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: demo test test-numerics lint types format clean

demo: $(VENV)/installed
	rm -rf demo
	$(PIXELREC) toy --out=demo/raw
	$(PIXELREC) prepare --interactions=demo/raw/interactions.csv --images=demo/raw/images \
	  --store=resized --image_size=32 --out=demo/data
	$(PIXELREC) train --config=pixelrec:user=sasrec,item=vit_toy,dataset=toy \
	  --config.dataset.path=demo/data --config.train.epochs=7 --workdir=demo/pixel
	$(PIXELREC) train --config=pixelrec:user=sasrec,item=id,dataset=toy \
	  --config.dataset.path=demo/data --workdir=demo/id
	$(PIXELREC) report demo/pixel demo/id

# Two processes, each with the tests of whole files, which share what they compile.
test: $(VENV)/installed-test lint
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder

# The numerical tests as a processor with the oldest of the instructions of x86 rounds.
ISA ?= SSE4_2
test-numerics: $(VENV)/installed-test
	XLA_FLAGS=--xla_cpu_max_isa=$(ISA) $(RUN) pytest -n 2 -m numerical

lint: $(VENV)/installed-test types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The checker finds modules by their folders alone, so it reads a copy with configs/ and launch/ inside
# pixelrec_jax/, as the wheel has them.
TYPES = .cache/types
types: $(VENV)/installed-test
	rm -rf $(TYPES)
	mkdir -p $(TYPES)
	cp -r pixelrec_jax benchmarks pyproject.toml $(TYPES)
	cp -r configs launch $(TYPES)/pixelrec_jax
	$(VENV)/bin/ty check --project $(TYPES) --python $(VENV) --output-format concise

format: $(VENV)/installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .cache demo

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { $(PYTHON) --version; echo "error: Python 3.11 or later is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The clone itself is installed, editable, so that its programs run from any folder.
$(VENV)/installed: requirements.txt pyproject.toml $(VENV)/bin/python
	$(RUN) pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/installed-test: requirements-test.txt requirements-data.txt $(VENV)/installed
	$(RUN) pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@
