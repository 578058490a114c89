# Segmentation of enlarged perivascular spaces: /input -> /output.
#
#   docker build -t pvs-model .
#   docker build -t pvs-model --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .      # CPU only
#   docker build -t pvs-model --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .    # older drivers

# The program, readable by everyone and compiled: a read-only root file system cannot keep bytecode.
FROM python:3.11-slim-bookworm AS program
WORKDIR /opt/app
COPY LICENSE process.py ./
COPY pvs_model/ pvs_model/
COPY weights/ weights/
RUN python -m compileall -q --invalidation-mode unchecked-hash . \
    && chmod -R u=rwX,go=rX .

FROM python:3.11-slim-bookworm

# No set-uid programs, and a user without a home, a password or a shell.
RUN find / -xdev -perm /6000 -type f -exec chmod a-s {} + \
    && groupadd --gid 10001 pvs \
    && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin pvs

# Where to take torch from; empty: PyPI, whose wheel needs NVIDIA driver 580 or newer (or runs on the CPU).
# Only torch itself comes from that index, in the version that requirements.txt names.
ARG TORCH_INDEX=""
COPY requirements.txt requirements-openvino.txt /opt/
RUN if [ -n "$TORCH_INDEX" ]; then \
        python -m pip install --no-cache-dir --root-user-action=ignore --no-deps \
            --index-url "$TORCH_INDEX" "$(grep -m1 '^torch==' /opt/requirements.txt)"; \
    fi \
    && python -m pip install --no-cache-dir --root-user-action=ignore --requirement /opt/requirements.txt \
    && python -m pip install --no-cache-dir --root-user-action=ignore --no-deps \
        --requirement /opt/requirements-openvino.txt

COPY --from=program /opt/app /opt/app

# HOME: the only place that can be written. OpenBLAS (numpy, scipy) would start one thread per core of the
# host at import, for matrices of 4 x 4; torch's own threads are not touched.
# PYTHONPATH: `python -m pvs_model` from any working folder, such as the one that Apptainer and Boutiques set.
ENV HOME=/tmp \
    PYTHONPATH=/opt/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    OPENBLAS_NUM_THREADS=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

LABEL org.opencontainers.image.title="pvs-model" \
      org.opencontainers.image.description="Segmentation of enlarged perivascular spaces in brain MRI. Not for clinical use." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

WORKDIR /opt/app
USER 10001:10001
ENTRYPOINT ["python", "/opt/app/process.py"]
