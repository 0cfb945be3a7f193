"""What some GPUs can do at most, from their makers' data sheets: memory, bytes per second, operations per second.

Operations are bfloat16 products on tensor cores with float32 sums, *dense*: data sheets like to print twice
as many, which holds for matrices half of whose entries are zero. A CPU has no such number worth trusting;
`utils.peaks.measured_peaks` measures one.

NVIDIA's data sheets: A100, https://www.nvidia.com/en-us/data-center/a100/; H100,
https://www.nvidia.com/en-us/data-center/h100/; H200, https://www.nvidia.com/en-us/data-center/h200/; L40,
https://www.nvidia.com/en-us/data-center/l40/; L40S, https://www.nvidia.com/en-us/data-center/l40s/; RTX 4090,
NVIDIA's white paper on the Ada architecture, appendix A.
"""

import re
from dataclasses import dataclass

from utils.files import InputError


@dataclass(frozen=True)
class Device:
    """A GPU's peaks."""

    name: str
    memory: float
    """Bytes. A maker's GB of GPU memory are 2**30 bytes."""
    bytes_per_second: float
    """How fast that memory is read."""
    flops_per_second: float
    """Dense products of bfloat16 numbers."""


GB = 2**30
# Each key matches what is left of a name like "NVIDIA A100-SXM4-80GB" without the maker, spaces and dashes.
DEVICES = {
    r"a100(sxm4?)?(80gb)?(pcie)?": Device("A100", 80 * GB, 2.0e12, 312e12),
    r"a100(sxm4?|pcie)?40gb": Device("A100 40GB", 40 * GB, 1.555e12, 312e12),
    r"h100(sxm5?)?(80gb(hbm3)?)?": Device("H100", 80 * GB, 3.35e12, 989e12),
    r"h100(80gb)?pcie": Device("H100 PCIe", 80 * GB, 2.0e12, 756e12),
    r"h200(sxm)?(141gb)?": Device("H200", 141 * GB, 4.8e12, 989e12),
    r"l40s(48gb)?": Device("L40S", 48 * GB, 864e9, 362e12),
    r"l40(48gb)?": Device("L40", 48 * GB, 864e9, 181e12),
    r"(rtx)?4090(24gb)?": Device("RTX 4090", 24 * GB, 1.008e12, 165e12),
}


def find_device(name: str) -> Device:
    """Return the GPU called `name`: as in "h100", "RTX 4090", or as `torch.cuda.get_device_name()` has it.

    Raises:
        InputError: if it is none of these: a GPU with a similar name may be half as fast.
    """
    short = re.sub(r"nvidia|geforce|[\s_-]", "", name.lower())
    for pattern, device in DEVICES.items():
        if re.fullmatch(pattern, short):
            return device
    known = ", ".join(device.name for device in DEVICES.values())
    raise InputError(f"the peaks of {name!r} are not known; those of {known} are")
