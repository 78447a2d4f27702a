"""``python -m semigen_lib`` is the console script ``semigen``."""

import sys

from semigen_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
