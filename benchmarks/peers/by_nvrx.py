"""training.py under NVIDIA's resiliency extension, a heartbeat a step; ``nvrx.sbatch`` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from nvidia_resiliency_ext.fault_tolerance import RankMonitorClient

sys.path.insert(0, str(Path(__file__).resolve().parent))

import training

if __name__ == "__main__":
    monitor = RankMonitorClient()
    monitor.init_workload_monitoring()
    training.fit(Path(sys.argv[1]), Path(sys.argv[2]), monitor.send_heartbeat)
    monitor.shutdown_workload_monitoring()
