# make demo   runs the main job on generated images   make test      runs the tests
# make lint   checks style and types                  make test-all  also tests a real object store and the image
# make soak   kills, resumes and stops runs           make faults    injects storage faults in every phase
# make freezes  freezes runs that another takes over   make sweeps    disturbs whole sweeps, for minutes
# make fuzz   damages 20,000 inputs of all kinds      make image     builds the image, with version and revision
# make sbom   lists the packages in .venv             make docs      writes docs/options.md
# make audit  looks the locked packages up in a database of vulnerabilities
# make gpu    checks a machine with an NVIDIA GPU, and writes gpu.json (docs/gpu.md)
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# One thread: the tests' networks are so small that on a busy machine several threads mostly wait for each other.
test test-all fuzz: export OMP_NUM_THREADS = 1

ROUNDS ?= 100
SEED   ?= 0
PARTS  ?= a,b

.PHONY: venv demo test test-all gpu gpu-wheels soak freezes sweeps faults fuzz lint docs lock audit image sbom clean

venv: $(STAMP)

$(STAMP): requirements.lock tests/requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock -r tests/requirements.lock
	touch $@

demo: venv
	$(BIN)/python entrypoint.py parta --data demo: --image-size 64 --epochs 30 --batch-size 32 --wandb offline

# More tests at a time than there are cores: many wait for a process or a time limit. Those of test-all need more memory.
CORES = $(shell getconf _NPROCESSORS_ONLN)
test: venv
	$(BIN)/python -m pytest -n $$(($(CORES) + 2)) --dist worksteal -m "not container and not soak and not gpu and not long"

# What tests/container/conftest.py and tests/storage/with_radosgw.sh need is at their top; without it they are skipped.
test-all: venv
	$(BIN)/python -m pytest -m container
	tests/storage/with_radosgw.sh $(BIN)/python -m pytest -n $$(($(CORES) + 1)) --dist worksteal -m s3 tests/storage
	$(MAKE) soak ROUNDS=12
	$(BIN)/python -m tests.harness.matrix --fault 503,reset,flip
	$(BIN)/python -m pytest -n $$(($(CORES) + 1)) --dist worksteal -m "not container and not gpu and not long"

# Without GPU_PYTHON it uses .venv; with it, the torch that is installed there: nothing is downloaded.
GPU_PYTHON ?= $(BIN)/python
GPU_JSON   ?= gpu.json
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),venv)
	INAT_TEST_GPU_JSON=$(GPU_JSON) $(GPU_PYTHON) -m pytest -q -p no:cacheprovider -m "gpu and not soak" tests/gpu

# What a machine without a network may lack beside torch and torchvision, for its version of Python.
GPU_WHEELS  := lightning lightning-utilities torchmetrics packaging click tqdm pyyaml safetensors pillow matplotlib \
  contourpy cycler fonttools kiwisolver pyparsing python-dateutil six pytest iniconfig pluggy pygments hypothesis \
  sortedcontainers
GPU_PYTHON_VERSION ?= 3.12
gpu-wheels: venv
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON_VERSION) \
	  $(addprefix --platform manylinux,_2_28_x86_64 _2_17_x86_64 2014_x86_64 _2_5_x86_64 1_x86_64) -d gpu-wheels \
	  $(foreach name,$(GPU_WHEELS),$(shell sed -n 's/^\($(name)==[^ ;]*\).*/\1/p' tests/requirements.lock | head -1))

soak: venv
	$(BIN)/python -m tests.harness.soak --rounds $(ROUNDS) --seed $(SEED) --parts $(PARTS)
	$(BIN)/python -m tests.harness.hangs --rounds $(ROUNDS) --seed $(SEED)

sweeps: venv
	$(BIN)/python -m pytest -m long

freezes: venv
	$(BIN)/python -m tests.harness.freezes --rounds $(ROUNDS) --seed $(SEED)

faults: venv
	$(BIN)/python -m tests.harness.matrix
	tests/storage/with_radosgw.sh $(BIN)/python -m tests.harness.matrix

fuzz: venv
	INAT_TEST_FUZZ=20000 $(BIN)/python -m pytest -rP tests/test_fuzz.py

docs: venv
	$(BIN)/python docs/generate_options.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The revision of a checkout with changes ends in -dirty. podman's default format, OCI, has no health check.
ENGINE   ?= docker
IMAGE    ?= inat-job
BUILD_ARGUMENTS = BASE_IMAGE COMPILE EXTRAS LOCK PRETRAINED
VERSION  = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' inat_job/__init__.py)
REVISION = $(shell git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null || echo unknown)

image:
	$(ENGINE) build $(if $(filter podman buildah,$(ENGINE)),--format docker) $(foreach name,$(BUILD_ARGUMENTS),$(if $($(name)),--build-arg $(name)="$($(name))")) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) -t $(IMAGE) .

# The image contains its own list, at /app/sbom.cdx.json.
sbom: venv
	$(PYTHON) -m venv .sbom
	.sbom/bin/pip install --quiet --disable-pip-version-check --require-hashes -r sbom.lock
	.sbom/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file sbom.cdx.json $(BIN)/python

# Needs uv (pip install uv). Locks the requirements and all their dependencies, for Python 3.11 and newer.
# timm needs torch, which each lock of the image has, for CUDA 12 another one than these.
NOWHERE      = "python_version<'3'"
EXTRA_LOCKS  = $(patsubst %.txt,%.lock,$(wildcard extras/*.txt))
COMPILE_LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock:
	$(COMPILE_LOCK) requirements.txt -o requirements.lock
	cp requirements.lock requirements-cuda12.lock  # uv keeps its pins where it can
	$(COMPILE_LOCK) --override requirements-cuda12.txt requirements.txt -o requirements-cuda12.lock
	$(COMPILE_LOCK) -c requirements.lock tests/requirements.txt -o tests/requirements.lock
	for extra in $(EXTRA_LOCKS:.lock=); do printf 'torch; %s\ntorchvision; %s\n' $(NOWHERE) $(NOWHERE) | \
	  $(COMPILE_LOCK) --override - -c tests/requirements.lock $$extra.txt -o $$extra.lock || exit 1; done
	echo cyclonedx-bom==7.5.0 | $(COMPILE_LOCK) - -o sbom.lock

# Needs a network: pip-audit asks PyPI's database for the pinned versions, and fails for one that it does not know.
# AUDIT_OPTIONS can name another database, such as `-s osv`.
AUDIT_LOCKS   ?= requirements.lock requirements-cuda12.lock sbom.lock $(EXTRA_LOCKS) tests/requirements.lock
AUDIT_OPTIONS ?=
audit:
	$(PYTHON) -m venv .audit
	.audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	status=0; for lock in $(AUDIT_LOCKS); do \
	  .audit/bin/pip-audit --strict --require-hashes --disable-pip -r $$lock $(AUDIT_OPTIONS) || status=1; \
	done; exit $$status

clean:
	rm -rf $(VENV) .audit .sbom sbom.cdx.json gpu.json gpu-wheels runs cache build inat_job.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
