"""`python -m vqaloop`."""

import sys

from vqaloop.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
