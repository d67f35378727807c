#!/bin/sh
# The real clients and servers that the tests and the benchmark need, from Debian's packages.
# Nothing is done when all are there; what is missing is installed as root, else named.
set -eu

missing=
need() { # need COMMAND PACKAGE
    PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v "$1" >/dev/null || missing="$missing $2"
}
need docker-registry docker-registry
need dockerd docker.io
need containerd containerd
need ctr containerd
need podman podman
need buildah buildah
need skopeo skopeo
need nginx nginx-light
need wrk wrk
need ip iproute2
need strace strace
need faketime faketime
need promtool prometheus
need debootstrap debootstrap
need systemd-analyze systemd
need systemd-socket-activate systemd
need unshare util-linux
need nsenter util-linux
need setpriv util-linux
need mount mount
# Debian 13 has Docker's client in a package of its own, Debian 12 in docker.io.
if [ -r /etc/debian_version ] && [ "$(cut -d. -f1 /etc/debian_version)" = 12 ]; then
    need docker docker.io
else
    need docker docker-cli
fi
[ -n "$missing" ] || exit 0

missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
if [ "$(id -u)" != 0 ]; then
    echo "the tests need these Debian packages: $missing" >&2
    echo "as root: apt-get update && apt-get install --no-install-recommends $missing" >&2
    exit 1
fi

# Installed services must not start by themselves: the tests start their own, on ports that these would take.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
install() {
    # shellcheck disable=SC2086  # a list of names
    apt-get install --yes --quiet --no-install-recommends $missing
}
# The lists may be absent (a fresh container) or too old (the files they name are gone).
install 2>/dev/null || { apt-get update --quiet && install; }
