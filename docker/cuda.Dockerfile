# The nablad server for NVIDIA GPUs: the image of docker/Dockerfile, and CUDA's libraries in its environment.
#
#   docker build -f docker/Dockerfile -t nablad .
#   docker build -f docker/cuda.Dockerfile -t nablad:cuda docker
#   docker run --rm --gpus all --read-only --tmpfs /tmp:size=256m --cap-drop ALL --security-opt no-new-privileges \
#     -e NABLAD_PLAINTEXT=true -p 127.0.0.1:50051:50051 nablad:cuda
#
# The user, the health check, the entry point and all else are the other image's. The machine brings the driver alone
# (580 or later, for CUDA 13) and NVIDIA's container toolkit, which puts it into the container.

ARG NABLAD_IMAGE=nablad

FROM ${NABLAD_IMAGE}

# The base image's pip installs into the environment, which has none of its own. nablad is there already, and so is
# its JAX, which says what version of everything else it takes.
USER 0
# hadolint ignore=DL3013
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-compile 'nablad[cuda]'

# Without a GPU within reach the server does not start: JAX by itself would go on with the processor, and nobody would
# know why everything is slow. Both are named because what functions call back to Python for runs on the processor.
ENV JAX_PLATFORMS=cuda,cpu

USER 10001:10001
