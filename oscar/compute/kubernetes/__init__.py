"""A Kubernetes cluster as an engine: jobs, tenants, warm workers, exposed services and volumes."""
