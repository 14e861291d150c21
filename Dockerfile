# syntax=docker/dockerfile:1
# vqaloop in a container, for machines without a GPU (the default) or with CUDA:
#   docker build -t vqaloop .
#   docker build -t vqaloop:cuda --target cuda .
# It runs as a user of its own on a root file system that may be read-only; encodes and scores are kept in the
# volume /cache, and videos and results lie in the folder that is mounted at /work:
#   docker run --rm --read-only --tmpfs /tmp -v vqaloop-cache:/cache -v "$PWD:/work" \
#     --user "$(id -u):$(id -g)" vqaloop ladder input.mp4 --codec h264
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp \
    VQALOOP_CACHE=/cache
# whoever runs it, by --user too, may write into the cache
RUN useradd --uid 10001 --create-home vqaloop \
    && mkdir /cache /work \
    && chmod 1777 /cache /work
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["vqaloop"]
CMD ["--help"]

FROM base AS cuda
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /wheels
RUN pip install --constraint /tmp/constraints.txt /wheels/*.whl && rm -r /wheels /tmp/constraints.txt
USER 10001

FROM base AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /wheels
# PyTorch from its own index first: that of PyPI brings CUDA with it
RUN pip install --constraint /tmp/constraints.txt --index-url "$TORCH_INDEX" torch \
    && pip install --constraint /tmp/constraints.txt /wheels/*.whl \
    && rm -r /wheels /tmp/constraints.txt
USER 10001
