"""A real Kubernetes for the tests, on any machine with Go: nothing about an operator is true until one has seen it.

Three providers give the same small interface (see :mod:`cluster.provider`): ``control-plane`` runs etcd, the API
server, the controllers and the scheduler as processes on loopback, with simulated nodes; ``kind`` runs several nodes in
containers, with a real kubelet and container runtime each; ``existing`` is any cluster that a kubeconfig points to.
"""
