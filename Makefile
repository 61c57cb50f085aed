# Two commands do everything: `make quickstart` and `make test`. Both work from a bare clone with Python and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test docs bench study gpu check audit format clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "diffclip needs Python 3.10 or newer, found " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps clip-benchmark
	touch $@

quickstart: install  ## train CLIP and DiffCLIP side by side, compare them, write the report
	$(BIN)/diffclip quickstart --out runs/quickstart

test: check  ## lint, types, tests
	$(BIN)/python -m pytest -n 2

docs: install  ## the pages and the API as HTML: open site/index.html
	$(BIN)/python docs/build.py site

BENCHMARKS := benchmarks/attention.py benchmarks/train_step.py benchmarks/encode.py benchmarks/tokenizer.py benchmarks/grad_cache.py \
  benchmarks/quickstart_speed.py benchmarks/scenes.py benchmarks/loader.py benchmarks/checkpoint.py benchmarks/monitoring.py

bench: install  ## every benchmark of speed, under 15 minutes on two idle cores; figures go to benchmarks/results
	mkdir -p benchmarks/results
	for script in $(BENCHMARKS); do \
	  echo; echo "$$script"; \
	  $(BIN)/python $$script --json benchmarks/results/$$(basename $$script .py).json || exit 1; \
	done

study: install  ## the study of docs/study.md, or what is left of it: some hours a stage; CIFAR=DIR has the images
	$(BIN)/python benchmarks/study.py --data '$(CIFAR)'

gpu: install  ## in .gpu what a GPU machine without a network needs for benchmarks/gpu.py; CIFAR=DIR takes images along
	$(BIN)/python benchmarks/gpu_pack.py .gpu $(if $(CIFAR),--cifar '$(CIFAR)')

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# In an environment of its own: what audits must not be what is audited.
audit: install  ## requirements-hashed.txt and the licences anew, and known holes of what they list
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check uv pip-audit
	.venv/audit/bin/uv pip compile pyproject.toml --extra stream --constraint constraints.txt --generate-hashes \
	  --universal --python-version 3.10 --no-annotate --custom-compile-command "make audit" --quiet -o requirements-hashed.txt
	$(BIN)/python docs/licences.py
	.venv/audit/bin/pip-audit --requirement requirements-hashed.txt --require-hashes --disable-pip

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build src/*.egg-info .mypy_cache .ruff_cache site
