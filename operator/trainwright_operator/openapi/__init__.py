"""The shape of every field of our resources, told once: the CRDs, ``validate`` and ``explain`` all read it from here.

A schema is a plain OpenAPI v3 dict of the structural kind that Kubernetes takes. Keys that begin with ``_`` are ours:
words for error messages, which :func:`trainwright_operator.schema.render` leaves out of the CRD.
"""
