# The container image of the training job.
#
#     docker build -t inat-job .
#     docker run --rm --gpus all -v "$PWD/runs:/scratch/runs" inat-job parta
#
# `make image` also sets the version and the revision.
#
# The base can be any Debian or Ubuntu with Python 3.11 or newer; if it has no Python, its python3 is installed.
# Name it by its digest (python@sha256:...) to build from the same bytes again: docs/container.md.
# No nvidia/cuda base is needed: torch's wheels contain CUDA's libraries, and the host's driver is mounted at run time.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim-bookworm

# `--build-arg COMPILE=1` builds an image in which `--compile` works on a GPU: with Triton, and the C compiler and
# headers that it needs at run time. By default both are left out, which saves 1.2 GB: docs/decisions/0011-the-image.md.
ARG COMPILE=

# The locked packages in three parts, without the lock's comments: NVIDIA's libraries, torch, the rest. Each becomes a
# layer, so a new version of a small package neither rebuilds nor pushes the gigabytes of the others.
# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS locks

# `--build-arg LOCK=requirements-cuda12.lock` builds an image for NVIDIA drivers from 525 to 579: docs/container.md.
ARG LOCK=requirements.lock
ARG COMPILE
COPY requirements.lock requirements-cuda12.lock /
COPY extras /extras

# `--build-arg EXTRAS="mlflow parquet"` adds the packages of optional features to the rest: docs/container.md. Those that
# are in the lock too have the same pins, and pip takes them once.
ARG EXTRAS=
RUN mkdir /locks \
    && set -- "/$LOCK" \
    && for extra in $EXTRAS; do \
        set -- "$@" "/extras/$extra.lock"; \
        [ -f "/extras/$extra.lock" ] || { echo "EXTRAS has $extra: use names in" /extras/*.lock >&2; exit 2; }; \
    done \
    && awk -v compile="$COMPILE" ' \
        /^ *#/ { next } \
        /^[a-z]/ { part = "rest" } \
        /^(nvidia|cuda)-/ { part = "nvidia" } \
        /^(torch|torchvision|triton)==/ { part = "torch" } \
        /^triton==/ && !compile { part = "" } \
        part { print > ("/locks/" part ".lock") }' "$@"

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS dependencies
ARG COMPILE

# Package versions are not pinned, because they differ between Debian and Ubuntu.
# hadolint ignore=DL3008
RUN set -- \
    && if ! python3 -c 'import ensurepip, venv'; then set -- ca-certificates python3 python3-venv; fi \
    && if [ -n "$COMPILE" ]; then set -- "$@" gcc libc6-dev libpython3-dev; fi \
    && if [ $# -gt 0 ]; then \
        apt-get update \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -c 'import sys; sys.exit("BASE_IMAGE: Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'

# Dependencies come before the code, so that a change of code does not rebuild these gigabytes. pip compiles bytecode
# here, because the root may be read-only later, and compiling torch at each start takes longer than reading its
# bytecode. Unused files are removed: what only linkers and compilers read, two CUDA libraries that no other one
# references (as tests/container/test_contents.py checks), and pip, since nothing is installed later.
COPY --from=locks /locks/nvidia.lock /app/locks/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
        -r /app/locks/nvidia.lock \
    && find /opt/venv \( -name '*.a' -o -name 'libcusolverMg.so*' -o -name 'libnvrtc.alt.so*' \) -delete

COPY --from=locks /locks/torch.lock /app/locks/
RUN /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
        -r /app/locks/torch.lock \
    && find /opt/venv -name '*.a' -delete \
    && if [ -z "$COMPILE" ]; then rm -r /opt/venv/lib/python3*/site-packages/torch/include; fi

COPY --from=locks /locks/rest.lock /app/locks/
RUN /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
        -r /app/locks/rest.lock \
    && find /opt/venv -name '*.a' -delete \
    && /opt/venv/bin/python -m pip uninstall -y pip

# The image's bill of materials, as CycloneDX. The tool stays in this stage.
FROM dependencies AS bill
COPY sbom.lock pyproject.toml /app/
RUN python3 -m venv /opt/bill \
    && /opt/bill/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        -r /app/sbom.lock \
    && /opt/bill/bin/cyclonedx-py environment --output-reproducible --pyproject /app/pyproject.toml \
        --output-file /app/sbom.cdx.json /opt/venv/bin/python

FROM dependencies

# Names of torchvision models whose best ImageNet weights the image should contain, for machines that cannot download
# them: `--build-arg PRETRAINED=resnet50`. The job looks for weights in TORCH_HOME, and downloads missing ones to its
# own cache. TORCH_HOME is outside /scratch, so that no mount hides it.
ARG PRETRAINED=
ENV TORCH_HOME=/opt/torch
RUN if [ -n "$PRETRAINED" ]; then \
        /opt/venv/bin/python -c 'import sys; from torchvision.models import get_model_weights; \
[get_model_weights(name).DEFAULT.get_state_dict(check_hash=True) for name in sys.argv[1].split()]' "$PRETRAINED"; \
    fi

COPY LICENSE pyproject.toml entrypoint.py /app/
COPY inat_job /app/inat_job
COPY k8s /app/k8s
COPY --from=bill /app/sbom.cdx.json /app/sbom.cdx.json

# The job writes only below /scratch, whichever user it runs as: with --read-only, mount something there. The job's
# default folders, `runs` and `cache`, are in /scratch because it is the working directory; environment variables would
# override a configuration file. /scratch is not a VOLUME, since each `docker run` without --rm would leave an anonymous
# volume behind. `train` is the command that SageMaker runs, with or without an entry point in its request. SageMaker
# mounts folders in /opt/ml, and the job creates the others. The last line removes all setuid and setgid bits.
RUN /opt/venv/bin/python -m compileall -q /app \
    && mkdir -m 1777 /scratch /opt/ml \
    && printf '#!/bin/sh\nexec /opt/venv/bin/python /app/entrypoint.py train "$@"\n' > /usr/local/bin/train \
    && chmod 755 /usr/local/bin/train \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
WORKDIR /scratch

# /scratch may be a new mount, so none of these folders may have to exist. LOGNAME keeps libraries from looking up the
# user in /etc/passwd, which has neither this user nor one given by --user.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LOGNAME=inat-job \
    HOME=/scratch \
    TMPDIR=/scratch \
    XDG_CACHE_HOME=/scratch/.cache \
    XDG_CONFIG_HOME=/scratch/.config \
    TORCHINDUCTOR_CACHE_DIR=/scratch/.cache/inductor \
    TRITON_CACHE_DIR=/scratch/.cache/triton \
    CUDA_CACHE_PATH=/scratch/.cache/cuda \
    MPLCONFIGDIR=/scratch/.cache/matplotlib \
    WANDB_DIR=/scratch/wandb \
    WANDB_CACHE_DIR=/scratch/.cache/wandb \
    WANDB_CONFIG_DIR=/scratch/.config/wandb \
    WANDB_DATA_DIR=/scratch/.cache/wandb-data \
    WANDB_ARTIFACT_DIR=/scratch/.cache/wandb-artifacts \
    WANDB_ERROR_REPORTING=false \
    INAT_JOB_ALIVE_FILE=/scratch/alive \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

STOPSIGNAL SIGTERM
# No word shows the help, or trains on SageMaker, whose SDK gives none in its local mode.
ENTRYPOINT ["/opt/venv/bin/python", "/app/entrypoint.py"]
CMD []

# The job touches the file whenever it makes progress. Without a file, as for short commands, the container is healthy:
# only an old file means that the job hangs.
HEALTHCHECK --interval=1m --timeout=10s --start-period=15m --retries=3 \
    CMD ["/bin/sh", "-c", "test -z \"$(find \"$INAT_JOB_ALIVE_FILE\" -mmin +15 2>/dev/null)\""]

# Near the end, since it changes with each commit. The report contains it, with the version.
ARG VERSION=0.1.0
ARG REVISION=unknown
RUN echo "$REVISION" > /app/REVISION

# Numeric, so that Kubernetes' runAsNonRoot can verify that it is not root.
USER 10001:10001
LABEL org.opencontainers.image.title="inat-job" \
      org.opencontainers.image.description="Trains, tests and reports an image classifier as one batch job" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
