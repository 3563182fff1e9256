# syntax=docker/dockerfile:1
# The proxy alone: Postgres, Redis and AWS credentials come from outside (see helm/). Runs as a numbered user on a
# read-only root; the one directory it writes is TOLLHOUSE_STATE_DIR, which must be a local file system.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY requirements.runtime.lock ./
RUN python -m venv /opt/tollhouse \
    && /opt/tollhouse/bin/pip install --require-hashes --requirement requirements.runtime.lock
# The build backend comes from the development lock: hashed like everything else, left behind with this stage.
COPY requirements.lock ./
RUN awk '/^[a-z]/ { keep = /^(hatchling|packaging|pathspec|pluggy|trove-classifiers)==/ } keep' requirements.lock > backend.lock \
    && python -m venv /opt/backend \
    && /opt/backend/bin/pip install --require-hashes --requirement backend.lock
COPY pyproject.toml README.md ./
COPY proxy proxy
COPY migrations migrations
COPY policies policies
RUN /opt/backend/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/tollhouse/bin/pip install --no-deps dist/*.whl \
    && /opt/tollhouse/bin/python -m compileall -q /opt/tollhouse/lib \
    && /opt/tollhouse/bin/pip uninstall --yes --quiet pip setuptools

FROM python:${PYTHON}
ENV PATH=/opt/tollhouse/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOLLHOUSE_HOST=0.0.0.0 \
    TOLLHOUSE_STATE_DIR=/var/lib/tollhouse
RUN install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/tollhouse
COPY --from=build /opt/tollhouse /opt/tollhouse
USER 10001:10001
WORKDIR /var/lib/tollhouse
VOLUME /var/lib/tollhouse
EXPOSE 8080 9464
ENTRYPOINT ["tollhouse"]
CMD ["serve"]
