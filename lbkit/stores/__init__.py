"""Where sessions are kept: in the memory of one process, or in Redis for all replicas."""
