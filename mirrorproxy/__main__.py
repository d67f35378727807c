"""`python -m mirrorproxy`."""

import sys

from mirrorproxy.cli import main

sys.exit(main())
