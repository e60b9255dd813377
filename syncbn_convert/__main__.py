"""`python -m syncbn_convert` is `syncbn-convert`."""

import sys

from syncbn_convert.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
