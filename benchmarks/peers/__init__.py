"""What runs in the environment of a peer, where this library is not: each module here imports its neighbours alone."""
