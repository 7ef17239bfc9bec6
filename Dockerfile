# taskd with the runtimes it drives, on Debian 13: Python 3.13, containerd 1.7's shims, runc, crun, criu 4.1.
# The target `tests` adds what its tests need. See docs/compose.md.
FROM debian:trixie-slim AS taskd
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        busybox-static containerd criu crun nats-server python3-venv runc tini \
    && rm -rf /var/lib/apt/lists/*
# An index other than the usual one is a build argument: pip reads it from the environment.
ARG PIP_INDEX_URL
WORKDIR /src
COPY locks locks
RUN python3 -m venv /opt/taskd \
    && /opt/taskd/bin/pip install --no-cache-dir --require-hashes --requirement locks/taskd.txt
COPY pyproject.toml README.md LICENSE ./
COPY taskd taskd
COPY shims shims
COPY systemd systemd
COPY man man
COPY protos protos
RUN /opt/taskd/bin/pip install --no-cache-dir --no-deps --no-build-isolation .
ENV PATH=/opt/taskd/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY tests/composed/entrypoint /entrypoint
# tini reaps what shims leave: whoever is process 1 inherits it.
ENTRYPOINT ["tini", "-g", "--", "/entrypoint"]
CMD ["taskd", "serve"]

FROM taskd AS tests
RUN apt-get update \
    && apt-get install -y --no-install-recommends mount procps \
    && rm -rf /var/lib/apt/lists/*
RUN /opt/taskd/bin/pip install --no-cache-dir --require-hashes --requirement locks/dev.txt
COPY . .
RUN /opt/taskd/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable .
CMD ["pytest"]
