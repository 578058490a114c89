"""``python -m pvs_model COMMAND``."""

from pvs_model.cli import run_process

if __name__ == "__main__":
    run_process()
