"""Tuning: measure the kernels of a model on the target, and what each layer costs there."""

from tvmquant.tuning.database import Database
from tvmquant.tuning.latency import Entry, LatencyTable
from tvmquant.tuning.measure import DeviceRunner, HostRunner, KernelBuilder
from tvmquant.tuning.record import Record, Timing
from tvmquant.tuning.tune import Tuned, tune
from tvmquant.tuning.tuner import Tuner, Tuning, TuningProgress, count
from tvmquant.tuning.workload import Workload, workloads_by_choice, workloads_of

__all__ = [
    "Database",
    "DeviceRunner",
    "Entry",
    "HostRunner",
    "KernelBuilder",
    "LatencyTable",
    "Record",
    "Timing",
    "Tuned",
    "Tuner",
    "Tuning",
    "TuningProgress",
    "Workload",
    "count",
    "tune",
    "workloads_by_choice",
    "workloads_of",
]
