"""A chat whose rooms span replicas."""
