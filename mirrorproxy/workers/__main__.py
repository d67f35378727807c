"""`python -m mirrorproxy.workers LINE LISTENING...`: what the service starts for each worker, with descriptors."""

import sys

from mirrorproxy.workers.worker import main

line, *listening = map(int, sys.argv[1:])
sys.exit(main(line, listening))
