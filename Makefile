# make demo   runs the main job on made-up pictures    make test      runs the tests
# make lint   checks style and types                   make test-all  also against a real object store and in a container
# make soak   kills runs and resumes them              make faults    disturbs the object store in every phase
# make fuzz   damages 10,000 files of all kinds
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The tests' networks are too small to share: on a busy machine two threads mostly wait for each other.
test test-all fuzz: export OMP_NUM_THREADS = 1

ROUNDS ?= 100
SEED   ?= 0

.PHONY: venv demo test test-all soak faults fuzz lint lock clean

venv: $(STAMP)

$(STAMP): requirements.lock tests/requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock -r tests/requirements.lock
	touch $@

demo: venv
	$(BIN)/python entrypoint.py parta --data demo: --image-size 64 --epochs 30 --batch-size 32 --wandb offline

test: venv
	$(BIN)/python -m pytest -m "not image and not soak"

# tests/image/conftest.py and tests/storage/with_radosgw.sh say at their heads what they need, and are left out without.
test-all: venv
	$(BIN)/python -m pytest -m image
	tests/storage/with_radosgw.sh $(BIN)/python -m pytest tests/storage
	$(MAKE) soak ROUNDS=12
	$(BIN)/python -m tests.harness.matrix --fault 503,reset,flip
	$(BIN)/python -m pytest -m "not image"

soak: venv
	$(BIN)/python -m tests.harness.soak --rounds $(ROUNDS) --seed $(SEED)

faults: venv
	$(BIN)/python -m tests.harness.matrix
	tests/storage/with_radosgw.sh $(BIN)/python -m tests.harness.matrix

fuzz: venv
	INAT_TEST_FUZZ=10000 $(BIN)/python -m pytest -rP tests/test_fuzz.py

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
