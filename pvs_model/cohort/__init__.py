"""Many cases: one after another on this machine, or spread over many machines."""

from pvs_model.cohort.ahead import leave
from pvs_model.cohort.case import Reports, tell, tell_stopped
from pvs_model.cohort.folder import run

__all__ = ["Reports", "leave", "run", "tell", "tell_stopped"]
