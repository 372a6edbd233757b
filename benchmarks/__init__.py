"""How fast, how small and how lean sae_vis is, beside its peers and beside the machine's own limit.

``python -m benchmarks --help`` says how to run it. Not part of the package that is installed.
"""
