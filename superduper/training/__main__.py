"""`python -m superduper.training`."""

import sys

from superduper.training.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
