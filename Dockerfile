# SPDX-License-Identifier: Apache-2.0
# The images of WireKube; `hack/image` builds them. What comes from outside lies in build/image (`hack/image prepare`), so
# that a build needs no network where the base has nftables.
#
#   wireguard   wireguard-go for agents whose kernel has no WireGuard, and the script that runs it
#   wirekube    operator, agent and relay
ARG BASE=python:3.11-slim

FROM scratch AS wireguard
COPY build/image/bin/ /bin/
COPY agent/wireguard/userspace.sh /userspace.sh
ENV PATH=/bin
LABEL org.opencontainers.image.title="WireKube wireguard-go" \
      org.opencontainers.image.licenses="Apache-2.0 AND MIT AND GPL-2.0-only"
ENTRYPOINT ["busybox", "sh", "/userspace.sh"]

# What does not change with the sources is a stage, and in the end a layer, of its own.
FROM ${BASE} AS dependencies
COPY build/image/wheels /wheels
COPY hack/wheels /hack/wheels
RUN python3 -m venv /build \
 && /build/bin/pip install -q --no-index --find-links /wheels --require-hashes -r /hack/wheels/build.txt \
 && python3 -m venv --without-pip /opt/wirekube \
 && /build/bin/pip --python /opt/wirekube/bin/python3 install -q --no-index --find-links /wheels --no-compile \
    --require-hashes -r /hack/wheels/runtime.txt \
 && python3 -m compileall -q /opt/wirekube/lib

FROM dependencies AS build
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
COPY agent /src/agent
COPY api /src/api
COPY cli /src/cli
COPY controllers /src/controllers
COPY lab /src/lab
COPY relay /src/relay
COPY runtime /src/runtime
COPY telemetry /src/telemetry
COPY wire /src/wire
# Compiled, for the root file system is read-only where it runs.
RUN cd /src && /build/bin/hatchling build -t wheel -d /dist \
 && /build/bin/pip --python /opt/wirekube/bin/python3 install -q --no-index --no-deps --no-compile --root /new /dist/*.whl \
 && python3 -m compileall -q -s /new -p / /new

FROM ${BASE} AS wirekube
# The one program that an agent runs.
RUN command -v nft >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends nftables && rm -rf /var/lib/apt/lists/*; }
COPY --from=dependencies /opt/wirekube /opt/wirekube
COPY --from=build /new /
ENV PATH=/opt/wirekube/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="WireKube" \
      org.opencontainers.image.description="Operator, agent and relay of a WireGuard mesh for the nodes of a Kubernetes cluster" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
