"""`python -m jaxstab` is the command `jaxstab`."""

import sys

from jaxstab.cli import main

if __name__ == "__main__":
    sys.exit(main())
