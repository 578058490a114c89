"""Entry point of the container: segments the cases of a folder (``pvs_model.commands.segment``)."""

from pvs_model.batch import exit_process
from pvs_model.commands.segment import main

if __name__ == "__main__":
    exit_process(main())
