"""Apps that behave well behind a load balancer, and proof that they do."""
