"""Several nodes on one machine, each a container with a real kubelet and a real container runtime.

Where a Docker runs, it is used and not disturbed, and kind's own node image with it where that can be had. Otherwise
the harness brings what is missing: Debian's Docker with a data folder, a socket and a runtime of its own, and a node
image made of Debian's packages and the stock programs.
"""
