"""A small Flask shop that works behind any number of replicas."""
