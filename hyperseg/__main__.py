"""`python -m hyperseg` is the `hyperseg` command."""

import sys

from hyperseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
