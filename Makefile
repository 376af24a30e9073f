# make demo   runs the main job on made-up pictures    make test      runs the tests
# make lint   checks style and types                   make test-all  also against a real object store and in a container
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The tests' networks are too small to share: on a busy machine two threads mostly wait for each other.
test test-all: export OMP_NUM_THREADS = 1

.PHONY: venv demo test test-all lint lock clean

venv: $(STAMP)

$(STAMP): requirements.lock tests/requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock -r tests/requirements.lock
	touch $@

demo: venv
	$(BIN)/python entrypoint.py parta --data demo: --image-size 64 --epochs 30 --batch-size 32 --wandb offline

test: venv
	$(BIN)/python -m pytest -m "not image"

# tests/image/test_image.py and tests/storage/with_radosgw.sh say at their heads what they need, and are left out without.
test-all: venv
	$(BIN)/python -m pytest -m image
	tests/storage/with_radosgw.sh $(BIN)/python -m pytest tests/storage
	$(BIN)/python -m pytest -m "not image"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs uv (pip install uv). Locks what requirements.txt pins and all that it pulls in, for Python 3.11 and newer.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header requirements.txt -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -c requirements.lock tests/requirements.txt -o tests/requirements.lock

clean:
	rm -rf $(VENV) runs cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
