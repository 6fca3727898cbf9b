"""The rules of the platform: services, jobs, buckets, users; calls ports downward, knows no HTTP."""
