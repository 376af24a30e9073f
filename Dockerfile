# The training job as one image.
#
#     docker build -t inat-job .
#     docker run --rm --gpus all -v "$PWD/runs:/scratch/runs" inat-job parta
#
# Any Debian or Ubuntu with Python 3.11 or newer can be the base; one without Python gets its own python3.
# No nvidia/cuda base is needed: torch's wheels bring CUDA's libraries, and the host's driver is mounted at run time.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

# Package versions are the base's to choose, because they differ between Debian and Ubuntu.
# hadolint ignore=DL3008
RUN if ! python3 -c 'import ensurepip, venv'; then \
        apt-get update \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
            ca-certificates python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -c 'import sys; sys.exit("BASE_IMAGE: Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'

# Dependencies before code: a change of code rebuilds none of these gigabytes. pip compiles what it installs, because
# the root may be read-only later, and compiling torch anew at each start takes longer than reading its bytecode.
# Static libraries (170 MB) are for linkers, which are not here.
COPY requirements.lock /app/requirements.lock
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        -r /app/requirements.lock \
    && find /opt/venv -name '*.a' -delete

# Names of torchvision's models, such as "resnet50", whose best ImageNet weights the image shall hold, for machines
# that cannot download them: `--build-arg PRETRAINED=resnet50`. The job looks for weights in TORCH_HOME and downloads
# what is not there to its own cache, so this folder is outside of /scratch, where no mount hides it.
ARG PRETRAINED=
ENV TORCH_HOME=/opt/torch
RUN if [ -n "$PRETRAINED" ]; then \
        /opt/venv/bin/python -c 'import sys; from torchvision.models import get_model_weights; \
[get_model_weights(name).DEFAULT.get_state_dict(check_hash=True) for name in sys.argv[1].split()]' "$PRETRAINED"; \
    fi

COPY LICENSE pyproject.toml entrypoint.py /app/
COPY inat_job /app/inat_job

# All that is ever written lies below /scratch, whoever the user is: with --read-only, mount something there. The
# working directory makes the job's own defaults, `runs` and `cache`, folders of it; variables would overrule a
# configuration file. It is no VOLUME: every `docker run` without --rm would leave an anonymous one behind.
RUN /opt/venv/bin/python -m compileall -q /app && mkdir -m 1777 /scratch
WORKDIR /scratch

# /scratch may be a fresh mount, so nothing here may need a folder in it to exist. LOGNAME spares libraries the look
# into /etc/passwd, which knows neither this user nor the one that --user gives.
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
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# By number, so that Kubernetes' runAsNonRoot can see that it isn't root.
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/venv/bin/python", "/app/entrypoint.py"]
CMD ["--help"]

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="inat-job" \
      org.opencontainers.image.description="Trains, tests and reports an image classifier as one batch job" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
