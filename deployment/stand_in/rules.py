"""What Modal refuses: without these rules the stand-in would accept nonsense, and a test would prove nothing.

From Modal's documentation of its 1.6 client, which leaves these checks to the servers.
"""

import re

import grpclib
from modal_proto import api_pb2 as pb

GPUS = {"T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "H100", "H100!", "H200", "B200"}
CLUSTER_GPUS = {"H100", "H200", "B200"}
MOST_GPUS = {"A10": 4, "A10G": 4}  # eight of the others
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
DAY = 86_400


def refuse(message: str) -> None:
    raise grpclib.GRPCError(grpclib.Status.INVALID_ARGUMENT, message)


def check_function(function: pb.Function) -> None:
    """Refuse a function that Modal would not take."""
    gpu, count = function.resources.gpu_config.gpu_type.upper(), function.resources.gpu_config.count
    if gpu and gpu not in GPUS:
        refuse(f"unknown GPU type {gpu!r}")
    most = MOST_GPUS.get(gpu, 8)
    if gpu and not 1 <= count <= most:
        refuse(f"a container has 1 to {most} GPUs of type {gpu}, not {count}")
    if function.timeout_secs and not 1 <= function.timeout_secs <= DAY:
        refuse(f"timeout must be between 1 second and 24 hours, not {function.timeout_secs} seconds")
    if function.retry_policy.retries > 10:
        refuse("retries must be at most 10")
    window = function.autoscaler_settings.scaledown_window or function.task_idle_timeout_secs
    if window and not 2 <= window <= 3600:
        refuse(f"scaledown_window must be between 2 and 3600 seconds, not {window}")
    if function.resources.milli_cpu > 64_000 or function.resources.memory_mb > 344_064:
        refuse("no worker has so many cores, or so much memory")
    if gpu and function.scheduler_placement.nonpreemptible:
        refuse("nonpreemptible is not supported for GPU Functions")
    if function._experimental_group_size > 1 and (gpu not in CLUSTER_GPUS or count != 8):
        refuse(f"a cluster needs all 8 GPUs of its hosts ({', '.join(sorted(CLUSTER_GPUS))})")
    if function.schedule.cron.cron_string:
        check_cron(function.schedule.cron.cron_string)


def check_cron(line: str) -> None:
    """Refuse what is not a line of five fields, each with a number of its range, a *, a range or a list of those."""
    fields = line.split()
    good = len(fields) == 5 and all(
        all(_fits(part, *bounds) for part in field.split(","))
        for field, bounds in zip(fields, CRON_RANGES, strict=True)
    )
    if not good:
        refuse(f"invalid cron line {line!r}")


def _fits(part: str, least: int, most: int) -> bool:
    match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", part)
    return bool(match) and all(least <= int(number) <= most for number in match.groups()[:2] if number is not None)
