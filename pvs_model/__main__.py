"""``python -m pvs_model COMMAND``."""

import sys

from pvs_model.cli import main

if __name__ == "__main__":
    sys.exit(main())
