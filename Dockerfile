# dsctl in an image, for the CPU or for CUDA (whose libraries come with torch; the host needs NVIDIA's driver and its
# container toolkit):
#
#   docker build -t dsctl .
#   docker build -t dsctl:cuda --build-arg TORCH=cu128 .
#   docker run --rm --gpus all -v "$PWD:/work" dsctl:cuda train sft --config run.toml
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

# The folder of https://download.pytorch.org/whl that torch is taken from, such as cpu, cu126 or cu128; empty for the torch
# of PyPI, which is one for CUDA.
ARG TORCH=cpu
ARG EXTRAS=serve,video

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY docs/man docs/man
COPY dsctl dsctl
COPY dsctl_core dsctl_core
RUN pip install --no-cache-dir ${TORCH:+--extra-index-url "https://download.pytorch.org/whl/${TORCH}"} \
        -c constraints.txt \
        "torch==$(sed -n 's/^torch==\([0-9.]*\).*>=.*/\1/p' constraints.txt)${TORCH:++${TORCH}}" ".[${EXTRAS}]" \
    && rm -rf /src/* \
    && useradd --create-home --uid 1000 dsctl \
    && install --directory --owner 1000 /work

USER 1000
WORKDIR /work
ENTRYPOINT ["dsctl"]
CMD ["--help"]
