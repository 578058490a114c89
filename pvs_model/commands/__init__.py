"""The commands of ``pvs-model``: one file each, with ``add_arguments`` and ``run``."""
