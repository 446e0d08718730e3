# The images of powermean's processes: `server` (no PyTorch) and `worker` (trainer and rollout engines).
#   docker build --target server -t powermean-server .
#   docker build --target worker -t powermean-worker --build-arg MACHINE=cuda .
# MACHINE=cpu, the default, installs torch and vLLM for the CPU. Not built by the tests.
FROM python:3.11-slim AS base
WORKDIR /app
# tini: process 1 of a container inherits orphans, and Python does not bury them.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 powermean \
    && mkdir -p /data /secrets /public /scratch && chown powermean /data /secrets /public /scratch
ENTRYPOINT ["tini", "--"]
# compileall below: the user that runs an image can keep no byte code. A few files of packages are for newer Pythons.

FROM base AS server
COPY . .
RUN python tools/install.py server && (python -m compileall -q -j 0 . || true)
USER 10001
CMD ["python", "-m", "server"]

FROM base AS worker
ARG MACHINE=cpu
# Triton, vLLM's and the trainer's compiler of kernels, needs a C compiler at run time; vLLM for CPUs needs libnuma.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libnuma1 && rm -rf /var/lib/apt/lists/*
COPY . .
RUN python tools/install.py run-vllm $MACHINE && (python -m compileall -q -j 0 . || true)
# What NVIDIA's container runtime mounts: CUDA, and nvidia-smi, which the worker asks for the GPUs' health.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
CMD ["python", "-m", "worker"]
