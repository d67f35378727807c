# The container image: docker build -t mirrorproxy .
#
# BASE is any image with a python3 (3.11 or newer) that has venv and pip; both stages use it.
# Packages come from where pip finds them by itself, or as a file says: --secret id=pip,src=pip.conf
# That file may name a certificate authority, /run/secrets/ca: --secret id=ca,src=company-ca.pem
# checkov:skip=CKV_DOCKER_7: BASE has a tag, which checkov does not look up in ARG
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv --without-pip /opt/mirrorproxy && python3 -m venv --without-pip /opt/build
# What is in these files, byte for byte, and nothing else (the extra otel is).
COPY requirements.lock requirements-build.lock ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip --python /opt/mirrorproxy/bin/python install \
        --no-cache-dir --no-deps --only-binary=:all: --require-hashes --requirement requirements.lock \
    && python3 -m pip --python /opt/build/bin/python install \
        --no-cache-dir --no-deps --only-binary=:all: --require-hashes --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY mirrorproxy ./mirrorproxy
RUN python3 -m pip --python /opt/build/bin/python wheel \
        --no-cache-dir --no-deps --no-index --no-build-isolation --wheel-dir dist . \
    && python3 -m pip --python /opt/mirrorproxy/bin/python install \
        --no-cache-dir --no-deps --no-index --find-links=dist mirrorproxy

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mirrorproxy" \
      org.opencontainers.image.description="A pull-through cache for container images" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# 65532 is nobody in particular, as in other images without a root; it owns the cache and nothing else.
RUN install --directory --owner=65532 --group=65532 --mode=0700 /var/lib/mirrorproxy
COPY --from=build /opt/mirrorproxy /opt/mirrorproxy
COPY packaging/container/config.yaml /etc/mirrorproxy/config.yaml
# The default cache directory is mirrorproxy in $XDG_CACHE_HOME.
ENV PATH=/opt/mirrorproxy/bin:$PATH \
    MIRRORPROXY_CONFIG=/etc/mirrorproxy/config.yaml \
    XDG_CACHE_HOME=/var/lib \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
VOLUME /var/lib/mirrorproxy
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["mirrorproxy", "healthcheck"]
ENTRYPOINT ["mirrorproxy"]
CMD ["serve"]
