"""Segments many cases: consecutively on this machine, or distributed over the workers of a cluster."""

from pvs_model.batch.inputs import Part
from pvs_model.batch.local import run
from pvs_model.batch.outputs import ReportOptions, report_failures, report_interrupted
from pvs_model.batch.prefetch import exit_process

__all__ = ["Part", "ReportOptions", "exit_process", "report_failures", "report_interrupted", "run"]
