# `make demo` and `make test` do all of their own set-up, on any machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
DTYPE ?= float32

.PHONY: demo test docs lint clean

demo: .venv/core
	$(BIN)/lidar generate \
		"a photo of a dog right of a teddy bear" \
		"a photo of a cup below a cow" \
		"a photo of three cats" \
		--dtype $(DTYPE) --beside-vanilla --overwrite --out $(DEMO)

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile  # tiny tensors: a process each, of one thread

docs: .venv/test  # the site, which opens without a server: site/index.html
	HF_HUB_OFFLINE=1 $(BIN)/sphinx-build -q -W --keep-going -c docs -d site/.doctrees -b html . site

lint: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo site

.venv/core: pyproject.toml packages/glyph/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable packages/glyph --editable .
	touch $@

.venv/test: .venv/core
	$(BIN)/pip install --quiet --constraint constraints.txt --editable packages/glyph --editable '.[dev]'
	# What HPS is compared with. Its dependency torchvision breaks transformers beside a CPU build of torch.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps open-clip-torch ftfy wcwidth
	touch $@
