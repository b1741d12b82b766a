"""gradosr finds what an image classifier has never seen, in archives of any size.

Open-set recognition with gradient-based representations (Lee & AlRegib, ICIP 2021, arXiv 2206.08229).
"""

import os

# Read when torch is loaded. By default, OpenMP's threads spin while they wait for each other: on a machine with a busy
# neighbour, or in a container with a share of the cores, two threads then take many times as long as one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
