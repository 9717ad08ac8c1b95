"""Several nodes on one machine, each a container with a real kubelet and a real container runtime.

Where a Docker runs, it is used, and kind's own node image with it where that can be had. Where there is none, the
harness brings both: Debian's Docker with a data folder, a socket and a runtime of its own, and a node image made of
Debian's packages and the stock programs.
"""
