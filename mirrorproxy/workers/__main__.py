"""`python -m mirrorproxy.workers CONTROL`: a template as a program of its own, with a descriptor of the core's."""

import socket
import sys

from mirrorproxy.workers.template import run

run(socket.socket(fileno=int(sys.argv[1])))
