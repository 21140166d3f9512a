# Upscaling in a container, on CPU unless told otherwise:
#
#   docker build -t esrgan_jax .
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" esrgan_jax \
#     upscale photo.jpg
#
# For an accelerator, or training, name extras of pyproject.toml:
#
#   docker build -t esrgan_jax --build-arg EXTRAS=cuda .     then --gpus all
#   docker build -t esrgan_jax --build-arg EXTRAS=tpu,train .
#
# Training is another program of the same image:
#
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" \
#     --entrypoint python esrgan_jax -m esrgan_jax.main \
#     --config=configs/gan.py --workdir=runs/gan
#
# The page of `demo` listens in the container, which is reached by this machine
# alone with -p 127.0.0.1:7860:7860 (EXTRAS=demo; demo --host 0.0.0.0 --port
# 7860 --name localhost: other names, of web pages that lead a browser there,
# are refused). No image was built where this was written: its steps were run in
# a folder with Debian's Python, `.ci/release docker`.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY esrgan_jax esrgan_jax
RUN python -m pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

# Fetched models and compiled programs, of whoever runs it; a volume keeps them.
RUN mkdir -m 1777 /cache
ENV ESRGAN_JAX_CACHE=/cache \
    HOME=/cache \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
RUN python -m esrgan_jax models
USER nobody
ENTRYPOINT ["python", "-m", "esrgan_jax"]
CMD ["--help"]
