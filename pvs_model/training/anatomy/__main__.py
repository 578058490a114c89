"""Starts ``python -m pvs_model.training.anatomy``."""

import sys

from pvs_model.training.anatomy.task import main

if __name__ == "__main__":
    sys.exit(main())
