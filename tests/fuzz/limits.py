"""What a case may take. The files are a few KiB; the slowest part is a model that is loaded."""

CPU_S = 20
"""Processor time, of all threads."""

WALL_S = 300
"""After which a process that answers nothing is taken for hung, on a machine that has other work too."""

PEAK_BYTES = 512 << 20
"""Resident memory beyond what the process had before."""

ADDRESS_SPACE_BYTES = 4 << 30
"""Address space beyond what the process had: an allocation by a size that a file lies about fails."""

DISK_BYTES = 256 << 20
"""Of one file."""
