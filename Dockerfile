# syntax=docker/dockerfile:1
FROM python:3.11-slim-bookworm AS build
# A CPU build of PyTorch; for CUDA: --build-arg TORCH=cuda --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY locks locks
COPY superduper superduper
COPY client client
COPY server server
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --no-deps -r locks/build.lock \
    && /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .
RUN python -m venv /opt/superduper \
    && /opt/superduper/bin/pip install --require-hashes --no-deps --index-url "$TORCH_INDEX" \
        --extra-index-url https://pypi.org/simple -r "locks/torch-$TORCH.lock" \
    && /opt/superduper/bin/pip install --require-hashes --no-deps -r locks/image.lock \
    && /opt/superduper/bin/pip install --no-deps /wheels/*.whl \
    && /opt/superduper/bin/pip check

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 superduper \
    && mkdir -p /home/superduper/.superduper \
    && chown superduper:superduper /home/superduper/.superduper \
    && chmod 0700 /home/superduper/.superduper
COPY --from=build /opt/superduper /opt/superduper
ENV PATH=/opt/superduper/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
USER 10001
WORKDIR /home/superduper
EXPOSE 8000
ENTRYPOINT ["superduper"]
CMD ["serve", "--help"]
