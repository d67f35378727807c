"""Asks containerd for an image as the kubelet does: `cri.py SOCKET REFERENCE`, run by the Python of .venv/tools.

The one message that is sent is written by hand: CRI's PullImageRequest, whose first field is an ImageSpec, whose first
field is the name of the image (kubernetes/cri-api, runtime/v1/api.proto).
"""

import sys

import grpc

TIMEOUT = 30.0


def field(content: bytes) -> bytes:
    """Field 1 of a protobuf message, of less than 128 bytes."""
    assert len(content) < 128
    return bytes([1 << 3 | 2, len(content)]) + content


def main(socket: str, reference: str) -> None:
    """Pull it; a failure is an exception with containerd's words."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        pull = channel.unary_unary("/runtime.v1.ImageService/PullImage")
        pull(field(field(reference.encode())), timeout=TIMEOUT, wait_for_ready=True)


main(*sys.argv[1:])
